"""Successors of a teacher's tokens over a whole run, to read the candidates that were not drawn.

A candidate that was not drawn has no successor in its own trace, and alone it may not determine
the student's token: a lone space before digits, ` $` before a number, `N` before `atalia`.
Where it was realised elsewhere in the run, after the same token if possible, the teacher said what
comes next. The average of those distributions is a guess at the missing one.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from tokalign.spelling import NOTHING, Speller
from tokalign.teacher import FlatTrace, TeacherToken, TeacherTrace
from tokalign.tokenizers import Tokenizer

WIDTH = 8
LEAST = 0.01
_BITS = 21  # of a number in a key of three; a speller is cleared at half of that
Successors = tuple[tuple[bytes, float], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Continuations:
    """The likeliest successors of teacher tokens that alone do not determine the student's token.

    Attributes:
        after: the token before (None for whatever it is, b"" for the start) and the token, to its
            successors with shares that sum to 1, the likeliest first; b"" is the end of the text.
    """

    after: Mapping[tuple[bytes | None, bytes], Successors]

    @classmethod
    def fit(
        cls,
        traces: Iterable[FlatTrace | Sequence[TeacherToken]],
        student: Tokenizer,
        *,
        width: int = WIDTH,
        least: float = LEAST,
    ) -> "Continuations":
        """Average the teacher's distributions after each of its tokens.

        Args:
            traces: of one teacher; all are in memory as numbers, and a few thousand are enough.
            student: the student's vocabulary.
            width: successors kept of each token.
            least: share of successors that must change a token's reading for it to be kept.

        Raises:
            ValueError: a width below 1, or a trace that TeacherTrace refuses.

        Example:
            >>> trace = [TeacherToken(b" ", 0.0), TeacherToken(b"12", -0.69, ((b"48", -0.69),))]
            >>> Continuations.fit([trace], student).after[None, b" "]  # doctest: +SKIP
            ((b'12', 0.5), (b'48', 0.5))
        """
        if width < 1:
            raise ValueError(f"expected a width of at least 1, got {width}")
        followed = _Followed(traces)
        speller = Speller(student)
        singles = dict(followed.successors(width))
        undecided = {
            string: successors
            for string, successors in singles.items()
            if _changed(speller, string, successors) >= least
        }
        after: dict[tuple[bytes | None, bytes], Successors] = {
            (None, string): successors for string, successors in undecided.items()
        }
        return cls({**after, **dict(followed.successors_of_pairs(set(undecided), width))})


class _Followed:
    """The tokens of some traces as numbers: the token before, the token, what follows, its mass."""

    def __init__(self, traces: Iterable[FlatTrace | Sequence[TeacherToken]]) -> None:
        numbers: dict[bytes, int] = collections.defaultdict(itertools.count().__next__)
        rows = [_rows(TeacherTrace.of(trace), numbers) for trace in traces]
        none = np.zeros(0, np.int64)
        self.before = np.concatenate([none, *(row[0] for row in rows)])
        self.token = np.concatenate([none, *(row[1] for row in rows)])
        self.next = np.concatenate([none, *(row[2] for row in rows)])
        self.mass = np.concatenate([np.zeros(0), *(row[3] for row in rows)])
        self.strings = list(numbers)

    def successors(self, width: int) -> Iterator[tuple[bytes, Successors]]:
        """Yield each token with its likeliest successors."""
        yield from self._likeliest(self.token, np.ones(len(self.token), bool), width)

    def successors_of_pairs(
        self, tokens: set[bytes], width: int
    ) -> Iterator[tuple[tuple[bytes | None, bytes], Successors]]:
        """Yield each pair whose second is one of `tokens` with its likeliest successors."""
        wanted = np.array([string in tokens for string in self.strings], bool)
        pairs = self.before * len(self.strings) + self.token
        kept = np.isin(self.token, np.flatnonzero(wanted))
        for pair, successors in self._likeliest(pairs, kept, width, named=False):
            before, token = divmod(pair, len(self.strings))
            yield (self.strings[before], self.strings[token]), successors

    def _likeliest(
        self, of: np.ndarray, kept: np.ndarray, width: int, *, named: bool = True
    ) -> Iterator[tuple]:
        """Yield each value of `of` with its likeliest successors; equal masses in byte order."""
        of, after, mass = of[kept], self.next[kept], self.mass[kept]
        order = np.lexsort((after, of))
        of, after, mass = of[order], after[order], mass[order]
        moved = (np.diff(of, prepend=-1) != 0) | (np.diff(after, prepend=-1) != 0)
        first = np.flatnonzero(moved)
        sums = np.add.reduceat(mass, first) if len(first) else mass
        triples = zip(of[first].tolist(), after[first].tolist(), sums.tolist(), strict=True)
        for value, group in itertools.groupby(triples, key=lambda triple: triple[0]):
            found = [(self.strings[y], share) for _, y, share in group if share > 0]
            best = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:width]
            total = sum(share for _, share in best)
            if total:
                shares = tuple((string, share / total) for string, share in best)
                yield (self.strings[value] if named else value), shares


def _rows(trace: TeacherTrace, numbers: Mapping[bytes, int]) -> tuple[np.ndarray, ...]:
    """Return a trace's tokens, before and own, with each candidate of what follows and its mass."""
    own = np.fromiter(map(numbers.__getitem__, trace.tokens), np.int64, len(trace.tokens))
    top = np.fromiter(map(numbers.__getitem__, trace.top_tokens), np.int64, len(trace.top_tokens))
    counts = np.diff(np.asarray(trace.top_ends, np.int64), prepend=0)
    place = np.repeat(np.arange(len(own)), counts)
    mass = np.exp(np.minimum(np.asarray(trace.top_logprobs, np.float64), 0))
    seen = np.bincount(place[top == own[place]], minlength=len(own)) > 0
    missing = np.flatnonzero(~seen)
    own_mass = np.exp(np.minimum(np.asarray(trace.logprobs, np.float64), 0))
    end = 0.0 if np.isnan(trace.end_logprob) else float(np.exp(min(trace.end_logprob, 0)))
    place = np.concatenate([place, missing, [len(own)]])
    after = np.concatenate([top, own[missing], [numbers[b""]]])
    mass = np.concatenate([mass, own_mass[missing], [end]])
    later = place > 0
    place, after, mass = place[later] - 1, after[later], mass[later]
    before = np.append(numbers[b""], own)
    return before[place], own[place], after, mass


def _changed(speller: Speller, string: bytes, successors: Successors) -> float:
    """Return the share of successors with which a token reads otherwise than alone."""
    alone = _joined(speller, -1, string, b"")
    return sum(share for y, share in successors if _joined(speller, -1, string, y) != alone)


def _joined(speller: Speller, context: int, string: bytes, successor: bytes) -> int:
    """Return the student's first token of both after a context, EOS where both are dropped."""
    both = string + successor
    if context < 0:
        found = speller.spell(both)[0]
    else:
        found = speller.spell_after(speller.strings[context], both)
    return speller.student.eos_id if found == NOTHING and not successor else found


def expander_of(
    continuations: Continuations, speller: Speller, *, cross_whitespace: bool
) -> "Expander":
    """Return the expander that the speller keeps, so that its cache lasts."""
    key = continuations, cross_whitespace
    if key not in speller.expanders:
        speller.expanders[key] = Expander(continuations, speller, cross_whitespace=cross_whitespace)
    return speller.expanders[key]


class Expander:
    """Candidates read with their successors by one student, cached.

    Args:
        continuations: of the candidates' teacher, fitted for the student.
        speller: of the student.
        cross_whitespace: whether a candidate that the student drops is read by its successors.
    """

    def __init__(
        self, continuations: Continuations, speller: Speller, *, cross_whitespace: bool
    ) -> None:
        self._after, self._speller = continuations.after, speller
        strings = {string for _, string in self._after if cross_whitespace or _kept(string)}
        self._known = np.array(sorted(speller.numbers[string] for string in strings), np.int64)
        self._readings = _Readings(self._read)
        self._tokens, self._shares = np.zeros(0, np.int32), np.zeros(0)
        self._starts, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def __call__(
        self, context: np.ndarray, before: np.ndarray, string: np.ndarray, found: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows in place of candidates: which each comes from, its first token, its share.

        Args:
            context: [C] number of the context of each candidate, -1 for none.
            before: [C] number of the token before it.
            string: [C] its own number, -1 for one to be left as it is.
            found: [C] the student's first token of it alone, or a mark.

        Returns:
            row: [R] the candidate that each row is of, in order.
            token: [R] the student's first token, or a mark.
            share: [R] of the candidate's mass; a candidate's shares sum to 1.
        """
        at = np.minimum(np.searchsorted(self._known, string), len(self._known) - 1)
        places = np.flatnonzero(self._known[at] == string) if len(self._known) else at[:0]
        keys = (context[places] + 1 << 2 * _BITS) + (before[places] << _BITS) + string[places]
        read = np.fromiter(map(self._readings.__getitem__, keys.tolist()), np.int64, len(keys))
        self._close()
        counts, first = np.ones(len(string), np.int64), np.full(len(string), -1)
        counts[places], first[places] = self._counts[read], self._starts[read]
        row = np.repeat(np.arange(len(string)), counts)
        token, share = found[row], np.ones(len(row))
        rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        expanded = first[row] >= 0
        where = (first[row] + rank)[expanded]
        token[expanded], share[expanded] = self._tokens[where], self._shares[where]
        return row, token, share

    def _close(self) -> None:
        """Bring the arrays up to date with the readings met since."""
        new = self._readings.found[len(self._counts) :]
        if new:
            sizes = np.array([len(shares) for shares in new])
            self._starts = np.append(self._starts, len(self._tokens) + np.cumsum(sizes) - sizes)
            self._counts = np.append(self._counts, sizes)
            tokens = np.array([token for shares in new for token in shares], np.int32)
            self._tokens = np.append(self._tokens, tokens)
            self._shares = np.append(self._shares, [p for shares in new for p in shares.values()])

    def _read(self, key: int) -> Mapping[int, float]:
        """Return the first tokens of a candidate with its successors, and their shares."""
        mask = (1 << _BITS) - 1
        context, before, string = (key >> 2 * _BITS) - 1, key >> _BITS & mask, key & mask
        strings = self._speller.strings
        pair = strings[before], strings[string]
        shares: collections.Counter[int] = collections.Counter()
        for successor, share in self._after.get(pair) or self._after[None, pair[1]]:  # type: ignore[arg-type, index]
            shares[_joined(self._speller, context, pair[1], successor)] += share  # type: ignore[arg-type]
        return shares


def _kept(string: bytes) -> bool:
    """Return whether a student keeps any of a token: text, or a single space."""
    return bool(string.strip()) or string == b" "


class _Readings(dict):
    """The number of each reading by its key, and all readings by their number."""

    def __init__(self, read: Callable[[int], Mapping[int, float]]) -> None:
        self._read = read
        self.found: list[Mapping[int, float]] = []

    def __missing__(self, key: int) -> int:
        self.found.append(self._read(key))
        self[key] = number = len(self.found) - 1
        return number
