"""Measure speed and quality of the alignment, side by side with a plain DTW in one run."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokalign.align import align_batch, align_segmentations
from tokalign.continuations import Continuations
from tokalign.dtw import align_dp, levenshtein, plain_dtw
from tokalign.project import project_batch
from tokalign.quality import quality
from tokalign.report import coverage
from tokalign.segmentation import Segmentation, spelled_mask
from tokalign.simulate import KnownTeacher, NgramTeacher, word_problems
from tokalign.teacher import TeacherTrace
from tokalign.tokenizers import Tokenizer

Pair = tuple[int, int]
FITTED = 1000  # traces from which continuations are learnt


def true_pairs(teacher_ends: Sequence[int], student: Segmentation) -> set[Pair]:
    """Return the pairs whose tokens cover exactly the same bytes that are not whitespace.

    Spelled out token by token and apart from the walk that it judges.
    """
    spelled = spelled_mask(student.text)
    clean = [True, *student.cuts.tolist()]

    def spans(ends: Sequence[int]) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        start = 0
        for end in ends:
            inside = np.flatnonzero(spelled[start:end])
            span = (start + int(inside[0]), start + int(inside[-1])) if len(inside) else None
            found.append(span)
            start = end
        return found

    of_student = {
        span: j
        for j, span in enumerate(spans(student.byte_ends.tolist()))
        if span is not None and clean[j] and student.cuts[j]
    }
    return {
        (i, of_student[span])
        for i, span in enumerate(spans(teacher_ends))
        if span is not None and span in of_student
    }


def spellings(segmentation: Segmentation, student: Tokenizer) -> list[bytes]:
    """Return the student's tokens as it spells them, <unk> as the text that it covers."""
    return [
        student.token_bytes(i) or covered.strip()
        for i, covered in zip(segmentation.ids.tolist(), segmentation.tokens(), strict=True)
    ]


def plain_project(trace: TeacherTrace, text: str, student: Tokenizer, vocabulary: dict) -> list:
    """Carry the top k over as published: tokenise, plain DTW, look candidates up by spelling."""
    segmentation = student.segment(text)
    ids = segmentation.ids.tolist()
    alignment = plain_dtw(trace.tokens, spellings(segmentation, student))
    rows: list[dict[int, float]] = [{i: 1.0} for i in ids]
    for i, j in alignment.pairs.tolist():
        first = int(trace.top_ends[i - 1]) if i else 0
        rows[j] = {}
        for c in range(first, int(trace.top_ends[i])):
            token = vocabulary.get(trace.top_tokens[c])
            if token is not None:
                rows[j][token] = float(np.exp(trace.top_logprobs[c]))
    return rows


def measure(
    texts: Sequence[str], teacher: Tokenizer, student: Tokenizer, *, plain: int = 200
) -> dict[str, Any]:
    """Measure alignment and projection on texts.

    Args:
        texts: what to cut on both sides.
        teacher: the teacher's vocabulary.
        student: the student's.
        plain: on how many of the texts the plain DTW runs, which is slow.

    Returns:
        traces_per_s and times_plain (by method and end to end), recall and precision (and those of
        the plain DTW), coverage by kind for both rules (and on digits), each a plain number.
    """
    if not texts:
        raise ValueError("expected at least one text, got none")
    segmented = [student.segment(text) for text in texts]
    teacher_segmented = [teacher.segment(text) for text in texts]
    pairs = [
        (t.tokens(), spellings(s, student))
        for t, s in zip(teacher_segmented, segmented, strict=True)
    ]
    truth = [
        true_pairs(t.byte_ends.tolist(), s)
        for t, s in zip(teacher_segmented, segmented, strict=True)
    ]
    simulated = NgramTeacher(texts, teacher)
    traces = [simulated.trace(text) for text in texts]
    vocabulary = {student.token_bytes(i): i for i in range(student.vocab_size)}
    few = range(min(plain, len(texts)))
    aligned = [
        align_segmentations(t.byte_ends, s)
        for t, s in zip(teacher_segmented, segmented, strict=True)
    ]
    fitted = Continuations.fit(traces[:FITTED], student)
    by_plain: list = []
    rates = _rates(
        {
            "plain_dtw": (len(few), lambda: by_plain.extend(plain_dtw(*pairs[n]) for n in few)),
            "exact": (len(texts), lambda: align_batch(pairs)),
            "dp": (len(texts), lambda: align_dp(pairs)),
            "plain_end_to_end": (
                len(few),
                lambda: [plain_project(traces[n], texts[n], student, vocabulary) for n in few],
            ),
            "marginal_end_to_end": (len(texts), lambda: list(project_batch(traces, student))),
            "continued_end_to_end": (
                len(texts),
                lambda: list(project_batch(traces, student, continuations=fitted)),
            ),
            "paper_end_to_end": (
                len(texts),
                lambda: list(project_batch(traces, student, rule="paper")),
            ),
        }
    )
    by_dp = align_dp(pairs[: len(few)])
    by_plain = by_plain[: len(few)]
    return {
        "texts": len(texts),
        "teacher": repr(teacher),
        "student": repr(student),
        "traces_per_s": rates,
        "times_plain": {
            name: rates[name] / rates["plain_end_to_end" if "end_to_end" in name else "plain_dtw"]
            for name in rates
        },
        **_agreement([{*map(tuple, a.pairs.tolist())} for a in aligned], truth),
        "plain_dtw": _agreement([{*map(tuple, a.pairs.tolist())} for a in by_plain], truth),
        "dp_cost_equal": sum(a.cost == b.cost for a, b in zip(by_dp, by_plain, strict=True)),
        "dp_cost_compared": len(few),
        "coverage": {
            rule + ("" if cross else ", whitespace not crossed"): dict(
                zip(
                    ("all", "digits"),
                    (
                        c.shares()
                        for c in coverage(
                            project_batch(traces, student, rule=rule, cross_whitespace=cross),
                            student,
                        )
                    ),
                    strict=True,
                )
            )
            for rule in ("paper", "marginal")
            for cross in (True, False)
        },
    }


def _rates(
    measured: dict[str, tuple[int, Callable[[], Any]]], repeats: int = 3
) -> dict[str, float]:
    """Return traces a second of processor time of each, the best of some rounds that take turns.

    Each starts without remembered distances: the plain programme computes a distance once for all
    the texts of its run, which makes it faster than as published.
    """
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, (count, run) in measured.items():
            levenshtein.cache_clear()
            begin = time.process_time()
            run()
            best[name] = max(best.get(name, 0.0), count / (time.process_time() - begin))
    return best


def _agreement(found: Sequence[set[Pair]], truth: Sequence[set[Pair]]) -> dict[str, float]:
    right = sum(len(a & b) for a, b in zip(found, truth, strict=False))
    return {
        "recall": right / max(sum(len(b) for b in truth[: len(found)]), 1),
        "precision": right / max(sum(len(a) for a in found), 1),
        "pairs": right,
    }


def known_quality(teacher: Tokenizer, student: Tokenizer) -> dict[str, dict[str, float]]:
    """Return the mean total variation to the exact distribution by rule and kind."""
    language = KnownTeacher(word_problems(), teacher)
    return {
        rule: {kind: d.mean for kind, d in by_kind.items() if d.count}
        for rule, by_kind in quality(language, student).items()
    }


def table(found: dict[str, Any]) -> str:
    """Return the measurements of `measure` as text."""
    lines = [f"{found['texts']} texts, {found['teacher']} to {found['student']}", ""]
    lines.append(f"{'':24}{'traces/s':>12}{'times plain':>14}")
    for name, rate in found["traces_per_s"].items():
        lines.append(
            f"{name.replace('_', ' '):24}{rate:>12,.0f}{found['times_plain'][name]:>14.1f}"
        )
    lines += ["", f"{'':24}{'recall':>12}{'precision':>14}"]
    for name, row in (("exact", found), ("plain dtw", found["plain_dtw"])):
        lines.append(f"{name:24}{row['recall']:>12.4f}{row['precision']:>14.4f}")
    lines.append(
        f"dp cost equal to plain on {found['dp_cost_equal']} of {found['dp_cost_compared']}"
    )
    for name, columns in found["coverage"].items():
        lines += ["", f"{name:24}{'all':>12}{'digits':>14}"]
        lines += [
            f"  {kind.replace('_', ' '):22}"
            f"{100 * share:>11.1f}%{100 * columns['digits'][kind]:>13.1f}%"
            for kind, share in columns["all"].items()
        ]
    if "quality" in found:
        kinds = list(found["quality"]["paper"])
        lines += ["", "total variation to the exact distribution of a known teacher"]
        lines.append(f"{'':30}" + "".join(f"{kind.lower():>12}" for kind in kinds))
        for rule, row in found["quality"].items():
            lines.append(f"{rule:30}" + "".join(f"{row[kind]:>12.4f}" for kind in kinds))
    return "\n".join(lines)
