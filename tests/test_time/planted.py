"""A generator over a planted tree of solutions and a scorer of planted values, both counting."""

import dataclasses
import hashlib
import math

import numpy as np

from distill.core.ports import Scores
from distill.text import steps
from distill.text.completions import Token, assemble

# One step is one token; a leaf ends the solution. Text so far -> what may follow, with its odds.
SUMS = {
    "": {"2 + 2 = 4.": 0.6, "2 + 2 = 5.": 0.4},
    "2 + 2 = 4.": {" 4 * 2 = 8.": 0.5, " 4 * 2 = 6.": 0.3, " The answer is 4": 0.2},
    "2 + 2 = 5.": {" 5 * 2 = 10.": 0.7, " The answer is 5": 0.3},
    "2 + 2 = 4. 4 * 2 = 8.": {" The answer is 8": 1.0},
    "2 + 2 = 4. 4 * 2 = 6.": {" The answer is 6": 1.0},
    "2 + 2 = 5. 5 * 2 = 10.": {" The answer is 10": 0.5, " The answer is 8": 0.5},
}
GOOD = {"2 + 2 = 4.": 0.8, " 4 * 2 = 8.": 0.9, " The answer is 8": 0.95}


def uniform(*of):
    digest = hashlib.sha256(repr(of).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclasses.dataclass
class Tree:
    """Draws a solution step by step; yields in reverse order, since order must not count."""

    children: dict = dataclasses.field(default_factory=lambda: SUMS)
    tokens: int = 0
    read: int = 0
    calls: int = 0
    model: str = "tree"

    def generate(self, requests, sampling):
        self.calls += 1
        for index in reversed(range(len(requests))):
            yield index, self.completion(requests[index], sampling)

    def completion(self, request, sampling):
        tokens = list(self.walk(request, sampling))
        text = b"".join(token.text for token in tokens).decode()
        found = min((at + len(s) for s in sampling.stop if (at := text.find(s)) >= 0), default=None)
        kept = [Token(text[:found].encode(), tokens[0].logprob)] if found else tokens
        full = not found and len(tokens) == sampling.max_tokens
        completion = assemble(
            kept,
            end_logprob=math.nan if found or full else 0.0,
            finish_reason="length" if full else "stop",
        )
        read = 3 + len(steps.split(request.prefix))
        self.tokens += len(tokens)
        self.read += read
        return dataclasses.replace(completion, prompt_tokens=read, completion_tokens=len(tokens))

    def walk(self, request, sampling):
        text = request.prefix
        for place in range(sampling.max_tokens):
            odds = self.children.get(text)
            if not odds:
                return
            step = self.drawn(odds, uniform(request.seed, place), sampling.temperature)
            yield Token(step.encode(), math.log(odds[step]))
            text += step
            if any(end in text[len(request.prefix) :] for end in sampling.stop):
                return

    def drawn(self, odds, at, temperature):
        if not temperature:
            return max(odds, key=odds.get)
        for step, chance in odds.items():
            at -= chance
            if at < 0:
                return step
        return step


@dataclasses.dataclass
class Planted:
    """Values each step by its text, or by the whole text where `values` has it."""

    values: dict = dataclasses.field(default_factory=lambda: GOOD)
    tokens: int = 0
    model: str = "planted"

    def score(self, solutions):
        for index in reversed(range(len(solutions))):
            pieces = solutions[index].steps
            found = [
                self.values.get("".join(pieces[: n + 1]), self.values.get(pieces[n], 0.1))
                for n in range(len(pieces))
            ]
            self.tokens += 3 + len(pieces)
            yield index, Scores(np.array(found, np.float32), 3 + len(pieces))


def solutions():
    """Return every solution of SUMS with its probability."""
    found, open_ = {}, {"": 1.0}
    while open_:
        text, chance = open_.popitem()
        for step, odds in SUMS[text].items():
            (open_ if text + step in SUMS else found)[text + step] = chance * odds
    return found
