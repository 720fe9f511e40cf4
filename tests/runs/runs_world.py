"""The shipped run files made small, and the commands that run them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DISTILL = (sys.executable, "-m", "distill")

# What makes the main job take seconds; given after the run's own file.
SMALL_QUICKSTART = """\
from __gin__ import dynamic_registration
from distill.core import ports
from distill.grading import check
from distill.targets import align
from distill.targets import dataset
from distill.traces import harvest
from distill.problems import problems
from distill.models import saved
from distill.training import evaluate
from distill.training import train

STEPS = 4
problems.BuiltIn.n = 4
train/problems.BuiltIn.n = 24
validation/problems.BuiltIn.n = 4
multi_selection/problems.BuiltIn.n = 4
asdiv_selection/problems.BuiltIn.n = 4
svamp_selection/problems.BuiltIn.n = 4
general_validation/problems.General.n = 1
general_test/problems.General.n = 1
saved.SavedModel.batch_size = 8
harvest.run.samples = 1
harvest.run.shard_traces = 5
problems.run.problems_per_shard = 5
check.run.shard_verdicts = 5
align.run.shard_traces = 5
dataset.run.shard_rows = 5
evaluate.Options.shard_predictions = 5
harvest/ports.Sampling.max_tokens = 128
train.run.save_every = 2
train.run.batch_size = 2
evaluate.Options.max_tokens = 24
evaluate.Options.batch_size = 16
"""


def run_arguments(name, run_dir, small):
    """Return `run` with its options; `small` is gin text, which lies beside the run directory."""
    file = run_dir.with_name(f"{run_dir.name}.gin")
    file.write_text(small)
    return ["run", f"--gin_file=runs/{name}.gin", f"--gin_file={file}", f"--run_dir={run_dir}"]


def started(command, cache):
    """Run a command from the root to its end; compiled programs are kept in `cache`."""
    # JAX, once imported, leaves this to its children; a user's shell has none.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu", **kept},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
