"""Student positions against teacher tokens, and the mass that each position gathers."""

import enum
import math
from collections.abc import Sequence

import numpy as np

from tokalign.align import next_cut
from tokalign.segmentation import spelled_mask
from tokalign.spelling import (
    INSIDE,
    START,
    Context,
    Speller,
)
from tokalign.teacher import TeacherTrace
from tokalign.tokenizers import Tokenizer, segment_bytes

_CUT = np.array([True])
_ONE = 0x3F800000  # float32 1; the bits of smaller ones are smaller numbers
_LEAST_REST = 1e-3  # below this share the rest cannot predict what follows whitespace


class Kind(enum.IntEnum):
    """How a student position covers the teacher's tokens, whitespace aside.

    ONE_HOT is every position without a distribution: the student's own token is its target.
    """

    ONE_TO_ONE = 0
    MERGED = 1  # several teacher tokens spell the student's
    SPLIT = 2  # begins where a teacher token begins and ends within one
    INSIDE = 3  # begins within a teacher token
    ONE_HOT = 4


class Candidates:
    """The teacher tokens of some traces with their candidates, flat; each trace ends in an end.

    The end is a token of one virtual byte whose only candidate is b"", so that the EOS of the
    student is a position like the others.
    """

    def __init__(self, traces: Sequence[TeacherTrace], speller: Speller) -> None:
        numbers = speller.numbers
        strings: list[bytes] = []
        own: list[bytes] = []
        nats, own_nats, ends = [], [], []
        for trace in traces:
            ends.append(np.asarray(trace.top_ends) + len(strings))
            strings.extend(trace.top_tokens)
            ends.append([len(strings)])
            own.extend(trace.tokens)
            own.append(b"")
            nats.append(trace.top_logprobs)
            own_nats.append(trace.logprobs)
            own_nats.append([0.0 if math.isnan(trace.end_logprob) else trace.end_logprob])
        counts = np.diff(np.concatenate(ends).astype(np.int64), prepend=0)
        string = np.fromiter(map(numbers.__getitem__, strings), np.int64, len(strings))
        self.own = np.fromiter(map(numbers.__getitem__, own), np.int64, len(own))
        speller.close()
        self.before = np.append(numbers[b""], self.own[:-1])  # after an end stands a start
        self.own_bytes = own
        token = np.repeat(np.arange(len(own)), counts)
        mass = np.exp(np.minimum(np.concatenate(nats).astype(np.float64), 0))
        is_own = string == self.own[token]
        # The token itself need not be among its candidates.
        missing = np.flatnonzero(np.bincount(token[is_own], minlength=len(own)) == 0)
        own_mass = np.exp(np.minimum(np.concatenate(own_nats).astype(np.float64), 0))
        at = np.cumsum(counts)[missing]
        self.token = np.insert(token, at, missing)
        self.string = np.insert(string, at, self.own[missing])
        self.is_own = np.insert(is_own, at, True)
        mass = np.insert(mass, at, own_mass[missing])
        total = np.bincount(self.token, mass, len(own))
        self.mass = mass / np.maximum(total, 1)[self.token]
        self.beyond = np.maximum(1 - total, 0)
        self.own_mass = np.bincount(self.token, self.mass * self.is_own, len(own))
        self.counts = np.bincount(self.token, minlength=len(own))
        self.firsts = np.cumsum(self.counts) - self.counts

    def of(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each candidate of each of `tokens`, the place in `tokens` and its number."""
        counts = self.counts[tokens]
        place = np.repeat(np.arange(len(tokens)), counts)
        ends = np.cumsum(counts)
        number = np.arange(len(place)) + np.repeat(self.firsts[tokens] - ends + counts, counts)
        return place, number


class Places:
    """The student positions of some traces against the teacher's tokens; bytes counted over all.

    Attributes:
        ids: [P] the student's tokens, each trace's EOS last.
        start, end: [P] bytes; the EOS covers the virtual byte of the end.
        token: [P] teacher token that holds the start.
        last: [P] teacher token with which the student token is spelled in full.
        usable: [P] whether the start is a place in the text and not beyond what is known.
        kind: [P] Kind.
        partner: [P] teacher token of a one-to-one position, otherwise -1.
    """

    def __init__(
        self, traces: Sequence[TeacherTrace], teacher: Candidates, student: Tokenizer
    ) -> None:
        segmentations = segment_bytes(student, [b"".join(trace.tokens) for trace in traces])
        sizes = np.array([len(s) + 1 for s in segmentations])
        spans = np.array([len(s.text) + 1 for s in segmentations])
        self.ends_at = np.cumsum(sizes)
        base = np.repeat(np.cumsum(spans) - spans, sizes)
        self.text = b"\0".join([*(s.text for s in segmentations), b""])
        eos = np.array([student.eos_id], np.int32)
        self.ids = np.concatenate([x for s in segmentations for x in (s.ids, eos)])
        end = np.concatenate([x for s in segmentations for x in (s.byte_ends, [len(s.text) + 1])])
        self.local_ends = np.minimum(end, np.repeat(spans - 1, sizes)).astype(np.int32)
        self.end = end + base
        self.opens = np.append(0, self.ends_at[:-1])
        self.start = np.append(0, self.end[:-1])
        self.start[self.opens] = base[self.opens]
        self.is_opening = np.zeros(len(self.ids), bool)
        self.is_opening[self.opens] = True
        cuts = np.concatenate([x for s in segmentations for x in (s.cuts, _CUT)])
        settled = self.end if cuts.all() else next_cut(self.end, cuts)
        self.usable = np.append(True, cuts[:-1])
        self.usable[self.opens] = True
        lengths = np.fromiter(map(len, teacher.own_bytes), np.int64, len(teacher.own_bytes))
        ends = np.cumsum(np.maximum(lengths, 1))
        starts = ends - np.maximum(lengths, 1)
        self.token_start, self.token_end = starts, ends
        self.token = np.searchsorted(starts, self.start, side="right") - 1
        self.last = np.maximum(np.searchsorted(ends, settled), self.token)
        self.is_end = np.zeros(len(self.ids), bool)
        self.is_end[self.ends_at - 1] = True
        unknown = np.array([math.isnan(trace.end_logprob) for trace in traces])
        self.usable[self.ends_at[unknown] - 1] = False
        self._classify(cuts)

    def _classify(self, cuts: np.ndarray) -> None:
        """Compare where tokens begin and end on both sides, by bytes that are not whitespace."""
        spelled = spelled_mask(self.text)
        self.passed = passed = np.append(0, np.cumsum(spelled))
        token_passed = passed[self.token_end]
        spelling = np.flatnonzero(token_passed > passed[self.token_start])
        at = np.full(passed[-1] + 1, -1)
        at[token_passed[spelling]] = spelling
        ended = at >= 0
        gone = np.cumsum(ended)
        start, end = passed[self.start], passed[self.end]
        clean = np.append(True, cuts[:-1])
        begins = (ended[start] | (start == 0)) & clean
        ends = ended[end] & cuts
        space = start == end
        opens = np.searchsorted(self.token_start, self.end[space])
        ends[space] = self.token_start[opens] == self.end[space]
        count = np.where(space, 1, gone[end] - gone[start])
        self.kind = np.where(
            begins,
            np.where(ends, np.where(count == 1, Kind.ONE_TO_ONE, Kind.MERGED), Kind.SPLIT),
            Kind.INSIDE,
        ).astype(np.uint8)
        self.kind[self.is_end] = Kind.ONE_TO_ONE
        paired = (self.kind == Kind.ONE_TO_ONE) & ~space
        self.partner = np.where(paired, at[end], -1)

    def inside(self, p: int, first: int, before: bytes) -> Context:
        """Return the context of position p within the teacher token that begins at `first`.

        Where a student token begins there too, a candidate agrees if its own cuts begin with the
        tokens since; otherwise if its bytes begin with those consumed.
        """
        origin = p
        while self.start[origin] > first and not self.is_opening[origin]:
            origin -= 1
        if self.start[origin] != first:
            return INSIDE, before
        kind = START if self.is_opening[origin] else INSIDE
        return kind, before, tuple(self.ids[origin:p].tolist())

    def crosses(self, student: Tokenizer) -> np.ndarray:
        """Return [P] whether the student drops or changes whitespace before the token."""
        found = np.zeros(len(self.ids), bool)
        for p in np.flatnonzero(~self.is_end).tolist():
            covered = self.text[self.start[p] : self.end[p]]
            token = student.token_bytes(int(self.ids[p])) or covered
            whitespace = [x[: len(x) - len(x.lstrip())] for x in (covered, token)]
            found[p] = whitespace[0] != whitespace[1]
        found[self.opens] = False
        return found


class Masses:
    """Mass gathered for each position: on its own token, on others, and lost."""

    def __init__(self, places: Places, unk_id: int | None) -> None:
        self.ids, self.unk_id = places.ids, -1 if unk_id is None else unk_id
        self.own = np.zeros(len(places.ids))
        self.lost = np.zeros((len(places.ids), 2))
        self.passed_on = np.zeros(len(places.ids))
        self._terms: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def lose(self, column: int, place: np.ndarray, mass: np.ndarray) -> None:
        """Count mass as beyond the top k (0) or not spellable (1)."""
        self.lost[:, column] += np.bincount(place, mass, len(self.ids))

    def pass_on(self, place: np.ndarray, mass: np.ndarray) -> None:
        """Count mass that is shared out in the proportions of all the rest."""
        self.passed_on += np.bincount(place, mass, len(self.ids))

    def give(self, place: np.ndarray, token: np.ndarray, mass: np.ndarray) -> None:
        """Give mass to student tokens; mass on a mark or on <unk> is lost."""
        own = token == self.ids[place]
        self.own += np.bincount(place[own], mass[own], len(self.ids))
        lost = ~own & ((token < 0) | (token == self.unk_id))
        self.lose(1, place[lost], mass[lost])
        kept = ~own & ~lost
        self._terms.append((place[kept], token[kept], mass[kept]))

    def one_hot(self, place: np.ndarray) -> None:
        """Put all on the position's own token."""
        self.own[place] = 1

    def rows(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (place, token, mass), each token once a place, by place and falling mass."""
        rest = 1 - self.passed_on
        alone = rest < _LEAST_REST
        self.lost[alone, 1] += self.passed_on[alone]
        scale = np.where(alone, 1, 1 / np.where(alone, 1, rest))
        self.lost *= scale[:, None]
        own = np.flatnonzero(self.own > 0)
        terms = [*self._terms, (own, self.ids[own], self.own[own])]
        place, token, mass = (np.concatenate(column) for column in zip(*terms, strict=True))
        mass *= scale[place]
        key = place * vocab_size + token
        order = stable_order(key, len(self.ids) * vocab_size)
        key, mass = key[order], mass[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        if not len(first):
            return place, token, mass
        mass = np.add.reduceat(mass, first)
        place, token = np.divmod(key[first], vocab_size)
        falling = _ONE - np.minimum(mass, 1).astype(np.float32).view(np.int32).astype(np.int64)
        order = stable_order((place << _ONE.bit_length()) + falling, len(self.ids) << 30)
        return place[order], token[order], mass[order]


def stable_order(key: np.ndarray, above: int) -> np.ndarray:
    """Return the stable order of int64 keys from 0 to below `above`.

    Sorting numbers is several times faster than sorting places by numbers, so the place goes into
    the low bits where there is room.
    """
    bits = len(key).bit_length()
    if above.bit_length() + bits > 63:
        return np.argsort(key, kind="stable")
    return np.sort((key << bits) + np.arange(len(key))) & ((1 << bits) - 1)
