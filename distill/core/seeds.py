"""Seeds and orders that depend on names alone: the same on every machine and in every process."""

import hashlib
from collections.abc import Iterable

_DIGEST_BITS = 64


def from_names(*names: object, bits: int = 31) -> int:
    r"""Return a number in [0, 2**bits) that depends on the names alone.

    It is the first bits of the SHA-256 of the names' text, joined by NUL. 31 bits fit the seeds of
    every endpoint; equal numbers of different names are as likely as chance.

    Args:
        names: such as a run's seed, a problem's id and the sample's number.
        bits: 1 to 64.

    Raises:
        ValueError: bits out of range.

    Example:
        >>> from_names(0, "gsm8k/train/0", 1) == from_names("0", "gsm8k/train/0", "1")
        True
        >>> from_names("a", bits=8), from_names("b", bits=8)
        (202, 62)
    """
    if not 1 <= bits <= _DIGEST_BITS:
        raise ValueError(f"expected 1 to {_DIGEST_BITS} bits, got {bits}")
    return int.from_bytes(_digest(*names)[:8], "big") >> (_DIGEST_BITS - bits)


def shuffled(names: Iterable[str], seed: int = 0) -> list[str]:
    """Return the names in a pseudorandom order; the order of two is independent of the others.

    Example:
        >>> shuffled(["a", "b", "c"]) == shuffled(["c", "b", "a"])
        True
    """
    return sorted(names, key=lambda name: _digest(seed, name))


def _digest(*names: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, names)).encode()).digest()
