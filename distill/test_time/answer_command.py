"""Answer a question with the policy's strategy for its difficulty and a budget; report the cost.

The policy is a scale-policy-*.json that the stage `scale` wrote. The generator is a student in this
process (--student, a directory of weights) or an OpenAI-compatible endpoint (--endpoint and
--model; the policy is then of kind `predicted`, since an endpoint has no encoder states). The
verifier is a directory that the stage `verifier` wrote. The budget is a number of solutions; the
policy's largest budget that is no larger is used. The cost of estimating the difficulty is reported
apart.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core import terminal
from distill.core.errors import UserError

if TYPE_CHECKING:  # `distill answer --help` must not wait for JAX
    from distill.core.ports import Generator
    from distill.test_time.allocate import Policy
    from distill.test_time.answer import Answerer


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one question; print the answer and what was spent, or JSON."""
    options = _parser().parse_args(arguments)
    answering = answerer(options, _generator(options), options.max_tokens)
    result = answering(options.question, options.budget, seed=options.seed)
    terminal.show(json.dumps(result) if options.json else _text(result))
    return 0


def answerer(options: argparse.Namespace, generator: "Generator", max_tokens: int) -> "Answerer":
    """Return an Answerer with the policy and models that the options name.

    Args:
        options: those of `add_arguments`, parsed, and `batch_size`.
        generator: draws solutions.
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
    from distill.test_time.answer import Answerer, strategy_by_name
    from distill.test_time.strategy import Models
    from distill.text.prompts import FORMATS, TeacherPrompt

    size, policy = options.batch_size, Policy.load(options.policy)
    _require_reviser(policy, options)
    # An endpoint must report log-probabilities: without them its tokens are unknown.
    top_logprobs = 0 if difficulty.local(generator) else 1
    sampling = Sampling(options.temperature, max_tokens, top_logprobs=top_logprobs)
    scorer = Verifier(options.verifier, size) if options.verifier else None
    strategies = functools.partial(
        strategy_by_name,
        reviser=SavedModel(options.reviser, size) if options.reviser else None,
        history=Verifier(options.history, size) if options.history else None,
    )
    prompt = FORMATS["zero_shot_cot"] if options.prompt == "student" else TeacherPrompt()
    return Answerer(policy, Models(generator, scorer, sampling), prompt, strategies)


def _require_reviser(policy: "Policy", options: argparse.Namespace) -> None:
    """Refuse a policy that revises without --reviser and --history."""
    revises = [name for row in policy.strategies for name in row if name.startswith("revise-")]
    if revises and not (options.reviser and options.history):
        raise UserError(
            f"--reviser and --history, as the policy revises ({revises[0]})",
            "one or none",
            "give both, or another policy",
        )


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


def _text(result: dict[str, Any]) -> str:
    """Return the result of `answer` as lines for a reader."""
    lines = [result["solution"] or "no solution has an answer", f"answer: {result['answer']}"]
    lines.append(f"by {result['strategy']} at {result['budget']}, difficulty bin {result['bin']}")
    for party, spent in result["spent"].items():
        read = "an unknown number of" if spent["read"] is None else f"{spent['read']:,}"
        lines.append(
            f"{party.replace('_', ', ')}: {spent['requests']:,} requests, {read} tokens read, "
            f"{spent['drawn']:,} drawn"
        )
    return "\n".join(lines)


# --- Flags -------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the flags that `answerer` reads, except --batch_size."""
    parser.add_argument("--policy", type=Path, required=required, help="a scale-policy-*.json")
    parser.add_argument("--verifier", help="a directory that the stage verifier wrote")
    parser.add_argument("--reviser", help="the revision model, for a policy with revisions")
    parser.add_argument("--history", help="the verifier that reads earlier attempts, likewise")
    parser.add_argument(
        "--prompt",
        default="student",
        choices=("student", "teacher"),
        help="the form of a question's prompt (%(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the solutions drawn (%(default)s)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill answer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("question", help="the text of the question")
    add_arguments(parser, required=True)
    parser.add_argument("--budget", type=int, default=16, help="solutions (%(default)s)")
    parser.add_argument("--student", help="a directory of weights")
    parser.add_argument("--endpoint", help="the endpoint's address, up to and with /v1")
    parser.add_argument("--model", default="student", help="its name at the endpoint")
    parser.add_argument("--api_key_variable", help="the environment variable with the key")
    parser.add_argument("--max_tokens", type=int, default=128, help="of a solution (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="rows that run together")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
