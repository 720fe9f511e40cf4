"""BIG-Bench Hard: its problems, and its published prompts with and without chains of thought."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.core.errors import UserError
from distill.core.records import Problem
from distill.problems import rowfiles
from distill.problems.benchmarks import HALVES, halves, require_count
from distill.problems.download import fetch

TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
STEP_BY_STEP = "Let's think step by step."
_EXAMPLE = re.compile(rf"(.*?)\nA: {re.escape(STEP_BY_STEP)}(\s.*answer is (.*?)\.?)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class BigBenchHard:
    """BIG-Bench Hard, a held-out set of 27 subtasks that measures general ability.

    A problem's number is `SUBTASK/NUMBER`. With n the subtasks weigh the same, as in the paper's
    mean over them.

    Attributes:
        path: the folder of the subtasks' JSON files; by default they are fetched.
        n: how many problems of each subtask and half at most.
        splits: which halves.
        tasks: which subtasks, of TASKS.

    Source: Suzgun et al. 2022, arXiv 2210.09261.
    """

    path: str | Path | None = None
    n: int | None = None
    splits: Sequence[str] = HALVES
    tasks: Sequence[str] = TASKS

    def __post_init__(self) -> None:
        for task in self.tasks:
            _known(task)
        require_count(self.n)

    def input_files(self) -> tuple[Path, ...]:
        """Return the subtasks' files of the user's folder; fetched ones have a listed sha256."""
        return tuple(Path(self.path) / f"{t}.json" for t in self.tasks) if self.path else ()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, subtask after subtask."""
        for task in self.tasks:
            path = _file(self.path, f"{task}.json")
            yield from halves("bbh", self._rows(task, path), self.splits, self.n)

    def _rows(self, task: str, path: Path) -> Iterator[tuple[str, str, str]]:
        for number, row in enumerate(rowfiles.json_object(path)["examples"], 1):
            yield f"{task}/{number}", row["input"].strip(), row["target"]


class Example(NamedTuple):
    """A solved example of a published prompt; the chain begins with whitespace."""

    question: str
    chain: str
    answer: str


@dataclasses.dataclass(frozen=True)
class PublishedPrompt:
    r"""A subtask's published prompt before a problem's question: an instruction, three examples.

        with chains        Q: {q}\nA: Let's think step by step.\n{chain}     each example
                           Q: {q}\nA: Let's think step by step.             the question
        answers alone      Q: {q}\nA: {x}                                  each example
                           Q: {q}\nA:                                      the question

    Attributes:
        chain: whether the examples reason step by step, or give their answers alone.
        path: the folder with `cot-prompts`; by default the prompts are fetched.

    Source: Suzgun et al. 2022. Only the prompts with chains are published as files; as the paper
    has it, those of answers alone are the same examples.
    """

    chain: bool
    path: str | Path | None = None

    def __call__(self, problem: Problem) -> str:
        """Return the prompt for a problem of BigBenchHard.

        Raises:
            UserError: the problem is of none of the subtasks, or the prompt is not the public one.
        """
        task = _known("/".join(problem.problem_id.split("/")[2:-1]))
        instruction, examples = examples_of(_file(self.path, f"cot-prompts/{task}.txt"))
        step_by_step = f" {STEP_BY_STEP}" if self.chain else ""
        solutions = [step_by_step + x.chain if self.chain else f" {x.answer}" for x in examples]
        shown = [
            f"Q: {example.question}\nA:{solution}"
            for example, solution in zip(examples, solutions, strict=True)
        ]
        question = f"Q: {problem.question}\nA:{step_by_step}"
        return "\n\n".join([instruction, *shown, question])


@functools.lru_cache(maxsize=len(TASKS))
def examples_of(path: Path) -> tuple[str, tuple[Example, ...]]:
    """Read a published prompt: its instruction and its examples.

    Raises:
        UserError: there is no such file, or it is not the public one.
    """
    _, _, text = rowfiles.content(path).partition("\n-----\n")  # after a warning to crawlers
    instruction, *shown = text.strip().split("\n\nQ: ")
    examples = [Example(*match.groups()) for one in shown if (match := _EXAMPLE.fullmatch(one))]
    if not examples or len(examples) != len(shown):
        raise UserError(f"a prompt of BBH in {path}", "another text", "use the public file")
    return instruction, tuple(examples)


def _file(folder: str | Path | None, name: str) -> Path:
    return Path(folder) / name if folder else fetch(f"bbh/{name}")


def _known(task: str) -> str:
    if task not in TASKS:
        raise UserError(f"a subtask of {', '.join(TASKS)}", task, "name one of them")
    return task
