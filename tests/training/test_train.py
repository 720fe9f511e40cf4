import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import ELEMENTARY, assert_close, near, scale_of
from training_world import (
    EPS,
    RATE,
    VOCAB,
    WIDTH,
    Slow,
    Tiny,
    TinyBatches,
    course,
    curve,
    train_tiny,
)

from distill.core.errors import UserError
from distill.training import checkpoints
from distill.training.losses import SampleMatching
from distill.training.metrics import read_lines
from distill.training.optimizers import Adafactor, AdamW, Constant
from distill.training.train import TERMINATED_CODE, Course, train

WORLD = Path(__file__).with_name("training_world.py")
ROOT = WORLD.parent.parent.parent
# Terms of the sums to the loss of a batch of 48 tokens, and back to the gradients.
FORTH = 2 * WIDTH + VOCAB + 3 * ELEMENTARY + 48
BACK = 2 * FORTH


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def close(one, other):
    """Assert that parameters agree after 12 steps that sum the same gradients in another order.

    A gradient of at most 1 is off by its rounding, a step by that times the rate over eps.
    """
    scale = scale_of(one["head"]["kernel"]) + 12 * RATE / EPS
    jax.tree.map(functools.partial(assert_close, terms=BACK, scale=scale), one, other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    return directory, train_tiny(directory)


def test_loss_falls_and_every_step_has_a_line(undisturbed):
    directory, _ = undisturbed
    lines = read_lines(directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["seconds"] > 0 and line["tokens_per_second"] > 0 for line in lines)


def test_checkpoints_hold_the_start_and_the_end(undisturbed):
    directory, params = undisturbed
    saved = directory / "checkpoints"
    assert checkpoints.steps(saved) == [0, 4, 8, 12]
    assert same(checkpoints.load_params(saved, 0), Tiny().init(jax.random.key(0)))
    assert same(checkpoints.load_params(saved, 12), params)


def test_resumed_run_equals_the_undisturbed_one_bit_for_bit(undisturbed, tmp_path):
    directory, params = undisturbed
    train_tiny(tmp_path, course=course(steps=8))
    resumed = train_tiny(tmp_path)
    assert same(resumed, params)
    assert curve(tmp_path) == curve(directory)


@pytest.mark.parametrize("workers", [0, 2])
def test_several_steps_a_call_and_workers_equal_one_step_a_call(undisturbed, tmp_path, workers):
    directory, params = undisturbed
    together = train_tiny(tmp_path, course=course(steps_per_call=3, workers=workers))
    close(together, params)
    assert [line["tokens"] for line in curve(tmp_path)] == [
        line["tokens"] for line in curve(directory)
    ]


def test_accumulation_equals_the_big_batch_though_microbatches_hold_unequal_tokens(tmp_path):
    ends = [
        train_tiny(tmp_path / str(parts), model=Tiny(), course=course(microbatches=parts))
        for parts in (1, 2, 4)
    ]
    close(ends[1], ends[0])
    close(ends[2], ends[0])


def test_first_update_is_worked_by_hand(tmp_path):
    """The first AdamW step is the sign of the gradient times the rate, plus the decay."""
    model, batch = Tiny(), jax.tree.map(jnp.asarray, TinyBatches().batch(0))
    start = model.init(jax.random.key(0))

    def mean(params):
        nats, weight = SampleMatching()(model.logits(params, batch), batch)
        return nats / weight

    gradient = jax.grad(mean)(start)
    end = train_tiny(
        tmp_path,
        model=model,
        loss=SampleMatching(),
        course=Course(steps=1, save_every=1),
        optimizer=AdamW(schedule=Constant(1e-3), weight_decay=0.1, clip=0.0),
    )
    head, slope = start["head"]["kernel"], gradient["head"]["kernel"]
    expected = head - 1e-3 * (slope / (jnp.abs(slope) + 1e-8) + 0.1 * head)
    assert_close(end["head"]["kernel"], expected, terms=8)
    scale, slope = start["norm"]["scale"], gradient["norm"]["scale"]
    undecayed = scale - 1e-3 * slope / (jnp.abs(slope) + 1e-8)
    assert_close(end["norm"]["scale"], undecayed, terms=8)
    line = curve(tmp_path)[0]
    assert line["loss"] == near(float(mean(start)), terms=FORTH, dtype="float32")
    assert line["tokens"] == batch["decoder_loss_weights"].sum()
    assert line["learning_rate"] == near(1e-3, dtype="float32")


def test_dropout_differs_between_steps_and_not_between_runs(tmp_path):
    frozen = AdamW(schedule=Constant(0.0))

    def losses(name):
        train_tiny(
            tmp_path / name,
            model=Tiny(dropout_rate=0.5),
            batches=Same(),
            optimizer=frozen,
            course=Course(steps=3, save_every=3),
        )
        return [line["loss"] for line in curve(tmp_path / name)]

    one = losses("one")
    assert one == losses("two") and len(set(one)) == 3


class Same(TinyBatches):
    def batch(self, step):
        return super().batch(0)


def launch(directory, workers=0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, WORLD, directory, str(workers)], env=environment, stderr=subprocess.PIPE
    )


def signal_after_step(run, directory, step, number):
    deadline = time.monotonic() + 240
    while step not in checkpoints.steps(directory / "checkpoints"):
        assert run.poll() is None and time.monotonic() < deadline, run.stderr.read().decode()
        time.sleep(0.02)
    time.sleep(0.07)
    run.send_signal(number)
    return run.wait(240)


@pytest.mark.slow
def test_killed_run_started_again_equals_the_undisturbed_one_bit_for_bit(tmp_path):
    train_tiny(tmp_path / "whole", course=course(steps=28))
    cut = tmp_path / "cut"
    assert signal_after_step(launch(cut), cut, 4, signal.SIGKILL) == -signal.SIGKILL
    assert signal_after_step(launch(cut, workers=1), cut, 12, signal.SIGTERM) == 0
    assert len(curve(cut)) < 28
    assert launch(cut).wait(240) == 0
    assert curve(cut) == curve(tmp_path / "whole") and len(curve(cut)) == 28
    ends = [checkpoints.load_params(path / "checkpoints", 28) for path in (cut, tmp_path / "whole")]
    assert same(*ends)


@pytest.mark.parametrize("code, expected", [(None, 0), ("143", 143)])
def test_sigterm_saves_and_exits_with_what_the_supervisor_wants(
    tmp_path, monkeypatch, code, expected
):
    if code is not None:
        monkeypatch.setenv(TERMINATED_CODE, code)

    class Terminated(TinyBatches):
        def batch(self, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    with pytest.raises(SystemExit) as ended:
        train_tiny(tmp_path, batches=Terminated(), course=course(steps=100, save_every=100))
    assert ended.value.code == expected
    [start, saved] = checkpoints.steps(tmp_path / "checkpoints")
    assert start == 0 and saved == len(curve(tmp_path)) < 100


def test_exit_code_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(TERMINATED_CODE, "-1")
    with pytest.raises(UserError, match="DISTILL_TERMINATED_CODE from 0 to 255, got -1"):
        train_tiny(tmp_path)


def test_non_finite_loss_stops_the_run_and_keeps_what_was_good(tmp_path):
    with pytest.raises(UserError, match=r"finite loss at step 7, got loss (inf|nan).*batch 6"):
        train_tiny(tmp_path, batches=TinyBatches(bad_step=6))
    assert checkpoints.steps(tmp_path / "checkpoints") == [0, 4]
    assert [line["step"] for line in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_batch_that_does_not_divide_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="a batch that 3 divides"):
        train_tiny(tmp_path, course=course(microbatches=3))
    assert not list(tmp_path.iterdir())


def test_step_larger_than_memory_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.models.accelerators.memory_bytes", lambda device: 5_000)
    with pytest.raises(UserError, match=r"a step within the 0.0 GB of cpu, got .* state and batch"):
        train_tiny(tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_shape_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    train_tiny(tmp_path, course=course(steps=4))
    monkeypatch.setattr("distill.training.train.compiled", lambda *_: pytest.fail("compiled"))
    with pytest.raises(UserError, match=r"optimizer/4"):
        train_tiny(tmp_path, optimizer=Adafactor(schedule=Constant(1e-2)))
    assert checkpoints.steps(tmp_path / "checkpoints") == [0, 4]


def test_lines_tell_how_long_the_devices_waited_for_a_batch(tmp_path):
    batches = Slow()
    batches.seconds = 0.2
    train_tiny(tmp_path, batches=batches, course=course(steps=6))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert all(0 <= line["input_wait_seconds"] <= line["seconds"] for line in lines)
    assert lines[-1]["input_wait_seconds"] > 0.02  # each batch takes 0.2 s, a step little
    assert all("model_flops_utilisation" not in line for line in lines)  # a CPU's peak is unknown


def test_failing_batches_end_the_run_with_their_own_error(tmp_path):
    class Missing(TinyBatches):
        def batch(self, step):
            if step == 5:
                raise FileNotFoundError("shard 3")
            return super().batch(step)

    with pytest.raises(FileNotFoundError, match="shard 3"):
        train_tiny(tmp_path, batches=Missing())


@pytest.mark.parametrize("name", ["steps", "save_every", "log_every", "microbatches"])
def test_course_refuses_what_is_not_positive(name):
    with pytest.raises(UserError, match=f"expected {name} >= 1, got 0"):
        course(**{name: 0})


@pytest.mark.parametrize("start", [0, 3, 8])
def test_calls_cover_every_step_once_and_end_at_checkpoints(start):
    plan = Course(steps=22, save_every=8, steps_per_call=3)
    calls = list(plan.calls(start))
    assert [step for call in calls for step in call] == list(range(start, 22))
    stops = {call.stop for call in calls}
    assert {8, 16, 22} - set(range(start + 1)) <= stops
    assert calls == [call for call in plan.calls(0) if call.start >= start]


FOUR_DEVICES = """
import sys
import jax
from training_world import Tiny, TinyBatches, course, train_tiny
from distill.models.partitioning import mesh

assert jax.device_count() == 4
for data, fsdp in ((4, 1), (2, 2)):
    settings = course(steps=4, microbatches=2)
    settings = {"course": settings, "batches": TinyBatches(rows=8), "mesh": mesh(data, fsdp)}
    train_tiny(f"{sys.argv[1]}/{data}-{fsdp}", model=Tiny(), **settings)
"""


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory):
    """The directories of runs of six steps on one device, and of four steps on four."""
    directory = tmp_path_factory.mktemp("devices")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{WORLD.parent}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", FOUR_DEVICES, str(directory)]
    subprocess.run(command, env=environment, check=True)
    settings = {"model": Tiny(), "batches": TinyBatches(rows=8), "course": course(steps=6)}
    return directory, settings, train_tiny(directory / "one", **settings)


@pytest.mark.parametrize("mesh", ["4-1", "2-2"])
def test_curve_on_four_devices_is_that_of_one_and_goes_on_on_one(on_four_devices, mesh):
    directory, settings, one = on_four_devices
    both = train_tiny(directory / mesh, **settings)
    close(both, one)
    losses = [[line["loss"] for line in curve(directory / name)] for name in ("one", mesh)]
    assert_close(*losses, terms=6 * BACK)


def test_callers_parameters_are_not_taken_over(tmp_path):
    model = Tiny()
    params = model.init(jax.random.key(0))
    expected = jax.tree.map(np.array, params)
    with checkpoints.Checkpoints(tmp_path) as saved:
        train(
            model,
            params,
            TinyBatches(),
            SampleMatching(),
            optimizer=AdamW(schedule=Constant(1.0)),
            course=Course(steps=2, save_every=1),
            key=jax.random.key(0),
            checkpoints=saved,
        )
    assert same(params, expected)
