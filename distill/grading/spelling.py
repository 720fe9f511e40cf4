"""One text for each plain value, the same text exactly where the values are equal."""

from collections.abc import Callable, Sequence

_DEEPEST = 50


class NoLiteralError(TypeError):
    """A value that Python's literals cannot write."""


def spell(value: object) -> str:
    """Return a text of a plain value that is the same text exactly where the values are equal.

    The outer side compares such texts and so never parses what a candidate sent. As Python's `==`
    has it, 2, 2.0 and True + 1 are one number, sets have no order, tuples are no lists; a subclass
    counts as the plain class below it. Only nan differs: its spelling is equal, itself it is not.

    Raises:
        NoLiteralError: the value, or one inside it, is none of Python's literal types.
        ValueError: it nests deeper than 50 levels.

    Example:
        >>> spell([1.0, (2,), {"b", "a"}])
        "[1, (2,), {'a', 'b'}]"
        >>> spell(map(abs, [1]))
        Traceback (most recent call last):
            ...
        distill.grading.spelling.NoLiteralError: map
    """
    return _spell(value, _DEEPEST)


def _spell(value: object, deepest: int) -> str:
    if deepest < 0:
        raise ValueError(f"expected at most {_DEEPEST} levels of nesting, got more")
    if value is None:
        return "None"
    for kind, text in _SPELLINGS:
        if isinstance(value, kind):
            return text(value, deepest - 1)
    raise NoLiteralError(type(value).__name__)


def _spell_float(value: float, deepest: int) -> str:
    if float.is_integer(value):
        return int.__repr__(float.__int__(value))
    return float.__repr__(value)


def _spell_complex(value: complex, deepest: int) -> str:
    if not value.imag:
        return _spell(value.real, deepest)
    return f"({_spell(value.real, deepest)}, {_spell(value.imag, deepest)}j)"


def _spell_items(values: Sequence[object], deepest: int) -> str:
    return ", ".join([_spell(value, deepest) for value in values])


def _spell_set(value: set[object] | frozenset[object], deepest: int) -> str:
    texts = sorted([_spell(item, deepest) for item in set(value)])
    return "{" + ", ".join(texts) + "}" if texts else "set()"


def _spell_dict(value: dict[object, object], deepest: int) -> str:
    pairs = [(_spell(k, deepest), _spell(v, deepest)) for k, v in dict.items(value)]
    return "{" + ", ".join([f"{key}: {item}" for key, item in sorted(pairs)]) + "}"


_SPELLINGS: tuple[tuple[type | tuple[type, ...], Callable[..., str]], ...] = (
    (int, lambda value, _: int.__repr__(value)),
    (float, _spell_float),
    (str, lambda value, _: ascii(str.__str__(value))),
    (list, lambda value, deepest: f"[{_spell_items(list(value), deepest)}]"),
    (tuple, lambda value, deepest: f"({_spell_items(tuple(value), deepest)},)"),
    (dict, _spell_dict),
    ((set, frozenset), _spell_set),
    (complex, _spell_complex),
    ((bytes, bytearray), lambda value, _: bytes.__repr__(bytes(value))),
)
