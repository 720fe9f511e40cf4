"""Training questions of the public sets that evaluation sets hold too, by kind and set.

python benchmarks/contamination.py --datasets ../shared/datasets
"""

import argparse
import pathlib
import time

from distill.core.records import Problem
from distill.problems import problems
from distill.problems.contamination import TRAINED, Contamination, Index, Overlap, clean, count


def read(folder: pathlib.Path) -> list[Problem]:
    """Read every set whole, GSM8K's and MBPP's train splits among them."""
    gsm8k = [("train", "train"), ("validation", "train"), ("test", "test")]
    mbpp = ("train", "validation", "test")
    sources = [
        *(problems.Gsm8k(split, folder / f"gsm8k/{file}.jsonl") for split, file in gsm8k),
        problems.MultiArith(folder / "multiarith/MultiArith.json"),
        problems.AsDiv(folder / "asdiv/ASDiv.xml"),
        problems.Svamp(folder / "svamp/SVAMP.json"),
        problems.Math500(folder / "math500/math500.jsonl"),
        problems.BigBenchHard(folder / "bbh"),
        *(problems.Mbpp(split, folder / "mbpp/mbpp.jsonl") for split in mbpp),
    ]
    return [problem for source in sources for problem in source.problems()]


def main() -> None:
    """Print the counts of each train split, and one overlap of each kind."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--datasets", type=pathlib.Path, default="../shared/datasets")
    every = read(parser.parse_args().datasets)
    held_out = [problem for problem in every if problem.split != TRAINED]
    start = time.perf_counter()
    index = Index(held_out, Contamination())
    print(f"index of {len(held_out)} questions: {time.perf_counter() - start:.1f} s")
    for source in ("gsm8k", "mbpp"):
        train = [p for p in every if p.source == source and p.split == TRAINED]
        found: list[Overlap] = []
        start = time.perf_counter()
        kept = sum(1 for _ in clean(train, index, found))
        seconds = time.perf_counter() - start
        print(f"{source}: {kept} of {len(train)} kept, {seconds:.1f} s; {count(found)}")
        for kind, overlap in {overlap.kind: overlap for overlap in found}.items():
            print(f"  {kind}: {overlap.problem_id} has {overlap.reason}")


if __name__ == "__main__":
    main()
