"""Estimate pass@k, maj@k, best-of-k and weighted best-of-k from graded samples of each problem.

    {"gold": "7", "samples": [{"text": "The answer is 7.", "score": 0.9}, ...]}

For each k in powers of two, up to the fewest samples that a problem has, every number is the
expectation over all subsets of k of a problem's n samples, never "the first k":

- pass@k: some sample is right. 1 - C(n - c, k) / C(n, k), with c right ones.
- maj@k: the answer given most often is right; exact, see `majority`.
- best of k: the sample with the highest score is right; exact, see `best`.
- weighted: the answer with the highest sum of scores is right; enumerated where there are at most
  20,000 subsets, else the mean over 4,096 random ones.

Ties are broken uniformly at random, and the expectation is over that too. Answers are one where
their keys are equal. A sample without an answer counts as a sample but is never chosen; where no
sample has one, nothing is right. The last two are absent unless every sample has a score; the
weighted one too where a score is below 0, since a sum would then punish agreement. Intervals are
95 %, by 10,000 bootstrap samples of the problems.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.core import terminal
from distill.core.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a file of samples; print the table or JSON."""
    options = _parser().parse_args(arguments)
    if options.max_k is not None and options.max_k < 1:
        raise UserError("--max_k of at least 1", str(options.max_k), "give more")
    from distill.grading import grade
    from distill.test_time import vote

    grader = grade.named_grader(options.grader)
    problems = [vote.read(row, name, grader) for name, row in grade.rows(options.file)]
    result = vote.summarise(problems, max_k=options.max_k, seed=options.seed)
    result = {"grader": options.grader, **result}
    terminal.show(json.dumps(result) if options.json else "\n".join(_table(result)))
    return 0


def _table(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    if not result["problems"]:
        yield "0 problems: nothing to estimate"
        return
    fewest, most = result["samples"]["fewest"], result["samples"]["most"]
    yield f"{result['problems']} problems of {fewest} to {most} samples; k in powers of two up to"
    yield "the fewest; each the expectation over all subsets of k; 95 % by bootstrap over problems"
    for name, rows in result["estimates"].items():
        for row in rows:
            drawn = f", {row['draws']} random subsets each" if "draws" in row else ""
            shares = [f"{100 * row[end]:5.1f}" for end in ("value", "low", "high")]
            interval = f"[{shares[1].strip()}, {shares[2].strip()}]"
            yield f"{name:>8}@{row['k']:<5} {shares[0]} % {interval} of {row['n']}{drawn}"
    yield from (f"{name:>8} absent: {reason}" for name, reason in result["absent"].items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill vote",
        description=(__doc__ or "").replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help='JSON lines with "gold" and "samples"')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--grader", default="default", help="default, or fu2023 for parity")
    parser.add_argument("--max_k", type=int, help="the largest k")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals and random subsets")
    return parser
