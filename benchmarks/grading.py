r"""The graders on the gold answers of every public set: what is accepted, and how fast.

    python benchmarks/grading.py --datasets ../shared/datasets              # keys: seconds
    python benchmarks/grading.py --datasets ../shared/datasets --algebra    # and math-verify
    python benchmarks/grading.py --datasets ../shared/datasets --programs   # and MBPP

Each gold answer is graded as `The answer is X.` and as its set states it: a whole solution where
there is one, `\boxed{X}` for MATH-500, a program for MBPP. Wrong are made-up answers near the gold
one, and the other answers of the same set, or of the same subtask of BIG-Bench Hard.
"""

import argparse
import collections
import itertools
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

from distill.core.records import Problem
from distill.grading import graders
from distill.grading.algebra import Algebra
from distill.problems import problems
from distill.text import answers

Pairs = list[tuple[str, str]]


def sets(folder: pathlib.Path) -> dict[str, list[Problem]]:
    """Read every set whole."""
    gsm8k = [("train", "train"), ("validation", "train"), ("test", "test")]
    mbpp = ("train", "validation", "test")
    sources = {
        "GSM8K": [problems.Gsm8k(s, folder / f"gsm8k/{f}.jsonl") for s, f in gsm8k],
        "MultiArith": [problems.MultiArith(folder / "multiarith/MultiArith.json")],
        "ASDiv": [problems.AsDiv(folder / "asdiv/ASDiv.xml")],
        "SVAMP": [problems.Svamp(folder / "svamp/SVAMP.json")],
        "MATH-500": [problems.Math500(folder / "math500/math500.jsonl")],
        "BBH": [problems.BigBenchHard(folder / "bbh")],
        "MBPP": [problems.Mbpp(s, folder / "mbpp/mbpp.jsonl") for s in mbpp],
    }
    return {name: [p for one in found for p in one.problems()] for name, found in sources.items()}


# --- Keys --------------------------------------------------------------------------------------


def near(gold: str) -> Iterator[str]:
    """Yield answers near a number that are not it: off by one, turned, shifted, cut, in base 8."""
    value = Fraction(gold.replace(",", ""))
    found = [value + 1, value - 1, -value, 10 * value, value / 10, value + 10, value / 100]
    found += [1 / value] if value else []
    yield from {str(other) for other in found if other != value}
    yield f"{value}_8"
    if value.denominator == 1 and abs(value) > 9:
        yield str(value)[:-1]


def wrong(found: Sequence[Problem], key: Callable[[str], str]) -> Pairs:
    """Return pairs of an answer and a gold one that differ by the set's own golds, or near them."""
    groups = collections.defaultdict(list)
    for problem in found:
        task = problem.problem_id.split("/")[2] if problem.source == "bbh" else ""
        groups[task].append(problem.answer)
    shifted = [pair for of_task in groups.values() for pair in itertools.pairwise(of_task)]
    pairs = [(one, gold) for one, gold in shifted if _unnamed(key(one)) != _unnamed(key(gold))]
    if found[0].source == "gsm8k":
        pairs += [(one, p.answer) for p in found if p.split == "test" for one in near(p.answer)]
    return pairs


def _unnamed(key: str) -> str:
    """Return a key without the name of a variable, which an answer may leave out."""
    return re.sub(r"^[a-z] = ", "", key)


def right(found: Sequence[Problem]) -> Pairs:
    """Return completions that state the gold answer, with it."""
    said = [(f"The answer is {p.answer}.", p.answer) for p in found]
    if found[0].chain:
        return said + [(p.chain or "", p.answer) for p in found]
    boxed = [(f"so $\\boxed{{{p.answer}}}$", p.answer) for p in found]
    return said + (boxed if found[0].source != "bbh" else [(p.answer, p.answer) for p in found])


def microseconds(pairs: Pairs, equal: Callable[[str, str], bool | None]) -> float:
    """Return the processor time of a pair whose texts differ, the least of five rounds."""
    differing = [(one, gold) for one, gold in pairs if one != gold]
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for pair in differing:
            equal(*pair)
        rounds.append(time.process_time() - start)
    return min(rounds) / len(differing) * 1e6


def report_keys(name: str, grader_name: str, found: Sequence[Problem]) -> int:
    """Print a line for a set and return the number of its wrong answers."""
    grader = graders.GRADERS[grader_name]
    stated, others = right(found), wrong(found, grader.key)
    accepted = sum(grader(text, gold).outcome == "right" for text, gold in stated)
    outcomes = collections.Counter(grader.equal(*pair) for pair in others)
    extracted = [(grader.extract(text) or "", gold) for text, gold in stated]
    fast = microseconds(extracted + others, grader.equal)
    print(
        f"{name}, {grader_name}: {accepted} of {len(stated)} accepted; of {len(others)} wrong "
        f"answers {outcomes[True]} accepted, {outcomes[None]} undecided; {fast:.1f} us a pair"
    )
    return len(others)


# --- Algebra -----------------------------------------------------------------------------------

# Ways to write what is the same, and two that change it.
VARIANTS: dict[str, Callable[[str], str]] = {
    "no spaces": lambda gold: re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", gold),
    "more spaces": lambda gold: re.sub(r"([-+=,])", r" \1 ", gold),
    r"\dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    r"no \left, \right": lambda gold: gold.replace("\\left", "").replace("\\right", ""),
    "a/b for \\frac": lambda gold: re.sub(r"\\frac\{([^{}]+)\}\{([^{}]+)\}", r"(\1)/(\2)", gold),
    "braces after ^ and _": lambda gold: re.sub(r"([\^_])(\w)", r"\1{\2}", gold),
    "sqrt(a)": lambda gold: re.sub(r"\\sqrt\{?(\w+)\}?", r"sqrt(\1)", gold),
    "sum turned round": lambda gold: re.sub(r"^([\w^]+) ?\+ ?([\w^]+)$", r"\2 + \1", gold),
    "doubled and halved": lambda gold: (
        f"\\frac{{2 \\cdot ({gold})}}{{2}}" if _is_closed(gold) else gold
    ),
    "WRONG: last digit": lambda gold: re.sub(
        r"\d(?=\D*$)", lambda m: str((int(m[0]) + 1) % 10), gold
    ),
    "WRONG: a sign": lambda gold: gold.replace("+", "-", 1) if "+" in gold else _negated(gold),
}


def _negated(gold: str) -> str:
    return gold if gold == "0" else f"-({gold})"


def _is_closed(gold: str) -> bool:
    return not re.search(r"[,=_]|text|pmatrix|cup|circ|\\%|\$|\\pm", gold)


def report_algebra(found: Sequence[Problem]) -> None:
    """Print what keys and algebra make of each variant, and of other golds as answers."""
    golds = [problem.answer for problem in found]
    print(
        f"{'MATH-500 written otherwise':<26} {'pairs':>6}  default: right, undecided, wrong; math"
    )
    with Algebra() as algebra:
        for name, write in VARIANTS.items():
            pairs = [(write(gold), gold) for gold in golds if write(gold) != gold]
            rows = [_outcomes(pairs, equal) for equal in (answers.equal, algebra.equal)]
            print(f"{name:<26} {len(pairs):>6}  {rows[0]}; {rows[1]}")
        _report_others(golds, algebra)


def _outcomes(pairs: Pairs, equal: Callable[[str, str], bool | None]) -> str:
    found = collections.Counter(equal(*pair) for pair in pairs)
    return ", ".join(str(found[outcome]) for outcome in (True, None, False))


def _report_others(golds: Iterable[str], algebra: Algebra) -> None:
    """Ask algebra about all pairs of different golds that keys leave undecided."""
    distinct = {answers.canonical(gold): gold for gold in golds}.values()
    pairs = itertools.permutations(distinct, 2)
    undecided = [pair for pair in pairs if answers.equal(*pair) is None][::7]
    times = []
    for pair in undecided:
        start = time.perf_counter()
        algebra.equal(*pair)
        times.append(time.perf_counter() - start)
    print(f"other golds, each 7th undecided pair: {len(undecided)}; right, undecided, wrong:")
    print(f"  {_outcomes(undecided, algebra.equal)}; {algebra.killed} workers killed in all")
    print(f"  {1e3 * statistics.median(times):.1f} ms a pair, median; {max(times):.1f} s at most")
    for pair in undecided:
        if algebra.equal(*pair):
            print(f"  accepted: {pair}")


# --- Programs ----------------------------------------------------------------------------------


def report_programs(found: Sequence[Problem]) -> None:
    """Print how many gold programs, and programs of other tasks, are accepted."""
    with graders.open_grader("mbpp") as judge:
        start = time.perf_counter()
        own = collections.Counter(judge(p.answer, p.tests or "").outcome for p in found)
        seconds = time.perf_counter() - start
        pairs = itertools.pairwise(found)
        others = collections.Counter(judge(one.answer, p.tests or "").outcome for one, p in pairs)
    print(
        f"MBPP, mbpp: {own['right']} of {own.total()} accepted; of {others.total()} other tasks' "
        f"programs {others['right']} accepted; {1e3 * seconds / own.total():.1f} ms a program"
    )


def main() -> None:
    """Print a line for each set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", type=pathlib.Path, default="../shared/datasets")
    parser.add_argument("--algebra", action="store_true", help="the slow path on MATH-500")
    parser.add_argument("--programs", action="store_true", help="MBPP in the sandbox")
    arguments = parser.parse_args()
    found = sets(arguments.datasets)
    strict = {"BBH": ("exact", "caseless")}
    total = 0
    for name, read in found.items():
        for grader in strict.get(name, ("default",)) if name != "MBPP" else ():
            total += report_keys(name, grader, read)
    print(f"wrong answers in all: {total}")
    if arguments.algebra:
        report_algebra(found["MATH-500"])
    if arguments.programs:
        report_programs(found["MBPP"])


if __name__ == "__main__":
    main()
