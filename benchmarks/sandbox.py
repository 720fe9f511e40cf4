"""Time the sandbox on MBPP's own solutions; every one must be right.

python benchmarks/sandbox.py mbpp.jsonl

MBPP: Austin et al. 2021, "Program Synthesis with Large Language Models", arXiv:2108.07732;
github.com/google-research/google-research/tree/master/mbpp.
"""

import argparse
import collections
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from distill.core.records import Accuracy
from distill.grading.sandbox import Sandbox, SandboxResult, Submission, split_asserts


def submissions(path: Path) -> Iterator[Submission]:
    """Read each task's solution with its asserts, those of the challenge included."""
    for line in path.read_text().splitlines():
        task = json.loads(line)
        tests = task["test_list"] + task["challenge_test_list"]
        assertions = [assertion for test in tests for assertion in split_asserts(test)]
        yield Submission(task["code"], assertions, task["test_setup_code"])


def report(title: str, judgements: list[SandboxResult], seconds: float) -> None:
    """Print the times of the candidates, in milliseconds, and how many are right."""
    times = [1000 * judgement.seconds for judgement in judgements]
    right = sum(judgement.outcome == "right" for judgement in judgements)
    print(
        f"{title}: median {statistics.median(times):.1f} ms, "
        f"p95 {statistics.quantiles(times, n=20)[-1]:.1f} ms a candidate, "
        f"{len(times) / seconds:.0f} candidates/s; right: {Accuracy(right, len(times))}"
    )
    reasons = collections.Counter(j.reason for j in judgements if j.outcome != "right")
    for reason, count in reasons.items():
        print(f"  {count} x {reason}")


def main() -> None:
    """Judge all solutions one after another, then several at once."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("mbpp", type=Path, help="mbpp.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    tasks = list(submissions(arguments.mbpp))
    asserts = [assertion for task in tasks for assertion in task.assertions]
    parted = [assertion.call is not None for assertion in asserts]
    whole = [all(a.call is not None for a in task.assertions) for task in tasks]
    print(f"asserts parted: {Accuracy(sum(parted), len(parted))}")
    print(f"tasks with every assert parted: {Accuracy(sum(whole), len(whole))}")

    with Sandbox(workers=arguments.workers) as sandbox:
        print(f"protections: {', '.join(sandbox.protections)}")
        start = time.monotonic()
        judgements = [sandbox.judge(task) for task in tasks]
        report("one after another", judgements, time.monotonic() - start)
        start = time.monotonic()
        judgements = list(sandbox.judge_all(tasks))
        report(f"{arguments.workers} at once", judgements, time.monotonic() - start)


if __name__ == "__main__":
    main()
