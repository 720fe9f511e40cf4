"""Find which tokens of two sides cover the same text. Probabilities are carried by `project`."""

from collections.abc import Iterable, Sequence

import numpy as np

from tokalign.alignment import Alignment, Tokens
from tokalign.dtw import align_dp
from tokalign.edit import differences
from tokalign.segmentation import MARKER, Segmentation, spelled_mask, without_whitespace

METHODS = ("exact", "dp")
_GROUP = 256  # traces walked at once


def align(teacher_tokens: Tokens, student_tokens: Tokens, *, method: str = "exact") -> Alignment:
    r"""Align the tokens of one text as two tokenizers cut it.

    `exact` walks both sides by their bytes without whitespace (`▁` counts as whitespace). Where
    these bytes differ it follows the shortest edit script. Time and memory grow linearly. `dp` is
    the dynamic programme of Fu et al., which is quadratic and serves as the baseline.

    Args:
        teacher_tokens: text or bytes of each token.
        student_tokens: likewise.
        method: "exact" or "dp".

    Returns:
        The alignment; every token of both sides is in one chunk.

    Raises:
        ValueError: an unknown method.
        TypeError: tokens of one side that are not all text or all bytes.

    Example:
        >>> align([" Nat", "alia", "\n", "She"], ["▁Natalia", "▁She"]).pairs.tolist()
        [[3, 1]]

    Source: the walk is ours; method="dp" is section 3 of Fu et al., "Specializing smaller language
    models towards multi-step reasoning", 2023.
    """
    return align_batch([(teacher_tokens, student_tokens)], method=method)[0]


def align_batch(
    pairs: Iterable[tuple[Tokens, Tokens]], *, method: str = "exact"
) -> list[Alignment]:
    """Align many pairs of token sequences at once, in order; several times faster than one by one.

    Args:
        pairs: (teacher tokens, student tokens) of each text.
        method: "exact" or "dp".

    Returns:
        What `align` gives for each pair.

    Raises:
        ValueError: an unknown method.
        TypeError: tokens of one side that are not all text or all bytes.
    """
    pairs = list(pairs)
    if method == "dp":
        return align_dp(pairs)
    if method != "exact":
        raise ValueError(f"expected a method of {METHODS}, got {method!r}")
    found = []
    for first in range(0, len(pairs), _GROUP):
        found.extend(_align_group(pairs[first : first + _GROUP]))
    return found


def _align_group(pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Alignment]:
    """Walk the pairs that spell the same bytes in one pass, the others one by one."""
    a, b = (_group_counts([pair[side] for pair in pairs]) for side in (0, 1))
    if a and b and a[0] == b[0] and np.array_equal(a[1][a[2]], b[1][b[2]]):
        return _walk(a[1], b[1], np.stack([a[2], b[2]]))
    if len(pairs) == 1:
        return [_align_apart(*pairs[0])]
    alike = [_spelled(teacher) == _spelled(student) for teacher, student in pairs]
    together = [pair for pair, same in zip(pairs, alike, strict=True) if same]
    if len(together) in (0, len(pairs)):
        return [found for pair in pairs for found in _align_group([pair])]
    walked = iter(_align_group(together))
    return [
        next(walked) if same else _align_apart(*pair)
        for pair, same in zip(pairs, alike, strict=True)
    ]


def _group_counts(side: Sequence[Tokens]) -> tuple[bytes, np.ndarray, np.ndarray] | None:
    """Return the spelled bytes, the count at each token's end and where each trace opens.

    One token of length 1 before each trace holds the traces apart in one run of counts. None
    where text and bytes mix, or where whitespace is cut in two so that lengths do not add up.
    """
    kinds = {type(tokens[0]) for tokens in side if len(tokens)} or {str}
    if len(kinds) > 1:
        return None
    opening = "\0" if kinds == {str} else b"\0"
    tokens: list = []
    for trace in side:
        tokens.append(opening)
        tokens.extend(trace)
    text = _spelled(tokens)
    counts = np.cumsum(np.fromiter(map(_LENGTHS.__getitem__, tokens), np.int32, len(tokens)))
    if counts[-1] != len(text):
        return None
    sizes = np.fromiter(map(len, side), np.int64, len(side)) + 1
    return text, counts, np.cumsum(sizes) - sizes


class _SpelledLengths(dict):
    """Bytes of a token that are not whitespace, remembered."""

    def __missing__(self, token: str | bytes) -> int:
        if len(self) > 1 << 20:
            self.clear()
        self[token] = found = len(_spelled([token]))  # type: ignore[arg-type]
        return found


_LENGTHS = _SpelledLengths()


def _spelled(tokens: Tokens) -> bytes:
    """Return the bytes of all tokens without whitespace."""
    if not len(tokens):
        return b""
    if isinstance(tokens[0], str):
        text = "".join(tokens).replace("▁", "").encode(errors="surrogatepass")  # type: ignore[arg-type]
    else:
        text = b"".join(tokens).replace(MARKER, b"")  # type: ignore[arg-type]
    return without_whitespace(text)


def _align_apart(teacher_tokens: Tokens, student_tokens: Tokens) -> Alignment:
    """Align two sides that need not spell the same bytes."""
    teacher_text, a = spelled_ends(teacher_tokens)
    student_text, b = spelled_ends(student_tokens)
    regions = differences(teacher_text, student_text)
    x, y = _nodes(a, b, regions)
    cost = sum(max(i1 - i0, j1 - j0) for i0, i1, j0, j1 in regions)
    return _cut(a, b, x, y, cost=cost)


def align_segmentations(teacher_ends: np.ndarray, student: Segmentation) -> Alignment:
    """Align teacher tokens, by their byte ends in the same text, with a segmentation of it.

    Args:
        teacher_ends: int [L] byte ends, the last one len(student.text).
        student: the text as the student cuts it.

    Returns:
        The alignment; student tokens within one expanded character are not parted.
    """
    passed = np.append(0, np.cumsum(spelled_mask(student.text)))
    a, b = 2 * passed[teacher_ends], odd_ends(passed, student)
    common = _common(a, b)
    return _cut(a, b, common, common)


def odd_ends(passed: np.ndarray, student: Segmentation) -> np.ndarray:
    """Return twice the spelled bytes gone by at each end; odd, hence never shared, at no cut."""
    ends = 2 * passed[student.byte_ends]
    return (
        ends
        if student.cuts.all()
        else np.where(student.cuts, ends, next_cut(ends, student.cuts) - 1)
    )


def next_cut(ends: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return [T] the end of the first token from each on that is a cut."""
    places = np.flatnonzero(cuts)
    if not len(places):
        return np.full_like(ends, ends[-1]) if len(ends) else ends
    return ends[places[np.minimum(np.searchsorted(places, np.arange(len(ends))), len(places) - 1)]]


def spelled_ends(tokens: Tokens) -> tuple[bytes, np.ndarray]:
    """Return the bytes of all tokens without whitespace and, per token, how many have gone by."""
    raw = [t.encode(errors="surrogatepass") if isinstance(t, str) else t for t in tokens]
    text = b"".join(raw)
    ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)))
    passed = np.append(0, np.cumsum(spelled_mask(text)))
    return without_whitespace(text), passed[ends]


def _walk(a: np.ndarray, b: np.ndarray, openings: np.ndarray) -> list[Alignment]:
    """Cut both sides where tokens of both end at the same count; whitespace gets its own chunk.

    Args:
        a: [L] count at the end of each teacher token, over all traces.
        b: [T] likewise of the student.
        openings: [2, traces] the token of length 1 before each trace, which is taken out again.
    """
    shared = np.zeros(a[-1] + 1, bool)
    shared[b] = True
    in_a = shared[a]
    shared[:] = False
    shared[a[in_a]] = True
    in_b = shared[b]
    # Row 2n ends at shared place n, row 2n + 1 is the whitespace there.
    ends = np.empty((int(shared.sum()), 2, 2), np.int32)
    for side, (counts, inside) in enumerate(((a, in_a), (b, in_b))):
        places = np.flatnonzero(inside)
        counts = counts[places]
        turns = counts[1:] != counts[:-1]
        ends[:, 0, side] = places[np.append(True, turns)] + 1
        ends[:, 1, side] = places[np.append(turns, True)] + 1
    ends = ends.reshape(-1, 2)
    sizes = ends.copy()
    sizes[1:] -= ends[:-1]
    first = 2 * (np.cumsum(shared) - 1)[a[openings[0]]]
    kept = (sizes[:, 0] | sizes[:, 1]) != 0
    single = (sizes[:, 0] == 1) & (sizes[:, 1] == 1)
    single[1::2] = False
    kept[first] = single[first] = False
    rows = np.diff(np.append(first, len(ends)))
    ends -= np.repeat(openings.T.astype(np.int32) + 1, rows, axis=0)
    chunks = np.empty((len(ends), 4), np.int32)
    chunks[:, 1::2] = ends
    chunks[:, 0::2] = ends - sizes
    chunk_ends = np.append(np.cumsum(kept)[first], kept.sum()).tolist()
    pair_ends = np.append(np.cumsum(single)[first], single.sum()).tolist()
    pairs, chunks = chunks[single, ::2], chunks[kept]
    return [
        Alignment(chunks[c0:c1], pairs[p0:p1], 0.0)
        for c0, c1, p0, p1 in zip(
            chunk_ends, chunk_ends[1:], pair_ends, pair_ends[1:], strict=False
        )
    ]


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the places where a token of both sides ends, 0 and the last included."""
    total = int(max(a[-1] if len(a) else 0, b[-1] if len(b) else 0))
    in_a, in_b = np.zeros((2, total + 1), bool)
    in_a[a] = True
    in_b[b] = True
    in_a &= in_b
    in_a[0] = in_a[total] = True
    return np.flatnonzero(in_a)


def _nodes(
    a: np.ndarray, b: np.ndarray, regions: list[tuple[int, int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (in a, in b) outside all differences where a token of both sides ends."""
    totals = [int(ends[-1]) if len(ends) else 0 for ends in (a, b)]
    opens = np.array([(0, 0), *((i1, j1) for _, i1, _, j1 in regions)], np.int64)
    closes = np.array([*(i0 for i0, _, _, _ in regions), totals[0]], np.int64)
    places = np.unique(np.append(a, 0))
    # A place where a difference is empty on this side lies on both of its borders.
    first = np.maximum(np.searchsorted(closes, places), 0)
    last = np.searchsorted(opens[:, 0], places, side="right") - 1
    found = [np.array([(0, 0), totals], np.int64)]
    for border in (first, last):
        matched = (opens[border, 0] <= places) & (places <= closes[border])
        x = places[matched]
        y = x - opens[border[matched], 0] + opens[border[matched], 1]
        kept = np.isin(y, np.append(b, 0))
        found.append(np.stack([x[kept], y[kept]], axis=1))
    nodes = np.unique(np.concatenate(found), axis=0)
    return nodes[:, 0], nodes[:, 1]


def _cut(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, cost: float = 0) -> Alignment:
    """Cut both sides at the places (x, y); whitespace at a place gets its own chunk."""
    chunks = np.zeros((2 * len(x), 4), np.int32)
    for column, ends, places in ((1, a, x), (3, b, y)):
        chunks[0::2, column] = np.searchsorted(ends, places) + (places > 0)
        chunks[1::2, column] = np.searchsorted(ends, places, side="right")
        np.maximum.accumulate(chunks[:, column], out=chunks[:, column])
        chunks[-1, column] = len(ends)
        np.minimum(chunks[:, column], len(ends), out=chunks[:, column])
        chunks[1:, column - 1] = chunks[:-1, column]
    sizes = chunks[:, 1::2] - chunks[:, 0::2]
    space = np.zeros(len(chunks), bool)
    space[1::2] = True
    single = (sizes == 1).all(axis=1) & ~space
    kept = sizes.any(axis=1)
    return Alignment(chunks[kept], chunks[single][:, (0, 2)], float(cost))
