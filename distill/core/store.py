"""Records on disk in Parquet shards, and the run directory's stages that write them."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.core.errors import UserError

Record = TypeVar("Record")
logger = logging.getLogger(__name__)

# A log-probability is kept as uint16 in steps of half a milli-nat: exact to 2.5e-4 nats down to
# -32.7, below which no distillation target can tell it from zero. The last code is "absent".
_NATS_PER_STEP = 0.0005
_ABSENT = np.iinfo(np.uint16).max


# What each stage fills with shards, as a folder of the run directory.
DIRECTORIES = {
    "problems": "problems",
    "harvest": "traces",
    "check": "verdicts",
    "align": "aligned",
    "dataset": "dataset",
    "evaluate": "predictions",
    "final": "final",
    "diversity": "diversity",
    "scale": "scale",
    "rollouts": "rollouts",
}


# --- Files -------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` that takes its place, synced, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a hidden name beside `path` that no process has; a PID may come again after a kill."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def sync(path: Path) -> None:
    """Force a file or directory onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step; non-finite numbers are refused, as JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"a file {path}", "none", "run the stage that writes it first") from error
    except json.JSONDecodeError as error:
        raise UserError(f"JSON in {path}", str(error), "restore or remove the file") from error


# --- Columns -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Column:
    """How one field of a record becomes an Arrow column and comes back."""

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
    """Matrices of one width; the width is 0 where no row of any matrix exists."""
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


def _columns(record: type) -> dict[str, _Column]:
    hints = typing.get_type_hints(record, include_extras=True)
    keys = {name: getattr(hint, "__metadata__", hint) for name, hint in hints.items()}
    return {name: _COLUMNS[key] for name, key in keys.items()}


def _with_default(record: Any) -> set[str]:
    """Return the fields that a record can do without, as one of an earlier version does."""
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(record)
        if field.default is not missing or field.default_factory is not missing
    }


# --- Shards ------------------------------------------------------------------------------------


class Shards(Generic[Record]):
    """A directory of Parquet files that together hold records of one kind.

    Each append is one file that appears whole or not at all, under a number that no other process
    has taken; so several writers may share a directory, and what is counted is on disk.

    Args:
        directory: where the files lie; it is made at the first append.
        record: the dataclass of the records; its annotations choose the columns' codecs.

    Example:
        >>> import tempfile
        >>> from distill.core.records import Verdict
        >>> shards = Shards(Path(tempfile.mkdtemp()), Verdict)
        >>> shards.append([Verdict("gsm/train/0", 0, "right", "8", "equal")])
        1
        >>> [verdict.outcome for verdict in shards]
        ['right']
    """

    def __init__(self, directory: Path, record: type[Record]) -> None:
        self.directory, self.record = Path(directory), record
        self._schema = _columns(record)

    def append(self, records: Iterable[Record]) -> int:
        """Write the records as one more shard and return their number; none writes nothing."""
        rows = list(records)
        if not rows:
            return 0
        table = pa.table(
            {
                name: column.encode([getattr(row, name) for row in rows])
                for name, column in self._schema.items()
            }
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(self.directory / "part")
        try:
            pq.write_table(table, temporary, compression="zstd")
            sync(temporary)
            self._publish(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return len(rows)

    def _publish(self, temporary: Path) -> None:
        """Give the file the next number that nobody has; a hard link fails where a rename wins."""
        number = len(self.files())
        while True:
            try:
                (self.directory / f"part-{number:06d}.parquet").hardlink_to(temporary)
                return sync(self.directory)
            except FileExistsError:
                number += 1

    def files(self) -> list[Path]:
        """Return the shards' paths in order."""
        return sorted(self.directory.glob("part-*.parquet"))

    def __len__(self) -> int:
        return sum(self._open(path).metadata.num_rows for path in self.files())

    def __iter__(self) -> Iterator[Record]:
        for path in self.files():
            yield from self.read(path)

    def keys(self, *names: str) -> set[tuple[Any, ...]]:
        """Return the values of some columns over all records, without reading the others."""
        tables = (self._open(path).read(columns=list(names)) for path in self.files())
        columns = ([table[name].to_pylist() for name in names] for table in tables)
        return {row for lists in columns for row in zip(*lists, strict=True)}

    def remove(self) -> None:
        """Delete the shards and nothing else."""
        for path in self.files():
            path.unlink()

    def read(self, path: Path) -> Iterator[Record]:
        """Yield the records of one of the shards.

        Raises:
            UserError: it is damaged or holds records of another kind.
        """
        file = self._open(path)
        present = [name for name in self._schema if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=1024):
            columns = [self._schema[name].decode(batch[name]) for name in present]
            for values in zip(*columns, strict=True):
                yield self.record(**dict(zip(present, values, strict=True)))

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"a Parquet file at {path}", "a damaged one", "remove it and run the stage again"
            ) from error
        types = {name: column.arrow for name, column in self._schema.items()}
        found = {field.name: field.type for field in file.schema_arrow}
        later = {name: types[name] for name in _with_default(self.record) - found.keys()}
        if {**found, **later} != types:
            raise UserError(
                f"columns of {self.record.__name__} in {path}",
                ", ".join(f"{field.name} {field.type}" for field in file.schema_arrow),
                "use a run directory of this version",
            )
        return file


# --- Stages ------------------------------------------------------------------------------------


def describe(value: object) -> Any:
    """Return a setting as JSON that is equal where the settings are.

    Dataclasses give their type and those fields that their repr shows, so that a secret kept out of
    the repr stays out of manifests; functions give their qualified name.

    Example:
        >>> from distill.core.records import Accuracy
        >>> describe({"floor": Accuracy(1, 2)})
        {'floor': {'type': 'Accuracy', 'correct': 1, 'n': 2}}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in dataclasses.fields(value) if field.repr]
        return {
            "type": type(value).__name__,
            **{name: describe(getattr(value, name)) for name in shown},
        }
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [describe(item) for item in value]
    if isinstance(value, types.FunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def _differences(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(expected.keys() | got.keys()):
            where = f"{path}.{key}" if path else key
            yield from _differences(expected.get(key), got.get(key), where)
    elif expected != got:
        yield f"{path}={got!r} where the run has {expected!r}"


class Stage:
    """One stage of a run directory: who it is, whether it is done, what it found.

    `RUN_DIR/manifests/NAME.json` holds the settings, the inputs' digests, the digest of both, the
    seconds spent over all starts, and, once complete, the counts that the stage reports and the
    SHA-256 of every shard in the folder that DIRECTORIES gives the stage.
    """

    def __init__(self, run_dir: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.run_dir, self.name = Path(run_dir), name
        self._path = self.run_dir / "manifests" / f"{name}.json"
        self._manifest: dict[str, Any] = {
            "stage": name,
            "settings": json.loads(json.dumps(describe(settings))),
            "complete": False,
            "seconds": 0.0,
            "summary": {},
        }

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, run_dir: Path, name: str, *, settings: Mapping[str, Any], inputs: Sequence[str] = ()
    ) -> Iterator["Stage"]:
        """Open a stage for one process; its seconds are kept however the block ends.

        A first start that a UserError ends before it has written anything leaves no manifest, so
        that the corrected command is not taken for another run.

        Args:
            run_dir: the run directory, made where there is none.
            name: the stage's name.
            settings: what decides the stage's result; not batch sizes or numbers of workers.
            inputs: stages that must be complete.

        Raises:
            UserError: an input is not complete, the directory belongs to another run, or another
                process runs this stage.
        """
        stage = cls(run_dir, name, settings)
        stage._path.parent.mkdir(parents=True, exist_ok=True)
        with stage._lock():
            stage._join(inputs)
            start, outputs, refused = time.monotonic(), stage._outputs(), False
            if not stage.complete:
                logger.info("%s: start", name)
            try:
                yield stage
            except UserError:
                refused = stage._is_new and stage._outputs() == outputs
                raise
            finally:
                if refused:
                    stage._path.unlink()
                elif not stage._was_complete:
                    stage._manifest["seconds"] += time.monotonic() - start
                    stage._write()
            if stage.complete and not stage._was_complete:
                logger.info("%s: done in %.1f s %s", name, stage.seconds, _line(stage.summary))

    @property
    def complete(self) -> bool:
        """Whether an earlier start, or this one, has finished the stage."""
        return self._manifest["complete"]

    @property
    def summary(self) -> dict[str, Any]:
        """The counts that the stage reported when it finished."""
        return self._manifest["summary"]

    @property
    def seconds(self) -> float:
        """Seconds spent over all starts; those of a start that was killed are lost."""
        return self._manifest["seconds"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the manifest holds them."""
        return self._manifest["settings"]

    def finish(self, **summary: Any) -> None:
        """Mark the stage complete with its counts; numbers keep their unit in the name."""
        self._manifest["summary"] = summary
        if self.name in DIRECTORIES:
            self._manifest["shards"] = {
                path.relative_to(self.run_dir).as_posix(): sha256(path)
                for path in sorted((self.run_dir / DIRECTORIES[self.name]).rglob("part-*.parquet"))
            }
        self._manifest["complete"] = True

    def _write(self) -> None:
        write_json(self._path, self._manifest)

    def _outputs(self) -> set[Path]:
        """What lies in the run directory and in its folders, apart from the manifests."""
        found = (path for pattern in ("*", "*/*") for path in self.run_dir.glob(pattern))
        return {path for path in found if self._path.parent not in (path, path.parent)}

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"one process in stage {self.name} of {self.run_dir}",
                    "another that is running",
                    "wait for it or use another --run_dir",
                ) from error
            yield

    def _join(self, inputs: Sequence[str]) -> None:
        """Take over what an earlier start left, after checking that it is of the same run."""
        digests = {name: manifest(self.run_dir, name)["digest"] for name in inputs}
        text = json.dumps([self.name, self._manifest["settings"], digests], sort_keys=True)
        self._manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
        self._manifest["inputs"] = digests
        self._is_new = not self._path.exists()
        if not self._is_new:
            earlier = read_json(self._path)
            self._refuse_other(earlier)
            self._manifest = earlier
        else:
            self._write()
        self._was_complete = self.complete

    def _refuse_other(self, earlier: dict[str, Any]) -> None:
        if earlier["digest"] == self._manifest["digest"]:
            return
        found = list(_differences(earlier["settings"], self._manifest["settings"]))
        raise UserError(
            f"the settings of the run in {self.run_dir}",
            f"{self.name} with {found[0] if found else 'other inputs'}",
            "use another --run_dir or the settings of that run",
        )


def manifest(run_dir: Path, name: str) -> dict[str, Any]:
    """Return the manifest of a complete stage.

    Raises:
        UserError: the stage is not complete.
    """
    path = Path(run_dir) / "manifests" / f"{name}.json"
    found = read_json(path) if path.exists() else {"complete": False}
    if not found["complete"]:
        raise UserError(
            f"stage {name} complete in {run_dir}", "none", f"run `distill {name}` on it first"
        )
    return found


def _line(summary: Mapping[str, Any]) -> str:
    flat = (f"{key} {value}" for key, value in summary.items() if not isinstance(value, dict))
    return ", ".join(flat)
