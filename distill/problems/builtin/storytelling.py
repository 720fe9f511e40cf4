"""Tell a word problem from phrase tables and a program of equations; `stories` has the tables.

A story is drawn as an opening, some events and a closing question. Each part carries a program, the
clauses that tell it and, for every equation, the sentences that may state it:

    part("u=a*b t=t+u", "{he} buys {a} bags of {b} {things}", GROUPS, GAIN)

Names `a` to `h` are numbers drawn anew for the part, `t` is the running result, other letters stay
bound until the question. Every equation is computed here, never written by hand.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from distill.core import seeds

T = TypeVar("T")
Equation = tuple[str, str, str, str]
SMALLEST, LARGEST = 2, 99


def words(text: str) -> tuple[str, ...]:
    """Split a list at whitespace."""
    return tuple(text.split())


HE = words(
    "Adam Ben Carl Dan Eric Finn George Henry Ian Jack Kevin Leo Mark Noah Oscar Paul Ryan Sam "
    "Tom Will"
)
SHE = words(
    "Amy Beth Clara Diana Emma Fay Grace Hannah Iris Jane Kate Lucy Mia Nina Olivia Rosa Sara "
    "Tina Uma Zoe"
)
NAMES = (*HE, *SHE)
_PRONOUNS = (
    *((name, "he", "his", "him") for name in HE),
    *((name, "she", "her", "her") for name in SHE),
)


class Draw:
    """Random choices built on the uniform numbers alone, so that they outlive Python versions."""

    def __init__(self, *key: object) -> None:
        number = seeds.from_names("/".join(map(str, key)), bits=64)
        self.uniform = random.Random(number).random

    def between(self, low: int, high: int) -> int:
        """Return an integer in [low, high]."""
        return low + int(self.uniform() * (high - low + 1))

    def small(self, low: int, high: int) -> int:
        """Return an integer in [low, high], the lower ones more often."""
        return low + int(self.uniform() * self.uniform() ** 0.5 * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, all as likely."""
        return options[int(self.uniform() * len(options))]

    def distinct(self, options: Sequence[T], n: int) -> list[T]:
        """Return n different options in random order."""
        rest = list(options)
        return [rest.pop(int(self.uniform() * len(rest))) for _ in range(n)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a story: its program, clauses, questions and a table of lines an equation."""

    program: tuple[Equation, ...]
    swaps: bool
    clauses: tuple[str, ...]
    questions: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Story:
    """What one kind of story is about and the parts that it may be made of.

    Attributes:
        things: what is counted, plural.
        bags: what holds it, plural.
        opening: how it starts.
        events: what may happen next.
        closing: the parts with the question.
        steps: how many equations a solution has, a number drawn uniformly for each problem.
        joins: what may introduce an event.
    """

    things: tuple[str, ...]
    bags: tuple[str, ...]
    opening: tuple[Part, ...]
    events: tuple[Part, ...]
    closing: tuple[Part, ...]
    steps: tuple[int, ...]
    joins: tuple[str, ...] = ("", "", "Then ", "Later, ", "After that, ", "Next, ")


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A question, its gold chain (one step a line, the answer last) and its answer."""

    question: str
    chain: str
    answer: str


@functools.cache
def options(table: str) -> tuple[str, ...]:
    """Cut a table at ` | `.

    Raises:
        ValueError: an option is empty.
    """
    cut = tuple(table.split(" | ")) if table else ()
    if not all(option.strip() == option != "" for option in cut):
        raise ValueError(f"expected no empty option, got {table!r}")
    return cut


def part(program: str, clauses: str, *lines: str, ask: str = "") -> Part:
    """Read a part; whitespace separates equations, `;` lets the first two swap places.

    Raises:
        ValueError: the number of line tables is not the number of equations.
    """
    equations = tuple(_equation(text) for text in program.replace(";", " ").split())
    if len(lines) != sum(1 for equation in equations if equation[2]):
        raise ValueError(f"expected a table for each equation, got {len(lines)} in {program!r}")
    return Part(
        equations, ";" in program, options(clauses), options(ask), tuple(map(options, lines))
    )


def _equation(text: str) -> Equation:
    result, _, body = text.partition("=")
    for operator in "+-*/":
        left, found, right = body.partition(operator)
        if found:
            return left, operator, right, result
    return body, "", "", result


def fixed(*tales: Part, things: str, bags: str = "bags boxes", steps: tuple[int, ...]) -> Story:
    """Make a story whose parts each tell and ask a whole problem."""
    return Story(words(things), words(bags), (part("", ""),), (), tales, steps)


def tell(story: Story, draw: Draw) -> Exercise:
    """Draw one problem of a story; parts whose numbers do not work out are drawn again."""
    while True:
        exercise = _attempt(story, draw)
        if exercise is not None:
            return exercise


def _attempt(story: Story, draw: Draw) -> Exercise | None:
    parts = plan(story, draw)
    if parts is None:
        return None
    cast, numbers = _cast(story, draw), dict[str, int]()
    clauses: list[str] = []
    chain: list[str] = []
    for piece in parts:
        lines = _settle(piece, numbers, cast, draw)
        if lines is None:
            return None
        chain += lines
        if piece.clauses:
            clauses.append(draw.pick(piece.clauses).format_map(cast))
    asked = draw.pick(parts[-1].questions).format_map(cast)
    joins = ("", *(draw.pick(story.joins) for _ in parts[2:]), "")
    answer = str(numbers["t"])
    chain.append(f"The answer is {answer}")
    return Exercise(_join(clauses, asked, joins, draw), "\n".join(chain), answer)


def plan(story: Story, draw: Draw) -> list[Part] | None:
    """Draw an opening, events and a closing; None where the equations are not as many as wanted."""
    wanted = draw.pick(story.steps)
    opening, closing = draw.pick(story.opening), draw.pick(story.closing)
    steps = len(opening.lines) + len(closing.lines)
    parts = [opening]
    while steps < wanted and story.events:
        event = draw.pick(story.events)
        if event is not parts[-1]:
            parts.append(event)
            steps += len(event.lines)
    return [*parts, closing] if steps == wanted else None


def _cast(story: Story, draw: Draw) -> dict[str, object]:
    (x, he, his, him), (y, *_), (z, *_) = draw.distinct(_PRONOUNS, 3)
    return {
        **{"X": x, "Y": y, "Z": z, "he": x if draw.uniform() < 0.2 else he, "his": his, "him": him},
        **{"things": draw.pick(story.things), "bags": draw.pick(story.bags)},
    }


def _settle(
    piece: Part, numbers: dict[str, int], cast: dict[str, object], draw: Draw
) -> list[str] | None:
    """Draw the part's numbers and say its equations; None where no number fits."""
    for name in "abcdefgh":
        numbers.pop(name, None)
    texts = []
    for left, operator, right, result in piece.program:
        if not operator:
            if left not in numbers:
                numbers[left] = draw.small(5, 45)
            numbers[result] = numbers[left]
            continue
        pair = _operands(left, operator, right, numbers, draw)
        if pair is None:
            return None
        numbers[result] = value = _APPLY[operator](*pair)
        if operator in "+*" and draw.uniform() < 0.2:
            pair = pair[::-1]
        texts.append(f"{pair[0]} {operator} {pair[1]} = {value}")
    cast.update(numbers)
    lines = []
    for text, table in zip(texts, piece.lines, strict=True):
        cast["e"] = text
        lines.append(_capital(draw.pick(table).format_map(cast)))
    if piece.swaps and draw.uniform() < 0.5:
        lines[:2] = lines[1::-1]
    return lines


_APPLY = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x // y,
}


def _operands(
    left: str, operator: str, right: str, numbers: dict[str, int], draw: Draw
) -> tuple[int, int] | None:
    """Return the operands, drawing those not yet known so that the result stays in range."""
    x, y = _known(left, numbers), _known(right, numbers)
    if x is None:
        numbers[left] = x = _draw_left(operator, y, draw)
    if y is None:
        y = _draw_right(operator, x, draw)
        if y is None:
            return None
        numbers[right] = y
    if operator == "/" and x % y:
        return None
    return (x, y) if SMALLEST <= _APPLY[operator](x, y) <= LARGEST else None


def _known(name: str, numbers: Mapping[str, int]) -> int | None:
    return int(name) if name.isdigit() else numbers.get(name)


def _draw_left(operator: str, y: int | None, draw: Draw) -> int:
    if operator == "+":
        return draw.small(3, 60)
    if operator == "-":
        return draw.between(6, 80) if y is None else y + draw.small(2, 30)
    if operator == "*":
        return draw.small(2, 9)
    divisor = draw.small(2, 9) if y is None else y
    return divisor * draw.small(2, min(12, LARGEST // divisor))


def _draw_right(operator: str, x: int, draw: Draw) -> int | None:
    if operator == "/":
        divisors = [d for d in range(2, 10) if x % d == 0 and x // d >= SMALLEST]
        return draw.pick(divisors) if divisors else None
    top = {"+": min(30, LARGEST - x), "-": min(30, x - SMALLEST), "*": min(9, LARGEST // x)}[
        operator
    ]
    return draw.small(2, top) if top >= 2 else None


def _join(clauses: list[str], question: str, joins: tuple[str, ...], draw: Draw) -> str:
    """Write the clauses as sentences, the last at times as a condition of the question."""
    condition = len(clauses) > 1 and "." not in clauses[-1] and draw.uniform() < 0.3
    said = clauses[:-1] if condition else clauses
    text = " ".join(_sentence(clause, join) for clause, join in zip(said, joins, strict=False))
    end = f"If {clauses[-1]}, {question}" if condition else _capital(question)
    return f"{text} {end}" if text else end


def _sentence(clause: str, join: str) -> str:
    return ". ".join(map(_capital, f"{join}{clause}.".split(". ")))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
