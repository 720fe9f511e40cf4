r"""The prompts of all models: the student's four formats and the teacher's prompt.

    name               encoder input                                  decoder target
    zero_shot_answer   Q: {q} A:                                      The answer is {x}
    zero_shot_cot      Q: {q}\nLet's think step by step               {chain}
    in_context_answer  4 of  Q: {q}\nA: The answer is {x}\n\n         The answer is {x}
                       then  Q: {q}\nA:
    in_context_cot     4 of  Q: {q}\nLet's think step by step\n       {chain}
                             {chain}\n\n
                       then  Q: {q}\nLet's think step by step

A chain ends in `The answer is {x}`. Source: Fu et al. 2023, section 4 and its public code; there a
question may occur among its own demonstrations, here it never does.
"""

import dataclasses
import json
import random
from collections.abc import Sequence

from distill.core import paths, seeds
from distill.core.records import Problem

DEMONSTRATIONS = 4
STEP_BY_STEP = "Let's think step by step"


@dataclasses.dataclass(frozen=True)
class Format:
    """One of the four formats.

    Attributes:
        name: its name in tasks, mixtures and reports.
        in_context: whether demonstrations stand before the question.
        chain: whether a chain of thought leads to the answer.
    """

    name: str
    in_context: bool
    chain: bool

    def __call__(self, question: str, demonstrations: Sequence[Problem] = ()) -> str:
        r"""Return the encoder input of a question.

        Args:
            question: the question's text.
            demonstrations: solved problems, none for the zero-shot formats; a chain format needs
                their chains.

        Raises:
            ValueError: there are demonstrations and the format takes none, or none and it does, or
                a demonstration lacks its chain.

        Example:
            >>> FORMATS["zero_shot_cot"]("What is 4 + 4?")
            "Q: What is 4 + 4?\nLet's think step by step"
        """
        if bool(demonstrations) != self.in_context:
            raise ValueError(
                f"expected demonstrations for the in-context formats alone, got "
                f"{len(demonstrations)} for {self.name}"
            )
        if not self.in_context:
            return f"Q: {question}\n{STEP_BY_STEP}" if self.chain else f"Q: {question} A:"
        shown = "".join(f"{self._shown(problem)}\n\n" for problem in demonstrations)
        return f"{shown}Q: {question}\n{STEP_BY_STEP if self.chain else 'A:'}"

    def encoder_input(self, problem: Problem, demonstrations: Sequence[Problem] = ()) -> str:
        """Return the encoder input of a problem; as calling the format with its question.

        Raises:
            ValueError: as when called, or the problem stands among its demonstrations.
        """
        if any(shown.question == problem.question for shown in demonstrations):
            raise ValueError(f"expected other demonstrations, got {problem.problem_id} for itself")
        return self(problem.question, demonstrations)

    def target(self, problem: Problem) -> str:
        """Return the decoder target: the problem's chain, or its answer alone.

        Raises:
            ValueError: the format wants a chain and the problem has none.
        """
        return _chain(problem) if self.chain else answer_sentence(problem.answer)

    def _shown(self, problem: Problem) -> str:
        if self.chain:
            return f"Q: {problem.question}\n{STEP_BY_STEP}\n{_chain(problem)}"
        return f"Q: {problem.question}\nA: {answer_sentence(problem.answer)}"


FORMATS = {
    made.name: made
    for made in (
        Format("zero_shot_answer", in_context=False, chain=False),
        Format("zero_shot_cot", in_context=False, chain=True),
        Format("in_context_answer", in_context=True, chain=False),
        Format("in_context_cot", in_context=True, chain=True),
    )
}


@dataclasses.dataclass(frozen=True)
class TeacherPrompt:
    r"""The prompt of a decoder-only teacher, which continues it.

    Attributes:
        demonstrations: solved problems to show first, with their chains.

    Example:
        >>> TeacherPrompt()("What is 4 + 4?")
        "Q: What is 4 + 4?\nLet's think step by step\n"
    """

    demonstrations: Sequence[Problem] = ()

    def __call__(self, question: str) -> str:
        """Return the prompt of a question."""
        made = FORMATS["in_context_cot" if self.demonstrations else "zero_shot_cot"]
        return made(question, self.demonstrations) + "\n"


def draw(
    pool: Sequence[Problem], problem: Problem, *, demonstrations: int = DEMONSTRATIONS, seed: int
) -> tuple[Problem, ...]:
    """Draw different demonstrations for a problem, never one with its question.

    The draw depends on the pool, the problem's id and the seed alone.

    Args:
        pool: what to draw from, all from what may be trained on.
        problem: what they are to stand before.
        demonstrations: how many.
        seed: of the draw; another seed gives another draw.

    Raises:
        ValueError: the pool has too few questions other than the problem's.
    """
    number = seeds.from_names(f"{seed}/{problem.problem_id}", bits=64)
    uniform = random.Random(number).random
    drawn: dict[str, Problem] = {}
    for _ in range(50 * demonstrations):
        if len(drawn) == demonstrations:
            break
        shown = pool[int(uniform() * len(pool))] if pool else problem
        if shown.question != problem.question:
            drawn.setdefault(shown.question, shown)
    if len(drawn) < demonstrations:
        raise ValueError(
            f"expected a pool of more than {demonstrations} questions, got {len(pool)} problems"
        )
    return tuple(drawn.values())


def demonstrations(name: str = "grade_school") -> tuple[Problem, ...]:
    """Return the demonstrations that ship as `data/prompts/NAME.jsonl`.

    Raises:
        FileNotFoundError: none of that name ships.
    """
    lines = paths.shipped(f"data/prompts/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(
        Problem(f"prompts/{name}/{number}", name, "train", **json.loads(line))
        for number, line in enumerate(lines)
    )


def answer_sentence(answer: str) -> str:
    """Return the sentence that every chain ends in; no mark follows the answer."""
    return f"The answer is {answer}"


def _chain(problem: Problem) -> str:
    if problem.chain is None:
        raise ValueError(f"expected a chain, got none in {problem.problem_id}")
    return problem.chain
