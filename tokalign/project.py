"""A teacher's top-k carried to distributions over a student's tokens; no model, no loss."""

import dataclasses
import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures

import numpy as np

from tokalign.align import align_segmentations, next_cut
from tokalign.segmentation import Segmentation, spelled_mask
from tokalign.teacher import TeacherToken, TeacherTrace
from tokalign.tokenizers import Tokenizer

RULES = ("marginal", "paper")
RESTS = ("drop", "renormalise", "other")


class Kind(enum.IntEnum):
    """How a student position lies to the teacher's tokens, blanks aside.

    ONE_HOT is every position without a distribution: the student's own token is its target.
    """

    ONE_TO_ONE = 0
    MERGED = 1  # several teacher tokens spell the student's
    SPLIT = 2  # begins where a teacher token begins and ends within one
    INSIDE = 3  # begins within a teacher token
    ONE_HOT = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """A text in the student's tokens with the teacher's distribution at each.

    Attributes:
        ids: int32 [T] the student's tokens of the text, EOS last.
        top_ids: int32 [T, K] candidates, the likeliest first, 0 beyond the last.
        top_probs: float32 [T, K] their probabilities, 0 beyond the last.
        kind: uint8 [T] Kind of each position.
        lost: float32 [T, 2] mass beyond the teacher's top k, mass the student cannot spell.
        byte_ends: int32 [T] where each token ends in the text.
        other_probs: float32 [T] mass of one extra outcome beside the candidates: with
            rest="other" all that was lost, otherwise 0.
    """

    ids: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray
    kind: np.ndarray
    lost: np.ndarray
    byte_ends: np.ndarray
    other_probs: np.ndarray


def project(
    trace: TeacherTrace | Sequence[TeacherToken],
    student: Tokenizer,
    *,
    rule: str = "marginal",
    rest: str = "drop",
    cross_blanks: bool = True,
    k: int | None = None,
) -> Projection:
    """Carry a teacher's top-k to the student's tokens of the same text.

    Args:
        trace: the teacher's tokens.
        student: the student's vocabulary.
        rule: "marginal" or "paper".
        rest: what becomes of lost mass: "drop" leaves it out, "renormalise" scales each row to 1,
            "other" gives it to one extra outcome.
        cross_blanks: whether mass passes over blanks that the student drops.
        k: candidates kept a position, the widest row by default; mass cut off counts as beyond
            the top k.

    Returns:
        The projection; at each position the candidates and the lost mass sum to 1.

    Raises:
        ValueError: an unknown option, or a trace that TeacherTrace refuses.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {RULES}, got {rule!r}")
    if rest not in RESTS:
        raise ValueError(f"expected a rest of {RESTS}, got {rest!r}")
    if not isinstance(trace, TeacherTrace):
        trace = TeacherTrace.from_tokens(trace)
    work = _Work(trace, student, cross_blanks=cross_blanks)
    rows = [work.marginal(j) if rule == "marginal" else work.paper(j) for j in range(len(work))]
    return _pack(work, rows, rest=rest, k=k)


@dataclasses.dataclass
class _Row:
    kind: Kind
    probs: dict[int, float]
    beyond: float = 0.0
    unspelled: float = 0.0


class _Work:
    """One trace against its student segmentation."""

    def __init__(self, trace: TeacherTrace, student: Tokenizer, *, cross_blanks: bool) -> None:
        self.trace, self.student, self.cross_blanks = trace, student, cross_blanks
        self.text = trace.text
        self.segmentation = segment_bytes(student, self.text)
        self.starts = np.cumsum([0, *map(len, trace.tokens)]).tolist()
        ends = self.segmentation.byte_ends
        self.byte_ends = [*ends.tolist(), len(self.text)]
        self.settled_ends = [*next_cut(ends, self.segmentation.cuts).tolist(), len(self.text)]
        self.ids = [*self.segmentation.ids.tolist(), student.eos_id]
        self.clean = [True, *self.segmentation.cuts.tolist()]
        self.passed = np.concatenate([[0], np.cumsum(spelled_mask(self.text))])
        teacher_ends = np.array(self.starts[1:], np.int64)
        self.alignment = align_segmentations(teacher_ends, self.segmentation)
        self.partner = {int(j): int(i) for i, j in self.alignment.pairs}
        self.candidates = [self._candidates(i) for i in range(len(trace.tokens))]

    def __len__(self) -> int:
        return len(self.ids)

    def _candidates(self, i: int) -> tuple[dict[bytes, float], float]:
        trace = self.trace
        first = int(trace.top_ends[i - 1]) if i else 0
        found = {}
        for c in range(first, int(trace.top_ends[i])):
            token = bytes(trace.top_tokens[c])
            found[token] = found.get(token, 0.0) + math.exp(float(trace.top_logprobs[c]))
        found.setdefault(trace.tokens[i], math.exp(float(trace.logprobs[i])))
        total = sum(found.values())
        if total > 1:
            found = {token: p / total for token, p in found.items()}
        return found, max(0.0, 1 - total)

    def _first(self, text: bytes, j: int, *, ended: bool = False) -> int | None:
        """Return the student's first token of `text` at position j, None where it has none."""
        ids = self.student.spell(text, start=j == 0)
        if ids is None:
            return None
        if len(ids):
            return int(ids[0])
        return self.student.eos_id if ended else None

    def _give(self, row: _Row, j: int, token_id: int | None, mass: float) -> None:
        unknown = token_id == self.student.unk_id and token_id != self.ids[j]
        if token_id is None or unknown:
            row.unspelled += mass
        else:
            row.probs[token_id] = row.probs.get(token_id, 0.0) + mass

    def _crosses(self, j: int) -> bool:
        """Say whether the student drops blanks before token j."""
        start = self.byte_ends[j - 1] if j else 0
        covered = self.text[start : self.byte_ends[j]]
        blank = covered[: len(covered) - len(covered.lstrip())]
        token = self.student.token_bytes(self.ids[j]) or covered
        return j > 0 and blank != token[: len(token) - len(token.lstrip())]

    def kind(self, j: int) -> Kind:
        start = self.byte_ends[j - 1] if j else 0
        if j in self.partner:
            return Kind.ONE_TO_ONE
        while start < self.byte_ends[j] and self.passed[start + 1] == self.passed[start]:
            if start in self.starts:
                break
            start += 1
        if start not in self.starts:
            return Kind.INSIDE
        end = self.passed[self.byte_ends[j]]
        if end in self.passed[self.starts]:
            return Kind.MERGED
        return Kind.SPLIT

    def paper(self, j: int) -> _Row:
        i = self.partner.get(j)
        if i is None or (not self.cross_blanks and self._crosses(j)):
            return _Row(Kind.ONE_HOT, {self.ids[j]: 1.0})
        found, beyond = self.candidates[i]
        token = self.student.token_bytes(self.ids[j])
        marked = token[:1] == b" " and not self.trace.tokens[i][:1].isspace()
        row = _Row(Kind.ONE_TO_ONE, {}, beyond)
        for candidate, p in found.items():
            text = b" " + candidate if marked else candidate
            ids = self.student.spell(text, start=False) if candidate else [self.student.eos_id]
            self._give(row, j, int(ids[0]) if ids is not None and len(ids) == 1 else None, p)
        return row

    def marginal(self, j: int) -> _Row:
        one_hot = _Row(Kind.ONE_HOT, {self.ids[j]: 1.0})
        start = self.byte_ends[j - 1] if j else 0
        last = j == len(self) - 1
        if last and math.isnan(self.trace.end_logprob):
            return one_hot
        if not self.clean[j] or (not last and not self.cross_blanks and self._crosses(j)):
            return one_hot
        i = int(np.searchsorted(self.starts, start, side="right")) - 1
        row = _Row(Kind.ONE_TO_ONE if last else self.kind(j), {})
        consumed = self.text[self.starts[i] : start] if i < len(self.candidates) else b""
        agreeing = 1.0
        if consumed:
            found, beyond = self.candidates[i]
            agreeing = sum(p for c, p in found.items() if c.startswith(consumed))
            agreeing /= 1 - beyond
        weight, spelled = 1.0, b""
        while i < len(self.candidates):
            found, beyond = self.candidates[i]
            real = self.trace.tokens[i]
            for candidate, p in found.items():
                if candidate == real or not candidate.startswith(consumed):
                    continue
                mass = weight * p / agreeing
                tail = candidate[len(consumed) :]
                if consumed and not tail:
                    row.beyond += mass
                else:
                    self._give(row, j, self._first(spelled + tail, j, ended=not candidate), mass)
            row.beyond += weight * beyond
            weight *= found[real] / agreeing
            spelled += real[len(consumed) :]
            consumed, agreeing, i = b"", 1.0, i + 1
            if not last and self.starts[i] >= self.settled_ends[j] and len(spelled):
                self._look_ahead(row, j, weight, spelled, i)
                return row
        if math.isnan(self.trace.end_logprob):
            self._give(row, j, self.ids[j], weight)
            return row
        end = math.exp(min(0.0, self.trace.end_logprob))
        row.beyond += weight * (1 - end)
        self._give(row, j, self._first(spelled, j, ended=True), weight * end)
        return row

    def _look_ahead(self, row: _Row, j: int, weight: float, spelled: bytes, i: int) -> None:
        """Share the realised mass among what the next candidates would make of the token."""
        kept = weight
        if i < len(self.candidates):
            for candidate, p in self.candidates[i][0].items():
                if candidate == self.trace.tokens[i]:
                    continue
                token_id = self._first(spelled + candidate, j)
                if token_id not in (None, self.ids[j], self.student.unk_id):
                    self._give(row, j, token_id, weight * p)
                    kept -= weight * p
        self._give(row, j, self.ids[j], kept)


def segment_bytes(student: Tokenizer, text: bytes) -> Segmentation:
    """Cut bytes that may end within a character; broken ones are read as U+FFFD."""
    try:
        return student.segment(text.decode())
    except UnicodeDecodeError:
        pass
    pieces, places, at = [], [0], 0
    while at < len(text):
        try:
            good, bad = text[at:].decode(), b""
        except UnicodeDecodeError as error:
            good, bad = (
                text[at : at + error.start].decode(),
                text[at + error.start : at + error.end],
            )
        raw = good.encode()
        places.extend(range(at + 1, at + len(raw) + 1))
        at += len(raw) + len(bad)
        if bad:
            places.extend([at, at, at])
        pieces.append(good + ("\ufffd" if bad else ""))
    found = student.segment("".join(pieces))
    return Segmentation(
        text, found.ids, np.array(places)[found.byte_ends].astype(np.int32), found.cuts
    )


def _pack(work: _Work, rows: Sequence[_Row], *, rest: str, k: int | None) -> Projection:
    width = max(len(row.probs) for row in rows) if k is None else k
    top_ids = np.zeros((len(rows), max(width, 1)), np.int32)
    top_probs = np.zeros(top_ids.shape, np.float32)
    lost = np.zeros((len(rows), 2), np.float32)
    for t, row in enumerate(rows):
        ordered = sorted(row.probs.items(), key=lambda pair: (-pair[1], pair[0]))
        kept = ordered[: top_ids.shape[1]]
        top_ids[t, : len(kept)] = [i for i, _ in kept]
        top_probs[t, : len(kept)] = [p for _, p in kept]
        lost[t] = row.beyond + sum(p for _, p in ordered[len(kept) :]), row.unspelled
    other = np.zeros(len(rows), np.float32)
    if rest == "renormalise":
        total = top_probs.sum(axis=1, keepdims=True)
        top_ids[:, 0] = np.where(total[:, 0] > 0, top_ids[:, 0], work.ids)
        top_probs[:, 0] = np.where(total[:, 0] > 0, top_probs[:, 0], 1)
        top_probs /= np.where(total > 0, total, 1)
    elif rest == "other":
        other = lost.sum(axis=1)
    return Projection(
        ids=np.array(work.ids, np.int32),
        top_ids=top_ids,
        top_probs=top_probs,
        kind=np.array([row.kind for row in rows], np.uint8),
        lost=lost,
        byte_ends=np.array(work.byte_ends, np.int32),
        other_probs=other,
    )


def project_batch(
    traces: Iterable[TeacherTrace | Sequence[TeacherToken]],
    student: Tokenizer,
    *,
    processes: int = 1,
    **options,
) -> Iterator[Projection]:
    """Project many traces, in order, over processes where more than one is asked for."""
    if processes <= 1:
        for trace in traces:
            yield project(trace, student, **options)
        return
    with futures.ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_project_one, ((t, student, options) for t in traces), chunksize=64)


def _project_one(work) -> Projection:
    trace, student, options = work
    return project(trace, student, **options)
