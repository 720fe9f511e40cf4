"""The plan of a large shape on a mesh, as `benchmarks/partition_plan.py` prints it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_xxl_on_sixteen_devices_is_cut_sixteen_ways():
    """4 bytes x 11,135,332,352 / 16 = 2.78 GB, and as much for each of Adam's two moments."""
    arguments = ["--shapes", "t5_1_1_xxl", "--mesh", "1", "16", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "partition_plan.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = "| t5_1_1_xxl | 11,135,332,352 | 16 | 1 x 16 x 1 | 2.78 | 5.57 |"
    assert done.stdout.splitlines()[2:] == [line]
