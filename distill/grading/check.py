"""Grade the final answer of every trace and record the reason; drop none."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.progress import progress
from distill.core.records import Problem, Trace, Verdict
from distill.core.store import Shards, Stage
from distill.grading.graders import (
    GRADERS,
    Grader,
    Judge,
    Judgement,
    confinement,
    judge,
    open_grader,
    require,
)

__all__ = ["GRADERS", "Grader", "Judge", "agreement", "check", "judge", "run", "summarise"]

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("verdicts",)
SHARD_VERDICTS = 4096


def check(traces: Iterable[Trace], problems: Iterable[Problem], grader: Judge) -> Iterator[Verdict]:
    """Yield one verdict for every trace, in the traces' order.

    An unfinished trace is not judged by its text: one that reached its length limit is
    `truncated`, a withheld one is `filtered`, a failed one, or one that exceeds the generator's
    context, is `undecided`.

    Args:
        traces: the traces to judge.
        problems: at least the traces' own.
        grader: the judge.

    Raises:
        UserError: a trace's problem is not among the problems, or lacks what the grader needs.

    Example:
        >>> import numpy as np
        >>> none, ends = np.empty(0, np.float32), np.empty(0, np.int32)
        >>> text = "The answer is 8"
        >>> trace = Trace("a", 0, "", text, (), none, (), none, ends, 0.0, "stop", "m", 0)
        >>> problem = Problem("a", "s", "train", "What is 4 + 4?", "8")
        >>> [verdict.outcome for verdict in check([trace], [problem], GRADERS["default"])]
        ['right']
    """
    golds = {problem.problem_id: getattr(problem, grader.field) for problem in problems}
    for trace in traces:
        if trace.problem_id not in golds:
            raise UserError(
                "the problem of every trace",
                f"a trace of {trace.problem_id}",
                "check with the problems that were harvested",
            )
        gold = golds[trace.problem_id]
        if gold is None:
            raise UserError(
                f"{grader.field} with {trace.problem_id}", "none", "name a grader of its answers"
            )
        judgement = _unfinished(trace) or grader(trace.text, gold)
        yield Verdict(trace.problem_id, trace.sample, *judgement)


def _unfinished(trace: Trace) -> Judgement | None:
    decisions = {
        "length": ("truncated", f"no end within {len(trace.tokens)} tokens"),
        "content_filter": ("filtered", "withheld by the generator's content filter"),
        "error": ("undecided", "the generator failed, or its tokens do not spell its text"),
        "too_long": ("undecided", "prompt and chain are longer than the generator reads"),
    }
    if trace.finish_reason not in decisions:
        return None
    outcome, reason = decisions[trace.finish_reason]
    return Judgement(outcome, None, reason)


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
    traces: Iterable[Trace], problems: Iterable[Problem], graders: tuple[Judge, Judge]
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


def _write(verdicts: Iterable[Verdict], shards: Shards[Verdict], size: int) -> None:
    waiting: list[Verdict] = []
    for verdict in verdicts:
        waiting.append(verdict)
        if len(waiting) >= size:
            shards.append(waiting)
            waiting = []
    shards.append(waiting)


def run(
    *,
    run_dir: Path,
    grader: str = "default",
    beside: str | None = None,
    shard_verdicts: int = SHARD_VERDICTS,
) -> dict[str, Any]:
    """Fill RUN_DIR/verdicts from RUN_DIR/traces; resume where an earlier start stopped.

    Args:
        run_dir: the run directory; its stages `problems` and `harvest` are complete.
        grader: one of `graders.NAMES`: `default`, `math` to decide by algebra what keys leave
            undecided, `mbpp` for programs, `fu2023` for parity with the paper.
        beside: a second grader for comparison; its outcomes are counted against the first's.
        shard_verdicts: most verdicts in one shard, which a kill may lose; excluded from the run's
            identity.

    Raises:
        UserError: no such grader, it lacks a package or a protection, or an input is incomplete.
    """
    for name in filter(None, (grader, beside)):
        require(name)
    run_dir = Path(run_dir)
    inputs = ["problems", "harvest"]
    settings = {"grader": grader, "beside": beside}
    with Stage.open(run_dir, "check", settings=settings, inputs=inputs, outputs=OUTPUTS) as stage:
        if stage.complete:
            return stage.summary
        shards = Shards(run_dir / "verdicts", Verdict)
        done = shards.keys("problem_id", "sample")
        traces = Shards(run_dir / "traces", Trace)
        left = (trace for trace in traces if (trace.problem_id, trace.sample) not in done)
        problems = Shards(run_dir / "problems", Problem)
        with open_grader(grader) as judging:
            verdicts = check(left, problems, judging)
            shown = progress(verdicts, name="check", total=len(traces), done=len(done))
            _write(shown, shards, shard_verdicts)
            confined = confinement(judging)
        summary = {**summarise(shards), **confined}
        if beside is not None:
            with open_grader(grader) as one, open_grader(beside) as other:
                table = agreement(traces, problems, (one, other))
            summary[f"outcomes_by_{beside}"] = table
        stage.finish(**summary)
        return stage.summary
