"""The paper's dynamic programme over two token sequences, plain and fast; the named baseline."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from tokalign.align import Alignment, Tokens


@functools.lru_cache(maxsize=1 << 20)
def levenshtein(a: str, b: str) -> int:
    """Return the least number of insertions, deletions and substitutions that turn a into b.

    Example:
        >>> levenshtein("Natalia", "alias")
        4
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def plain(token: str | bytes) -> str:
    """Return a token as the programme compares it: text without blanks' markers and spaces."""
    text = token.decode(errors="replace") if isinstance(token, bytes) else token
    return text.replace("▁", "").replace(" ", "")


def plain_dtw(teacher_tokens: Tokens, student_tokens: Tokens) -> Alignment:
    """Align by the paper's programme, cell by cell, as written there.

    f(i, j) = min(f(i-1, j), f(i, j-1), f(i-1, j-1)) + levenshtein(s_i, t_j), backtracked with ties
    to the diagonal, then up, then left. Quadratic; the baseline that speed is measured against.

    Args:
        teacher_tokens: text or bytes of each token.
        student_tokens: likewise.

    Returns:
        The alignment; its pairs are the one-to-one chunks of equal spelling, its cost is f of the
        last cell in characters.

    Source: Fu et al., "Specializing smaller language models towards multi-step reasoning", 2023.
    """
    s, t = [plain(x) for x in teacher_tokens], [plain(x) for x in student_tokens]
    if not s or not t:
        return path_alignment([], s, t, float(sum(map(len, s)) + sum(map(len, t))))
    f: list[list[int]] = []
    for x in s:
        costs = [levenshtein(x, y) for y in t]
        if not f:
            f.append(list(itertools.accumulate(costs)))
            continue
        above = f[-1]
        row = [above[0] + costs[0]]
        for j in range(1, len(t)):
            row.append(min(above[j - 1], above[j], row[j - 1]) + costs[j])
        f.append(row)
    i, j = len(s) - 1, len(t) - 1
    path = [(i, j)]
    while i or j:
        i, j = min(_before(i, j), key=lambda cell: f[cell[0]][cell[1]])
        path.append((i, j))
    return path_alignment(path[::-1], s, t, float(f[-1][-1]))


def _before(i: int, j: int) -> list[tuple[int, int]]:
    """Return the cells a path may come from: diagonal, up, left."""
    cells = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
    return [(a, b) for a, b in cells if a >= 0 and b >= 0]


def path_alignment(
    path: Sequence[tuple[int, int]], s: Sequence[str], t: Sequence[str], cost: float
) -> Alignment:
    """Return the chunks of a path: cells that share a row or a column belong together."""
    if not path:
        rows = [(0, len(s), 0, len(t))] if s or t else []
        return Alignment(np.array(rows, np.int32).reshape(-1, 4), np.zeros((0, 2), np.int32), cost)
    cells = np.array(path, np.int32)
    opens = np.append(True, (np.diff(cells, axis=0) == 1).all(axis=1))
    starts = cells[opens]
    ends = np.append(starts[1:], [[len(s), len(t)]], axis=0)
    chunks = np.stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]], axis=1)
    single = starts[(ends - starts == 1).all(axis=1)]
    pairs = [(i, j) for i, j in single.tolist() if s[i] == t[j] and s[i]]
    return Alignment(chunks.astype(np.int32), np.array(pairs, np.int32).reshape(-1, 2), cost)


def align_dp(pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Alignment]:
    """Align many pairs of token sequences by the paper's programme."""
    return [plain_dtw(teacher, student) for teacher, student in pairs]
