"""T5X's checkpoints: a msgpack index and a zarr array for each parameter; T5X is not needed.

```
checkpoint_1000000/
  checkpoint                                       msgpack: the tree, a spec in place of each array
  target.encoder.layers_0.mlp.wo.kernel/           zarr: .zarray and chunks, gzip or not
  state.param_states.encoder.layers_0....v_row/    Adafactor's, not read here
```
Paths may be local or of any store that TensorStore opens, such as `gs://BUCKET/PATH`.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from distill.core.errors import UserError
from distill.models import weights
from distill.models.t5 import T5Config, T5Model
from distill.models.tensors import Tensor, Tensors

INDEX = "checkpoint"
VERSION = 3  # T5X's since 2021-06
CHUNK_BYTES = 64 * 2**20  # as T5X
AGAIN = "download the checkpoint again"
# In a scanned checkpoint the layers of a tower are one, stacked on the second axis.
SCANNED = re.compile(r"(encoder|decoder)/\1/(.+)")
RELPOS = "relpos_bias/rel_embedding"

Stored = ts.TensorStore | np.ndarray


# --- Reading -----------------------------------------------------------------------------------


def read(source: str) -> tuple[T5Model, dict[str, Tensor]]:
    """Open a T5X checkpoint; its optimizer state is not looked at.

    The shape of the model is that of the arrays, since a checkpoint holds no configuration: gelu
    where the feed-forward layer is gated and relu where not, the head tied where there is none.

    Args:
        source: the directory of one step, with layers of their own or scanned.

    Returns:
        The model, and our parameters by path, still in the checkpoint.

    Raises:
        UserError: there is no such checkpoint, an array or a chunk of it is missing, or the arrays
            are not those of a T5.
    """
    _refuse_pipes(source)
    checkpoint = _Checkpoint.open(source)
    stored = dict(_layers(checkpoint.arrays(), source))
    tensors = {
        name: _joined(name, _tensor(array, f"{name} in {source}")) for name, array in stored.items()
    }
    model = T5Model(_config(tensors, source))
    weights.require_shapes(model, tensors, source)
    return model, {name: t.finite(f"{name} of {source}") for name, t in tensors.items()}


def _refuse_pipes(source: str) -> None:
    """Refuse what a reader of a local checkpoint would wait for, or follow out of it."""
    if "://" in source:
        return
    for path in Path(source).rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"files in the T5X checkpoint {source}", f"{path.name}", AGAIN)


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint's place and the part of its index that holds the parameters."""

    source: str
    store: ts.KvStore
    target: Mapping[str, Any]

    @classmethod
    def open(cls, source: str) -> "_Checkpoint":
        url = source if "://" in source else Path(source).absolute().as_uri()
        store = ts.KvStore.open(url.rstrip("/") + "/").result()
        found = store.read(INDEX).result()
        if found.state != "value":
            do = f"name one of its checkpoints: {_steps(source)}" if _steps(source) else AGAIN
            raise UserError(f"the index {INDEX} of a T5X checkpoint in {source}", "none", do)
        try:
            contents: Any = serialization.msgpack_restore(found.value)
            tree = contents["optimizer"] if contents.get("version", 0) else contents
            target = flatten_dict(tree["target"], is_leaf=_is_spec, sep="/")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            wanted = f"a T5X index, msgpack with a target, in {source}/{INDEX}"
            raise UserError(wanted, f"none: {error!r:.100}", AGAIN) from error
        return cls(source, store, target)

    def arrays(self) -> Iterator[tuple[str, Stored]]:
        """Yield each parameter's path and array, none of it read."""
        keys = {key.decode() for key in self.store.list().result()}
        for name, leaf in self.target.items():
            if isinstance(leaf, Mapping):
                yield name, self._open(name, leaf, keys)
            else:
                yield name, np.asarray(leaf)

    def _open(self, name: str, spec: Mapping[str, Any], keys: set[str]) -> ts.TensorStore:
        # Older TensorStores kept the path beside the store.
        path = (spec["kvstore"].get("path") or spec.get("path", "")).strip("/")
        if f"{path}/.zarray" not in keys:
            raise UserError(f"{name} in {self.source}/{path}", "none", AGAIN)
        kvstore = (self.store / f"{path}/").spec().to_json()
        zarr = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
        try:
            array = ts.open(zarr, read=True).result()
        except ValueError as error:
            wanted = f"a zarr array in {self.source}/{path}"
            raise UserError(wanted, _first_line(error), AGAIN) from error
        if missing := next((key for key in _chunks(array) if f"{path}/{key}" not in keys), None):
            raise UserError(f"all chunks of {name}", f"no {self.source}/{path}/{missing}", AGAIN)
        return array


def _is_spec(_: object, value: Mapping[str, Any]) -> bool:
    return value.keys() >= {"driver", "kvstore"}


def _steps(source: str) -> str:
    return ", ".join(sorted(path.name for path in Path(source).glob("checkpoint_*")))


def _chunks(array: ts.TensorStore) -> Iterator[str]:
    """Yield the names of a zarr array's chunks."""
    metadata = array.spec().to_json()["metadata"]
    counts = (math.ceil(n / m) for n, m in zip(metadata["shape"], metadata["chunks"], strict=True))
    for index in itertools.product(*map(range, counts)):
        yield metadata["dimension_separator"].join(map(str, index))


def _layers(arrays: Iterator[tuple[str, Stored]], source: str) -> Iterator[tuple[str, Stored]]:
    """Yield the arrays with those of scanned layers cut into one for each layer."""
    for name, array in arrays:
        found = SCANNED.fullmatch(name)
        if not found:
            yield name, array
        elif found[2] == RELPOS:
            yield f"{found[1]}/{RELPOS}", _shared(array, f"{name} in {source}")
        elif array.ndim < 2 or array.shape[1] > weights.MAX_LAYERS:
            wanted = f"{name} of at most {weights.MAX_LAYERS} layers in {source}"
            raise UserError(wanted, f"shape {array.shape}", AGAIN)
        else:
            for layer in range(array.shape[1]):
                yield f"{found[1]}/layers_{layer}/{found[2]}", array[:, layer]


def _shared(stacked: Stored, name: str) -> np.ndarray:
    """Return the one table of relative positions that [heads, layers, buckets] holds."""
    tables = _tensor(stacked, name).read()
    if not (tables == tables[:, :1]).all():
        raise UserError(
            f"{name} the same in every layer, as T5 has it",
            "a table of each layer's own, as umT5 has",
            "give the checkpoint of a T5, FlanT5 or mT5",
        )
    return tables[:, 0]


def _tensor(array: Stored, name: str) -> Tensor:
    if isinstance(array, np.ndarray):
        return Tensor.of(array)
    dtype = np.dtype(array.dtype.numpy_dtype)
    # Version 2 kept the bits of bfloat16 as integers.
    held = np.dtype(ml_dtypes.bfloat16) if dtype == np.uint16 else dtype

    def whole() -> np.ndarray:
        try:
            return array.read().result().view(held)
        except (ValueError, OSError) as error:
            raise UserError(f"whole chunks of {name}", _first_line(error), AGAIN) from error

    return Tensor(tuple(array.shape), held, whole)


def _joined(name: str, tensor: Tensor) -> Tensor:
    """Return an attention kernel with heads and their width as one axis, which scanned ones part.

    ```
    query, key, value  [embed, heads, kv] -> [embed, joined_kv]
    out                [heads, kv, embed] -> [joined_kv, embed]
    ```
    """
    if len(tensor.shape) != 3:
        return tensor
    first, second, third = tensor.shape
    if name.endswith("out/kernel"):
        return tensor.reshaped(first * second, third)
    return tensor.reshaped(first, second * third)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].partition(" [")[0][:200]


def _config(tensors: Tensors, source: str) -> T5Config:
    """Return the shape that arrays of these names and shapes have."""
    try:
        heads, buckets = tensors[f"encoder/{RELPOS}"].shape
        vocab_size, embed_dim = tensors["token_embedder/embedding"].shape
        gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
        first = tensors[f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"]
        return T5Config(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_heads=heads,
            head_dim=tensors["encoder/layers_0/attention/query/kernel"].shape[1] // heads,
            mlp_dim=first.shape[1],
            num_encoder_layers=_count(tensors, "encoder"),
            num_decoder_layers=_count(tensors, "decoder"),
            mlp_activations=("gelu", "linear") if gated else ("relu",),
            logits_via_embedding="decoder/logits_dense/kernel" not in tensors,
            relative_attention_num_buckets=buckets,
        )
    except (KeyError, ValueError, IndexError) as error:
        do = "give a checkpoint of T5X's own T5"
        raise UserError(f"the parameters of a T5 in {source}", repr(error), do) from error


def _count(tensors: Tensors, tower: str) -> int:
    return len({name.split("/")[1] for name in tensors if name.startswith(f"{tower}/layers_")})


# --- Writing -----------------------------------------------------------------------------------


def write(
    directory: Path,
    tensors: Tensors,
    *,
    step: int,
    dtype: str = "float32",
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Write a checkpoint that T5X restores, one tensor in memory at a time, whole or not at all.

    There is no optimizer state: T5X evaluates and infers from it as it is, and trains from it where
    `utils.RestoreCheckpointConfig.fallback_to_scratch` is True.

    Args:
        directory: `MODEL_DIR/checkpoint_STEP`; must not exist.
        tensors: our parameters by path, which are T5X's.
        step: optimizer steps behind them.
        dtype: that they are kept in.
        chunk_bytes: of one file of an array, at most, where a row is no larger.

    Raises:
        UserError: the directory exists.
    """
    if directory.exists():
        raise UserError(f"no {directory} yet", "one", "remove it or name another")
    with weights.whole_directory(directory) as temporary:
        specs = {
            name: _write_array(temporary, name, tensor.cast(dtype), chunk_bytes)
            for name, tensor in tensors.items()
        }
        state = {"step": np.asarray(step, np.int32)}
        optimizer = {"target": unflatten_dict(specs, sep="/"), "state": state}
        index = serialization.msgpack_serialize({"version": VERSION, "optimizer": optimizer})
        (temporary / INDEX).write_bytes(index)


def _write_array(directory: Path, name: str, tensor: Tensor, chunk_bytes: int) -> dict[str, Any]:
    """Write one array; return its spec with a path relative to the checkpoint."""
    path = f"target.{name.replace('/', '.')}"
    rows = max(1, chunk_bytes * tensor.shape[0] // tensor.nbytes)
    metadata = {
        "shape": list(tensor.shape),
        "chunks": [min(rows, tensor.shape[0]), *tensor.shape[1:]],
        "compressor": None,  # weights hardly shrink
    }
    spec = {"driver": "zarr", "dtype": tensor.dtype.name, "metadata": metadata}
    place = {"driver": "file", "path": str(directory / path)}
    array = ts.open({**spec, "kvstore": place}, create=True).result()
    array.write(tensor.read()).result()
    return {**spec, "kvstore": {"driver": "file", "path": path}}
