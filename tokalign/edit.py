"""Where two byte strings differ, in time linear in their length; for sides that spell apart."""

_RESYNC = 16  # equal bytes after which a difference counts as closed
_MOST_EDITS = 256  # edits within one difference before it is closed by the next anchor


def differences(a: bytes, b: bytes) -> list[tuple[int, int, int, int]]:
    """Return the regions in which `a` and `b` differ; between them they are equal.

    Each difference is the shortest script of insertions and deletions (Myers 1986), searched
    until 16 equal bytes follow or both strings end, and over at most 256 edits; a longer one ends
    at the next 16 bytes that both sides share. So the work grows linearly with the length.

        a   t h e _ c a t
        b   t h e _ h a t s      differences (4, 5, 4, 5) and (7, 7, 7, 8)

    Args:
        a: one string.
        b: the other.

    Returns:
        Regions (a_start, a_end, b_start, b_end), in order and not touching.

    Example:
        >>> differences(b"one two", b"one tow!")
        [(5, 7, 5, 8)]

    Source: Myers, "An O(ND) difference algorithm and its variations", 1986; the two bounds ours.
    """
    regions: list[tuple[int, int, int, int]] = []
    x, y = _skip_equal(a, b, 0, 0)
    while x < len(a) or y < len(b):
        end_x, end_y = _close(a, b, x, y)
        regions.append((x, end_x, y, end_y))
        x, y = _skip_equal(a, b, end_x, end_y)
    return regions


def _skip_equal(a: bytes, b: bytes, x: int, y: int) -> tuple[int, int]:
    """Go on to the first unequal byte, in doubling strides."""
    stride = 64
    while a[x : x + stride] == b[y : y + stride] and x < len(a) and y < len(b):
        x, y, stride = min(x + stride, len(a)), min(y + stride, len(b)), 2 * stride
    while x < len(a) and y < len(b) and a[x] == b[y]:
        x, y = x + 1, y + 1
    return x, y


def _close(a: bytes, b: bytes, x: int, y: int) -> tuple[int, int]:
    """Find where the difference that opens at (x, y) ends."""
    furthest = {1: 0}
    height, width = len(a) - x, len(b) - y
    for edits in range(_MOST_EDITS + 1):
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1]
            )
            i = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            j = i - diagonal
            if i > height or j > width or j < 0:
                furthest[diagonal] = i
                continue
            first = i
            while i < height and j < width and i - first < _RESYNC and a[x + i] == b[y + j]:
                i, j = i + 1, j + 1
            furthest[diagonal] = i
            if i - first == _RESYNC:
                return x + first, y + first - diagonal
            if i == height and j == width:
                return x + first, y + first - diagonal
    return _next_anchor(a, b, x, y)


def _next_anchor(a: bytes, b: bytes, x: int, y: int) -> tuple[int, int]:
    """Find the next bytes that both sides share, the end of both where there are none."""
    reach = 16 * _MOST_EDITS
    while x < len(a) and y < len(b):
        places = {a[i : i + _RESYNC]: i for i in range(min(x + reach, len(a) - _RESYNC), x - 1, -1)}
        for j in range(y, min(y + reach, len(b) - _RESYNC) + 1):
            if (i := places.get(b[j : j + _RESYNC])) is not None:
                return i, j
        x, y = x + reach, y + reach
    return len(a), len(b)
