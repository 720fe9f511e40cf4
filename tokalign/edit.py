"""Find where two byte strings differ, in time linear in their length."""

_RESYNC = 16  # equal bytes after which a stretch of differences counts as over
_CHANCE = 2  # equal bytes within such a stretch that may be chance
_MOST_EDITS = 256  # edits within one stretch before it is ended by the next anchor

Region = tuple[int, int, int, int]


def differences(a: bytes, b: bytes) -> list[Region]:
    """Return the regions in which `a` and `b` differ; between them they are equal.

    Each stretch of differences is the shortest script of insertions and deletions, searched until
    16 equal bytes follow or both strings end, and over at most 256 edits; a longer one ends at the
    next 16 bytes that both sides share. So the work grows linearly with the length. Within a
    stretch one or two equal bytes are taken for chance and count as different.

        a   t h e _ c a t
        b   t h e _ h a t s      differences (4, 7, 4, 8): `at` may be chance

    Args:
        a: one string.
        b: the other.

    Returns:
        Regions (a_start, a_end, b_start, b_end), in order and not touching.

    Example:
        >>> differences(b"one two three", b"one tow three!")
        [(5, 7, 5, 7), (13, 13, 13, 14)]

    Source: Myers, "An O(ND) difference algorithm and its variations", 1986; the bounds are ours.
    """
    regions: list[Region] = []
    x, y = _skip_equal(a, b, 0, 0)
    while x < len(a) or y < len(b):
        stretch = _stretch(a, b, x, y)
        regions += stretch
        x, y = _skip_equal(a, b, stretch[-1][1], stretch[-1][3])
    return regions


def _skip_equal(a: bytes, b: bytes, x: int, y: int) -> tuple[int, int]:
    """Advance to the first unequal byte, in doubling strides."""
    stride = 64
    while x < len(a) and y < len(b) and a[x : x + stride] == b[y : y + stride]:
        x, y, stride = min(x + stride, len(a)), min(y + stride, len(b)), 2 * stride
    while x < len(a) and y < len(b) and a[x] == b[y]:
        x, y = x + 1, y + 1
    return x, y


def _stretch(a: bytes, b: bytes, x: int, y: int) -> list[Region]:
    """Return the regions of the stretch of differences that opens at (x, y)."""
    furthest = {1: 0}
    rounds: list[dict[int, int]] = []
    height, width = len(a) - x, len(b) - y
    for edits in range(_MOST_EDITS + 1):
        rounds.append(furthest)
        furthest = dict(furthest)
        for diagonal in range(-edits, edits + 1, 2):
            down = _goes_down(furthest, diagonal, edits)
            i = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            j = first = i - diagonal
            while (
                0 <= i < height and 0 <= j < width and j - first < _RESYNC and a[x + i] == b[y + j]
            ):
                i, j = i + 1, j + 1
            furthest[diagonal] = i
            over = j - first == _RESYNC and j <= width
            if over or (i == height and j == width):
                runs = _runs(rounds, i, j)
                end = (i - _RESYNC, j - _RESYNC) if over else (i, j)
                return _between(runs, x, y, end)
    return [(x, i, y, j) for i, j in [_next_anchor(a, b, x, y)]]


def _goes_down(furthest: dict[int, int], diagonal: int, edits: int) -> bool:
    """Say whether the last edit of a furthest path inserts a byte of b."""
    return diagonal == -edits or (
        diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1]
    )


def _runs(rounds: list[dict[int, int]], i: int, j: int) -> list[tuple[int, int, int]]:
    """Follow a path back; return its runs of equal bytes (i, j, length), first to last."""
    found = []
    for edits in range(len(rounds) - 1, -1, -1):
        diagonal, before = i - j, rounds[edits]
        down = _goes_down(before, diagonal, edits)
        came = before[diagonal + 1] if down else before[diagonal - 1]
        start = came if down else came + 1
        found.append((start, start - diagonal, i - start))
        i, j = came, came - (diagonal + 1 if down else diagonal - 1)
    return found[::-1]


def _between(
    runs: list[tuple[int, int, int]], x: int, y: int, end: tuple[int, int]
) -> list[Region]:
    """Return the regions between runs too long to be chance, up to `end`."""
    regions = []
    i, j = 0, 0
    for run_i, run_j, length in [*runs, (*end, 0)]:
        at_end = (run_i + length, run_j + length) >= end
        if (length > _CHANCE or at_end) and (run_i, run_j) <= end and (run_i, run_j) != (i, j):
            regions.append((x + i, x + run_i, y + j, y + run_j))
            i, j = run_i + length, run_j + length
        elif length > _CHANCE:
            i, j = run_i + length, run_j + length
        if (i, j) >= end:
            break
    return regions


def _next_anchor(a: bytes, b: bytes, x: int, y: int) -> tuple[int, int]:
    """Find the next bytes that both sides share, the end of both where there are none."""
    reach = 16 * _MOST_EDITS
    while x < len(a) and y < len(b):
        last = min(x + reach, len(a) - _RESYNC)
        places = {a[i : i + _RESYNC]: i for i in range(last, x - 1, -1)}
        for j in range(y, min(y + reach, len(b) - _RESYNC) + 1):
            if (i := places.get(b[j : j + _RESYNC])) is not None:
                return i, j
        x, y = x + reach, y + reach
    return len(a), len(b)
