"""Several processes train as one: the command line with addresses, on the loopback."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from closeness import assert_close, depth
from flax.traverse_util import unflatten_dict
from test_stages import MODEL, STUDENT, fill, rows
from training_world import EPS, Tiny, TinyBatches, optimizer

from distill.core.errors import UserError
from distill.core.store import manifest
from distill.models import partitioning, processes, weights
from distill.training import checkpoints, placement
from distill.training.feed import PackedBatches
from distill.training.metrics import read_lines
from distill.training.optimizers import AdamW, Constant
from distill.training.train import run

ROOT = Path(__file__).parent.parent.parent
STEPS = 9
NAMES = ("one", "two")
FILE = """
from __gin__ import dynamic_registration
from distill.models import partitioning
from distill.training import optimizers
from distill.training import train

train.run.student = '{start}'
train.run.steps = {steps}
train.run.save_every = 6
train.run.log_every = 1
train.run.batch_size = 16
train.run.microbatches = 2
train.run.tensorboard = False
train.run.optimizer = @optimizers.AdamW()
optimizers.AdamW.schedule = @optimizers.Constant()
optimizers.Constant.rate = 1e-2
optimizers.AdamW.eps = {eps}
train.run.mesh = @partitioning.mesh
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A start, a dataset and the run of one process on one device."""
    parent = tmp_path_factory.mktemp("processes")
    weights.save(parent / "start", MODEL, MODEL.init(jax.random.key(0)), ROOT / STUDENT)
    (parent / "run.gin").write_text(FILE.format(start=parent / "start", steps=STEPS, eps=EPS))
    fill(parent / "one", rows(24))
    shutil.copytree(parent / "one", parent / "two")
    settings = {"steps": STEPS, "save_every": 6, "log_every": 1, "batch_size": 16}
    settings |= {"microbatches": 2, "tensorboard": False, "student": str(parent / "start")}
    run(run_dir=parent / "one", optimizer=AdamW(schedule=Constant(1e-2), eps=EPS), **settings)
    return parent


def launch(world, port, index, **mesh):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        processes.CLUSTER: "given",
        processes.COUNT: "2",
        processes.ADDRESS: f"127.0.0.1:{port}",
        processes.INDEX: str(index),
    }
    axes = [f"--gin.partitioning.mesh.{axis}={size}" for axis, size in mesh.items()]
    command = [sys.executable, "-m", "distill", "train", "--gin_file", str(world / "run.gin")]
    return subprocess.Popen(
        [*command, "--run_dir", str(world / "two"), *axes],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(world, **mesh):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [launch(world, port, index, **mesh) for index in (0, 1)]


def ended(started):
    """The exit codes and what was said."""
    said = [process.communicate(timeout=280)[1] for process in started]
    lines = [line for text in said for line in text.splitlines() if "[Gloo]" not in line]
    return [process.returncode for process in started], "\n".join(lines)


def wait_for_lines(world, started, count):
    deadline = time.monotonic() + 280
    while len(read_lines(world / "two" / "checkpoints" / "metrics.jsonl")) < count:
        assert all(process.poll() is None for process in started), ended(started)[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_stopped_and_gone_on_with_on_another_mesh_train_as_one_does(world):
    started = together(world, data=2, fsdp=2, tensor=2)
    wait_for_lines(world, started, 2)
    started[1].send_signal(signal.SIGTERM)  # one is told, both stop after the same step
    codes, said = ended(started)
    assert codes == [0, 0], said
    saved = checkpoints.steps(world / "two" / "checkpoints")
    stopped = len(read_lines(world / "two" / "checkpoints" / "metrics.jsonl"))
    assert saved[-1] == stopped < STEPS and f"terminated: step {stopped} is saved" in said

    codes, said = ended(together(world, data=2, fsdp=4))
    assert codes == [0, 0], said
    assert "resumes from step" in said
    assert manifest(world / "two", "train")["summary"]["steps"] == STEPS
    one, two = (read_lines(world / name / "checkpoints" / "metrics.jsonl") for name in NAMES)
    assert [line["step"] for line in two] == list(range(1, STEPS + 1))
    losses = [[line["loss"] for line in lines] for lines in (one, two)]
    terms = 2 * depth(MODEL.config, 128, vocabulary=True) + 16 * 128
    assert_close(losses[1], losses[0], terms=STEPS * terms)
    ends = [checkpoints.load_params(world / name / "checkpoints", STEPS) for name in NAMES]
    # A gradient of at most 1 is off by its rounding, a step by that times the rate over eps.
    scale = 2 + STEPS * 1e-2 / EPS
    jax.tree.map(functools.partial(assert_close, terms=terms, scale=scale), *ends)


def test_addresses_come_from_gin_or_from_the_environment():
    environment = {processes.ADDRESS: "a:1", processes.COUNT: "4", processes.INDEX: "3"}
    assert processes.Given().resolved(environment) == ("a:1", 4, 3)
    assert processes.Given("b:2", 2, 0).resolved(environment) == ("b:2", 2, 0)


@pytest.mark.parametrize(
    "given, environment",
    [
        ({}, {}),
        ({"address": "a", "count": 2, "index": 0}, {}),
        ({"address": "a:1", "count": 2, "index": 2}, {}),
        ({"address": "a:1", "count": 2}, {processes.INDEX: "one"}),
    ],
)
def test_addresses_that_cannot_be_are_refused(given, environment):
    with pytest.raises(UserError, match="expected JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        processes.Given(**given).resolved(environment)


def test_unknown_cluster_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(processes.CLUSTER, "slurm")
    with pytest.raises(UserError, match="DISTILL_CLUSTER of detected, given, got slurm"):
        processes.join(None)


def test_one_process_is_the_first_and_agrees_with_itself():
    processes.join(None)
    assert processes.is_first() and processes.told(True) and not processes.told(False)
    assert processes.all_agree(True) and not processes.all_agree(False)


def test_a_share_holds_the_rows_of_its_places_in_order():
    whole = TinyBatches(rows=8)
    share = placement.Share(whole, np.array([2, 3, 6]))
    expected = {name: array[[2, 3, 6]] for name, array in whole.batch(5).items()}
    jax.tree.map(np.testing.assert_array_equal, dict(share.batch(5)), expected)


def test_rows_of_packed_batches_are_those_of_the_whole_batch():
    batches = PackedBatches(rows(5), 4, seed=3)
    share = placement.Share(batches, np.array([1, 2]))
    for step in range(4):
        expected = {name: array[1:3] for name, array in batches.batch(step).items()}
        jax.tree.map(np.testing.assert_array_equal, dict(share.batch(step)), expected)


def test_layout_of_the_state_takes_no_memory_and_counts_it():
    mesh = partitioning.mesh(data=1)
    params = jax.eval_shape(Tiny().init, jax.random.key(0))
    layout = placement.state_layout(Tiny(), params, optimizer(), mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    # parameters and two moments in float32, the counts of Adam, the schedule and the steps
    assert placement.bytes_per_device(layout) == 4 * (3 * parameters + 3)


def test_a_start_on_disk_is_placed_as_one_in_memory(tmp_path):
    params = MODEL.init(jax.random.key(0))
    weights.save(tmp_path / "start", MODEL, params, ROOT / STUDENT)
    tensors = weights.read(tmp_path / "start")[1]
    layout = placement.state_layout(MODEL, params, optimizer(), partitioning.mesh(data=1))
    placed = placement.spread(unflatten_dict(dict(tensors), sep="/"), layout.params)
    jax.tree.map(np.testing.assert_array_equal, placed, placement.spread(params, layout.params))
