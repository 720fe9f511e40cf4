"""Named arrays that stay on disk until they are read; safetensors files as streams of them.

The safetensors library maps a whole file and writes only what is whole in memory, so that a
checkpoint as large as the host's memory could not be converted with it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from distill.core.errors import UserError

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_LENGTH = 8  # bytes of the header's length, and what the header is padded to
_LARGEST_HEADER = 100_000_000  # as in the safetensors library


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that is read when it is asked for, and not kept.

    Attributes:
        shape: of the array.
        dtype: of the array.
        read: returns it; each call reads again.

    Example:
        >>> Tensor.of(np.zeros((2, 3))).transposed().shape
        (3, 2)
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: Any) -> "Tensor":
        """Return an array that is in memory, NumPy's or JAX's."""
        return cls(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def transposed(self) -> "Tensor":
        """Return the tensor with its axes reversed."""
        return Tensor(self.shape[::-1], self.dtype, lambda: self.read().T)

    def reshaped(self, *shape: int) -> "Tensor":
        """Return the tensor in another shape of the same size."""
        return Tensor(shape, self.dtype, lambda: self.read().reshape(shape))

    def cast(self, dtype: str) -> "Tensor":
        """Return the tensor in another dtype."""
        wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
        return Tensor(self.shape, wanted, lambda: self.read().astype(wanted, copy=False))

    def resized(self, axis: int, size: int) -> "Tensor":
        """Return the tensor with an axis cut to `size`, or filled to it with its first entry."""
        if size == self.shape[axis]:
            return self
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        index = np.arange(size) * (np.arange(size) < self.shape[axis])
        return Tensor(shape, self.dtype, lambda: np.take(self.read(), index, axis=axis))


Tensors = Mapping[str, Tensor]


# --- safetensors -------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, after checking that the file holds all of them.

    Raises:
        UserError: the file is missing, cut short or of another format.
    """
    if not path.is_file():
        raise UserError(f"weights in {path}", "no such file", "restore the directory")
    header, start = _header(path)
    entries = dict(_entries(path, header))
    wanted = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if (size := path.stat().st_size) != wanted:
        raise _no_safetensors(path, f"{size:,} bytes where its header says {wanted:,}")
    return {name: _tensor(path, start, entry) for name, entry in entries.items()}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where the arrays begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        text = file.read(length) if length < _LARGEST_HEADER else b""
    try:
        header = json.loads(text)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are such
        raise _no_safetensors(path, "no header") from error
    if not isinstance(header, dict):
        raise _no_safetensors(path, "no header")
    return header, _LENGTH + length


def _no_safetensors(path: Path, got: str) -> UserError:
    return UserError(f"whole safetensors in {path}", got, "restore the file")


def _entries(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            fits = end - begin == math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        except (KeyError, TypeError, ValueError) as error:
            wanted = f"arrays of {', '.join(DTYPES)} in {path}"
            raise UserError(wanted, f"{name} as {entry}", "convert it") from error
        if not fits:
            raise _no_safetensors(path, f"{name} of {end - begin} bytes as {entry['shape']}")
        yield name, entry


def _tensor(path: Path, start: int, entry: Mapping[str, Any]) -> Tensor:
    shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]

    def array() -> np.ndarray:
        found = np.fromfile(path, np.uint8, end - begin, offset=start + begin)
        if found.size != end - begin:
            raise _no_safetensors(path, "a file that was cut while it was read")
        return found.view(dtype).reshape(shape)

    return Tensor(shape, dtype, array)


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    Args:
        path: replaced where it exists; not atomic, `weights.whole_directory` is.
        tensors: of float dtypes.
        metadata: for the header; transformers wants `{"format": "pt"}`.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": names[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for name in order:
            file.write(_bytes(name, tensors[name]))


def _bytes(name: str, tensor: Tensor) -> memoryview:
    array = tensor.read()
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(f"expected {name} of {tensor.shape}, got {array.shape} {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
