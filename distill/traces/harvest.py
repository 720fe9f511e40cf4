"""Harvest traces from a generator: n samples a problem, or log-probabilities of given chains."""

import contextlib
import hashlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from distill.core import seeds
from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request, Sampling
from distill.core.progress import progress
from distill.core.records import Problem, Trace
from distill.core.store import Shards, Stage
from distill.endpoints import spending
from distill.endpoints.spending import SpendingLog
from distill.text.completions import cut, cut_after_answer
from distill.text.prompts import TeacherPrompt

logger = logging.getLogger(__name__)
Key = tuple[str, int]

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("traces", "spent")
HARVESTED_SPLITS = ("train", "validation")


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """Return the seed of one sample, 31 bits that depend on nothing but the arguments.

    Example:
        >>> sample_seed(0, "gsm8k/train/0", 0) == sample_seed(0, "gsm8k/train/0", 0)
        True
    """
    return seeds.from_names(seed, problem_id, sample)


def harvest(
    problems: Iterable[Problem],
    generator: Generator,
    *,
    samples: int,
    sampling: Sampling,
    prompt: Callable[[str], str],
    done: Collection[Key] = frozenset(),
    seed: int = 0,
    log: SpendingLog | None = None,
) -> Iterator[Trace]:
    r"""Yield `samples` traces of each problem in the order in which they finish.

    Each text is cut after the first line that holds "answer is". A trace depends on its problem,
    its sample number, the seed and the sampling alone, so skipping some changes no other.

    Args:
        problems: with the questions.
        generator: writes the texts.
        samples: number of samples a problem.
        sampling: how tokens are drawn.
        prompt: returns a question's prompt.
        done: (problem_id, sample) that need no trace.
        seed: the run's seed, from which each sample's own is derived.
        log: counts the tokens of each completion.

    Raises:
        UserError: the generator cannot serve.

    Example:
        >>> from distill.models.saved import SavedModel
        >>> problem = Problem("mine/1", "mine", "train", "What is 4 + 4?", "8")
        >>> teacher = SavedModel("data/models/teacher", batch_size=2)
        >>> traces = harvest([problem], teacher, samples=2, sampling=Sampling(max_tokens=32),
        ...                  prompt="Q: {}\nLet's think step by step\n".format)
        >>> sorted(trace.sample for trace in traces)
        [0, 1]
    """
    keys: list[tuple[Problem, int]] = []
    requests: list[Request] = []
    for problem in problems:
        text = prompt(problem.question)
        for sample in range(samples):
            if (problem.problem_id, sample) not in done:
                keys.append((problem, sample))
                seed_ = sample_seed(seed, problem.problem_id, sample)
                requests.append(Request(text, seed_))
    completions = generator.generate(requests, sampling)
    yield from _traces(keys, requests, completions, model=generator.model, log=log)


def score(
    problems: Iterable[Problem],
    generator: Generator,
    *,
    top_logprobs: int,
    prompt: Callable[[str], str],
    done: Collection[Key] = frozenset(),
    log: SpendingLog | None = None,
) -> Iterator[Trace]:
    """Yield the generator's log-probabilities for each problem's own chain, as sample 0.

    Args:
        problems: problems with a chain; it is cut as a sample is.
        generator: scores the chains.
        top_logprobs: candidates reported for each token.
        prompt: returns a question's prompt.
        done: (problem_id, 0) that need no trace.
        log: counts the tokens of each completion.

    Raises:
        UserError: a problem has no chain, or the generator cannot score a given text.
    """
    keys = [(problem, 0) for problem in problems if (problem.problem_id, 0) not in done]
    requests = [
        Request(prompt(problem.question), completion=cut(_chain(problem))) for problem, _ in keys
    ]
    completions = generator.score(requests, top_logprobs)
    yield from _traces(keys, requests, completions, model=generator.model, log=log)


def _chain(problem: Problem) -> str:
    if problem.chain is None:
        raise UserError(
            "a chain in every problem to score",
            f"{problem.problem_id} without one",
            "add chains or harvest samples",
        )
    return problem.chain


def _traces(
    keys: Sequence[tuple[Problem, int]],
    requests: Sequence[Request],
    completions: Iterable[tuple[int, Completion]],
    *,
    model: str,
    log: SpendingLog | None,
) -> Iterator[Trace]:
    for index, whole in completions:
        if log is not None:
            log.add(whole.usage)
        (problem, sample), request = keys[index], requests[index]
        completion = cut_after_answer(whole)
        if completion.finish_reason == "too_long":
            name = problem.problem_id
            logger.warning("%s sample %d is longer than the generator reads", name, sample)
        yield Trace(
            problem_id=problem.problem_id,
            sample=sample,
            prompt=request.prompt,
            model=model,
            seed=request.seed,
            **completion.trace_fields(),
        )


def summarise(traces: Iterable[Trace], top_logprobs: int) -> dict[str, Any]:
    """Count traces, tokens, finish reasons, and tokens with fewer candidates than asked for.

    Example:
        >>> summarise([], 5)["traces"]
        0
    """
    reasons: Counter[str] = Counter()
    tokens = short = 0
    for trace in traces:
        reasons[trace.finish_reason] += 1
        tokens += len(trace.tokens)
        short += int(np.sum(np.diff(trace.top_ends, prepend=0) < top_logprobs))
    return {
        "traces": reasons.total(),
        "tokens": tokens,
        "tokens_with_fewer_candidates": short,
        "finish_reasons": dict(sorted(reasons.items())),
    }


def _write(
    traces: Iterable[Trace],
    shards: Shards[Trace],
    log: SpendingLog,
    *,
    shard_traces: int,
    shard_seconds: float,
) -> None:
    """Append the traces shard by shard, also those in memory when their source fails.

    The log is written after the traces that it counts.
    """
    waiting: list[Trace] = []
    last = time.monotonic()
    try:
        for trace in traces:
            waiting.append(trace)
            if len(waiting) >= shard_traces or time.monotonic() - last >= shard_seconds:
                # Taken first: an interrupt while it is written must not write it a second time.
                batch, waiting = waiting, []
                shards.append(batch)
                log.write()
                last = time.monotonic()
    finally:
        shards.append(waiting)
        log.write()


@runtime_checkable
class ProbedGenerator(Protocol):
    """A generator whose capabilities can be probed before it is used."""

    def probe(self, sampling: Sampling, *, scored: bool) -> Mapping[str, Any]:
        """Return the capabilities.

        Raises:
            UserError: it cannot serve.
        """
        ...


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that traces in memory are written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _refuse_holes(shards: Shards[Trace], wanted: Collection[Key]) -> None:
    missing = set(wanted) - shards.keys("problem_id", "sample")
    if missing:
        raise UserError(
            f"a trace for each of {len(wanted)} samples",
            f"{len(missing)} without one, {min(missing)} the first",
            "run the same command again to request those",
        )


def _chosen(run_dir: Path, split: str) -> list[Problem]:
    if split not in HARVESTED_SPLITS:
        raise UserError(
            f"a split of {', '.join(HARVESTED_SPLITS)}", split, "leave the others to evaluate"
        )
    problems = [p for p in Shards(run_dir / "problems", Problem) if p.split == split]
    if not problems:
        raise UserError(f"problems of split {split} in {run_dir}", "none", "choose another split")
    return problems


def _stage_name(part: tuple[int, int] | None) -> str:
    if part is None:
        return "harvest"
    first, step = part
    if not 0 <= first < step:
        raise UserError("a part (i, n) with 0 <= i < n", str(part), "count the parts from 0")
    return f"harvest-{first}-of-{step}"


def _digest(problems: Iterable[Problem], prompt: Callable[[str], str]) -> str:
    """Return the SHA-256 of all prompts, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(prompt(problem.question).encode() + b"\0")
    return digest.hexdigest()


def _probe(generator: Generator, sampling: Sampling, *, scored: bool) -> dict[str, Any]:
    if not isinstance(generator, ProbedGenerator):
        return {}
    return {"probe": dict(generator.probe(sampling, scored=scored))}


def run(
    *,
    run_dir: Path,
    generator: Generator,
    samples: int = 4,
    sampling: Sampling = Sampling(temperature=0.7),  # noqa: B008
    split: str = "train",
    score_chains: bool = False,
    prompt: Callable[[str], str] = TeacherPrompt(),  # noqa: B008
    seed: int = 0,
    part: tuple[int, int] | None = None,
    shard_traces: int = 512,
    shard_seconds: float = 10.0,
) -> dict[str, Any]:
    """Fill RUN_DIR/traces from RUN_DIR/problems; resume an earlier start.

    Several processes that share a run directory can share a harvest: each runs one `part`, and one
    run without a part, after them, has no requests left, counts and finishes the stage.

    Args:
        run_dir: the run directory; its stage `problems` is complete.
        generator: writes or scores the texts.
        samples: number of samples a problem.
        sampling: how tokens are drawn and how many candidates are kept.
        split: train or validation.
        score_chains: score each problem's own chain instead of sampling.
        prompt: returns a question's prompt.
        seed: the run's seed.
        part: (i, n) to harvest only every n-th problem, from the i-th, counted from 0.
        shard_traces: traces after which a shard is written; a kill loses those since the last one.
        shard_seconds: seconds after which a shard with fewer is written.

    Raises:
        UserError: no such problems, or the generator cannot serve; its traces so far are kept.
    """
    run_dir = Path(run_dir)
    settings = {
        "generator": generator,
        "samples": 1 if score_chains else samples,
        "sampling": sampling,
        "split": split,
        "score_chains": score_chains,
        "prompt": prompt,
        "seed": seed,
    }
    name = _stage_name(part)
    with Stage.open(
        run_dir,
        name,
        settings=settings,
        inputs=["problems"],
        outputs=() if part else OUTPUTS,  # parts share a folder, which the whole stage lists
    ) as stage:
        if stage.complete:
            return stage.summary
        first, step = part or (0, 1)
        problems = _chosen(run_dir, split)[first::step]
        wanted = {(p.problem_id, n) for p in problems for n in range(settings["samples"])}
        shards = Shards(run_dir / "traces", Trace)
        done = wanted & shards.keys("problem_id", "sample")
        capabilities = _probe(generator, sampling, scored=score_chains) if wanted - done else {}
        limited = spending.after_earlier_starts(generator, run_dir)
        log = spending.open_log(generator, run_dir, name)
        if score_chains:
            top = sampling.top_logprobs
            traces = score(problems, limited, top_logprobs=top, prompt=prompt, done=done, log=log)
        else:
            traces = harvest(
                problems,
                limited,
                samples=samples,
                sampling=sampling,
                prompt=prompt,
                done=done,
                seed=seed,
                log=log,
            )
        shown = progress(traces, name=name, total=len(wanted), done=len(done), unit="traces")
        with _terminable():
            _write(
                shown,
                shards,
                log,
                shard_traces=shard_traces,
                shard_seconds=shard_seconds,
            )
        _refuse_holes(shards, wanted)
        kept = (trace for trace in shards if (trace.problem_id, trace.sample) in wanted)
        prompts = {"prompts_sha256": _digest(problems, prompt)}
        counts = summarise(kept, sampling.top_logprobs)
        stage.finish(**counts, **capabilities, **prompts, **spending.summary(run_dir))
        return stage.summary
