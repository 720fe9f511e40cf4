"""A calculator beside a generator: when it writes `a op b =`, the calculator writes the result.

    drawn      Tom has 17 * 24 =        stops at the sign
    computed                    408
    drawn                          . The answer is 408

It works through any generator that continues a prefix, in process or behind an endpoint. The
arithmetic is exact and reads digits alone; no text of a model is executed.

Source: Cobbe et al. 2021, arXiv 2110.14168, appendix C, for generators without annotations.
"""

import dataclasses
import itertools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from distill.core import seeds
from distill.core.ports import Completion, Generator, Request, Sampling, Usage
from distill.text.completions import Token, assemble, cut_at_stop, tokens_of

SIGN = "="
_LOOK_BACK = 200  # characters before the sign
_MOST_DIGITS, _MOST_PLACES = 15, 6
_PIECE = re.compile(
    r"(?P<number>-?(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d,.]*\d))"
    r"|(?P<sign>[-+*/\u00d7\u00f7()x])|(?P<space>[ $])|(?P<other>.)",
    re.DOTALL,
)
_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_SPELLINGS = str.maketrans({"\u00d7": "*", "x": "*", "\u00f7": "/"})
_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}


# --- The arithmetic ----------------------------------------------------------------------------


def result(text: str) -> str | None:
    """Return the result after the sign that ends `text`, None where there is none to compute.

    The longest expression right before the sign counts; one of a single number, one that divides
    by zero or one whose result has over six decimals is the model's to complete.

    Example:
        >>> result("There are 3 + 4 * 5 ="), result("(1,200 - 200) / 8="), result("10 / 3 =")
        (' 23', '125', None)
        >>> result("so x ="), result("He has 12 =")
        (None, None)
    """
    if not text.endswith(SIGN):
        return None
    before = text.removesuffix(SIGN)
    value = _value(_pieces(before[-_LOOK_BACK:]))
    spelled = None if value is None else _spelled(value)
    return None if spelled is None else (" " if before[-1:] == " " else "") + spelled


def _pieces(text: str) -> list[str]:
    """Return the numbers and operators that end `text`; a sign next to its number is its own."""
    pieces: list[str] = []
    for match in _PIECE.finditer(text):
        piece = match.group()
        if match.lastgroup == "other" or len(piece) > _MOST_DIGITS:
            pieces = []
        elif match.lastgroup == "number" and piece.startswith("-") and _ends_value(pieces):
            pieces += ["-", piece[1:]]
        elif match.lastgroup != "space":
            pieces.append(piece.translate(_SPELLINGS))
    return list(itertools.dropwhile(lambda piece: piece in _BINDS or piece == ")", pieces))


def _ends_value(pieces: Sequence[str]) -> bool:
    return bool(pieces) and (pieces[-1] == ")" or pieces[-1][-1].isdigit())


def _value(pieces: Sequence[str]) -> Fraction | None:
    """Return the value of an expression, None where it is none or has no operator.

    Source: Dijkstra 1961, the shunting yard.
    """
    values: list[Fraction] = []
    signs: list[str] = []
    wants_value = True
    try:
        for piece in pieces:
            opens, is_number = piece == "(", piece[-1].isdigit()
            if wants_value != (opens or is_number):
                return None
            if is_number:
                values.append(Fraction(piece.replace(",", "")))
            elif opens:
                signs.append(piece)
            else:
                _reduce(values, signs, 0 if piece == ")" else _BINDS[piece])
                if piece != ")":
                    signs.append(piece)
                elif not signs or signs.pop() != "(":
                    return None
            wants_value = not (is_number or piece == ")")
        if wants_value:
            return None
        _reduce(values, signs, 0)
    except ZeroDivisionError:
        return None
    whole = len(values) == 1 and not signs
    return values[0] if whole and any(piece in _BINDS for piece in pieces) else None


def _reduce(values: list[Fraction], signs: list[str], binds: int) -> None:
    """Apply the operators at the end that bind at least as much, up to a bracket."""
    while signs and signs[-1] != "(" and _BINDS[signs[-1]] >= binds:
        right = values.pop()
        values[-1] = _OPERATORS[signs.pop()](values[-1], right)


def _spelled(value: Fraction) -> str | None:
    """Return a decimal without loss, None where there is none that is short enough."""
    scaled = value * 10**_MOST_PLACES
    if scaled.denominator != 1 or abs(value) >= 10**_MOST_DIGITS:
        return None
    if value.denominator == 1:
        return str(value.numerator)
    digits = f"{abs(scaled.numerator):0{_MOST_PLACES + 1}d}"
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-_MOST_PLACES]}.{digits[-_MOST_PLACES:]}".rstrip("0")


# --- The generator -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Calculator:
    """Put a calculator beside a generator; see the module.

    Example:
        >>> from distill.models.saved import SavedModel
        >>> Calculator()(SavedModel("data/models/student_instructed")).model
        'student_instructed'
    """

    def __call__(self, generator: Generator) -> "Calculating":
        """Return the generator with its calculator."""
        return Calculating(generator)


@dataclasses.dataclass
class _Text:
    """A completion that grows."""

    request: Request
    tokens: list[Token] = dataclasses.field(default_factory=list)
    behaviour: list[float] = dataclasses.field(default_factory=list)
    parts: list[Completion] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        return b"".join(token.text for token in self.tokens).decode()

    def next(self) -> Request:
        """Return the request of the next part; the first part has the request's own seed."""
        seed = self.request.seed
        if self.parts:
            seed = seeds.from_names(seed, "calculator", len(self.parts))
        prefix = self.request.prefix + self.text
        return dataclasses.replace(self.request, seed=seed, prefix=prefix)

    def add(self, part: Completion) -> None:
        """Append a drawn part."""
        self.parts.append(part)
        tokens = tokens_of(part) or ([Token(part.text.encode())] if part.text else [])
        self.tokens += tokens
        self.behaviour += part.behaviour_logprobs.tolist() or [np.nan] * len(tokens)

    def write(self, text: str) -> None:
        """Append a computed result, one token that was not drawn."""
        self.tokens.append(Token(text.encode()))
        self.behaviour.append(np.nan)

    def whole(self, reason: str, end_logprob: float) -> Completion:
        """Return the completion, with the cost of all its parts."""
        made = assemble(self.tokens, finish_reason=reason, end_logprob=end_logprob)
        known = any(len(part.behaviour_logprobs) for part in self.parts)
        behaviour = np.array(self.behaviour if known else [], np.float32)
        usage = sum((part.usage for part in self.parts), Usage(0, 0))
        return dataclasses.replace(made, behaviour_logprobs=behaviour).with_usage(usage)


@dataclasses.dataclass(frozen=True)
class Calculating:
    """A generator whose results a calculator writes.

    Log-probabilities of written results are NaN, and they have no candidates; each counts as one of
    `max_tokens`. All requests advance together, by one call of the generator for each sign.

    Args:
        generator: one that continues a prefix.
    """

    generator: Generator

    @property
    def model(self) -> str:
        """The generator's own."""
        return self.generator.model

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into requests, completion) in the order in which they finish."""
        growing = {number: _Text(request) for number, request in enumerate(requests)}
        while growing:
            for number, part in self._drawn(growing, sampling):
                of_number = growing[number]
                of_number.add(part)
                completion = _finished(of_number, part, sampling)
                if completion is not None:
                    del growing[number]
                    yield number, completion
                elif (computed := result(of_number.request.prefix + of_number.text)) is not None:
                    of_number.write(computed)

    def _drawn(
        self, growing: dict[int, _Text], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the next part of each text; those with equal room for tokens run together."""
        stop = (*sampling.stop, *(() if SIGN in sampling.stop else (SIGN,)))
        groups: dict[int, list[int]] = {}
        for number, text in growing.items():
            groups.setdefault(sampling.max_tokens - len(text.tokens), []).append(number)
        for room, numbers in groups.items():
            how = dataclasses.replace(sampling, stop=stop, include_stop=True, max_tokens=room)
            requests = [growing[number].next() for number in numbers]
            for index, part in self.generator.generate(requests, how):
                yield numbers[index], part

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the generator's log-probabilities of each request's own `completion`."""
        return self.generator.score(requests, top_logprobs)


def _finished(text: _Text, part: Completion, sampling: Sampling) -> Completion | None:
    """Return the whole completion where it has ended, None where a result comes next."""
    made = text.whole(part.finish_reason, part.end_logprob)
    cut = cut_at_stop(made, sampling)
    if cut is not made or part.finish_reason != "stop" or not part.text.endswith(SIGN):
        return cut
    if len(text.tokens) + 1 >= sampling.max_tokens:
        return dataclasses.replace(made, finish_reason="length", end_logprob=np.nan)
    return None
