"""Asserts as pairs: what a candidate computes, and the value that it must have.

Nothing is evaluated here. The texts come from files of any origin, so whatever Python's parser says
about one, however deep it nests, is a ValueError of one sentence.

    assert add(1, 2) == 3   ->   call: add(1, 2)   expected: 3
                                 goes inside       stays outside
"""

import ast
import builtins
import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Iterator

_KNOWN = frozenset(dir(builtins)) | sys.stdlib_module_names
_SHOWN = 120
_LONGEST = 1 << 20


@dataclasses.dataclass(frozen=True)
class Assertion:
    """An assert, parted into what the candidate computes and what it must be.

    Attributes:
        source: the condition as it was written.
        call: the expression that the candidate's side evaluates, None where the assert cannot be
            parted without handing the expected value inside.
        expected: the expression of the expected value.
        relative: tolerance as a share of the larger of both values, as math.isclose has it.
        absolute: tolerance as a distance, likewise. Both 0 ask for equality.
        order: `<` or `<=` where the assert compares the distance itself with `absolute`.
    """

    source: str
    call: str | None = None
    expected: str = "None"
    relative: float = 0.0
    absolute: float = 0.0
    order: str = ""


def split_asserts(source: str) -> tuple[Assertion, ...]:
    """Part the asserts of a test into calls and expected values; nothing is evaluated.

    Parted are `call == value`, either way round, `call is None`, `call`, `not call`, `isclose(call,
    value, …)`, `abs(call - value) < bound`, and conditions of these joined by `and`. `is True` and
    `is False` are taken as `==`. Whatever else asserts, or is no assert, is kept without a call, as
    evaluating it inside would hand over the expected value.

    Args:
        source: Python statements, each an assert; at most 1 MiB.

    Raises:
        ValueError: the source is no Python, is too long, or nests too deeply.

    Example:
        >>> (assertion,) = split_asserts("assert add(1, 2) == 3")
        >>> assertion.call, assertion.expected
        ('add(1, 2)', '3')
        >>> split_asserts("assert add(1, 2) in (3, 4)")[0].call is None
        True
    """
    with _refusing(source):
        return tuple(found for statement in _parse(source) for found in _split(statement))


def split_tests(source: str) -> tuple[str, tuple[Assertion, ...]]:
    r"""Part a test into what sets it up and its asserts, which `split_asserts` parts further.

    Raises:
        ValueError: as `split_asserts`.

    Example:
        >>> split_tests("one = 1\nassert add(one, 2) == 3")[0]
        'one = 1'
    """
    with _refusing(source):
        body = _parse(source)
        setup = [ast.unparse(one) for one in body if not isinstance(one, ast.Assert)]
        asserts = (one for one in body if isinstance(one, ast.Assert))
        return "\n".join(setup), tuple(found for one in asserts for found in _split(one))


@contextlib.contextmanager
def _refusing(source: str) -> Iterator[None]:
    """Turn every way in which the parser, or a walk of its tree, gives up into a ValueError."""
    if len(source) > _LONGEST:
        raise ValueError(f"expected Python asserts, got {len(source)} characters, over {_LONGEST}")
    try:
        yield
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        cause = f"{type(error).__name__} at {source[:_SHOWN]!r}"
        raise ValueError(f"expected Python asserts, got {cause}") from error


def _parse(source: str) -> list[ast.stmt]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown escapes, which are the tests' own affair
        return ast.parse(source).body


def _split(statement: ast.stmt) -> Iterator[Assertion]:
    if not isinstance(statement, ast.Assert):
        yield Assertion(ast.unparse(statement))
        return
    test = statement.test
    match test:
        case ast.BoolOp(op=ast.And(), values=conditions):
            pass
        case _:
            conditions = [test]
    for condition in conditions:
        forms = (form(condition) for form in (_closeness, _distance, _equality, _truth))
        yield next(filter(None, forms), Assertion(ast.unparse(condition)))


def _equality(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            return _part(condition, left, right) or _part(condition, right, left)
        case ast.Compare(left=left, ops=[ast.Is()], comparators=[ast.Constant() as right]):
            return _part(condition, left, right)
    return None


def _closeness(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.Call(
            func=ast.Name(id="isclose") | ast.Attribute(value=ast.Name(id="math"), attr="isclose"),
            args=[call, value],
            keywords=keywords,
        ):
            given = {keyword.arg: _number(keyword.value) for keyword in keywords}
            relative, absolute = given.pop("rel_tol", 1e-9), given.pop("abs_tol", 0.0)
            if relative is None or absolute is None or given:
                return None
            return _part(condition, call, value, relative, absolute)
    return None


def _distance(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.Compare(
            left=ast.Call(
                func=ast.Name(id="abs" | "fabs") | ast.Attribute(attr="fabs"),
                args=[ast.BinOp(left=left, op=ast.Sub(), right=right)],
                keywords=[],
            ),
            ops=[ast.Lt() | ast.LtE() as order],
            comparators=[bound],
        ) if (absolute := _number(bound)) is not None:
            parted = _part(condition, left, right, 0.0, absolute)
            parted = parted or _part(condition, right, left, 0.0, absolute)
            sign = "<" if isinstance(order, ast.Lt) else "<="
            return dataclasses.replace(parted, order=sign) if parted else None
    return None


def _truth(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            wanted = False
        case ast.Call() as call:
            wanted = True
        case _:
            return None
    if not isinstance(call.func, ast.Name) or call.func.id in _KNOWN or not _computes(call):
        return None
    return Assertion(ast.unparse(condition), f"bool({ast.unparse(call)})", str(wanted))


def _part(
    condition: ast.expr,
    call: ast.expr,
    value: ast.expr,
    relative: float = 0.0,
    absolute: float = 0.0,
) -> Assertion | None:
    """Take `call` as the candidate's side if it can be, and `value` if it needs no candidate."""
    if is_literal(call) or not _computes(call):
        return None
    if not is_literal(value) and (not names(value) <= _KNOWN or names(call) <= _KNOWN):
        return None
    source, computed, expected = (ast.unparse(node) for node in (condition, call, value))
    return Assertion(source, computed, expected, relative, absolute)


def _computes(call: ast.expr) -> bool:
    """Whether the expression yields a value rather than a truth that holds an expected value."""
    decisions = (ast.Compare, ast.BoolOp, ast.IfExp, ast.Not, ast.NamedExpr, ast.Await, ast.Yield)
    pending: list[ast.AST] = [call]
    while pending:
        node = pending.pop()
        if isinstance(node, decisions):
            return False
        if not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return True


def names(expression: ast.expr) -> set[str]:
    """Return the names that an expression reads."""
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def is_literal(expression: ast.expr) -> bool:
    """Return whether an expression is a literal, which needs no evaluation."""
    try:
        ast.literal_eval(expression)
    except (ValueError, TypeError):
        return False
    return True


def _number(expression: ast.expr) -> float | None:
    value = ast.literal_eval(expression) if is_literal(expression) else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None
