import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from models_world import V1_1, params_of

from distill.core.errors import UserError
from distill.models import partitioning
from distill.models.layers import by_path

TESTS = Path(__file__).parent.parent

ON_EIGHT_DEVICES = """
import jax, numpy as np
from closeness import assert_close, depth
from distill.models import partitioning
from distill.models.t5 import T5Config, T5Model
model = T5Model(T5Config(64, 16, 2, 8, 32, 1, 1))
params = model.init(jax.random.key(0))
batch = {name: np.arange(1, 33).reshape(8, 4) % 64
         for name in ("encoder_input_tokens", "decoder_input_tokens")}
want = model.logits(params, batch)
mesh = partitioning.mesh(fsdp=2, tensor=2)
assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
places = partitioning.param_shardings(mesh, params, model.logical_axes(params))
spread = jax.device_put((params, batch), (places, partitioning.batch_sharding(mesh)))
kernel = spread[0]["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
assert kernel.addressable_shards[0].data.shape == (8, 16)
assert_close(jax.jit(model.logits)(*spread), want, terms=depth(model.config, 4))
for wrong in (dict(data=3), dict(data=-1, fsdp=-1), dict(data=2, fsdp=2), dict(tensor=16)):
    try:
        partitioning.mesh(**wrong)
    except partitioning.UserError as error:
        print(error)
"""


def test_a_model_spread_over_eight_devices_gives_the_same_logits_and_bad_meshes_are_refused():
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES],
        env={
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("expected a mesh of 8 devices, got data=3, fsdp=1, tensor=1")
    assert [line.split(",")[0] for line in lines[1:]] == [
        "expected positive mesh axes",
        "expected a mesh of 8 devices",
        "expected a mesh of 8 devices",
    ]


def test_one_device_holds_everything():
    mesh = partitioning.mesh(data=1)
    params = params_of(V1_1)
    places = by_path(partitioning.param_shardings(mesh, params, V1_1.logical_axes(params)))
    assert places["encoder/layers_0/mlp/wi_0/kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert partitioning.batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


def test_an_axis_that_does_not_divide_is_refused():
    devices = np.array([jax.devices()[0]] * 3).reshape(1, 3, 1)
    mesh = jax.sharding.AbstractMesh(devices.shape, partitioning.AXES)
    params = params_of(V1_1)
    with pytest.raises(UserError, match=r"embed of .* divisible by fsdp, got 16 and 3"):
        partitioning.param_shardings(mesh, params, V1_1.logical_axes(params))
