"""Answer a question with the policy's strategy for its difficulty and a budget; say what it cost.

The policy is a scale-policy-*.json that the stage `scale` wrote. Solutions are drawn by a student
in this process (--student, a directory of weights) or by an OpenAI-compatible endpoint (--endpoint
and --model; the policy is then of kind `predicted`, since an endpoint shows no encoder). The
verifier is a directory that the stage `verifier` wrote. The budget is a number of solutions; the
policy's largest that is no larger is used. Estimating the difficulty costs extra and is told apart.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core import terminal
from distill.core.errors import UserError

if TYPE_CHECKING:
    from distill.core.ports import Generator, Scorer
    from distill.test_time.allocate import Policy
    from distill.test_time.ledger import Tokens
    from distill.test_time.strategy import Models, Question, Solved, Strategy


def named(
    name: str, *, reviser: "Generator | None" = None, history: "Scorer | None" = None
) -> "Strategy":
    """Return the strategy of a name, the inverse of `Strategy.name`.

    Args:
        name: of a strategy.
        reviser: writes the attempts of `revise`.
        history: its verifier.

    Raises:
        UserError: there is none of that name.

    Example:
        >>> named("lookahead-3-sqrt").name, named("beam-4").width
        ('lookahead-3-sqrt', 4)
    """
    from distill.test_time import strategy
    from distill.test_time.metropolis import Metropolis
    from distill.test_time.revise import Revise, flat, hierarchical
    from distill.test_time.search import BestOf, LookAhead

    elections = {each.__name__: each for each in (strategy.weighted, strategy.majority)}
    elections["best"] = strategy.best
    choices = {each.__name__: each for each in (flat, hierarchical)}
    try:
        match name.split("-"):
            case ["best_of", election]:
                return BestOf(elections[election], scored=election != "majority")
            case ["beam", width]:
                return LookAhead(_width(width))
            case ["lookahead", ahead, width]:
                return LookAhead(_width(width), int(ahead))
            case ["dvts", width]:
                return LookAhead(_width(width), apart=True)
            case ["dvts", ahead, width]:
                return LookAhead(_width(width), int(ahead), apart=True)
            case ["metropolis", chains, sharpness, trust]:
                return Metropolis(int(chains), float(sharpness), float(trust))
            case ["revise", length, choice]:
                size = None if length == "all" else int(length)
                return Revise(size, choices[choice], reviser, history)
    except (KeyError, ValueError) as error:
        raise _unknown(name) from error
    raise _unknown(name)


def _width(text: str) -> int | None:
    return None if text == "sqrt" else int(text)


def _unknown(name: str) -> UserError:
    return UserError(
        "best_of-ELECTION, beam-M, lookahead-K-M, dvts-M, metropolis-C-A-B or revise-L-CHOICE",
        name,
        "correct the policy",
    )


def answer(
    question: "Question",
    models: "Models",
    policy: "Policy",
    budget: int,
    *,
    strategies: "Callable[[str], Strategy]" = named,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the answer to a question, how it was found and what was spent.

    Args:
        question: what is asked.
        models: who draws and who scores.
        policy: chooses the strategy.
        budget: solutions that may be drawn, apart from those that estimate the difficulty.
        strategies: gives the strategy of a name.
        seed: of everything drawn.

    Returns:
        `answer` (None where no solution has one), its `solution`, `strategy`, `budget`, `bin` from
        1 for the easiest, `ease`, and `spent` by party in requests and tokens.

    Raises:
        UserError: the budget is below the policy's least, or as Strategy.solve.
    """
    from distill.test_time import difficulty, strategy

    policy.choose(0, budget)
    ease, cost = _ease(question, models, policy, seed)
    bin_ = difficulty.bin_of(ease, policy.edges)
    name, size = policy.choose(bin_, budget)
    (solved,) = strategies(name).solve([question], size, models, seed=seed)
    told = strategy.best([c for c in solved.candidates if c.answer == solved.answer])
    return {
        "answer": solved.answer,
        "solution": told.text if told else None,
        "strategy": name,
        "budget": size,
        "bin": bin_ + 1,
        "ease": ease,
        "spent": {**_spent(solved), **{f"difficulty_{who}": each for who, each in cost.items()}},
    }


def _ease(
    question: "Question", models: "Models", policy: "Policy", seed: int
) -> tuple[float, dict[str, Any]]:
    """Return a question's ease as the policy's bins were drawn by, and what it cost to find."""
    from distill.test_time import difficulty
    from distill.test_time.ledger import Tokens
    from distill.test_time.search import BestOf

    if policy.estimator is None:
        (solved,) = BestOf().solve([question], policy.samples, models, seed=seed + 1)
        scores = [each.score or 0.0 for each in solved.candidates]
        return sum(scores) / len(scores), _spent(solved)
    generator = difficulty.local(models.generator)
    if generator is None:
        raise UserError(
            "a student in this process for the policy of kind encoder",
            models.generator.model,
            "use the policy of kind predicted",
        )
    states, read = difficulty.encoder_means(generator, [question.prompt])
    return float(policy.estimator(states)[0]), {"encoder": _counts(Tokens(1, sum(read)))}


def _spent(solved: "Solved") -> dict[str, dict[str, int | None]]:
    return {"policy": _counts(solved.policy), "verifier": _counts(solved.verifier)}


def _counts(tokens: "Tokens") -> dict[str, int | None]:
    return dataclasses.asdict(tokens)


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Who answers questions by a policy.

    Attributes:
        policy: chooses the strategy.
        models: who draws and who scores.
        prompt: of a question.
        strategies: gives the strategy of a name.
    """

    policy: "Policy"
    models: "Models"
    prompt: Callable[[str], str]
    strategies: "Callable[[str], Strategy]" = named

    def __call__(self, question: str, budget: int, *, seed: int = 0) -> dict[str, Any]:
        """Return what `answer` returns; draws depend on the question's text and the seed."""
        from distill.test_time.strategy import Question

        asked = Question(question, self.prompt(question))
        how = {"strategies": self.strategies, "seed": seed}
        return answer(asked, self.models, self.policy, budget, **how)


def answerer(options: argparse.Namespace, generator: "Generator", max_tokens: int) -> Answerer:
    """Return who answers with the policy and models of `add_arguments`.

    Args:
        options: as parsed.
        generator: the policy's student.
        max_tokens: of a solution.

    Raises:
        UserError: a file or directory is missing or damaged, or the policy revises and there is
            no reviser with its verifier.
    """
    from distill.core.ports import Sampling
    from distill.models.saved import SavedModel
    from distill.models.scoring import Verifier
    from distill.test_time import difficulty
    from distill.test_time.allocate import Policy
    from distill.test_time.strategy import Models
    from distill.text.prompts import FORMATS, TeacherPrompt

    size, policy = options.batch_size, Policy.load(options.policy)
    revises = [name for row in policy.strategies for name in row if name.startswith("revise-")]
    if revises and not (options.reviser and options.history):
        raise UserError(
            f"--reviser and --history, as the policy revises ({revises[0]})",
            "one or none",
            "give both, or another policy",
        )
    # An endpoint must report log-probabilities to be taken for one that can.
    top = 0 if difficulty.local(generator) else 1
    sampling = Sampling(options.temperature, max_tokens, top_logprobs=top)
    scorer = Verifier(options.verifier, size) if options.verifier else None
    strategies = functools.partial(
        named,
        reviser=SavedModel(options.reviser, size) if options.reviser else None,
        history=Verifier(options.history, size) if options.history else None,
    )
    prompt = FORMATS["zero_shot_cot"] if options.prompt == "student" else TeacherPrompt()
    models = Models(generator, scorer, sampling)
    return Answerer(policy, models, prompt, strategies)


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add what `answerer` reads, less `batch_size`."""
    parser.add_argument("--policy", type=Path, required=required, help="a scale-policy-*.json")
    parser.add_argument("--verifier", help="a directory that the stage verifier wrote")
    parser.add_argument("--reviser", help="of a policy with revisions: the revision model")
    parser.add_argument("--history", help="and the verifier that reads earlier attempts")
    parser.add_argument(
        "--prompt",
        default="student",
        choices=("student", "teacher"),
        help="whose prompt a question gets (%(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of solutions drawn by the policy"
    )


# --- The tool ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one question; print the answer and what was spent, or JSON."""
    options = _parser().parse_args(arguments)
    answering = answerer(options, _generator(options), options.max_tokens)
    found = answering(options.question, options.budget, seed=options.seed)
    terminal.show(json.dumps(found) if options.json else _told(found))
    return 0


def _generator(options: argparse.Namespace) -> "Generator":
    if bool(options.student) == bool(options.endpoint):
        raise UserError("one of --student and --endpoint", "both or none", "give one of them")
    if options.student:
        from distill.models.saved import SavedModel

        return SavedModel(options.student, options.batch_size)
    from distill.endpoints.teacher import OpenAICompatible

    return OpenAICompatible(
        options.model, options.endpoint, api_key_variable=options.api_key_variable
    )


def _told(found: dict[str, Any]) -> str:
    lines = [found["solution"] or "no solution has an answer", f"answer: {found['answer']}"]
    lines.append(f"by {found['strategy']} at {found['budget']}, difficulty bin {found['bin']}")
    for who, spent in found["spent"].items():
        read = "an unknown number of" if spent["read"] is None else f"{spent['read']:,}"
        lines.append(
            f"{who.replace('_', ', ')}: {spent['requests']:,} requests, {read} tokens read, "
            f"{spent['drawn']:,} drawn"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill answer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("question", help="what is asked")
    add_arguments(parser, required=True)
    parser.add_argument("--budget", type=int, default=16, help="solutions; %(default)s")
    parser.add_argument("--student", help="a directory of weights")
    parser.add_argument("--endpoint", help="an address up to and with /v1")
    parser.add_argument("--model", default="student", help="its name at the endpoint")
    parser.add_argument("--api_key_variable", help="the environment variable with the key")
    parser.add_argument("--max_tokens", type=int, default=128, help="of a solution; %(default)s")
    parser.add_argument("--batch_size", type=int, default=64, help="rows that run together")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
