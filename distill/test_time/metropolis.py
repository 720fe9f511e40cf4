r"""Metropolis-Hastings over whole solutions, as one more way to spend a budget.

A step of a chain keeps the first t steps of its solution x, t uniform over those that x has, draws
the rest anew, and takes the new solution y with probability min(1, A). The target is the
generator's likelihood sharpened by a power, times a power of the verifier's score:

.. math:: \pi(x) \propto p(x)^\alpha v(x)^\beta, \qquad
   A = \Big(\frac{p(y_{>t} | x_{\le t})}{p(x_{>t} | x_{\le t})}\Big)^{\alpha - 1}
       \Big(\frac{v(y)}{v(x)}\Big)^\beta \frac{n_x}{n_y}

with n the number of places to resample from; the part that is kept cancels. The proposal is drawn
at temperature 1 without truncation, so that it is p.

Source: Hastings 1970, Biometrika 57:97; resampling a suffix as in QUEST, Faria et al. 2024, arXiv
2406.00049, and sharpened likelihoods as in Karan and Du 2025, arXiv 2510.14901; here at steps.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence

from distill.core.ports import Completion, Request
from distill.test_time import strategy
from distill.test_time.strategy import Accounts, Candidate, Election, Models, Question, Solved
from distill.text import steps
from distill.text.completions import cut_after_answer

LEAST_SCORE = 1e-6
# The chains of a question, by (problem_id, chain).
Place = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Metropolis:
    """Chains of N solutions in all; every state votes, also one that stays.

    Attributes:
        chains: that run side by side; each has budget // chains states.
        sharpness: alpha, the power of the generator's likelihood.
        trust: beta, the power of the verifier's score; 0 needs no verifier.
        election: who wins among the states.
    """

    chains: int = 4
    sharpness: float = 1.0
    trust: float = 4.0
    election: Election = strategy.majority

    def __post_init__(self) -> None:
        if self.chains < 1 or self.sharpness < 0 or self.trust < 0:
            raise ValueError(f"expected chains >= 1, sharpness and trust >= 0, got {self}")

    @property
    def name(self) -> str:
        """`metropolis`, the chains and the powers."""
        return f"metropolis-{self.chains}-{self.sharpness:g}-{self.trust:g}"

    @property
    def least(self) -> int:
        """One solution."""
        return 1

    def solve(
        self, questions: Sequence[Question], budget: int, models: Models, *, seed: int = 0
    ) -> list[Solved]:
        """Return the elected answers; each round draws one solution for every chain.

        Raises:
            UserError: `trust` is not 0 and there is no verifier.
        """
        count = min(self.chains, budget)
        walk = _Walk(questions, models, strategy.open_accounts(questions), seed)
        places = [(q.problem_id, chain) for q in questions for chain in range(count)]
        current = walk.draw(dict.fromkeys(places, ""), 0)
        visited = [current]
        values = walk.values(current) if self.trust else {}
        for round_ in range(1, budget // count):
            current, values = self._step(walk, current, values, round_)
            visited.append(current)
        results = []
        for question in questions:
            states = [(c, at[question.problem_id, c]) for c in range(count) for at in visited]
            candidates = [_candidate(question, each, chain, values) for chain, each in states]
            account = walk.accounts[question.problem_id]
            chosen = self.election(candidates)
            results.append(strategy.result(question, candidates, chosen, len(states), account))
        return results

    def _step(
        self, walk: "_Walk", current: "States", values: "Values", round_: int
    ) -> tuple["States", "Values"]:
        """Return every chain's next state, and the verifier's values of all texts so far."""
        dice = {place: walk.dice(place, round_) for place in current}
        cuts = {place: dice[place].choice(state.cuts) for place, state in current.items()}
        kept = {place: state.text_before(cuts[place]) for place, state in current.items()}
        drawn = walk.draw(kept, round_)
        proposed = {place: current[place].with_suffix(cuts[place], drawn[place]) for place in drawn}
        if self.trust:
            values = {**values, **walk.values(proposed)}
        states = {}
        for place, state in current.items():
            move = _Move(place[0], state, proposed[place], cuts[place])
            ratio = self._log_ratio(move, values)
            accepted = ratio >= 0 or dice[place].random() < math.exp(ratio)
            states[place] = proposed[place] if accepted else state
        return states, values

    def _log_ratio(self, move: "_Move", values: "Values") -> float:
        """Return log A; minus infinity where the move cannot be reversed."""
        old, new, cut = move.old, move.new, move.cut
        if not new.whole or cut not in new.cuts:
            return -math.inf
        if not old.whole:
            return math.inf
        ratio = math.log(len(old.cuts) / len(new.cuts))
        if self.sharpness != 1:
            ratio += (self.sharpness - 1) * (new.logprob_after(cut) - old.logprob_after(cut))
        if self.trust:
            new_value, old_value = (
                max(values[move.problem_id, each.text], LEAST_SCORE) for each in (new, old)
            )
            ratio += self.trust * math.log(new_value / old_value)
        return ratio


@dataclasses.dataclass(frozen=True)
class _State:
    """A solution, token by token.

    Attributes:
        tokens: their bytes.
        logprobs: their nats.
        end: nats of ending there; 0 where the answer's line ended it.
        whole: whether it ended by itself and within the length.
    """

    tokens: tuple[bytes, ...]
    logprobs: tuple[float, ...]
    end: float
    whole: bool

    @property
    def text(self) -> str:
        """The solution."""
        return b"".join(self.tokens).decode()

    @property
    def cuts(self) -> list[int]:
        """Numbers of tokens before each step; steps that begin within a token cannot be redrawn."""
        lengths = itertools.accumulate(map(len, self.tokens), initial=0)
        of_bytes = {end: place for place, end in enumerate(lengths)}
        begins = itertools.accumulate((len(s.encode()) for s in steps.split(self.text)), initial=0)
        last = sum(map(len, self.tokens))
        return [of_bytes[at] for at in begins if at in of_bytes and at < last] or [0]

    def text_before(self, cut: int) -> str:
        """Return the text of the first `cut` tokens."""
        return b"".join(self.tokens[:cut]).decode()

    def logprob_after(self, cut: int) -> float:
        """Return the nats of all after the first `cut` tokens, of ending too."""
        return math.fsum(self.logprobs[cut:]) + self.end

    def with_suffix(self, cut: int, drawn: "_State") -> "_State":
        """Return the first `cut` tokens with others after them."""
        tokens, logprobs = self.tokens[:cut], self.logprobs[:cut]
        return dataclasses.replace(
            drawn, tokens=tokens + drawn.tokens, logprobs=logprobs + drawn.logprobs
        )


@dataclasses.dataclass(frozen=True)
class _Move:
    """A proposed step of a question's chain: the tokens of `old` after `cut` are redrawn."""

    problem_id: str
    old: _State
    new: _State
    cut: int


States = dict[Place, _State]
Values = Mapping[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The chains of all questions, with the models they use and the accounts they charge."""

    questions: Sequence[Question]
    models: Models
    accounts: Accounts
    seed: int

    def draw(self, kept: Mapping[Place, str], round_: int) -> States:
        """Draw the rest of every chain's solution; what grows too long is not whole."""
        prompts = {question.problem_id: question.prompt for question in self.questions}
        requests = [
            (name, Request(prompts[name], self._seed(name, round_, chain), prefix=text))
            for (name, chain), text in kept.items()
        ]
        plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        sampling = dataclasses.replace(self.models.sampling, stop=(), include_stop=False, **plain)
        drawn = strategy.draw(self.models, requests, sampling, self.accounts)
        return dict(zip(kept, map(_state, drawn), strict=True))

    def values(self, states: States) -> Values:
        """Return the verifier's last value of each whole solution."""
        by_id = {question.problem_id: question for question in self.questions}
        whole = ((name, state) for (name, _), state in states.items() if state.whole)
        texts = [(by_id[name], state.text) for name, state in whole]
        return strategy.score(self.models, texts, self.accounts)

    def dice(self, place: Place, round_: int) -> random.Random:
        """Return the randomness of one chain's choices in one round."""
        return random.Random(self._seed(f"{place[0]}\0choices", round_, place[1]))

    def _seed(self, name: str, round_: int, chain: int) -> int:
        return strategy.seed_of(self.seed, name, round_, chain)


def _state(completion: Completion) -> _State:
    cut = cut_after_answer(completion)
    end = 0.0 if math.isnan(cut.end_logprob) else cut.end_logprob
    whole = cut.finish_reason == "stop" and bool(cut.text)
    return _State(cut.tokens, tuple(cut.logprobs.tolist()), end, whole)


def _candidate(question: Question, state: _State, chain: int, values: Values) -> Candidate:
    answer = strategy.answer_of(state.text, whole=state.whole)
    return Candidate(state.text, answer, values.get((question.problem_id, state.text)), chain)
