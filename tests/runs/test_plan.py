"""`distill plan` on virtual CPU devices, whose compiler is always there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from distill.core.errors import UserError
from distill.models import accelerators, partitioning, weights
from distill.models.t5 import T5Config, T5Model
from distill.runs import plan
from distill.training import placement, train
from distill.training.losses import Chunked, DistributionMatching
from distill.training.step import compiled

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = "data/vocabularies/student.model"
MODEL = T5Model(T5Config(1104, 32, 2, 16, 64, 2, 2))
LENGTHS = {"source_length": 64, "target_length": 32, "k": 5}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("start") / "tiny"
    weights.save(directory, MODEL, MODEL.init(jax.random.key(0)), ROOT / VOCABULARY)
    return directory


def planned(start, *flags, on="cpu:8"):
    required = {"STUDENT": str(start), "VOCABULARY": VOCABULARY, "TEACHER": "none"}
    given = [f"--gin.{name}='{value}'" for name, value in required.items()]
    command = [sys.executable, "-m", "distill", "plan", f"--on={on}"]
    return subprocess.run(
        [*command, "--gin_file=runs/gsm8k_flan_t5_xl.gin", *given, *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def training(start, **changed):
    bound = {"student": str(start), "model_settings": None, "batch_size": 8, "microbatches": 2}
    bound |= {"loss": Chunked(DistributionMatching()), "optimizer": train.PAPER_OPTIMIZER}
    return bound | {"steps_per_call": 1, "mesh": partitioning.mesh, "rules": None} | changed


def test_a_run_file_is_planned_for_a_host_of_eight_and_nothing_is_written(start, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = planned(start, f"--run_dir={tmp_path}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert found["batch_size"] == 64 and found["microbatches"] == 8
    assert 0 < found["bytes_kept"] < found["bytes_limit"]
    assert found["bytes_besides"] > 0 and found["seconds_at_peak"] is None
    assert sorted(tmp_path.iterdir()) == before


def test_the_plan_is_of_the_step_that_the_trainer_compiles(start, tmp_path):
    rules = partitioning.RULES
    found = plan.plan("cpu:1", tmp_path, LENGTHS, training(start, rules=rules))
    optimizer, mesh = train.PAPER_OPTIMIZER, partitioning.mesh()
    model, params = train.start_of(tmp_path, str(start), {})
    layout = placement.state_layout(model, params, optimizer, mesh)
    advance = compiled(model, Chunked(DistributionMatching()), optimizer, 2, layout)
    rows = placement.stacked(placement.batch_layout(plan.padding_batch(LENGTHS, 8), mesh, 2), 1)
    kept, besides, limit = placement.require_room(advance, layout, rows, jax.random.key(0))
    assert (found["bytes_kept"], found["bytes_besides"]) == (kept, besides)
    assert found["bytes_limit"] == limit == accelerators.memory_bytes(jax.devices()[0])
    state = 3 * placement.bytes_per_device(layout.params)
    batch = 8 * (2 * 64 + 3 * 32 + 2 * 5 * 32) * 4  # what the step reads, no positions
    assert state + batch <= kept <= state + batch + 1_000


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_in_one_line(start):
    done = planned(start, "--gin.BATCH_SIZE=800_000", "--gin.MICROBATCHES=1")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("distill: expected a step within the ") and " of cpu, got " in line
    assert line.endswith("; raise microbatches or the mesh's fsdp or tensor, or lower batch_size")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:4x4", "expected devices such as v5e:4x4, of v4, v5e, v5p, v6e, or h100:8, or cpu:8"),
        ("h100:all", "expected devices such as v5e:4x4, .*, got h100:all; correct it"),
        ("cpu:3", "expected devices such as v5e:4x4, .*, got cpu:3; correct it"),
    ],
)
def test_unknown_devices_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        accelerators.absent(name)


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed\nmore")

    monkeypatch.setattr(accelerators.topologies, "get_topology_desc", missing)
    message = (
        r"expected XLA's compiler for v5e:4x4, got JAX TPU support not installed; .*jax\[tpu\]"
    )
    with pytest.raises(UserError, match=message):
        accelerators.absent("v5e:4x4")


def test_an_argument_that_is_no_binding_is_refused(start):
    done = planned(start, "--foo")
    assert done.returncode == 2 and "expected --gin.NAME=VALUE" in done.stderr
