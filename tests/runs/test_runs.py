"""Every shipped gin file loads; the run files of the main job run small through the command line.

Those of the built-in models are run small in tests/training/test_stages.py.
"""

import importlib
import inspect
import json
import re
import subprocess
import sys

import pytest
from runs_world import DISTILL, ROOT, SMALL_QUICKSTART, run_arguments, started

from distill.runs.commands import STAGES
from distill.training.metrics import read_lines

# tests/models/test_shapes.py loads the published shapes, tests/interop/test_t5x.py what is for T5X.
ELSEWHERE = ("models/*t5_*.gin", "t5x/*.gin")
FILES = [
    file
    for file in sorted((ROOT / "gin_configs").rglob("*.gin"))
    if not any(file.match(pattern) for pattern in ELSEWHERE)
]
NOISE = ("CheckpointManagerOptions", "os.fork", "E0000", "Warning")
SMALL_GSM8K = """\
from __gin__ import dynamic_registration
from distill.targets import dataset
from distill.problems import problems
from distill.models import saved
from distill.models import t5
from distill.training import evaluate
from distill.training import train

STEPS = 6
problems.Gsm8k.n = 3
train/problems.Gsm8k.n = 12
problems.MultiArith.n = 3
problems.AsDiv.n = 3
problems.Svamp.n = 3
saved.SavedModel.batch_size = 4
t5.T5Config.embed_dim = 16
t5.T5Config.num_encoder_layers = 1
t5.T5Config.num_decoder_layers = 1
train.run.save_every = 3
train.run.batch_size = 2
evaluate.Options.max_tokens = 8
evaluate.Options.batch_size = 12
"""
EXPORTED = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
}


# Loads a file; what it requires is given on a second try, and printed.
LOAD = """
import sys, gin
from distill import config
from distill.core.errors import UserError
try:
    config.load(sys.argv[1:], [])
except UserError as error:
    required = error.expected.removeprefix("a value for ").split(", ")
    assert error.got == "gin.REQUIRED", error
    config.load(sys.argv[1:], [f"{name} = 'x'" for name in required])
    print(*required)
gin.finalize()
"""


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_gin_file_loads_and_its_references_resolve(file):
    name = str(file.relative_to(ROOT / "gin_configs"))
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    for required in loaded.stdout.split():
        assert re.search(rf"# Required:.*\b{required}\b", file.read_text(), re.DOTALL), required


@pytest.mark.parametrize("file", sorted((ROOT / "gin_configs" / "runs").glob("*.gin")))
def test_the_header_of_every_run_file_says_what_it_is_for(file):
    header = file.read_text().split("from __gin__")[0]
    parts = ("Reproduces:", "Command:", "Time:", "Expected:", "Required:", "Commonly overridden:")
    for part in parts:
        assert f"# {part}" in header, part
    assert f"--gin_file=runs/{file.name}" in header
    assert str(ROOT) not in file.read_text() and '"/' not in file.read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_a_run_directory_and_keywords_alone(stage):
    module, function = STAGES[stage]
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert "run_dir" in parameters
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_a_command_refused_as_another_run_leaves_the_configuration_of_that_run(tmp_path):
    def problems(n):
        arguments = (f"--gin.problems.BuiltIn.n={n}", f"--run_dir={tmp_path}")
        source = "--gin.problems.run.sources=[@problems.BuiltIn()]"
        built_in = ("family='gsm'", "split='train'")
        named = [f"--gin.problems.BuiltIn.{binding}" for binding in built_in]
        return started([*DISTILL, "problems", source, *named, *arguments], tmp_path / "cache")

    assert problems(3).returncode == 0
    before = (tmp_path / "config.gin").read_text()
    refused = problems(4)
    assert refused.returncode == 2 and "another --run_dir" in refused.stderr
    assert (tmp_path / "config.gin").read_text() == before


def ended_well(run_dir, done, sets):
    """Assert what every run of the main job leaves; return its report."""
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if any(word in line for word in NOISE)]
    report = json.loads((run_dir / "report.json").read_text())
    assert report["absent"] == {} and (run_dir / "report.html").stat().st_size > 1000
    assert all(report["complete"].values())
    assert report["complete"].keys() == report["seconds"].keys()
    for when in ("before", "after"):
        assert report["accuracy"][when].keys() == sets
        for counts in report["accuracy"][when].values():
            assert counts.keys() == {"correct", "n"} and counts["n"] > 0
    assert report["selection"]["chosen_step"] in {int(step) for step in report["checkpoints"]}
    assert 0 < report["harvest"]["yield"] <= 1
    assert 0 < report["alignment"]["coverage"] <= 1
    assert {path.name for path in (run_dir / "export").iterdir()} == EXPORTED
    return report


def state(run_dir):
    """The bytes of all that a run left, apart from its logs of time."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    timed = {"report.json", "report.html", "config.gin"}
    return {path: path.read_bytes() for path in files if path.name not in timed}


@pytest.mark.slow
def test_quickstart_runs_small_and_a_second_time_does_nothing_twice(tmp_path):
    run_dir = tmp_path / "run"
    command = [*DISTILL, *run_arguments("quickstart", run_dir, SMALL_QUICKSTART)]
    done = started(command, tmp_path / "cache")
    report = ended_well(run_dir, done, {"gsm", "multi", "asdiv", "svamp", "general"})
    assert report["harvest"]["traces"] == 24
    assert report["training"]["steps"] == 4
    assert list(report["checkpoints"]) == ["0", "2", "4"]
    before = state(run_dir)
    again = started(command, tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    starts = [line for line in again.stderr.splitlines() if line.endswith(": start")]
    assert starts == ["report: start"]
    assert state(run_dir) == before
    assert json.loads((run_dir / "report.json").read_text()) == report


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT.parent / "shared" / "datasets").is_dir(), reason="the public sets are not there"
)
def test_gsm8k_smoke_runs_small(tmp_path):
    run_dir = tmp_path / "run"
    command = [*DISTILL, *run_arguments("gsm8k_smoke", run_dir, SMALL_GSM8K)]
    done = started(command, tmp_path / "cache")
    report = ended_well(run_dir, done, {"gsm8k", "multiarith", "asdiv", "svamp"})
    assert report["harvest"]["yield_of"] == {"correct": 12, "n": 12}
    assert report["alignment"]["coverage"] == 1
    losses = [line["loss"] for line in read_lines(run_dir / "checkpoints" / "metrics.jsonl")]
    assert len(losses) == 6 and losses[-1] < losses[0]
    config = json.loads((run_dir / "export" / "config.json").read_text())
    assert config["vocab_size"] == 32_128
