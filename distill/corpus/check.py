"""Decide for every trace whether its final answer is the gold one, with a reason; drops none."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.core import answers
from distill.core.errors import UserError
from distill.core.progress import progress
from distill.core.records import Problem, Trace, Verdict
from distill.core.store import Shards, Stage

SHARD_VERDICTS = 4096


@dataclasses.dataclass(frozen=True)
class Grader:
    """How an answer is found in a text, and when it equals the gold one.

    Attributes:
        extract: a text's final answer, None where there is none.
        equal: whether an answer equals the gold one, None where that cannot be decided.
        key: what the answers have in common that one vote counts together.
    """

    extract: Callable[[str], str | None]
    equal: Callable[[str, str], bool | None]
    key: Callable[[str], str] = answers.canonical


def _same_last_number(answer: str, gold: str) -> bool:
    return answer == answers.fu2023(gold)


# `fu2023` is the paper's own, for parity: no sign, no thousands comma, no fraction.
GRADERS = {
    "default": Grader(answers.extract, answers.equal),
    "fu2023": Grader(answers.fu2023, _same_last_number, str),
}


def check(
    traces: Iterable[Trace], problems: Iterable[Problem], grader: Grader
) -> Iterator[Verdict]:
    """Yield one verdict for every trace, in the traces' order.

    What a generator did not end by itself is not judged by its text: a trace that ran into its
    length is `truncated`, one that was withheld is `filtered`, a failed one `undecided`.

    Args:
        traces: what to judge.
        problems: at least the traces' own.
        grader: how to judge it.

    Raises:
        UserError: a trace's problem is not among the problems.

    Example:
        >>> import numpy as np
        >>> none, ends = np.empty(0, np.float32), np.empty(0, np.int32)
        >>> text = "The answer is 8"
        >>> trace = Trace("a", 0, "", text, (), none, (), none, ends, 0.0, "stop", "m", 0)
        >>> problem = Problem("a", "s", "train", "What is 4 + 4?", "8")
        >>> [verdict.outcome for verdict in check([trace], [problem], GRADERS["default"])]
        ['right']
    """
    golds = {problem.problem_id: problem.answer for problem in problems}
    for trace in traces:
        if trace.problem_id not in golds:
            raise UserError(
                "the problem of every trace",
                f"a trace of {trace.problem_id}",
                "check with the problems that were harvested",
            )
        outcome, answer, reason = _unfinished(trace) or judge(
            trace.text, golds[trace.problem_id], grader
        )
        yield Verdict(trace.problem_id, trace.sample, outcome, answer, reason)


def _unfinished(trace: Trace) -> tuple[str, None, str] | None:
    return {
        "length": ("truncated", None, f"no end within {len(trace.tokens)} tokens"),
        "content_filter": ("filtered", None, "withheld by the generator's content filter"),
        "error": ("undecided", None, "the generator failed, or its tokens do not spell its text"),
    }.get(trace.finish_reason)


def judge(text: str, gold: str, grader: Grader) -> tuple[str, str | None, str]:
    """Return the outcome of a finished text, its answer (None where it has none) and the reason.

    Example:
        >>> judge("The answer is 6.", "7", GRADERS["default"])
        ('wrong', '6', 'gold is 7')
    """
    answer = grader.extract(text)
    if answer is None:
        return "unparsed", None, "no final answer in the text"
    equal = grader.equal(answer, gold)
    if equal is None:
        return "undecided", answer, f"cannot tell whether it equals {gold}"
    return ("right", answer, f"equals {gold}") if equal else ("wrong", answer, f"gold is {gold}")


def summarise(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Count verdicts by outcome; `yield` is the pair of right ones and all.

    Example:
        >>> summarise([Verdict("a", 0, "right", "8", "equals 8")])["yield"]
        {'correct': 1, 'n': 1}
    """
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    return {
        "verdicts": outcomes.total(),
        "outcomes": dict(sorted(outcomes.items())),
        "yield": {"correct": outcomes["right"], "n": outcomes.total()},
    }


def agreement(
    traces: Iterable[Trace], problems: Iterable[Problem], graders: tuple[Grader, Grader]
) -> dict[str, dict[str, int]]:
    """Count the traces by the first grader's outcome, then by the second's.

    Args:
        traces: can be read twice.
        problems: at least the traces' own; can be read twice.
        graders: the two to compare.

    Raises:
        UserError: as `check`.
    """
    pairs = zip(*(check(traces, problems, grader) for grader in graders), strict=True)
    table: dict[str, Counter[str]] = {}
    for first, second in pairs:
        table.setdefault(first.outcome, Counter())[second.outcome] += 1
    return {first: dict(sorted(row.items())) for first, row in sorted(table.items())}


def _write(verdicts: Iterable[Verdict], shards: Shards[Verdict]) -> None:
    waiting: list[Verdict] = []
    for verdict in verdicts:
        waiting.append(verdict)
        if len(waiting) >= SHARD_VERDICTS:
            shards.append(waiting)
            waiting = []
    shards.append(waiting)


def run(*, run_dir: Path, grader: str = "default", beside: str | None = None) -> dict[str, Any]:
    """Fill RUN_DIR/verdicts from RUN_DIR/traces; go on where an earlier start stopped.

    Args:
        run_dir: the run directory; its stages `problems` and `harvest` are complete.
        grader: `default`, or `fu2023` for parity with the paper.
        beside: a second grader, whose outcomes are counted beside the first's.

    Raises:
        UserError: no such grader, or an input is not complete.
    """
    for name in filter(None, (grader, beside)):
        if name not in GRADERS:
            raise UserError(f"a grader of {', '.join(GRADERS)}", name, "name one of them")
    run_dir = Path(run_dir)
    inputs = ["problems", "harvest"]
    settings = {"grader": grader, "beside": beside}
    with Stage.open(run_dir, "check", settings=settings, inputs=inputs) as stage:
        if stage.complete:
            return stage.summary
        shards = Shards(run_dir / "verdicts", Verdict)
        done = shards.keys("problem_id", "sample")
        traces = Shards(run_dir / "traces", Trace)
        left = (trace for trace in traces if (trace.problem_id, trace.sample) not in done)
        problems = Shards(run_dir / "problems", Problem)
        verdicts = check(left, problems, GRADERS[grader])
        total = len(traces)
        _write(progress(verdicts, name="check", total=total, done=len(done)), shards)
        summary = summarise(shards)
        if beside is not None:
            graders = (GRADERS[grader], GRADERS[beside])
            summary[f"outcomes_by_{beside}"] = agreement(traces, problems, graders)
        stage.finish(**summary)
        return stage.summary
