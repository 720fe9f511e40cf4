"""Answers of checkpoints to problems, graded and counted; choosing one is select's part."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.ports import Generator, Request, Sampling
from distill.core.progress import progress
from distill.core.records import Accuracy, Prediction, Problem, Trace
from distill.core.store import Shards, Stage, manifest, read_json
from distill.corpus import prompts
from distill.corpus.check import GRADERS, Grader, check
from distill.corpus.completions import cut_after_answer

logger = logging.getLogger(__name__)

# What steers the choice of a checkpoint, and what is reported of the chosen one.
STEERING = ("validation", "selection")
REPORTED = ("report", "test")
PER_SHARD = 256
GREEDY = Sampling(temperature=0.0, top_logprobs=0)


def evaluate(
    problems: Sequence[Problem],
    generator: Generator,
    *,
    format: Callable[[Problem], str],
    grader: Grader,
    sampling: Sampling = GREEDY,
    step: int = 0,
) -> Iterator[Prediction]:
    """Ask every problem once; cut and grade what comes as a teacher's traces are.

    A prediction depends on its problem, the generator and the sampling alone.

    Args:
        problems: what is asked.
        generator: who answers.
        format: a problem's prompt.
        grader: how an answer is found and compared with the gold one.
        sampling: greedy by default.
        step: the checkpoint that the generator runs.

    Returns:
        One prediction for each problem, in the order in which they finish.
    """
    requests = [Request(format(problem)) for problem in problems]
    for index, completion in generator.generate(requests, sampling):
        problem, asked = problems[index], requests[index]
        written = vars(cut_after_answer(completion))
        trace = Trace(problem.problem_id, 0, asked.prompt, **written, model="", seed=asked.seed)
        (verdict,) = check([trace], [problem], grader)
        found = (trace.text, verdict.outcome, verdict.answer)
        yield Prediction(step, problem.problem_id, problem.source, problem.split, *found)


def tally(predictions: Iterable[Prediction]) -> dict[int, dict[str, Accuracy]]:
    """Count right answers by step and set.

    Example:
        >>> tally([Prediction(0, "svamp/report/1", "svamp", "report", "It is 3", "right", "3")])
        {0: {'svamp': Accuracy(correct=1, n=1)}}
    """
    found: dict[int, dict[str, Accuracy]] = {}
    for prediction in predictions:
        of_step = found.setdefault(prediction.step, {})
        one = Accuracy(int(prediction.outcome == "right"), 1)
        before = of_step.get(prediction.source)
        of_step[prediction.source] = before + one if before else one
    return found


def ask(
    problems: Sequence[Problem],
    steps: Sequence[int],
    student: Callable[[int], Generator],
    sink: Shards[Prediction],
    **how: Any,
) -> None:
    """Write the predictions of every step that an earlier start has not written.

    Args:
        problems: what every step is asked.
        steps: the checkpoints.
        student: the generator of a checkpoint, made only where something is left to ask.
        sink: where the predictions go; what it holds of a step and a problem is not asked again.
        how: the other arguments of `evaluate`.
    """
    done = sink.keys("step", "problem_id")
    for step in steps:
        left = [problem for problem in problems if (step, problem.problem_id) not in done]
        if not left:
            continue
        predictions = progress(
            evaluate(left, student(step), step=step, **how),
            name=f"step {step}",
            total=len(problems),
            done=len(problems) - len(left),
            unit="problems",
        )
        while shard := list(itertools.islice(predictions, PER_SHARD)):
            sink.append(shard)


def choose(
    problems: Iterable[Problem], splits: Sequence[str], limit: int | None = None
) -> list[Problem]:
    """Return the problems of some splits, the first `limit` of each set.

    Raises:
        UserError: there are none.
    """
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        of_set = found.setdefault(problem.source, [])
        if problem.split in splits and (limit is None or len(of_set) < limit):
            of_set.append(problem)
    chosen = [problem for of_set in found.values() for problem in of_set]
    if not chosen:
        raise UserError(
            f"problems of split {' or '.join(splits)}", "none", "add such a set to stage problems"
        )
    return chosen


def prompt(name: str, train: Iterable[Problem]) -> Callable[[Problem], str]:
    """Return a format as a function from a problem to its prompt.

    The in-context formats show train problems, which a problem's id draws, so that a problem has
    one prompt whatever is asked beside it.

    Args:
        name: one of `prompts.FORMATS`.
        train: what demonstrations are drawn from; a chain format shows those that have a chain.

    Raises:
        UserError: there is no such format, or too few problems to show.
    """
    _require("format", prompts.FORMATS, name)
    format = prompts.FORMATS[name]
    if not format.in_context:
        return format.encoder_input
    pool = [problem for problem in train if problem.chain or not format.chain]
    few = prompts.DEMONSTRATIONS
    if len({problem.question for problem in pool}) <= few:
        raise UserError(
            f"more than {few} train problems to show", str(len(pool)), "ask a zero-shot format"
        )
    return lambda problem: format.encoder_input(problem, prompts.draw(pool, problem, seed=0))


def students(
    run_dir: Path, batch_size: int, *, start: str | None = None
) -> Callable[[int], Generator]:
    """Return what makes the generator of a checkpoint; all share one compiled program.

    Args:
        run_dir: the run, whose checkpoints are taken; step 0 is the start itself.
        batch_size: problems decoded together.
        start: the directory of the start; where train found it if None.

    Raises:
        UserError: the start is missing or damaged, or the run is not trained.
    """
    import jax

    from distill.models.sampling import Shipped
    from distill.training import initialise
    from distill.training.checkpoints import load_params

    name = start or manifest(run_dir, "train")["settings"]["student"]
    directory = initialise.directory(run_dir, name)
    loaded = Shipped(str(directory), batch_size=batch_size).generator
    # Committed to a device as restored ones are: else the start has a program of its own.
    params = jax.device_put(loaded.params, jax.local_devices()[0])
    first = dataclasses.replace(loaded, params=params)

    def of_step(step: int) -> Generator:
        if step == 0:
            return first
        trained = load_params(run_dir / "checkpoints", step, like=params)
        return dataclasses.replace(first, params=trained)

    return of_step


# --- The stages --------------------------------------------------------------------------------


def run(
    *,
    run_dir: Path,
    student: str | None = None,
    format: str = "zero_shot_cot",
    grader: str = "default",
    max_tokens: int = 256,
    batch_size: int = 64,
    limit: int | None = None,
) -> dict[str, Any]:
    """Answer the validation sets and the selection halves with every checkpoint, step 0 included.

    Args:
        run_dir: the run.
        student: the directory of the start; where train found it if None.
        format: the prompt format that is asked.
        grader: `default`, or `fu2023` for parity with the paper.
        max_tokens: most tokens of an answer.
        batch_size: problems decoded together; it changes no answer.
        limit: most problems of a set; all where None.

    Returns:
        `accuracy`, {step: {set: {"correct", "n"}}}, and the numbers of checkpoints and predictions.

    Raises:
        UserError: no such format or grader, no such problems, or an input is not complete.
    """
    from distill.training import checkpoints

    settings = _settings(format, grader, max_tokens, limit)
    inputs = ("problems", "train")
    with Stage.open(run_dir, "evaluate", settings=settings, inputs=inputs) as stage:
        if not stage.complete:
            make = students(run_dir, batch_size, start=student)
            sink = Shards(run_dir / "predictions", Prediction)
            steps = sorted({0, *checkpoints.steps(run_dir / "checkpoints")})
            stage.finish(**_fill(run_dir, sink, STEERING, steps, make, settings))
        return stage.summary


def final(
    *,
    run_dir: Path,
    student: str | None = None,
    format: str = "zero_shot_cot",
    grader: str = "default",
    max_tokens: int = 256,
    batch_size: int = 64,
    limit: int | None = None,
) -> dict[str, Any]:
    """Answer the report halves and test splits with the start and the chosen checkpoint.

    Where validation would have chosen another checkpoint, that one answers too.

    Args:
        run_dir: the run.
        student: the directory of the start; where train found it if None.
        format: the prompt format that is asked.
        grader: `default`, or `fu2023` for parity with the paper.
        max_tokens: most tokens of an answer.
        batch_size: problems decoded together; it changes no answer.
        limit: most problems of a set; all where None.

    Returns:
        `accuracy`, {step: {set: {"correct", "n"}}}, and the numbers of checkpoints and predictions.

    Raises:
        UserError: no such format or grader, no such problems, or an input is not complete.
    """
    settings = _settings(format, grader, max_tokens, limit)
    inputs = ("problems", "train", "select")
    with Stage.open(run_dir, "final", settings=settings, inputs=inputs) as stage:
        if not stage.complete:
            make = students(run_dir, batch_size, start=student)
            sink = Shards(run_dir / "final", Prediction)
            steps = _reported_steps(run_dir)
            stage.finish(**_fill(run_dir, sink, REPORTED, steps, make, settings))
        return stage.summary


def _reported_steps(run_dir: Path) -> list[int]:
    selection = read_json(run_dir / "reports" / "selection.json")
    names = ("chosen_step", "validation_step")
    return sorted({0, *(selection[name] for name in names if name in selection)})


def _settings(format: str, grader: str, max_tokens: int, limit: int | None) -> dict[str, Any]:
    """Refuse what is wrong before a manifest holds it."""
    _require("format", prompts.FORMATS, format)
    _require("grader", GRADERS, grader)
    if max_tokens < 1 or (limit is not None and limit < 1):
        raise UserError(
            "max_tokens and limit of at least 1",
            f"max_tokens {max_tokens} and limit {limit}",
            "raise them or leave them out",
        )
    return {"format": format, "grader": grader, "max_tokens": max_tokens, "limit": limit}


def _require(what: str, known: Collection[str], name: str) -> None:
    if name not in known:
        raise UserError(f"a {what} of {', '.join(known)}", name, "name one of them")


def _fill(
    run_dir: Path,
    sink: Shards[Prediction],
    splits: Sequence[str],
    steps: Sequence[int],
    make: Callable[[int], Generator],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Ask what is left to ask and count all of it."""
    every = list(Shards(run_dir / "problems", Problem))
    how = {
        "format": prompt(settings["format"], [p for p in every if p.split == "train"]),
        "grader": GRADERS[settings["grader"]],
        "sampling": dataclasses.replace(GREEDY, max_tokens=settings["max_tokens"]),
    }
    ask(choose(every, splits, settings["limit"]), steps, make, sink, **how)
    return {
        "checkpoints": len(steps),
        "predictions": len(sink),
        "accuracy": _table(tally(sink)),
    }


def _table(counted: Mapping[int, Mapping[str, Accuracy]]) -> dict[str, dict[str, Any]]:
    return {
        str(step): {name: dataclasses.asdict(value) for name, value in sorted(of_step.items())}
        for step, of_step in sorted(counted.items())
    }
