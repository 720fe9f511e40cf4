"""Flip single bits of a finished run: does `distill verify` find each one?

    python benchmarks/damage.py RUN_DIR [--flips=2000] [--seed=0]

Works on a copy. Half of the flips draw a file first, so that small files are hit as often as large
ones; the other half draw a bit of all bits. Prints the flips by folder, and each that was missed
and lies in no file that `verify` lists as not covered.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from distill.runs import soundness


def flipped(path: Path, bit: int) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def main() -> int:
    """Flip, check, restore; return 0 where nothing was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn, found, missed = random.Random(options.seed), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        shutil.copytree(options.run_dir, run_dir)
        clean = soundness.check(run_dir)
        print("not covered:", "; ".join(clean.not_covered) or "nothing")
        if not clean.sound:
            print("the run is not sound:", *clean.faults, sep="\n")
            return 1
        paths = [p for p in sorted(run_dir.rglob("*")) if p.is_file() and p.stat().st_size]
        sizes = [path.stat().st_size for path in paths]
        start = time.monotonic()
        for number in range(options.flips):
            (path,) = drawn.choices(paths, None if number % 2 else sizes)
            bit = drawn.randrange(8 * path.stat().st_size)
            flipped(path, bit)
            name = path.relative_to(run_dir)
            if soundness.check(run_dir, contents=False).sound:
                missed.append(f"{name} bit {bit}")
            found[name.parts[0]] += 1
            flipped(path, bit)
        seconds = time.monotonic() - start
        sound = soundness.check(run_dir).sound
    print(f"{options.flips} flips in {len(paths)} files, {sum(sizes):,} bytes, {seconds:.0f} s")
    print(", ".join(f"{name} {count}" for name, count in found.most_common()))
    print(f"missed: {len(missed)}", *missed, sep="\n")
    return 0 if sound and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
