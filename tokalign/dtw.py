"""The paper's dynamic programme over two token sequences: a plain and a fast version."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tokalign.alignment import Alignment, Tokens

_SLACK = 5  # characters over the bound's optimum that a cell may cost at first
_BAND = 10  # tokens beside the diagonals at first
_GROUP = 512  # traces solved at once
_GROUP_CELLS = 1 << 20
_PAIRS = 4096  # pairs of tokens compared at once
_MOST_CELLS = 1 << 26
_LONGEST = 24  # characters; longer tokens are compared one by one


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
    """Return a token as the programme compares it: text without whitespace and its markers."""
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
    opens = [path[0]]
    opens += [
        now
        for was, now in itertools.pairwise(path)
        if now > was and now[1] > was[1] and now[0] > was[0]
    ]
    ends = [*opens[1:], (len(s), len(t))]
    chunks = [(i0, i1, j0, j1) for (i0, j0), (i1, j1) in zip(opens, ends, strict=True)]
    pairs = [
        (i0, j0)
        for i0, i1, j0, j1 in chunks
        if i1 - i0 == j1 - j0 == 1 and s[i0] == t[j0] and s[i0]
    ]
    return Alignment(np.array(chunks, np.int32), np.array(pairs, np.int32).reshape(-1, 2), cost)


def align_dp(pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Alignment]:
    """Align many pairs by the paper's programme, with the cost and the path of `plain_dtw`.

    Most cells never matter. The programme first runs on a lower bound of the edit distance that
    costs a few bit operations (the characters that two tokens do not share), forwards and
    backwards, in a band about the diagonals, for many traces at once along anti-diagonals. Cells
    whose best path by the bound exceeds the bound's optimum by more than a slack are dropped; on
    those that remain the edit distance is computed and the programme run again. A result within
    the slack is the optimum: no path through a dropped cell is within it, and none that leaves the
    band is either, since leaving at one edge cell and coming back at a later one costs at least the
    way to the first and the way from the second. Otherwise slack and band widen.

    Args:
        pairs: (teacher tokens, student tokens) of each text.

    Returns:
        The alignments, in order.

    Raises:
        ValueError: a pair with more cells than fit in memory.
    """
    words = _Words()
    found: dict[int, Alignment] = {}
    sides = [(words.ids(teacher), words.ids(student)) for teacher, student in pairs]
    for number, (s, t) in enumerate(sides):
        if len(s) * len(t) > _MOST_CELLS:
            raise ValueError(
                f"expected at most {_MOST_CELLS} cells, got {len(s)} by {len(t)} tokens; "
                'use method="exact", which grows linearly'
            )
        if not len(s) or not len(t):
            found[number] = plain_dtw(*pairs[number])
    words.close()
    waiting = [n for n in range(len(pairs)) if n not in found]
    slack, width, room = _SLACK, _BAND, _Room()
    while waiting:
        missed = []
        for group in _groups(waiting, sides, width):
            solved = _solve(_Group([sides[n] for n in group], words, width), slack, room)
            found.update((group[n], alignment) for n, alignment in solved.items())
            missed += [number for n, number in enumerate(group) if n not in solved]
        waiting, slack, width = missed, 3 * slack, 3 * width
    return [found[number] for number in range(len(pairs))]


def _groups(
    numbers: Sequence[int], sides: Sequence[tuple[np.ndarray, np.ndarray]], width: int
) -> Iterator[list[int]]:
    """Yield groups of traces of about one length and one difference of lengths."""
    sizes = {n: (len(sides[n][0]), len(sides[n][1])) for n in numbers}
    order = sorted(numbers, key=lambda n: (sizes[n][0] // 16, sizes[n][1] - sizes[n][0]))
    group: list[int] = []
    height, low, high = 0, 0, 0
    for n in order:
        rows, lean = sizes[n][0], sizes[n][1] - sizes[n][0]
        cells = (max(height, rows) + 2) * (max(high, lean) - min(low, lean) + 2 * width + 3)
        if group and (len(group) == _GROUP or cells * (len(group) + 1) > _GROUP_CELLS):
            yield group
            group, height, low, high = [], 0, 0, 0
        group.append(n)
        height, low, high = max(height, rows), min(low, lean), max(high, lean)
    if group:
        yield group


class _WordNumbers(dict):
    """The number of each token; tokens that compare as equal have one."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __missing__(self, token: str | bytes) -> int:
        self[token] = number = self.texts.setdefault(plain(token), len(self.texts))
        return number


class _Words:
    """The distinct tokens of a call, with the data that the bound and the distance need."""

    def __init__(self) -> None:
        self.numbers = _WordNumbers()

    def ids(self, tokens: Tokens) -> np.ndarray:
        """Return [T] the number of each token."""
        return np.fromiter(map(self.numbers.__getitem__, tokens), np.int32, len(tokens))

    def close(self) -> None:
        """Compute per token its characters as bits, its length, its repeats; last, of no token."""
        self.texts = [*self.numbers.texts, ""]
        lengths = np.fromiter(map(len, self.texts), np.int64, len(self.texts))
        ends = np.cumsum(lengths)
        joined = "".join(self.texts) + "\0"
        letters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        bits = np.left_shift(np.uint64(1), (letters & 63).astype(np.uint64))
        self.masks = np.bitwise_or.reduceat(bits, ends - lengths)
        self.masks[lengths == 0] = 0
        word = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(word)) - (ends - lengths)[word]
        near = place < _LONGEST
        narrow = np.uint16 if letters.max() < 1 << 16 else np.uint32
        self.codes = np.zeros((len(lengths), _LONGEST), narrow)
        self.codes[word[near], place[near]] = letters[:-1][near]
        self.longest = int(lengths.max())
        self.lengths = lengths.astype(np.uint8 if self.longest < 256 else np.int32)
        self.repeated = self.lengths - np.bitwise_count(self.masks)


class _Room:
    """Memory that group after group uses again, since fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Return an uninitialised array of this shape."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or len(kept) < size or kept.dtype != dtype:
            self._kept[name] = kept = np.empty(size, dtype)
        return kept[:size].reshape(shape)


class _Group:
    """The cells of some traces in a band about the diagonals, [L + 2, lean, traces].

    Token i of the teacher is in row i + 1; the cell of student token j lies at lean j - i, so the
    diagonal neighbour keeps its column. Around a trace's own cells the cost is `wall`, which no
    optimum reaches; `far` is what no cell exceeds.
    """

    def __init__(
        self, sides: Sequence[tuple[np.ndarray, np.ndarray]], words: _Words, width: int
    ) -> None:
        self.words, self.count = words, len(sides)
        self.traces = np.arange(self.count)
        self.sizes = np.array([[len(s), len(t)] for s, t in sides])
        leans = self.sizes[:, 1] - self.sizes[:, 0]
        self.rows, self.columns = (self.sizes.max(axis=0) + 2).tolist()
        # One column beyond the band on each side stays at `far`.
        self.low = max(min(0, int(leans.min())) - width, 1 - self.rows) - 1
        high = min(max(0, int(leans.max())) + width, self.columns - 1) + 1
        self.width = high - self.low + 1
        self.ids = [
            np.full((self.rows, self.count), -1, np.int32),
            np.full((self.rows + self.width + self.columns, self.count), -1, np.int32),
        ]
        for n, (s, t) in enumerate(sides):
            self.ids[0][1 : len(s) + 1, n] = s
            self.ids[1][1 - self.low : len(t) + 1 - self.low, n] = t
        narrow = (self.rows + self.columns) * words.longest < 1 << 13
        self.dtype = np.uint16 if narrow else np.int32
        self.wall = 1 << 13 if narrow else 1 << 27
        self.far = 30000 if narrow else 1 << 29

    def bound(self, cost: np.ndarray) -> np.ndarray:
        """Fill in a lower bound of the edit distance for every cell."""
        masks, lengths, repeated = (
            [values[ids] for ids in self.ids]
            for values in (self.words.masks, self.words.lengths, self.words.repeated)
        )
        for i, row in enumerate(cost):
            near = slice(i, i + self.width)
            shared = np.bitwise_count(masks[0][i] & masks[1][near])
            matched = np.minimum(repeated[0][i], repeated[1][near])
            matched *= shared != 0
            matched += shared
            longer = np.maximum(lengths[0][i], lengths[1][near])
            np.subtract(longer, matched, out=row, casting="unsafe")
        cost[self.sizes[:, 0] + 1, :, self.traces] = self.wall
        leans = np.arange(self.width)[:, None]
        i = self.sizes[:, 1] + 1 - (leans + self.low)
        inside = (i >= 0) & (i < self.rows)
        leans, traces = np.nonzero(inside)
        cost[i[inside], leans, traces] = self.wall
        return cost

    def forward(self, cost: np.ndarray, best: np.ndarray) -> np.ndarray:
        """Fill in the cost of the best path from the first cell to each, itself included."""
        best.fill(self.far)
        best[0, -self.low] = 0
        flat, costs = best.reshape(-1, self.count), cost.reshape(-1, self.count)
        for _, first, last in self._diagonals():
            step = self.width - 2
            now = flat[first:last:step]
            shift = self.width
            np.minimum(
                flat[first - shift : last - shift : step],
                flat[first - shift + 1 : last - shift + 1 : step],
                out=now,
            )
            np.minimum(now, flat[first - 1 : last - 1 : step], out=now)
            np.add(now, costs[first:last:step], out=now)
        return best

    def backward(self, cost: np.ndarray, best: np.ndarray) -> np.ndarray:
        """Fill in the cost of the best path from each cell to the last, itself included."""
        best.fill(self.far)
        flat, costs = best.reshape(-1, self.count), cost.reshape(-1, self.count)
        sums = self.sizes.sum(axis=1) + 2
        sinks = {d: np.flatnonzero(sums == d) for d in np.unique(sums).tolist()}
        diagonals = {d: (first, last) for d, first, last in self._diagonals()}
        for d in range(self.rows + self.columns - 2, 1, -1):
            if d in diagonals:
                first, last = diagonals[d]
                step, shift = self.width - 2, self.width
                now = flat[first:last:step]
                np.minimum(
                    flat[first + shift : last + shift : step],
                    flat[first + shift - 1 : last + shift - 1 : step],
                    out=now,
                )
                np.minimum(now, flat[first + 1 : last + 1 : step], out=now)
                np.add(now, costs[first:last:step], out=now)
                np.minimum(now, self.far, out=now)
            if d in sinks:
                rows, columns = (self.sizes[sinks[d]] + 1).T
                best[rows, columns - rows - self.low, sinks[d]] = 0
        return best

    def _diagonals(self) -> Iterator[tuple[int, int, int]]:
        """Yield row plus column of each anti-diagonal and its flat first cell and end."""
        low, high = self.low + 1, self.low + self.width - 2
        for d in range(2, self.rows + self.columns - 3):
            top = max(1, d - self.columns + 2, -((high - d) // 2))
            bottom = min(self.rows - 2, d - 1, (d - low) // 2)
            if top <= bottom:
                first = top * self.width + d - 2 * top - self.low
                yield d, first, first + (bottom - top) * (self.width - 2) + 1

    def ends(self, best: np.ndarray) -> np.ndarray:
        """Return [traces] the cost at each trace's last cell."""
        leans = self.sizes[:, 1] - self.sizes[:, 0] - self.low
        return best[self.sizes[:, 0], leans, self.traces].astype(np.int64)

    def least_outside(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Return [traces] a bound of the cost of paths that leave the band."""
        least = np.full(self.count, self.far, np.int64)
        for column in (1, self.width - 2):
            back = np.minimum.accumulate(backward[::-1, column], axis=0)[::-1]
            total = forward[:, column].astype(np.int64) + back
            least = np.minimum(least, total.min(axis=0))
        return least

    def paths(self, best: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Backtrack the chosen traces; ties go to the diagonal, then up, then left.

        Returns:
            [chosen, steps] row * width + lean of each cell, last first, the first one repeated.
        """
        flat = best.reshape(-1)
        steps = np.array([self.width, self.width - 1, 1])[:, None] * self.count
        at = self.sizes[chosen, 0] * self.width + self.sizes[chosen] @ [-1, 1] - self.low
        at = at * self.count + chosen
        start = (self.width - self.low) * self.count + chosen
        visited = [at]
        while True:
            before = at - steps
            corner, up, left = flat[before]
            move = np.where(
                corner <= np.minimum(up, left),
                before[0],
                np.where(up <= left, before[1], before[2]),
            )
            at = np.where(at == start, at, move)
            if (at == visited[-1]).all():
                return np.stack(visited, axis=1) // self.count
            visited.append(at)

    def alignments(self, best: np.ndarray, chosen: np.ndarray) -> list[Alignment]:
        """Return the alignment of each chosen trace."""
        paths = self.paths(best, chosen)[:, ::-1]
        i, lean = np.divmod(paths, self.width)
        i, j = i - 1, i - 1 + lean + self.low
        opens = np.ones(paths.shape, bool)
        opens[:, 1:] = (i[:, 1:] != i[:, :-1]) & (j[:, 1:] != j[:, :-1])
        # Short paths begin with their first cell repeated.
        opens[:, 0] = True
        trace, _ = np.nonzero(opens)
        i, j = i[opens], j[opens]
        last = np.append(trace[1:] != trace[:-1], True)
        sizes = self.sizes[chosen][trace]
        chunks = np.empty((len(i), 4), np.int32)
        chunks[:, 0], chunks[:, 2] = i, j
        chunks[:, 1] = np.where(last, sizes[:, 0], np.append(i[1:], 0))
        chunks[:, 3] = np.where(last, sizes[:, 1], np.append(j[1:], 0))
        words = self.ids[0][i + 1, chosen[trace]]
        single = (chunks[:, 1] - i == 1) & (chunks[:, 3] - j == 1)
        single &= words == self.ids[1][j + 1 - self.low, chosen[trace]]
        single &= self.words.lengths[words] > 0
        numbers = np.arange(len(chosen) + 1)
        chunk_ends = np.searchsorted(trace, numbers).tolist()
        pairs, pair_ends = chunks[single, ::2], np.searchsorted(trace[single], numbers).tolist()
        costs = self.ends(best)[chosen].tolist()
        return [
            Alignment(
                chunks[chunk_ends[n] : chunk_ends[n + 1]],
                pairs[pair_ends[n] : pair_ends[n + 1]],
                float(cost),
            )
            for n, cost in enumerate(costs)
        ]


def _solve(group: _Group, slack: int, room: _Room) -> dict[int, Alignment]:
    """Return the alignment of each trace whose optimum provably lies in the slack and the band."""
    shape = (group.rows, group.width, group.count)
    bound, forward, backward = (
        room.array(name, shape, group.dtype) for name in ("bound", "forward", "backward")
    )
    group.bound(bound)
    group.forward(bound, forward)
    group.backward(bound, backward)
    limit = group.ends(forward) + slack
    held = group.least_outside(forward, backward) > limit
    forward += backward
    forward -= bound
    open_cells = np.flatnonzero(forward <= limit.astype(group.dtype))
    # Dropped cells keep their bound: a cost within the limit cannot have passed one.
    bound.reshape(-1)[open_cells] = _distances(group, open_cells)
    best = group.forward(bound, backward)
    solved = np.flatnonzero(held & (group.ends(best) <= limit))
    return dict(zip(solved.tolist(), group.alignments(best, solved), strict=True))


def _distances(group: _Group, cells: np.ndarray) -> np.ndarray:
    """Return the edit distance of the two tokens of each cell."""
    place, trace = np.divmod(cells, group.count)
    i, lean = np.divmod(place, group.width)
    a, b = group.ids[0][i, trace], group.ids[1][i + lean, trace]
    words = group.words

    found = np.maximum(words.lengths[a], words.lengths[b]).astype(np.int32)
    found[a == b] = 0
    open_pairs = np.flatnonzero((words.masks[a] & words.masks[b] != 0) & (a != b))
    longer = found[open_pairs]

    for least, most in ((0, 4), (4, 8), (8, 14), (14, _LONGEST)):
        picked = open_pairs[(longer > least) & (longer <= most)]
        for first in range(0, len(picked), _PAIRS):
            pick = picked[first : first + _PAIRS]
            x, y = a[pick], b[pick]
            found[pick] = _distances_of(
                words.codes[x, :most].T, words.codes[y, :most].T, words.lengths[x], words.lengths[y]
            )
    for n in open_pairs[longer > _LONGEST].tolist():
        found[n] = levenshtein(words.texts[a[n]], words.texts[b[n]])
    return found


def _distances_of(
    a: np.ndarray, b: np.ndarray, a_lengths: np.ndarray, b_lengths: np.ndarray
) -> np.ndarray:
    """Return the edit distances of many pairs at once, row by row of their tables.

    Args:
        a: [most, pairs] characters, a column a token.
        b: likewise.
        a_lengths: [pairs] characters of each.
        b_lengths: likewise.
    """
    most, pairs = a.shape
    table = np.empty((most + 1, most + 1, pairs), np.uint8)
    table[0] = np.arange(most + 1)[:, None]
    table[:, 0] = np.arange(most + 1)[:, None]
    for i in range(most):
        change = table[i, :-1] + (a[i] != b)
        np.minimum(change, table[i, 1:] + 1, out=change)
        for j in range(most):
            np.minimum(change[j], table[i + 1, j] + 1, out=table[i + 1, j + 1])
    return table[a_lengths, b_lengths, np.arange(pairs)]
