"""Named arrays that stay on disk until they are read; safetensors files as streams of them.

The safetensors library maps a whole file and writes only what is whole in memory, so that a
checkpoint as large as the host's memory could not be converted with it.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from distill.core import files
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

        def array() -> np.ndarray:
            with np.errstate(over="ignore"):  # what becomes infinite is for `finite` to refuse
                return self.read().astype(wanted, copy=False)

        return Tensor(self.shape, wanted, array)

    def scaled(self, factor: float) -> "Tensor":
        """Return the tensor times a factor, in float32."""
        scale = np.float32(factor)
        return Tensor(
            self.shape, np.dtype(np.float32), lambda: self.read().astype(np.float32) * scale
        )

    def finite(self, name: str) -> "Tensor":
        """Return the tensor, which refuses NaN and infinity when it is read.

        Args:
            name: of the tensor and where it comes from, for the error.

        Raises:
            UserError: by `read`, where an entry is not finite.
        """

        def array() -> np.ndarray:
            found = self.read()
            if odd := found.size - np.count_nonzero(np.isfinite(found)):
                got = f"NaN or infinity at {odd:,} of {found.size:,} places"
                raise UserError(f"finite numbers in {name}", got, "use weights that are whole")
            return found

        return Tensor(self.shape, self.dtype, array)

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
    """Return the tensors of a safetensors file, after checking that they are all of the file.

    As the format demands, the arrays follow each other without a gap or an overlap from the end of
    the header to the end of the file, so that a header can neither name bytes that are not there
    nor make the reader allocate more than the file holds.

    Raises:
        UserError: the file is missing, no regular file, cut short or of another format.
    """
    with files.open_regular(path) as file:
        header, start = _header(path, file)
        size = os.fstat(file.fileno()).st_size
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _require_gapless(path, entries, start, size)
    return {name: _tensor(path, start, entry) for name, entry in entries.items()}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor's place in a file, in bytes after the header."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    end: int


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header and where the arrays begin."""
    length = int.from_bytes(file.read(_LENGTH), "little")
    size = os.fstat(file.fileno()).st_size
    if not 0 < length <= min(_LARGEST_HEADER, size - _LENGTH):
        raise _no_safetensors(path, f"no header, but one of {length:,} bytes in {size:,}")
    try:
        header = files.parse_object(file.read(length), str(path), unique_keys=True)
    except UserError as error:
        raise _no_safetensors(path, f"no header: {error.got:.100}") from error
    return header, _LENGTH + length


def _no_safetensors(path: Path, got: str) -> UserError:
    return UserError(f"whole safetensors in {path}", got, "restore the file")


def _entry(path: Path, name: str, entry: Any) -> _Entry:
    try:
        begin, end = map(_count, entry["data_offsets"])
        shape, dtype = tuple(map(_count, entry["shape"])), DTYPES[entry["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        wanted = f"arrays of {', '.join(DTYPES)} in {path}"
        raise UserError(wanted, f"{name:.200} as {entry!s:.200}", "convert it") from error
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _no_safetensors(path, f"{name:.200} of {end - begin} bytes as {shape!s:.200}")
    return _Entry(shape, dtype, begin, end)


def _count(number: object) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"expected a count, got {number!r:.100}")
    return number


def _require_gapless(path: Path, entries: Mapping[str, _Entry], start: int, size: int) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise _no_safetensors(path, f"{name:.200} at {entry.begin:,} where {end:,} is next")
        end = entry.end
    if size != start + end:
        raise _no_safetensors(path, f"{size:,} bytes where its header says {start + end:,}")


def _tensor(path: Path, start: int, entry: _Entry) -> Tensor:
    def array() -> np.ndarray:
        found = np.fromfile(path, np.uint8, entry.end - entry.begin, offset=start + entry.begin)
        if found.size != entry.end - entry.begin:
            raise _no_safetensors(path, "a file that was cut while it was read")
        return found.view(entry.dtype).reshape(entry.shape)

    return Tensor(entry.shape, entry.dtype, array)


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
