r"""The default grader on public gold answers: accepted, and microseconds a pair on the fast path.

    python benchmarks/grading.py --datasets ../shared/datasets

Two predictions a gold answer: `The answer is X.`, and its whole solution where the set has one
(GSM8K) or `\\boxed{X}` else. The wrong one is the next problem's answer. Some seconds on one core.
"""

import argparse
import itertools
import json
import pathlib
import time
from xml.etree import ElementTree

from distill.core import answers


def golds(folder: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """Read the pairs of a solution and its gold answer, by set."""

    def json_lines(path: str) -> list[dict]:
        return [json.loads(line) for line in (folder / path).read_text().splitlines()]

    gsm8k = [row["answer"] for s in ("train", "test") for row in json_lines(f"gsm8k/{s}.jsonl")]
    multiarith = json.loads((folder / "multiarith/MultiArith.json").read_text())
    asdiv = ElementTree.parse(folder / "asdiv/ASDiv.xml").getroot().iter("Problem")
    plain = {
        "MultiArith": [str(row["lSolutions"][0]) for row in multiarith],
        "ASDiv": [problem.findtext("Answer", "") for problem in asdiv],
        "SVAMP": [str(r["Answer"]) for r in json.loads((folder / "svamp/SVAMP.json").read_text())],
        "MATH-500": [row["answer"] for row in json_lines("math500/math500.jsonl")],
    }
    boxed = {
        name: [(f"\\boxed{{{gold}}}", gold) for gold in found] for name, found in plain.items()
    }
    return {"GSM8K": [(text, answers.marked(text) or "") for text in gsm8k], **boxed}


def main() -> None:
    """Print a line for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=pathlib.Path, default="../shared/datasets")
    for name, pairs in golds(parser.parse_args().datasets).items():
        said = [(f"The answer is {gold}.", gold) for _, gold in pairs]
        found = [(answers.extract(text) or "", gold) for text, gold in said + pairs]
        accepted = sum(answers.equal(*pair) is True for pair in found)
        shifted = [(one[1], other[1]) for one, other in itertools.pairwise(pairs)]
        compared = found + shifted
        start = time.perf_counter()
        outcomes = [answers.equal(*pair) for pair in compared]
        micro = (time.perf_counter() - start) / len(compared) * 1e6
        unknown = outcomes[len(found) :].count(None)
        print(
            f"{name}: {accepted} of {len(found)} accepted; of {len(shifted)} neighbours' answers "
            f"{unknown} undecided; {micro:.1f} us a pair"
        )


if __name__ == "__main__":
    main()
