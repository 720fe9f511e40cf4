"""Alignment of the right traces to the student's vocabulary; the algorithm lives in tokalign."""

import functools
import itertools
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tokalign
from distill.core.errors import UserError
from distill.core.progress import progress
from distill.core.records import AlignedTrace, Problem, Trace, Verdict
from distill.core.store import Shards, Stage
from distill.targets import unknowns
from distill.targets import vocabulary as vocabularies
from distill.targets.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
Key = tuple[str, int]
Pair = dict[str, float]

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("aligned",)
# Traces of a shard, which are in memory at once; a killed start loses at most one shard.
SHARD_TRACES = 4096
TOO_LONG = "too_long"
BYTES_PER_TOKEN = 16  # a trace of fewer tokens than its text suggests is as long as its text
_NAMED = 20  # traces that the summary names


def align(
    traces: Iterable[Trace],
    vocabulary: tokalign.Tokenizer,
    *,
    rule: str = "marginal",
    cross_whitespace: bool = True,
    k: int = 5,
    continuations: tokalign.Continuations | None = None,
    processes: int = 1,
) -> Iterator[AlignedTrace]:
    r"""Yield each trace in the student's tokens with the teacher's distributions, in order.

    A trace that tokalign refuses, such as one with a token of unknown log-probability, is skipped
    and logged with the reason.

    Args:
        traces: the teacher's.
        vocabulary: the student's, as a tokalign tokenizer.
        rule: "marginal" or "paper", as in tokalign.project.
        cross_whitespace: whether mass passes over whitespace that the student drops.
        k: candidates kept a position; mass cut off counts as beyond the teacher's top k.
        continuations: how the teacher's candidates continue, as in tokalign.project.
        processes: workers; the result does not depend on them.

    Raises:
        ValueError: an unknown rule.

    Example:
        >>> from distill.core.ports import Sampling
        >>> from distill.core.records import Problem
        >>> from distill.models.saved import SavedModel
        >>> from distill.traces.harvest import harvest
        >>> problem = Problem("mine/1", "mine", "train", "What is 4 + 4?", "8")
        >>> teacher = SavedModel("data/models/teacher", batch_size=1)
        >>> traces = list(harvest([problem], teacher, samples=1, prompt="Q: {}\n".format,
        ...                       sampling=Sampling(max_tokens=32)))
        >>> student = tokalign.SentencePieceTokenizer("data/vocabularies/student.model")
        >>> (aligned,) = align(traces, student, k=5)
        >>> aligned.top_ids.shape == (len(aligned.ids), 5)
        True
    """
    pairs = [(trace, source) for trace in traces if (source := _teacher_trace(trace))]
    projections = tokalign.project_batch(
        [source for _, source in pairs],
        vocabulary,
        rule=rule,
        cross_whitespace=cross_whitespace,
        k=k,
        continuations=continuations,
        processes=processes,
    )
    for (trace, _), projected in zip(pairs, projections, strict=True):
        yield AlignedTrace(
            trace.problem_id,
            trace.sample,
            projected.ids,
            projected.top_ids,
            projected.top_probs,
            projected.kind,
            projected.lost,
        )


def _teacher_trace(trace: Trace) -> tokalign.TeacherTrace | None:
    try:
        return tokalign.TeacherTrace.of(trace)
    except ValueError as error:
        logger.warning("%s sample %d is refused: %s", trace.problem_id, trace.sample, error)
        return None


def right_traces(
    traces: Iterable[Trace], outcomes: Mapping[Key, str], done: set[Key]
) -> Iterator[Trace]:
    """Yield the traces whose verdict is "right" and that are not done.

    Raises:
        UserError: a trace has no verdict.
    """
    for trace in traces:
        key = (trace.problem_id, trace.sample)
        if key not in outcomes:
            raise UserError(
                "a verdict for every trace",
                f"none for {trace.problem_id} sample {trace.sample}",
                "remove RUN_DIR/verdicts and its manifest and check again",
            )
        if outcomes[key] == "right" and key not in done:
            yield trace


def summarise(
    aligned: Iterable[AlignedTrace], outcomes: Mapping[Key, str], vocabulary: tokalign.Tokenizer
) -> dict[str, Any]:
    """Count traces, tokens, and the positions that have a distribution.

    Returns:
        read, kept, dropped by reason, tokens, and pairs of sum and count: `coverage` and
        `coverage_of_digits` (positions with a distribution, of all, of those that spell a digit),
        `lost_beyond_top_k` and `lost_unspellable` (mass over positions with a distribution);
        `kinds` (positions by the name of their tokalign.Kind).
    """
    digits = _spells_digit(vocabulary)
    kinds = np.zeros((2, len(tokalign.Kind)), np.int64)
    lost, kept = np.zeros(2), 0
    for trace in aligned:
        kinds += [
            np.bincount(trace.kind[mask], minlength=len(tokalign.Kind))
            for mask in (np.ones(len(trace.ids), bool), digits[trace.ids])
        ]
        lost += trace.lost[trace.kind != tokalign.Kind.ONE_HOT].sum(axis=0, dtype=np.float64)
        kept += 1
    dropped = Counter(outcomes.values())
    refused = dropped.pop("right", 0) - kept
    covered = kinds.sum(axis=1) - kinds[:, tokalign.Kind.ONE_HOT]
    total, of_digits = kinds.sum(axis=1)
    return {
        "read": len(outcomes),
        "kept": kept,
        "dropped": dict(sorted((dropped + Counter({"refused": refused})).items())),
        "tokens": int(total),
        "coverage": _pair(covered[0], total),
        "coverage_of_digits": _pair(covered[1], of_digits),
        "kinds": {kind.name.lower(): int(kinds[0, kind]) for kind in tokalign.Kind},
        "lost_beyond_top_k": _pair(lost[0], covered[0]),
        "lost_unspellable": _pair(lost[1], covered[0]),
    }


def _pair(total: Any, count: Any) -> Pair:
    return {"sum": round(total.item(), 6), "count": count.item()}


def _spells_digit(vocabulary: tokalign.Tokenizer) -> np.ndarray:
    """Return bool [vocab]: whether the token has a digit."""
    spelled = (vocabulary.token_bytes(token_id) for token_id in range(vocabulary.vocab_size))
    return np.array([any(48 <= byte < 58 for byte in token) for token in spelled])


def run(
    *,
    run_dir: Path,
    vocabulary: Vocabulary | str | Path,
    rule: str = "marginal",
    cross_whitespace: bool = True,
    k: int = 5,
    continuations: int = 5_000,
    processes: int | None = None,
    max_tokens: int = 4096,
    max_unk_share: float = unknowns.MAX_SHARE,
    shard_traces: int = SHARD_TRACES,
) -> dict[str, Any]:
    """Fill RUN_DIR/aligned from the right traces; resume an earlier start.

    Args:
        run_dir: the run directory; its stages `harvest` and `check` are complete.
        vocabulary: the student's: a tokalign tokenizer or the path of a SentencePiece model.
        rule: "marginal" or "paper".
        cross_whitespace: whether mass passes over whitespace that the student drops.
        k: candidates kept a position.
        continuations: right traces, drawn by their keys, on which the continuations of the
            teacher's candidates are fitted; 0 takes each candidate as if the text ended there.
            The rule "paper" does not use them.
        processes: workers; one for each core by default.
        max_tokens: of a trace, in the teacher's tokens or 16 bytes of text each; a longer one is
            skipped, named and counted as too long.
        shard_traces: traces of a shard.
        max_unk_share: most `<unk>` among the student's tokens of the questions, of the chains and
            of the answers; above 0.01 there is a warning.

    Raises:
        UserError: an input is not complete, no such rule or vocabulary, no trace is right and short
            enough, or too many tokens of the texts are `<unk>`.
    """
    run_dir, tokenizer = Path(run_dir), vocabularies.load(vocabulary)
    unknowns.require_bound(max_unk_share)
    if max_tokens < 1:
        raise UserError("max_tokens of at least 1", str(max_tokens), "raise it")
    if rule not in ("marginal", "paper"):
        raise UserError("a rule of marginal, paper", str(rule), "name one of them")
    if shard_traces < 1:
        raise UserError("shard_traces of at least 1", str(shard_traces), "raise it")
    fitted = continuations if rule == "marginal" else 0
    projection = {"rule": rule, "cross_whitespace": cross_whitespace, "k": k}
    described = vocabularies.setting(run_dir, "align", tokenizer)
    settings = {"vocabulary": described, **projection, "continuations": fitted}
    with Stage.open(
        run_dir, "align", settings=settings, inputs=["harvest", "check"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        traces = Shards(run_dir / "traces", Trace)
        outcomes, long = _without_long(traces, _outcomes(run_dir), max_tokens)
        counts = _unknown(run_dir, traces, outcomes, tokenizer)
        unknown = unknowns.require(counts, max_unk_share, "align")
        shards = Shards(run_dir / "aligned", AlignedTrace)
        align_chunk = functools.partial(
            align,
            vocabulary=tokenizer,
            rule=rule,
            cross_whitespace=cross_whitespace,
            k=k,
            continuations=_fit(traces, outcomes, tokenizer, fitted) if fitted else None,
            processes=processes or len(os.sched_getaffinity(0)),
        )
        _fill(shards, traces, outcomes, align_chunk, shard_traces)
        stage.finish(**summarise(shards, outcomes, tokenizer), **unknown, **long)
        return stage.summary


def _without_long(
    traces: Iterable[Trace], outcomes: Mapping[Key, str], longest: int
) -> tuple[dict[Key, str], dict[str, list[str]]]:
    """Return the outcomes, TOO_LONG for long traces, and the names of the first of these."""
    checked, names = dict(outcomes), []
    for trace in traces:
        key = (trace.problem_id, trace.sample)
        size = max(len(trace.tokens), len(trace.text.encode()) // BYTES_PER_TOKEN)
        if outcomes.get(key) == "right" and size > longest:
            checked[key] = TOO_LONG
            names.append(f"{trace.problem_id} sample {trace.sample}")
            logger.warning("%s is skipped: %d tokens, at most %d", names[-1], size, longest)
    if "right" not in checked.values():
        raise UserError(
            f"a right trace of at most {longest} tokens",
            f"none, {names[0]} is longer",
            "raise align.run.max_tokens or harvest shorter chains",
        )
    return checked, {TOO_LONG: names[:_NAMED]} if names else {}


def _unknown(
    run_dir: Path, traces: Iterable[Trace], outcomes: Mapping[Key, str], vocabulary: Vocabulary
) -> dict[str, unknowns.Unknown]:
    """Count the `<unk>` among the tokens of the right traces and their problems."""
    right = {key for key, outcome in outcomes.items() if outcome == "right"}
    ids = {problem_id for problem_id, _ in right}
    problems = [p for p in Shards(run_dir / "problems", Problem) if p.problem_id in ids]
    chains = (trace.text for trace in traces if (trace.problem_id, trace.sample) in right)
    return {
        "questions": unknowns.count((p.question for p in problems), vocabulary),
        "chains": unknowns.count(chains, vocabulary),
        "answers": unknowns.count((p.answer for p in problems), vocabulary),
    }


def _outcomes(run_dir: Path) -> dict[Key, str]:
    rows = Shards(run_dir / "verdicts", Verdict).keys("problem_id", "sample", "outcome")
    outcomes = {(problem_id, sample): outcome for problem_id, sample, outcome in rows}
    if "right" not in outcomes.values():
        raise UserError(
            "a right trace", f"none of {len(outcomes)}", "harvest more or another teacher"
        )
    return outcomes


def _fit(
    traces: Iterable[Trace],
    outcomes: Mapping[Key, str],
    vocabulary: tokalign.Tokenizer,
    count: int,
) -> tokalign.Continuations:
    """Fit continuations on `count` right traces, whatever the order in which they are stored."""
    right = [key for key, outcome in outcomes.items() if outcome == "right"]
    sampled = set(
        sorted(right, key=lambda key: (zlib.crc32("/".join(map(str, key)).encode()), key))[:count]
    )
    chosen = [trace for trace in traces if (trace.problem_id, trace.sample) in sampled]
    chosen.sort(key=lambda trace: (trace.problem_id, trace.sample))
    sources = (source for trace in chosen if (source := _teacher_trace(trace)))
    return tokalign.Continuations.fit(sources, vocabulary)


def _fill(
    shards: Shards[AlignedTrace],
    traces: Iterable[Trace],
    outcomes: Mapping[Key, str],
    align_chunk: Callable[[Iterable[Trace]], Iterable[AlignedTrace]],
    shard_traces: int,
) -> None:
    """Append the traces that are missing, shard by shard."""
    done: set[Any] = shards.keys("problem_id", "sample")
    total = sum(outcome == "right" for outcome in outcomes.values())
    left = right_traces(traces, outcomes, done)
    bar = progress(left, name="align", total=total, done=len(done), unit="traces")
    while chunk := list(itertools.islice(bar, shard_traces)):
        shards.append(align_chunk(chunk))
