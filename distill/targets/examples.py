"""Examples of the four formats from aligned traces, as blocks of arrays; not their mixture."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.core.errors import UserError
from distill.core.records import AlignedTrace, Problem, Trace
from distill.core.store import Shards
from distill.targets.vocabulary import Vocabulary
from distill.text import prompts

Encode = Callable[[str], Sequence[int]]

# Examples of a block.
BLOCK_EXAMPLES = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """The decoder's targets: ids [T], candidates [T, k] and their probabilities [T, k]."""

    ids: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray


def hard_targets(ids: Sequence[int], k: int) -> Targets:
    """Return targets of which each position has one candidate, of probability 1.

    Example:
        >>> targets = hard_targets([7, 1], k=3)
        >>> targets.top_ids.tolist(), targets.top_probs.tolist()
        ([[7, 0, 0], [1, 0, 0]], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    """
    top_ids, top_probs = np.zeros((len(ids), k), np.int32), np.zeros((len(ids), k), np.float32)
    top_ids[:, 0], top_probs[:, 0] = ids, 1
    return Targets(np.array(ids, np.int32), top_ids, top_probs)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """The problems and traces of the examples.

    Attributes:
        problems: of one split, by their id.
        traces: sorted by problem and sample, whatever their order on disk.
        texts: the text of each trace.
    """

    problems: Mapping[str, Problem]
    traces: Sequence[AlignedTrace]
    texts: Sequence[str]


def read_corpus(run_dir: Path, split: str, k: int) -> Corpus:
    """Read problems and aligned traces of a run.

    Raises:
        UserError: a trace is of another split, has other than k candidates a position, or there
            is none.
    """
    every = Shards(run_dir / "problems", Problem)
    problems = {p.problem_id: p for p in sorted(every, key=lambda p: p.problem_id)}
    problems = {name: p for name, p in problems.items() if p.split == split}
    traces = sorted(
        Shards(run_dir / "aligned", AlignedTrace), key=lambda t: (t.problem_id, t.sample)
    )
    if not traces:
        raise UserError(f"aligned traces in {run_dir}", "none", "harvest more and align again")
    for trace in traces:
        _require_fitting(trace, problems, split, k)
    keys = Shards(run_dir / "traces", Trace).keys("problem_id", "sample", "text")
    texts = {(problem_id, sample): text for problem_id, sample, text in keys}
    return Corpus(problems, traces, [texts[t.problem_id, t.sample] for t in traces])


def _require_fitting(
    trace: AlignedTrace, problems: Mapping[str, Problem], split: str, k: int
) -> None:
    if trace.problem_id not in problems:
        raise UserError(
            f"traces of {split} problems", f"one of {trace.problem_id}", "harvest that split"
        )
    if trace.top_ids.shape[1] != k:
        raise UserError(
            f"k={k} candidates a position",
            f"{trace.top_ids.shape[1]} in the aligned traces",
            "give both stages the same k",
        )


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one format.

    Attributes:
        name: of the format.
        size: number of examples in an epoch.
        prompt: from an example's number and a generator of the demonstrations to its prompt.
        targets: from an example's number to its targets.
    """

    name: str
    size: int
    prompt: Callable[[int, np.random.Generator], str]
    targets: Callable[[int], Targets]


def examples(
    corpus: Corpus, tokenizer: Vocabulary, *, k: int, demonstrations: int, used: Collection[str]
) -> list[Examples]:
    """Return the examples of the formats that are used.

    Answer-only examples are one a problem, chain-of-thought ones one an aligned trace, whose text
    is then also a demonstration to the other questions.

    Args:
        corpus: their problems and traces.
        tokenizer: the student's.
        k: candidates a position.
        demonstrations: solved examples in an in-context prompt.
        used: names of prompts.FORMATS.

    Raises:
        UserError: there are too few questions for the demonstrations of a used format.
    """
    problems = list(corpus.problems.values())
    solved = [
        dataclasses.replace(corpus.problems[trace.problem_id], chain=text)
        for trace, text in zip(corpus.traces, corpus.texts, strict=True)
    ]

    def answer(i: int) -> Targets:
        sentence = prompts.answer_sentence(problems[i].answer)
        return hard_targets([*tokenizer.encode(sentence), tokenizer.eos_id], k)

    def chain(i: int) -> Targets:
        trace = corpus.traces[i]
        return Targets(trace.ids, trace.top_ids, trace.top_probs)

    forms = [form for name, form in prompts.FORMATS.items() if name in used]
    return [
        Examples(form.name, len(pool), _prompts(form, pool, demonstrations), targets)
        for form in forms
        for pool, targets in [(solved, chain) if form.chain else (problems, answer)]
    ]


def of_run(
    run_dir: Path,
    tokenizer: Vocabulary,
    *,
    k: int,
    demonstrations: int,
    split: str,
    used: Collection[str],
) -> list[Examples]:
    """Return the examples of a run's aligned traces.

    Raises:
        UserError: as `read_corpus` and `examples`, which take the arguments.
    """
    return examples(
        read_corpus(run_dir, split, k), tokenizer, k=k, demonstrations=demonstrations, used=used
    )


def _prompts(
    form: prompts.Format, pool: Sequence[Problem], demonstrations: int
) -> Callable[[int, np.random.Generator], str]:
    if not form.in_context:
        return lambda i, _: form.encoder_input(pool[i])
    questions = len({problem.question for problem in pool})
    if questions <= demonstrations:
        raise UserError(
            f"more than {demonstrations} questions to draw {demonstrations} demonstrations from",
            str(questions),
            f"harvest more problems or leave {form.name} out of the ratios",
        )

    def prompt(i: int, rng: np.random.Generator) -> str:
        seed = int(rng.integers(2**31))
        return form.encoder_input(
            pool[i], prompts.draw(pool, pool[i], demonstrations=demonstrations, seed=seed)
        )

    return prompt


def blocks(
    form: Examples, seed: int, *, passes: int, encode: Encode, eos_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the examples of a format, concatenated as the docstring of `features.task` draws them.

    Each pass has an order and demonstrations of its own, which depend on the format and the seed.

    Args:
        form: the examples of one format.
        seed: of the orders and the demonstrations.
        passes: how often each example is repeated.
        encode: the student's.
        eos_id: ends the inputs, as in T5; the targets end in it already.
    """
    for epoch in range(passes):
        rng = np.random.default_rng((seed, zlib.crc32(form.name.encode()), epoch))
        order = rng.permutation(form.size).tolist()
        for start in range(0, form.size, BLOCK_EXAMPLES):
            chosen = order[start : start + BLOCK_EXAMPLES]
            inputs = [[*encode(form.prompt(i, rng)), eos_id] for i in chosen]
            targets = [form.targets(i) for i in chosen]
            yield {
                "inputs": np.array(list(itertools.chain(*inputs)), np.int32),
                "input_lengths": np.array([len(ids) for ids in inputs], np.int32),
                "targets": np.concatenate([t.ids for t in targets]),
                "target_lengths": np.array([len(t.ids) for t in targets], np.int32),
                "target_top_ids": np.concatenate([t.top_ids for t in targets]),
                "target_top_probs": np.concatenate([t.top_probs for t in targets]),
            }
