import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_world import TinyBatches

from distill.core.errors import UserError
from distill.core.records import PackedExample
from distill.training.feed import PackedBatches, ahead, in_order

ROOT = Path(__file__).parent.parent.parent
sizes = st.integers(1, 9)


def example(number, length=3, k=2):
    row = np.full(length, number, np.int32)
    probs = np.ones((length, k), np.float32)
    return PackedExample(
        row, row, row, row, row, row, row, row.astype(np.float32), np.stack([row] * k, 1), probs
    )


def numbers(batches, steps):
    return [int(row[0]) for step in steps for row in batches.batch(step)["decoder_target_tokens"]]


@settings(max_examples=50, deadline=None)
@given(size=sizes, batch_size=sizes, seed=st.integers(0, 99))
def test_every_epoch_holds_every_example_once(size, batch_size, seed):
    batches = PackedBatches(map(example, range(size)), batch_size, seed)
    seen = numbers(batches, range(3 * size))
    epochs = [sorted(seen[i : i + size]) for i in range(0, len(seen) - size + 1, size)]
    assert epochs == [list(range(size))] * (3 * batch_size)


def test_a_teachers_top_5_takes_at_most_40_bytes_a_token():
    batch = PackedBatches([example(number, length=16, k=5) for number in range(4)], 4).batch(0)
    targets = [array for name, array in batch.items() if "_top_" in name]
    assert len(targets) == 2
    assert sum(array.nbytes for array in targets) <= 40 * batch["decoder_target_tokens"].size


@settings(max_examples=50, deadline=None)
@given(size=sizes, batch_size=sizes, steps=st.lists(st.integers(0, 30), min_size=1))
def test_batch_depends_on_its_step_alone(size, batch_size, steps):
    ordered = PackedBatches(map(example, range(size)), batch_size)
    everything = numbers(ordered, range(31))
    fresh = PackedBatches(map(example, range(size)), batch_size)
    for step in steps:
        start = step * batch_size
        assert numbers(fresh, [step]) == everything[start : start + batch_size]


def test_orders_differ_between_epochs_and_seeds():
    def batches(seed):
        return PackedBatches(map(example, range(20)), 20, seed)

    orders = [tuple(numbers(batches(seed), [step])) for seed in (0, 1) for step in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_calls_come_stacked_and_in_order(workers):
    calls = [range(0, 2), range(2, 3), *(range(i, i + 1) for i in range(3, 9))]
    batches = TinyBatches()
    stacks = list(in_order(batches, calls, workers=workers))
    assert [len(stack["decoder_input_tokens"]) for stack in stacks] == [len(c) for c in calls]
    for call, stack in zip(calls, stacks, strict=True):
        for step, row in zip(call, stack["decoder_input_tokens"], strict=True):
            np.testing.assert_array_equal(row, batches.batch(step)["decoder_input_tokens"])


def test_thread_ahead_keeps_order_and_closes_its_source():
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    items = ahead(source())
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()
    assert closed == [True]
    assert list(ahead(source())) == list(range(100))


def test_workers_end_when_the_trainer_is_killed():
    code = (
        "from distill.training.feed import *; from training_world import *;"
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        " stacks = in_order(TinyBatches(), [range(i, i + 1) for i in range(99)], workers=1)\n"
        " next(stacks); print(multiprocessing.active_children()[0].pid, flush=True)\n"
        " sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    worker = int(run.stdout.readline())
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 20
    while (
        Path(f"/proc/{worker}/stat").exists()
        and " Z " not in Path(f"/proc/{worker}/stat").read_text()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match=r"expected examples to train on .* got 0 examples, 4"):
        PackedBatches([], 4)
