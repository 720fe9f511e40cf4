"""Carry the right traces to the student's vocabulary through tokalign; how is tokalign's own."""

import itertools
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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

# Traces of a shard: what a kill may lose, and what is in memory at once.
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
    """Yield each trace in the student's tokens with the teacher's distributions, in order.

    A trace that tokalign refuses, such as one with a token of unknown log-probability, is left out
    and logged with the reason.

    Args:
        traces: what to carry over.
        vocabulary: the student's, as a tokalign tokenizer.
        rule: "marginal" or "paper", as in tokalign.project.
        cross_whitespace: whether mass passes over blanks that the student drops.
        k: candidates kept a position; mass cut off counts as beyond the teacher's top k.
        continuations: how the teacher's candidates go on, as in tokalign.project.
        processes: how many work at it; the result does not depend on them.

    Raises:
        ValueError: an unknown rule.
    """
    pairs = [(trace, taught) for trace in traces if (taught := _taught(trace))]
    projections = tokalign.project_batch(
        [taught for _, taught in pairs],
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


def _taught(trace: Trace) -> tokalign.TeacherTrace | None:
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
) -> dict[str, Any]:
    """Fill RUN_DIR/aligned from the right traces; go on where an earlier start stopped.

    Args:
        run_dir: the run directory; its stages `harvest` and `check` are complete.
        vocabulary: the student's: a tokalign tokenizer or the path of a SentencePiece model.
        rule: "marginal" or "paper".
        cross_whitespace: whether mass passes over blanks that the student drops.
        k: candidates kept a position.
        continuations: right traces to learn from how the teacher's candidates go on, drawn by
            their keys; 0 reads each as if it ended there. The rule "paper" has no use for them.
        processes: how many work at it, all cores by default.
        max_tokens: of a trace, in the teacher's tokens or 16 bytes of text each; a longer one is
            left out by name and counted as too long.
        max_unk_share: most `<unk>` among the student's tokens of the questions, of the chains and
            of the answers; above 0.01 there is a warning.

    Raises:
        UserError: an input is not complete, no such rule or vocabulary, no trace is right and short
            enough, or the student cannot spell too much of the texts.
    """
    run_dir, tokenizer = Path(run_dir), vocabularies.load(vocabulary)
    unknowns.require_bound(max_unk_share)
    if max_tokens < 1:
        raise UserError("max_tokens of at least 1", str(max_tokens), "raise it")
    if rule not in ("marginal", "paper"):
        raise UserError("a rule of marginal, paper", str(rule), "name one of them")
    options: dict[str, Any] = {"rule": rule, "cross_whitespace": cross_whitespace, "k": k}
    learnt = continuations if rule == "marginal" else 0
    described = vocabularies.setting(run_dir, "align", tokenizer)
    settings = {"vocabulary": described, **options, "continuations": learnt}
    with Stage.open(run_dir, "align", settings=settings, inputs=["harvest", "check"]) as stage:
        if stage.complete:
            return stage.summary
        traces = Shards(run_dir / "traces", Trace)
        outcomes, long = _without_long(traces, _outcomes(run_dir), max_tokens)
        found = _unknown(run_dir, traces, outcomes, tokenizer)
        spelt = unknowns.require(found, max_unk_share, "align")
        shards = Shards(run_dir / "aligned", AlignedTrace)
        if learnt:
            options["continuations"] = _learn(traces, outcomes, tokenizer, learnt)
        options["processes"] = processes or len(os.sched_getaffinity(0))
        _fill(shards, traces, outcomes, tokenizer, options)
        stage.finish(**summarise(shards, outcomes, tokenizer), **spelt, **long)
        return stage.summary


def _without_long(
    traces: Iterable[Trace], outcomes: Mapping[Key, str], longest: int
) -> tuple[dict[Key, str], dict[str, list[str]]]:
    """Return the outcomes, too long traces as such, and the names of the first of those."""
    found, names = dict(outcomes), []
    for trace in traces:
        key = (trace.problem_id, trace.sample)
        size = max(len(trace.tokens), len(trace.text.encode()) // BYTES_PER_TOKEN)
        if outcomes.get(key) == "right" and size > longest:
            found[key] = TOO_LONG
            names.append(f"{trace.problem_id} sample {trace.sample}")
            logger.warning("%s is left out: %d tokens, at most %d", names[-1], size, longest)
    if "right" not in found.values():
        raise UserError(
            f"a right trace of at most {longest} tokens",
            f"none, {names[0]} is longer",
            "raise align.run.max_tokens or harvest shorter chains",
        )
    return found, {TOO_LONG: names[:_NAMED]} if names else {}


def _unknown(
    run_dir: Path, traces: Iterable[Trace], outcomes: Mapping[Key, str], vocabulary: Vocabulary
) -> dict[str, unknowns.Unknown]:
    """Count what the student cannot spell of the right traces and their problems."""
    right = {key for key, outcome in outcomes.items() if outcome == "right"}
    ids = {problem_id for problem_id, _ in right}
    asked = [p for p in Shards(run_dir / "problems", Problem) if p.problem_id in ids]
    chains = (trace.text for trace in traces if (trace.problem_id, trace.sample) in right)
    return {
        "questions": unknowns.count((p.question for p in asked), vocabulary),
        "chains": unknowns.count(chains, vocabulary),
        "answers": unknowns.count((p.answer for p in asked), vocabulary),
    }


def _outcomes(run_dir: Path) -> dict[Key, str]:
    rows = Shards(run_dir / "verdicts", Verdict).keys("problem_id", "sample", "outcome")
    outcomes = {(problem_id, sample): outcome for problem_id, sample, outcome in rows}
    if "right" not in outcomes.values():
        raise UserError(
            "a right trace", f"none of {len(outcomes)}", "harvest more or another teacher"
        )
    return outcomes


def _learn(
    traces: Iterable[Trace],
    outcomes: Mapping[Key, str],
    vocabulary: tokalign.Tokenizer,
    count: int,
) -> tokalign.Continuations:
    """Fit continuations on `count` right traces, whatever the order in which they are stored."""
    right = [key for key, outcome in outcomes.items() if outcome == "right"]
    drawn = set(
        sorted(right, key=lambda key: (zlib.crc32("/".join(map(str, key)).encode()), key))[:count]
    )
    chosen = [trace for trace in traces if (trace.problem_id, trace.sample) in drawn]
    chosen.sort(key=lambda trace: (trace.problem_id, trace.sample))
    taught = (taught for trace in chosen if (taught := _taught(trace)))
    return tokalign.Continuations.fit(taught, vocabulary)


def _fill(
    shards: Shards[AlignedTrace],
    traces: Iterable[Trace],
    outcomes: Mapping[Key, str],
    vocabulary: tokalign.Tokenizer,
    options: Mapping[str, Any],
) -> None:
    """Append what is not there yet, shard by shard."""
    done: set[Any] = shards.keys("problem_id", "sample")
    total = sum(outcome == "right" for outcome in outcomes.values())
    left = right_traces(traces, outcomes, done)
    bar = progress(left, name="align", total=total, done=len(done), unit="traces")
    while chunk := list(itertools.islice(bar, SHARD_TRACES)):
        shards.append(align(chunk, vocabulary, **options))
