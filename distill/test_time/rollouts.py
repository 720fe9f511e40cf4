"""Soft labels for the steps of solutions: how often continuations of each beginning end right.

    solution              5 + 7 = 12. | 12 / 3 = 5. | The answer is 5
    roll-outs after it    11 of 16      0 of 16       none: it is wrong
    label                 0.69          0             0

Nobody labels a step by hand.

Source: Snell et al. 2024, arXiv 2408.03314, section 5.1 and appendix D, after Wang et al. 2023
(Math-Shepherd), arXiv 2312.08935.
"""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request, Sampling, Solution
from distill.core.progress import progress
from distill.core.records import Problem, Rollouts, Trace, Verdict
from distill.core.store import Shards, Stage, manifest
from distill.grading.check import GRADERS, Grader, check, judge
from distill.test_time.ledger import tokens_drawn
from distill.text import steps
from distill.text.completions import cut_after_answer
from distill.text.prompts import FORMATS
from distill.traces.harvest import harvest, sample_seed

# A kill loses at most so many samples, and the roll-outs of so many questions. Requests run
# together by the shapes of their prompts and prefixes, so few questions would leave batches empty.
SHARD_TRACES, SHARD_QUESTIONS = 512, 256
# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("rollouts",)
SAMPLES: Mapping[str, int] = {"train": 16, "validation": 16}  # of each question, as the paper
ANSWERED = ("right", "wrong")  # the outcomes of solutions that have an answer


@dataclasses.dataclass(frozen=True)
class Tries:
    """How many roll-outs a beginning gets.

    All get the first `look`; where these end all right or all wrong, the rest is not made. Where a
    continuation is right with probability p, this moves the expected label from p towards the
    nearer end, by at most 0.022 for 8 of 16: see `bias`.

    Attributes:
        most: roll-outs of a beginning.
        look: after how many the unanimous ones are done; as many as `most` stops none early.
    """

    most: int = 16
    look: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.look <= self.most:
            raise ValueError(f"expected 1 <= look <= most, got {self}")

    def bias(self, chance: float) -> float:
        r"""Return the expected label less the chance p that a continuation is right.

        .. math:: (1 - a / n) (p^a (1 - p) - p (1 - p)^a), a = look, n = most

        Example:
            >>> round(Tries().bias(0.89), 4), Tries().bias(0.5), Tries(look=16).bias(0.89)
            (0.0217, 0.0, 0.0)
        """
        a, wrong = self.look, 1 - chance
        return (1 - a / self.most) * (chance**a * wrong - chance * wrong**a)


class Beginning(NamedTuple):
    """The first steps of a solution, to be continued."""

    problem: Problem
    prompt: str
    prefix: str


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A solution with the value of each of its steps.

    Attributes:
        problem_id: the problem's.
        solution: prompt and steps.
        labels: [steps] chance that the solution ends right once the step is written, NaN where it
            was not rolled out; the last says whether it did, 1 or 0.
        count: how often the solution was drawn.
    """

    problem_id: str
    solution: Solution
    labels: tuple[float, ...]
    count: int = 1


# --- Roll-outs ---------------------------------------------------------------------------------


def roll_out(
    beginnings: Sequence[Beginning],
    generator: Generator,
    *,
    sampling: Sampling,
    grader: Grader,
    tries: Tries = Tries(),
    seed: int = 0,
) -> list[Rollouts]:
    """Continue each beginning as often as `tries` says and count the right ones.

    What is counted depends on the beginning, the seed and the sampling alone. A continuation that
    does not end, or without an answer, is wrong.

    Args:
        beginnings: different ones.
        generator: whose solutions they are.
        sampling: how continuations are drawn.
        grader: how their answers are judged.
        tries: how many.
        seed: of all draws.

    Returns:
        One for each beginning, in their order.
    """

    def draw(some: Sequence[Beginning], numbers: range) -> list[Rollouts]:
        places = [(beginning, number) for beginning in some for number in numbers]
        requests = [_request(beginning, number, seed) for beginning, number in places]
        right, tokens = Counter[Beginning](), Counter[Beginning]()
        for index, completion in generator.generate(requests, sampling):
            beginning, _ = places[index]
            right[beginning] += _ends_right(beginning, completion, grader)
            tokens[beginning] += tokens_drawn(completion)
        return [_counted(b, right[b], len(numbers), tokens[b]) for b in some]

    found = dict(zip(beginnings, draw(beginnings, range(tries.look)), strict=True))
    divided = [b for b, of_b in found.items() if 0 < of_b.right < of_b.n]
    if rest := range(tries.look, tries.most):
        for beginning, more in zip(divided, draw(divided, rest), strict=True):
            found[beginning] = _sum(found[beginning], more)
    return list(found.values())


def _request(beginning: Beginning, number: int, seed: int) -> Request:
    place = f"{beginning.problem.problem_id}\0{beginning.prefix}"
    return Request(beginning.prompt, sample_seed(seed, place, number), prefix=beginning.prefix)


def _counted(beginning: Beginning, right: int, n: int, tokens: int) -> Rollouts:
    return Rollouts(beginning.problem.problem_id, beginning.prefix, right, n, tokens)


def _ends_right(beginning: Beginning, completion: Completion, grader: Grader) -> bool:
    whole = cut_after_answer(completion)
    if whole.finish_reason != "stop":
        return False
    return judge(beginning.prefix + whole.text, beginning.problem.answer, grader).outcome == "right"


def _sum(one: Rollouts, more: Rollouts) -> Rollouts:
    return dataclasses.replace(
        one, right=one.right + more.right, n=one.n + more.n, tokens=one.tokens + more.tokens
    )


# --- Solutions ---------------------------------------------------------------------------------


def prefixes(text: str) -> list[str]:
    """Return the beginnings of a solution that end with a step, all but the whole.

    Example:
        >>> prefixes("5 + 7 = 12. 12 / 3 = 4. The answer is 4")
        ['5 + 7 = 12.', '5 + 7 = 12. 12 / 3 = 4.']
    """
    return list(itertools.accumulate(steps.split(text)))[:-1]


def label(
    solutions: Iterable[tuple[Trace, Verdict]], rollouts: Iterable[Rollouts]
) -> Iterator[Labelled]:
    """Yield the solutions that have an answer, with labels.

    Equal texts of a problem are one solution that counts as often.

    Args:
        solutions: with their verdicts; those without an answer are dropped.
        rollouts: of their beginnings, not necessarily of all.
    """
    shares = {(r.problem_id, r.prefix): r.right / r.n for r in rollouts}
    counts = Counter(
        (trace.problem_id, trace.prompt, trace.text, verdict.outcome == "right")
        for trace, verdict in solutions
        if verdict.outcome in ANSWERED
    )
    for (problem_id, prompt, text, right), count in counts.items():
        of_steps = (shares.get((problem_id, prefix), math.nan) for prefix in prefixes(text))
        labels = (*of_steps, float(right))
        yield Labelled(problem_id, Solution(prompt, steps.split(text)), labels, count)


# --- The stage ---------------------------------------------------------------------------------


def run(
    *,
    run_dir: Path,
    generator: Generator,
    samples: Mapping[str, int] = SAMPLES,
    rolled: Mapping[str, int] | None = None,
    tries: Tries = Tries(),
    sampling: Sampling = Sampling(top_logprobs=0),  # noqa: B008
    prompt: Callable[[str], str] = FORMATS["zero_shot_cot"],
    grader: str = "default",
    seed: int = 0,
) -> dict[str, Any]:
    """Draw solutions and roll out their beginnings; resume where an earlier run stopped.

    Fills RUN_DIR/rollouts/solutions with traces and RUN_DIR/rollouts/values with counts, one for
    each different beginning of a question, however many solutions share it.

    Args:
        run_dir: the run directory; its stage `problems` is complete.
        generator: draws solutions, and continues prefixes.
        samples: solutions of each question by split: of train, to learn from, and of validation, to
            report on. The paper draws 16.
        rolled: how many of a question's solutions are rolled out by split, the first; all where
            None. Of the others a verifier learns from the end alone.
        tries: roll-outs of a beginning.
        sampling: how solutions and continuations are drawn.
        prompt: a question's prompt.
        grader: `default`, or `fu2023` for parity with the paper.
        seed: of all draws.

    Raises:
        UserError: there are no such problems or grader, or the generator cannot serve.
    """
    run_dir = Path(run_dir)
    _refuse(samples, grader, rolled or samples)
    settings = {
        "generator": generator,
        "samples": samples,
        "rolled": rolled,
        "tries": tries,
        "prompt": prompt,
        "grader": grader,
        "sampling": sampling,
        "seed": seed,
    }
    with Stage.open(
        run_dir, "rollouts", settings=settings, inputs=["problems"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        traces = Shards(run_dir / "rollouts" / "solutions", Trace)
        by_split = {split: _select(run_dir, split) for split in samples}
        for split, problems in by_split.items():
            draw_samples = functools.partial(
                harvest,
                problems,
                generator,
                samples=samples[split],
                prompt=prompt,
                sampling=sampling,
                seed=seed,
            )
            _draw(traces, problems, samples[split], draw_samples)
        roll_part = functools.partial(
            roll_out,
            generator=generator,
            sampling=sampling,
            grader=GRADERS[grader],
            tries=tries,
            seed=seed,
        )
        for split, problems in by_split.items():
            beginnings = _beginnings(traces, problems, grader, (rolled or samples)[split])
            _roll(values(run_dir), beginnings, roll_part)
        stage.finish(
            questions=sum(map(len, by_split.values())), **_counts(traces, values(run_dir), tries)
        )
        return stage.summary


def _refuse(samples: Mapping[str, int], grader: str, rolled: Mapping[str, int]) -> None:
    if wrong := [split for split in (*samples, *rolled) if split not in SAMPLES]:
        raise UserError(f"splits of {', '.join(SAMPLES)}", wrong[0], "leave the others to evaluate")
    if grader not in GRADERS:
        raise UserError(f"a grader of {', '.join(GRADERS)}", grader, "name one of them")
    if min([*samples.values(), *rolled.values()], default=0) < 1 or samples.keys() != rolled.keys():
        got = f"{dict(samples)}, {dict(rolled)} rolled out"
        raise UserError("1 sample or more of each split", got, "raise them")


def _select(run_dir: Path, split: str) -> list[Problem]:
    found = [problem for problem in Shards(run_dir / "problems", Problem) if problem.split == split]
    if not found:
        raise UserError(f"problems of {split}", "none", "add a source or take the split out")
    return found


def _draw(
    sink: Shards[Trace],
    problems: Sequence[Problem],
    samples: int,
    draw_samples: Callable[..., Iterator[Trace]],
) -> None:
    """Draw the samples of the problems that are not in the sink."""
    wanted = {(problem.problem_id, sample) for problem in problems for sample in range(samples)}
    done = wanted & sink.keys("problem_id", "sample")
    if done == wanted:
        return
    traces = draw_samples(done=done)
    shown = progress(traces, name="solutions", total=len(wanted), done=len(done), unit="samples")
    while sink.append(itertools.islice(shown, SHARD_TRACES)):
        pass


def _beginnings(
    solutions: Iterable[Trace], problems: Sequence[Problem], grader: str, rolled: int
) -> list[list[Beginning]]:
    """Return the different beginnings of each problem's first solutions, in the problems' order."""
    found: dict[str, set[Beginning]] = {problem.problem_id: set() for problem in problems}
    by_id = {problem.problem_id: problem for problem in problems}
    some = [t for t in solutions if t.problem_id in by_id and t.sample < rolled]
    for trace, verdict in zip(some, check(some, problems, GRADERS[grader]), strict=True):
        if verdict.outcome in ANSWERED:
            problem = by_id[trace.problem_id]
            found[trace.problem_id].update(
                Beginning(problem, trace.prompt, prefix) for prefix in prefixes(trace.text)
            )
    return [sorted(of_problem, key=lambda b: b.prefix) for of_problem in found.values()]


def _roll(
    sink: Shards[Rollouts],
    beginnings: Sequence[Sequence[Beginning]],
    roll_part: Callable[[Sequence[Beginning]], list[Rollouts]],
) -> None:
    """Roll out the beginnings without a value, those of some questions together."""
    done = sink.keys("problem_id", "prefix")
    left = [
        [b for b in some if (b.problem.problem_id, b.prefix) not in done] for some in beginnings
    ]
    left = [some for some in left if some]
    parts = [left[at : at + SHARD_QUESTIONS] for at in range(0, len(left), SHARD_QUESTIONS)]
    for part in progress(parts, name="roll-outs", total=len(parts), unit="parts"):
        sink.append(roll_part(list(itertools.chain(*part))))


def _counts(solutions: Iterable[Trace], values: Iterable[Rollouts], tries: Tries) -> dict[str, Any]:
    drawn_tokens, rolled = sum(len(trace.tokens) for trace in solutions), list(values)
    return {
        "beginnings": len(rolled),
        "rollouts": sum(r.n for r in rolled),
        "stopped_early": sum(r.n < tries.most for r in rolled),
        "solution_tokens": drawn_tokens,
        "rollout_tokens": sum(r.tokens for r in rolled),
    }


# --- Reading the stage -------------------------------------------------------------------------


def solutions(run_dir: Path, split: str) -> list[tuple[Trace, Verdict]]:
    """Return every solution of a split with its verdict, none where the stage drew none.

    Raises:
        UserError: the stage is not complete.
    """
    grader = GRADERS[manifest(run_dir, "rollouts")["settings"]["grader"]]
    problems = [p for p in Shards(Path(run_dir) / "problems", Problem) if p.split == split]
    of_split = {problem.problem_id for problem in problems}
    traces = Shards(Path(run_dir) / "rollouts" / "solutions", Trace)
    mine = [trace for trace in traces if trace.problem_id in of_split]
    return list(zip(mine, check(mine, problems, grader), strict=True))


def values(run_dir: Path) -> Shards[Rollouts]:
    """Return the roll-outs of all beginnings."""
    return Shards(Path(run_dir) / "rollouts" / "values", Rollouts)


def examples(run_dir: Path, split: str, *, whole: bool = False) -> list[Labelled]:
    """Return the labelled solutions of a split, those that have an answer.

    Args:
        run_dir: the run directory.
        split: `train` or `validation`.
        whole: only those that were rolled out, so that their beginnings are a fair sample; of the
            others the end has a label, and beginnings that they share with these.

    Raises:
        UserError: the stage is not complete.
    """
    settings = manifest(run_dir, "rollouts")["settings"]
    rolled = (settings["rolled"] or settings["samples"]).get(split, 0)
    found = solutions(run_dir, split)
    some = [pair for pair in found if pair[0].sample < rolled] if whole else found
    return list(label(some, values(run_dir)))
