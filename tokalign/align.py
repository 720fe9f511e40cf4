"""Which tokens of two sides cover the same text; probabilities are project's."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tokalign.edit import differences
from tokalign.segmentation import Segmentation, spelled_mask, without_blanks


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    r"""Two token sequences cut into chunks that cover the same text.

        teacher   ' Nat' 'alia' '\n' 'She' ' sold'      chunks  0 2 0 1   Natalia
        student   ▁Natalia ▁She ▁sold                           2 3 1 1   the blank, dropped
                                                                3 4 1 2   She
                                                                4 5 2 3   sold
                                                         pairs   3 1, 4 2

    Attributes:
        chunks: int32 [C, 4] teacher start and end, student start and end; together they cover
            both sides, and blanks between chunks are chunks of their own.
        pairs: int32 [P, 2] teacher and student token of each one-to-one chunk that is no blank.
        cost: by the exact walk, the bytes in which the sides differ; by `method="dp"`, the edit
            distances along the path, in characters.
    """

    chunks: np.ndarray
    pairs: np.ndarray
    cost: float


def align(
    teacher_tokens: Sequence[str] | Sequence[bytes],
    student_tokens: Sequence[str] | Sequence[bytes],
    *,
    method: str = "exact",
) -> Alignment:
    r"""Align the tokens of one text as two tokenizers cut it.

    `exact` walks both sides by their bytes without blanks (`▁` is one) and, only where these
    differ, by the shortest edit script; time and memory grow linearly. `dp` is the dynamic
    programme of Fu et al., quadratic, the named baseline.

    Args:
        teacher_tokens: text or bytes of each token.
        student_tokens: likewise.
        method: "exact" or "dp".

    Returns:
        The alignment; every token of both sides is in one chunk.

    Raises:
        ValueError: an unknown method.

    Example:
        >>> align([" Nat", "alia", "\n", "She"], ["▁Natalia", "▁She"]).pairs.tolist()
        [[3, 1]]

    Source: the walk is ours; method="dp" is section 3 of Fu et al., "Specializing smaller language
    models towards multi-step reasoning", 2023.
    """
    if method == "dp":
        from tokalign.dtw import align_dp

        return align_dp([(teacher_tokens, student_tokens)])[0]
    if method != "exact":
        raise ValueError(f"expected method 'exact' or 'dp', got {method!r}")
    teacher_text, teacher_ends = spelled_ends(teacher_tokens)
    student_text, student_ends = spelled_ends(student_tokens)
    if teacher_text == student_text:
        common = _common(teacher_ends, student_ends)
        return _cut(teacher_ends, student_ends, common, common)
    regions = differences(teacher_text, student_text)
    x, y = _nodes(teacher_ends, student_ends, regions)
    cost = sum(max(i1 - i0, j1 - j0) for i0, i1, j0, j1 in regions)
    return _cut(teacher_ends, student_ends, x, y, cost=cost)


def align_segmentations(teacher_ends: np.ndarray, student: Segmentation) -> Alignment:
    """Align teacher tokens, by their byte ends in the same text, with a segmentation of it.

    Args:
        teacher_ends: int [L] byte ends, the last one len(student.text).
        student: the text as the student cuts it.

    Returns:
        The alignment; student tokens within one expanded character are not parted.
    """
    passed = np.concatenate([[0], np.cumsum(spelled_mask(student.text))])
    a = passed[teacher_ends] * 2
    b = passed[student.byte_ends] * 2
    if not student.cuts.all():
        b = np.where(student.cuts, b, next_cut(b, student.cuts) - 1)
    common = _common(a, b)
    return _cut(a, b, common, common)


def next_cut(ends: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return [T] the end of the first token from each on that is a cut."""
    places = np.flatnonzero(cuts)
    if not len(places):
        return np.full_like(ends, ends[-1]) if len(ends) else ends
    return ends[places[np.minimum(np.searchsorted(places, np.arange(len(ends))), len(places) - 1)]]


def spelled_ends(tokens: Sequence[str] | Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    """Return the bytes of all tokens without blanks and, per token, how many have gone by."""
    raw = [token.encode() if isinstance(token, str) else token for token in tokens]
    text = b"".join(raw)
    ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)))
    passed = np.concatenate([[0], np.cumsum(spelled_mask(text))])
    return without_blanks(text), passed[ends]


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the places where a token of both sides ends, 0 and the last included."""
    total = int(max(a[-1] if len(a) else 0, b[-1] if len(b) else 0))
    marked = np.zeros(total + 1, bool)
    marked[a] = True
    both = np.zeros(total + 1, bool)
    both[b] = True
    both &= marked
    both[0] = both[total] = True
    return np.flatnonzero(both)


def _nodes(
    a: np.ndarray, b: np.ndarray, regions: list[tuple[int, int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (in a, in b) outside all differences where a token of both sides ends."""
    known_a, known_b = {0, *a.tolist()}, {0, *b.tolist()}
    total = (int(a[-1]) if len(a) else 0, int(b[-1]) if len(b) else 0)
    nodes = {(0, 0), total}
    x, y = 0, 0
    for i0, i1, _, j1 in [*regions, (total[0], total[0], total[1], total[1])]:
        nodes.update((i, i - x + y) for i in known_a if x <= i <= i0 and i - x + y in known_b)
        x, y = i1, j1
    ordered = np.array(sorted(nodes), np.int64)
    return ordered[:, 0], ordered[:, 1]


def _cut(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, cost: float = 0) -> Alignment:
    """Cut both sides at the places (x, y), blanks at a place apart from what ends there."""
    chunks = np.zeros((2 * len(x), 4), np.int32)
    for column, ends, places in ((1, a, x), (3, b, y)):
        chunks[0::2, column] = np.searchsorted(ends, places) + (places > 0)
        chunks[1::2, column] = np.searchsorted(ends, places, side="right")
        np.maximum.accumulate(chunks[:, column], out=chunks[:, column])
        chunks[-1, column] = len(ends)
        np.minimum(chunks[:, column], len(ends), out=chunks[:, column])
        chunks[1:, column - 1] = chunks[:-1, column]
    sizes = chunks[:, 1::2] - chunks[:, 0::2]
    blank = np.zeros(len(chunks), bool)
    blank[1::2] = True
    single = (sizes == 1).all(axis=1) & ~blank
    kept = sizes.any(axis=1)
    return Alignment(chunks[kept], chunks[single][:, (0, 2)], float(cost))
