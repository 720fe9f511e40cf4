import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import ELEMENTARY, assert_close
from jax.experimental.pallas import tpu as pltpu

from distill.models import attention
from distill.models.t5 import T5Config, T5Model
from distill.training.step import COMPILER_OPTIONS

TESTS = Path(__file__).parent.parent
HEADS, HEAD = 4, 64
# Terms of a score, its softmax and its mix over 128 keys, and of the sums back.
FORTH = HEAD + 128 + ELEMENTARY + 128
BACK = FORTH + HEAD + 128 + 64
# Uninitialised memory is NaN here, and what a TPU does not promise to keep is not kept.
AS_TPU = pltpu.InterpretParams()


def case(dtype, *, batch=4, length=64, source=128, seed=0):
    """Queries, keys, values, bias and mask; the last row of the batch sees nothing."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    width = HEADS * HEAD
    rows = draw(batch, length, width) / 8, draw(batch, source, width), draw(batch, source, width)
    mask = jnp.asarray(rng.random((batch, 1, length, source)) < 0.6).at[-1].set(False)
    return (*rows, draw(1, HEADS, length, source).astype(jnp.float32)), mask


def plain(queries, keys, values, bias, mask):
    return attention.unfused(HEAD, queries, keys, values, bias, mask)[0]


def kernel(queries, keys, values, bias, mask, interpret=AS_TPU):
    return attention.fused(queries, keys, values, bias, mask, HEAD, interpret)


def gradients(mix, given, mask, weights):
    """Of what goes in, but the mask, with respect to a weighted sum of what comes out."""
    present = [number for number, each in enumerate(given) if each is not None]

    def loss(*given):
        return jnp.sum(mix(*given, mask) * weights)

    return jax.grad(loss, present)(*given)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("source", [128, 2048])  # one block of queries, and two
def test_the_kernel_has_the_values_and_gradients_of_its_twin(biased, source):
    given, mask = case(jnp.float32, batch=2, length=256, source=source)
    given = given if biased else (*given[:3], None)
    weights = jax.random.normal(jax.random.key(0), given[0].shape)
    assert_close(kernel(*given, mask), plain(*given, mask), terms=FORTH)
    ours, theirs = (gradients(mix, given, mask, weights) for mix in (kernel, plain))
    assert len(ours) == len(theirs) == 3 + biased
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected, terms=BACK + 256)


def test_the_kernel_in_bfloat16_is_as_near_to_fp32_as_its_twin_is():
    given, mask = case(jnp.bfloat16)
    wide = [each.astype(jnp.float32) for each in given]
    weights = jax.random.normal(jax.random.key(0), given[0].shape)
    exact = [plain(*wide, mask), *gradients(plain, wide, mask, weights)]
    for number, (ours, theirs) in enumerate(
        zip(
            [kernel(*given, mask), *gradients(kernel, given, mask, weights)],
            [plain(*given, mask), *gradients(plain, given, mask, weights)],
            strict=True,
        )
    ):
        off = [float(jnp.linalg.norm(each - exact[number])) for each in (ours, theirs)]
        assert off[0] < 1.1 * off[1] < 0.05 * float(jnp.linalg.norm(exact[number]))


def test_what_a_query_does_not_see_changes_nothing():
    given, mask = case(jnp.float32)
    mask = mask.at[:, :, :, 7:9].set(False).at[-1].set(False)
    hidden = jnp.logical_not(jnp.any(mask[:3, 0], 1))[:, :, None]
    other = [each.at[:3].set(jnp.where(hidden, 100.0, each[:3])) for each in given[1:3]]
    assert hidden.any()
    np.testing.assert_array_equal(
        kernel(*given, mask)[:3], kernel(given[0], *other, given[3], mask)[:3]
    )


ON_FOUR_DEVICES = """
import functools, jax, numpy as np, test_attention as own
from closeness import assert_close
from distill.models import attention, partitioning

given, mask = own.case(np.float32)
kernel = functools.partial(own.kernel, interpret=True)  # a simulated TPU knows one device
weights = jax.random.normal(jax.random.key(0), given[0].shape)
expected = [own.plain(*given, mask), *own.gradients(own.plain, given, mask, weights)]
for axes in ((4, 1, 1), (2, 2, 1), (1, 2, 2)):
    mesh = partitioning.mesh(*axes)
    spread = partitioning.spread_rows(mesh, (given, mask))

    @jax.jit
    def shared(given, mask):
        with partitioning.activations(mesh):
            return [kernel(*given, mask), *own.gradients(kernel, given, mask, weights)]

    for ours, one in zip(shared(*spread), expected, strict=True):
        assert_close(ours, one, terms=own.BACK)
    program = str(jax.make_jaxpr(shared)(*spread))
    print("attention_forward" in program, "attention_backward" in program)
# Nobody says what lies where.
print("attention_forward" in str(jax.make_jaxpr(kernel)(*given, mask)))
"""


def test_devices_that_share_the_rows_and_heads_give_what_one_gives():
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        cwd=Path(__file__).parent,
        env={
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"] * 3 + ["False"]


@pytest.mark.parametrize(
    ("length", "source", "biased"), [(1024, 1024, True), (256, 256, True), (256, 1024, False)]
)
def test_a_tpu_is_given_the_kernel_at_the_run_files_lengths_in_both_directions(
    length, source, biased
):
    rows = [jax.ShapeDtypeStruct((2, each, 2048), jnp.bfloat16) for each in (length, source)]
    bias = jax.ShapeDtypeStruct((1, 32, length, source), jnp.float32) if biased else None
    mask = jax.ShapeDtypeStruct((2, 1, length, source), jnp.bool_)

    def loss(queries, keys, values, bias, mask):
        return jnp.sum(attention.fused(queries, keys, values, bias, mask, HEAD))

    step = jax.jit(jax.value_and_grad(loss, range(3 + biased)))
    traced = step.trace(*rows, rows[1], bias, mask)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2
    assert "attention_forward" in text and "attention_backward" in text


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((512, 512, 2048, 64), True),
        ((1024, 1024, 2048, 64), True),
        ((256, 1024, 2048, 64), True),
        ((256, 256, 384, 64), True),
        ((512, 500, 2048, 64), False),  # keys that do not fill registers
        ((500, 512, 2048, 64), False),
        ((512, 512, 320, 64), False),  # five heads
        ((512, 512, 2048, 80), False),  # heads that do not divide a register
        ((512, 4096, 2048, 64), False),  # too many keys for a block
    ],
)
def test_which_shapes_the_kernel_takes(shape, taken):
    assert attention.fits(*shape) is taken


def test_where_this_is_no_tpu_the_twin_is_run():
    given, mask = case(jnp.float32)
    ours = jax.jit(lambda *given: attention.fused(*given, mask, HEAD))
    np.testing.assert_array_equal(ours(*given), jax.jit(plain)(*given, mask))
    assert "custom_call" not in ours.lower(*given).as_text()


def test_a_layer_more_keeps_no_scores_more_until_the_end():
    """Summed over layers before they are summed over the batch, all would be kept."""
    rows, length, heads = 8, 256, 8

    def kept(layers):
        model = T5Model(T5Config(64, 64, heads, 8, 64, layers, 1, remat=True))
        names = ("encoder_input_tokens", "decoder_input_tokens")
        batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in names}

        def loss(params, batch):
            return jnp.sum(model.hidden(params, batch, dropout_key=jax.random.key(0)))

        gradient = jax.jit(jax.grad(loss), compiler_options=dict(COMPILER_OPTIONS["cpu"]))
        params = jax.eval_shape(model.init, jax.random.key(0))
        found = gradient.lower(params, batch).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    scores = 4 * rows * heads * length**2
    assert (kept(6) - kept(2)) / 4 < 0.3 * scores
