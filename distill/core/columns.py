"""Codecs between the fields of records and Arrow columns; reads and writes no files."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

# A log-probability is kept as uint16 in steps of half a milli-nat: exact to 2.5e-4 nats down to
# -32.7, below which no distillation target distinguishes it from zero. The last code is "absent".
_NATS_PER_STEP = 0.0005
_ABSENT = np.iinfo(np.uint16).max


@dataclasses.dataclass(frozen=True)
class _Column:
    """The codec between one field of a record and an Arrow column."""

    arrow: pa.DataType
    encode: Callable[[Sequence[Any]], pa.Array]
    decode: Callable[[pa.Array], Sequence[Any]]


def _plain(arrow: pa.DataType, back: Callable[[Any], Any] = lambda value: value) -> _Column:
    return _Column(
        arrow,
        lambda values: pa.array(values, arrow),
        lambda array: [back(value) for value in array.to_pylist()],
    )


def _list_array(values: Sequence[np.ndarray], dtype: type, arrow: pa.DataType) -> pa.Array:
    lengths = [value.size for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate([np.ravel(value) for value in values]) if values else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(dtype), arrow))


def _rows(array: pa.Array) -> list[np.ndarray]:
    if not len(array):
        return []
    offsets = array.offsets.to_numpy()
    return np.split(array.flatten().to_numpy(zero_copy_only=False), offsets[1:-1] - offsets[0])


def _vector(dtype: type) -> _Column:
    arrow = pa.from_numpy_dtype(dtype)
    return _Column(pa.list_(arrow), lambda values: _list_array(values, dtype, arrow), _rows)


def _matrix(dtype: type) -> _Column:
    """Codec of matrices; the width is stored beside the values."""
    arrow = pa.from_numpy_dtype(dtype)
    struct = pa.struct([("width", pa.int32()), ("values", pa.list_(arrow))])

    def encode(values: Sequence[np.ndarray]) -> pa.Array:
        widths = pa.array([value.shape[1] for value in values], pa.int32())
        return pa.StructArray.from_arrays(
            [widths, _list_array(values, dtype, arrow)], ["width", "values"]
        )

    def decode(array: pa.Array) -> list[np.ndarray]:
        widths, values = array.flatten()
        pairs = zip(_rows(values), widths.to_pylist(), strict=True)
        return [row.reshape(-1, width) for row, width in pairs]

    return _Column(struct, encode, decode)


def _quantise(logprobs: np.ndarray) -> np.ndarray:
    if np.any(logprobs > 1e-3):
        raise ValueError(f"expected log-probabilities <= 0, got {np.max(logprobs)}")
    steps = np.clip(np.round(-logprobs / _NATS_PER_STEP), 0, _ABSENT - 1)
    return np.where(np.isnan(logprobs), _ABSENT, steps)


def _logprobs() -> _Column:
    def decode(array: pa.Array) -> list[np.ndarray]:
        rows = (row.astype(np.float32) for row in _rows(array))
        return [np.where(row == _ABSENT, np.nan, -row * _NATS_PER_STEP) for row in rows]

    return _Column(
        pa.list_(pa.uint16()),
        lambda values: _list_array([_quantise(v) for v in values], np.uint16, pa.uint16()),
        lambda array: [row.astype(np.float32) for row in decode(array)],
    )


_COLUMNS: dict[Any, _Column] = {
    str: _plain(pa.string()),
    str | None: _plain(pa.string()),
    int: _plain(pa.int64()),
    int | None: _plain(pa.int64()),
    float: _plain(pa.float64()),
    bool: _plain(pa.bool_()),
    tuple[bytes, ...]: _plain(pa.list_(pa.binary()), tuple),
    ("int32",): _vector(np.int32),
    ("uint8",): _vector(np.uint8),
    ("float32",): _vector(np.float32),
    ("logprob",): _logprobs(),
    ("int32", 2): _matrix(np.int32),
    ("float32", 2): _matrix(np.float32),
}


def columns(record: type) -> dict[str, _Column]:
    """Return the codec of each field of a record."""
    hints = typing.get_type_hints(record, include_extras=True)
    keys = {name: getattr(hint, "__metadata__", hint) for name, hint in hints.items()}
    return {name: _COLUMNS[key] for name, key in keys.items()}


def optional_fields(record: Any) -> set[str]:
    """Return the fields with a default; records of earlier versions may lack them."""
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(record)
        if field.default is not missing or field.default_factory is not missing
    }
