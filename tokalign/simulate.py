"""Teachers without a model, for measurements: one with known probabilities, one of n-grams."""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from tokalign.teacher import TeacherTrace
from tokalign.tokenizers import Tokenizer

Ids = tuple[int, ...]


def next_masses(sequences: Mapping[Ids, float]) -> dict[Ids, dict[int, float]]:
    """Return, for each prefix of weighted sequences, the weight of each next id.

    Example:
        >>> next_masses({(5, 1): 0.75, (5, 2): 0.25})[(5,)]
        {1: 0.75, 2: 0.25}
    """
    found: dict[Ids, dict[int, float]] = collections.defaultdict(dict)
    for ids, weight in sequences.items():
        for t, token in enumerate(ids):
            after = found[ids[:t]]
            after[token] = after.get(token, 0.0) + weight
    return dict(found)


class KnownTeacher:
    """A language of finitely many texts with known probabilities, read in one tokenizer's cuts.

    What it gives for the next token is the mass of the texts that begin so, exactly; the same sum
    over a student's cuts is what a projection should have found.

    Args:
        texts: text to probability; they are normalised.
        tokenizer: how the teacher cuts.

    Raises:
        ValueError: no texts, or a probability that is not positive.

    Example:
        >>> teacher = KnownTeacher({"a b": 0.75, "a c": 0.25}, tokenizer)  # doctest: +SKIP
        >>> teacher.trace("a b", k=2).top_tokens[-3:]  # doctest: +SKIP
        (b' b', b' c', b'')
    """

    def __init__(self, texts: Mapping[str, float], tokenizer: Tokenizer) -> None:
        if not texts or not all(p > 0 for p in texts.values()):
            raise ValueError("expected texts of positive probability, got none or another")
        total = sum(texts.values())
        self.texts = {text: p / total for text, p in texts.items()}
        self.tokenizer = tokenizer
        self._after = next_masses(self._cut(tokenizer))

    def _cut(self, tokenizer: Tokenizer) -> dict[Ids, float]:
        found: dict[Ids, float] = {}
        for text, p in self.texts.items():
            ids = (*tokenizer.segment(text).ids.tolist(), tokenizer.eos_id)
            found[ids] = found.get(ids, 0.0) + p
        return found

    def trace(self, text: str, *, k: int = 5) -> TeacherTrace:
        """Return the teacher's tokens of one of its texts with the k likeliest at each place."""
        tokens, logprobs, top_tokens, top_logprobs, top_ends = [], [], [], [], []
        ids: Ids = tuple(self.tokenizer.segment(text).ids.tolist())
        for t, token in enumerate(ids):
            after = self._after[ids[:t]]
            total = sum(after.values())
            best = sorted(after.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
            tokens.append(self.tokenizer.token_bytes(token))
            logprobs.append(math.log(after[token] / total))
            top_tokens += [self.tokenizer.token_bytes(i) for i, _ in best]
            top_logprobs += [math.log(p / total) for _, p in best]
            top_ends.append(len(top_tokens))
        after = self._after[ids]
        end = after.get(self.tokenizer.eos_id, 0.0) / sum(after.values())
        return TeacherTrace(
            tokens=tuple(tokens),
            logprobs=np.array(logprobs),
            top_tokens=tuple(top_tokens),
            top_logprobs=np.array(top_logprobs),
            top_ends=np.array(top_ends, np.int64),
            end_logprob=math.log(end) if end else -math.inf,
        )

    def student_masses(self, student: Tokenizer) -> dict[Ids, dict[int, float]]:
        """Return, for each prefix in the student's cuts, the exact mass of each next token."""
        return next_masses(self._cut(student))


def word_problems(size: int = 3) -> dict[str, float]:
    """Return solutions of small word problems with probabilities, a language for KnownTeacher.

    Names, sums and line breaks are where two vocabularies part: `124` and `127` begin alike for
    one of them, `Herman` and `Hermione` for the other, sentences end in a newline or a space.

    Args:
        size: alternatives of each slot; the number of texts grows with its seventh power.
    """
    slots: list[Sequence[str]] = [
        ["Natalia", "She", "Natasha", "Weng", "Mr. Ngata"],
        [" sold", " earned", " babysat", " baby-sits", " had"],
        [" 124", " $12", " 127", " 137", " $1,200"],
        [" clips to Herman", " clipboards", " clips to Hermione", " kilometres", " hours"],
        [".\n", ". ", ".\n\n", "\n", ", so "],
        ["She", "So she", "Altogether, 12", "The", "In all 1248"],
        [" has 12*2=24.", " earns $24.", " answer is 2400", " 1/2 of 48 is 24.", " uses 248."],
    ]
    slots = [slot[:size] for slot in slots]
    found = {}
    for choice in itertools.product(*(range(len(slot)) for slot in slots)):
        text = "".join(slot[i] for slot, i in zip(slots, choice, strict=True))
        # Zipf over each slot, and what comes first leans on what comes later.
        weight = math.prod(
            1 / (1 + (i + choice[0] * n) % len(slots[n])) for n, i in enumerate(choice)
        )
        found[text] = weight
    return found


class NgramTeacher:
    """Top-k from counts of the two tokens before, for traces of realistic variety at no cost.

    Args:
        texts: what to count.
        tokenizer: how the teacher cuts.
        k: candidates a token.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, *, k: int = 5) -> None:
        self.tokenizer = tokenizer
        pairs: dict[tuple[int, int], collections.Counter[int]] = collections.defaultdict(
            collections.Counter
        )
        singles: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
        every: collections.Counter[int] = collections.Counter()
        for text in texts:
            ids = [-1, -1, *tokenizer.segment(text).ids.tolist()]
            for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
                pairs[a, b][c] += 1
                singles[b][c] += 1
                every[c] += 1
        self._pairs, self._singles, self._every = pairs, singles, every
        self.k = k
        self._top: dict[tuple[int, int], tuple[list[int], list[float]]] = {}

    def _candidates(self, a: int, b: int) -> tuple[list[int], list[float]]:
        if (a, b) not in self._top:
            mixed: collections.Counter[int] = collections.Counter()
            for counts, share in ((self._pairs[a, b], 0.6), (self._singles[b], 0.39)):
                total = sum(counts.values())
                for token, count in counts.most_common(self.k):
                    mixed[token] += share * count / total  # type: ignore[assignment]
            for token, _ in self._every.most_common(self.k):
                mixed[token] += 0.001  # type: ignore[assignment]
            best = mixed.most_common(self.k)
            self._top[a, b] = [t for t, _ in best], [math.log(p) for _, p in best]
        return self._top[a, b]

    def trace(self, text: str) -> TeacherTrace:
        """Return a text's tokens with k candidates each; the token itself may not be among them."""
        ids = [-1, -1, *self.tokenizer.segment(text).ids.tolist()]
        top_tokens: list[bytes] = []
        top_logprobs: list[float] = []
        logprobs = []
        for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
            tokens, nats = self._candidates(a, b)
            top_tokens += [self.tokenizer.token_bytes(t) for t in tokens]
            top_logprobs += nats
            logprobs.append(nats[tokens.index(c)] if c in tokens else min(nats) - 1)
        return TeacherTrace(
            tokens=tuple(self.tokenizer.token_bytes(t) for t in ids[2:]),
            logprobs=np.array(logprobs),
            top_tokens=tuple(top_tokens),
            top_logprobs=np.array(top_logprobs),
            top_ends=np.arange(1, len(ids) - 1) * self.k,
            end_logprob=math.log(0.9),
        )
