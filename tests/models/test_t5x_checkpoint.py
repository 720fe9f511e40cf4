import json
import os

import jax
import ml_dtypes  # noqa: F401 (NumPy learns bfloat16)
import numpy as np
import pytest
import tensorstore
from flax import serialization
from flax.traverse_util import unflatten_dict
from models_world import V1_0, V1_1

from distill.core.errors import UserError
from distill.models import t5x_checkpoint, weights
from distill.models.layers import by_path
from distill.models.tensors import Tensor

ADAFACTOR = {"v_row": np.zeros(3), "v_col": np.zeros(2)}


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def stored(directory, path, array, compressor, dtype=None):
    """Write one array as T5X does: in even chunks, gzip by default; return its spec."""
    spec = {
        "driver": "zarr",
        "dtype": dtype or array.dtype.name,
        "metadata": {
            "compressor": compressor,
            "shape": list(array.shape),
            "chunks": [max(1, size // 2) for size in array.shape],
        },
    }
    place = {"driver": "file", "path": str(directory / path)}
    tensorstore.open({**spec, "kvstore": place}, create=True).result().write(array).result()
    return {**spec, "kvstore": {"driver": "file", "path": path}}


def t5x_wrote(directory, arrays, *, compressor=None, version=3, older=False):
    """Write a checkpoint in T5X's layout; `older` keeps paths beside stores and names gcs."""
    target = {}
    for name, array in arrays.items():
        spec = stored(directory, f"target.{name.replace('/', '.')}", array, compressor)
        if older:
            path = spec["kvstore"]["path"]
            spec |= {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": path}
        target[name] = spec
    first = sorted(arrays)[0]
    target[first] = np.asarray(arrays[first])  # T5X keeps what it does not partition in the index
    states = {f"{name}/{slot}": array for name in arrays for slot, array in ADAFACTOR.items()}
    state = {"step": np.int32(7), "param_states": unflatten_dict(states, sep="/")}
    optimizer = {"target": unflatten_dict(target, sep="/"), "state": state}
    content = {"version": version, "optimizer": optimizer}
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return str(directory)


def flat(model, dtype="float32"):
    random = np.random.default_rng(0)
    return {name: random.normal(size=s).astype(dtype) for name, s in weights.shapes(model).items()}


def scanned(arrays, model):
    """Stack the layers of each tower on axis 1 as T5X's scalable_t5 does.

    The shared table of positions is stacked with them, and heads and their width are two axes.
    """
    heads, head_dim = model.config.num_heads, model.config.head_dim
    counts = {"encoder": model.config.num_encoder_layers}
    counts["decoder"] = model.config.num_decoder_layers
    whole = {name: array for name, array in arrays.items() if "/layers_" not in name}
    for tower, count in counts.items():
        start = f"{tower}/layers_0/"
        for name in [name for name in arrays if name.startswith(start)]:
            layers = [arrays[name.replace("layers_0", f"layers_{layer}")] for layer in range(count)]
            if "attention/" in name:
                split = (heads, head_dim, -1) if "/out/" in name else (-1, heads, head_dim)
                layers = [layer.reshape(split) for layer in layers]
            whole[f"{tower}/{tower}/{name.removeprefix(start)}"] = np.stack(layers, 1)
        table = whole.pop(f"{tower}/relpos_bias/rel_embedding")
        name = f"{tower}/{tower}/relpos_bias/rel_embedding"
        whole[name] = np.stack([table] * count, 1)
    return whole


@pytest.mark.parametrize("model", [V1_1, V1_0], ids=["v1.1", "v1.0"])
@pytest.mark.parametrize("compressor", [None, {"id": "gzip"}], ids=["plain", "gzip"])
@pytest.mark.parametrize("layout", [dict, scanned], ids=["layers", "scanned"])
def test_what_t5x_wrote_is_read_as_the_same_model(tmp_path, model, compressor, layout):
    arrays = flat(model) if layout is dict else scanned(flat(model), model)
    source = t5x_wrote(tmp_path, arrays, compressor=compressor)
    found, tensors = t5x_checkpoint.read(source)
    assert found == model
    equal(by_path(weights.in_memory(tensors)), flat(model))


def test_older_checkpoints_and_bfloat16_kept_as_integers_are_read(tmp_path):
    half = flat(V1_1, "bfloat16")
    bits = {name: array.view(np.uint16) for name, array in half.items()}
    first = sorted(bits)[0]
    bits[first] = half[first]
    _, tensors = t5x_checkpoint.read(t5x_wrote(tmp_path, bits, version=2, older=True))
    for name, array in half.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name].read(), array)


@pytest.mark.parametrize("model", [V1_1, V1_0], ids=["v1.1", "v1.0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_we_write_is_read_back(tmp_path, model, dtype):
    ours = {name: Tensor.of(array) for name, array in flat(model).items()}
    t5x_checkpoint.write(tmp_path / "checkpoint_9", ours, step=9, dtype=dtype)
    found, tensors = t5x_checkpoint.read(str(tmp_path / "checkpoint_9"))
    assert found == model
    equal({name: tensor.read() for name, tensor in tensors.items()}, flat(model, dtype))
    index = serialization.msgpack_restore((tmp_path / "checkpoint_9" / "checkpoint").read_bytes())
    assert index["version"] == 3 and index["optimizer"]["state"] == {"step": 9}
    with pytest.raises(UserError, match=r"no .*checkpoint_9 yet, got one"):
        t5x_checkpoint.write(tmp_path / "checkpoint_9", ours, step=9)


def test_large_arrays_are_cut_in_chunks(tmp_path):
    ours = {name: Tensor.of(array) for name, array in flat(V1_1).items()}
    t5x_checkpoint.write(tmp_path / "checkpoint_0", ours, step=0, chunk_bytes=100)
    folder = tmp_path / "checkpoint_0" / "target.decoder.layers_0.mlp.wo.kernel"
    assert json.loads((folder / ".zarray").read_text())["chunks"] == [1, 16]
    _, tensors = t5x_checkpoint.read(str(tmp_path / "checkpoint_0"))
    equal(by_path(weights.in_memory(tensors)), flat(V1_1))


def test_a_table_of_positions_in_each_layer_is_refused(tmp_path):
    arrays = scanned(flat(V1_1), V1_1)
    arrays["encoder/encoder/relpos_bias/rel_embedding"][:, 1] += 1
    with pytest.raises(UserError, match=r"the same in every layer.* as umT5 has"):
        t5x_checkpoint.read(t5x_wrote(tmp_path, arrays))


def test_what_is_missing_or_damaged_is_named_before_anything_is_read(tmp_path):
    directory = tmp_path / "checkpoint_7"
    directory.mkdir()
    source = t5x_wrote(directory, flat(V1_1), compressor={"id": "gzip"})
    with pytest.raises(UserError, match="got none; name one of its checkpoints: checkpoint_7"):
        t5x_checkpoint.read(str(tmp_path))
    name = "encoder/layers_1/mlp/wo/kernel"
    folder = directory / "target.encoder.layers_1.mlp.wo.kernel"
    chunk, metadata = folder / "1.0", folder / ".zarray"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:9])
    with pytest.raises(UserError, match=f"whole chunks of {name}"):
        t5x_checkpoint.read(source)[1][name].read()
    chunk.unlink()
    with pytest.raises(UserError, match=rf"all chunks of {name}, got no .*kernel/1\.0"):
        t5x_checkpoint.read(source)
    metadata.write_text("{}")
    with pytest.raises(UserError, match="a zarr array in"):
        t5x_checkpoint.read(source)
    metadata.unlink()
    with pytest.raises(UserError, match=f"{name} in .* got none; download"):
        t5x_checkpoint.read(source)
    (directory / "checkpoint").write_text("model_checkpoint_path: 'model.ckpt'")
    with pytest.raises(UserError, match="a T5X index, msgpack with a target"):
        t5x_checkpoint.read(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("encoder/relpos_bias/rel_embedding"), "the parameters of a T5 in"),
        (lambda a: a.pop("encoder/layers_1/mlp/wo/kernel"), "wo/kernel of shape .* got None"),
        (
            lambda a: a.update({"decoder/layers_0/mlp/wo/kernel": np.zeros((7, 16), np.float32)}),
            r"decoder/layers_0/mlp/wo/kernel of shape \(24, 16\).* got \(7, 16\)",
        ),
        (lambda a: a.update({"bias": np.zeros(3, np.float32)}), "bias of shape None"),
    ],
)
def test_arrays_that_no_t5_has_are_refused(tmp_path, change, message):
    arrays = flat(V1_1)
    change(arrays)
    with pytest.raises(UserError, match=message):
        t5x_checkpoint.read(t5x_wrote(tmp_path, arrays))


def test_pipes_links_and_weights_that_are_not_finite_are_refused(tmp_path):
    source = tmp_path / "checkpoint_0"
    arrays = {name: np.ones(shape, np.float32) for name, shape in weights.shapes(V1_1).items()}
    arrays["encoder/encoder_norm/scale"][2] = np.nan
    t5x_checkpoint.write(source, {n: Tensor.of(a) for n, a in arrays.items()}, step=0)
    with pytest.raises(UserError, match=r"finite numbers in encoder/encoder_norm/scale of"):
        weights.in_memory(t5x_checkpoint.read(str(source))[1])
    os.mkfifo(source / "pipe")
    with pytest.raises(UserError, match=r"files in the T5X checkpoint .* got pipe"):
        t5x_checkpoint.read(str(source))
    (source / "pipe").unlink()
    (source / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"files in the T5X checkpoint .* got link"):
        t5x_checkpoint.read(str(source))
