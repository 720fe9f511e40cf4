"""The compiled step on a real T5: what it keeps, and in which type."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from closeness import assert_close, depth

from distill.models import partitioning
from distill.models.t5 import T5Config, T5Model
from distill.training import placement
from distill.training.losses import Chunked, DistributionMatching
from distill.training.optimizers import AdamW, Constant
from distill.training.step import compiled

TESTS = Path(__file__).parent.parent
VOCAB = 97
SHAPE = T5Config(VOCAB, 32, 2, 16, 64, 1, 1, dropout_rate=0.0)
LOSS = DistributionMatching()


def batch(rows=4, length=48, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, VOCAB, (rows, length), np.int32)
    top_ids = np.stack([targets, (targets + 1) % VOCAB], -1)
    return {
        "encoder_input_tokens": targets,
        "encoder_segment_ids": np.ones((rows, length), np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_segment_ids": np.ones((rows, length), np.int32),
        "decoder_target_top_ids": top_ids.astype(np.int32),
        "decoder_target_top_probs": np.broadcast_to(np.float32([0.6, 0.3]), top_ids.shape).copy(),
        "decoder_loss_weights": np.ones((rows, length), np.float32),
    }


def stepping(loss=LOSS, optimizer=AdamW(Constant(1e-3)), arrays=None, **shape):  # noqa: B008
    """Return the compiled step, its start and its stack, as the trainer makes them."""
    model = T5Model(dataclasses.replace(SHAPE, **shape))
    params, mesh = model.init(jax.random.key(0)), partitioning.mesh()
    layout = placement.state_layout(model, params, optimizer, mesh)
    arrays = arrays or batch()
    stack = placement.put(
        {n: x[None] for n, x in arrays.items()}, placement.batch_layout(arrays, mesh)
    )
    advance = compiled(model, loss, optimizer, 1, layout)
    return advance, placement.initial_state(params, layout, optimizer), stack


def losses(steps, **how):
    advance, state, stack = stepping(**how)
    found = []
    for _ in range(steps):
        state, figures = advance(state, stack, jax.random.key(1))
        found.append(float(figures.nats[0] / figures.weight[0]))
    return found, state


def test_rematerialisation_keeps_less_in_the_program_that_runs():
    """XLA's CPU compiler would merge what backward computes anew with what it shall not keep."""

    def work(**shape):
        layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
        advance, state, stack = stepping(loss=Chunked(LOSS, 8), **layers, **shape)
        analysis = advance.lower(state, stack, jax.random.key(1)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert work(remat=True) < 0.6 * work(remat=False)


def test_rematerialisation_and_chunks_change_no_loss():
    plain, _ = losses(4)
    again, _ = losses(4, loss=Chunked(LOSS, 7), remat=True)
    terms = 4 * (2 * depth(SHAPE, 48, vocabulary=True) + 4 * 48)  # four steps, there and back
    assert_close(again, plain, terms=terms)


def test_bfloat16_computes_and_float32_is_kept():
    wide, _ = losses(12)
    half, state = losses(12, dtype="bfloat16")
    kept = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in kept} == {jnp.dtype("float32")}
    assert half[-1] < half[0] - 0.1
    np.testing.assert_allclose(half, wide, rtol=0.02)
    assert half != wide


def test_steps_too_small_for_bfloat16_add_up():
    """A step of 1e-5 is below half the spacing of bfloat16 at most weights here."""
    optimizer = AdamW(Constant(1e-5), weight_decay=0.0, clip=0.0)
    advance, state, stack = stepping(optimizer=optimizer, dtype="bfloat16")
    start = jax.tree.map(np.asarray, state.params)
    for _ in range(3):
        state, _ = advance(state, stack, jax.random.key(1))
    kernel = ("decoder", "layers_0", "mlp", "wo", "kernel")
    before, after = start, state.params
    for name in kernel:
        before, after = before[name], after[name]
    moved = np.abs(np.asarray(after) - before)
    assert np.median(moved) > 1.5e-5
    rounded = np.asarray(jnp.asarray(after).astype(jnp.bfloat16) == before.astype(jnp.bfloat16))
    assert rounded.mean() > 0.8


EXCHANGED = """
import re
import jax
import test_step
from distill.models import flops, partitioning
from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.t5 import T5Config, T5Model
from distill.training import placement
from distill.training.losses import Chunked, DistributionMatching
from distill.training.optimizers import AdamW, Constant
from distill.training.step import compiled

MODELS = (T5Model(T5Config(104, 64, 8, 16, 160, 2, 2)),
          DecoderModel(DecoderConfig(104, 64, 8, 16, 160, 2)))
GATHERS = re.compile(r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?[(]")


def dimensions(shape):
    return tuple(sorted(map(int, shape)))


for model in MODELS:
    params, mesh = jax.eval_shape(model.init, jax.random.key(0)), partitioning.mesh(fsdp=8)
    optimizer, arrays = AdamW(Constant(1e-3)), test_step.batch(rows=16, length=24)
    layout = placement.state_layout(model, params, optimizer, mesh)
    stack = placement.stacked(placement.batch_layout(arrays, mesh), 1)
    step = compiled(model, Chunked(DistributionMatching(), 24), optimizer, 1, layout)
    program = step.lower(layout, stack, jax.random.key(0)).compile()
    text = program.as_text()
    known = {dimensions(leaf.shape) for leaf in jax.tree.leaves(params)}
    types = [kind for line in text.splitlines() for kind in GATHERS.findall(line)]
    shapes = {dimensions(re.findall("[0-9]+", each)) for kind in types
              for each in re.findall(r"[[]([0-9,]+)[]]", kind)}
    source = 24 if isinstance(model, T5Model) else 0
    whole = 16 * flops.training_flops(model.config, source, 24)
    print(len(shapes), program.cost_analysis()["flops"] / (whole / 8), sorted(shapes - known))
"""


def test_devices_that_share_parameters_exchange_these_and_no_rows():
    """Left to itself the compiler cuts what flows between layers as it finds the parameters cut."""
    done = subprocess.run(
        [sys.executable, "-c", EXCHANGED],
        cwd=Path(__file__).parent,
        env={
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        count, work, others = line.split(maxsplit=2)
        assert int(count) >= 4 and others == "[]"
        assert float(work) < 1.1, "a device computes other devices' rows"
    assert len(done.stdout.splitlines()) == 2
