"""Records on disk in Parquet shards; the stages that write them are in `distill.core.stages`."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from distill.core.columns import columns, optional_fields
from distill.core.errors import UserError
from distill.core.files import (
    atomic_path,
    open_regular,
    read_json,
    sha256,
    sync,
    temporary_beside,
    write_json,
)
from distill.core.stages import Stage, describe, manifest

__all__ = [
    "Shards",
    "Stage",
    "atomic_path",
    "describe",
    "manifest",
    "read_json",
    "sha256",
    "sync",
    "temporary_beside",
    "write_json",
]

Record = TypeVar("Record")
# Errors of Parquet, Arrow, the codecs and the records for a damaged shard.
_DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError)
_MOST_BYTES = 1 << 34  # uncompressed, of one shard
_MOST_ROWS = 1 << 28


class Shards(Generic[Record]):
    """A directory of Parquet files that together hold records of one kind.

    Each append publishes one complete file, under a number that no other process has taken, so
    several writers may share a directory.

    Args:
        directory: folder of the files; the first append creates it.
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
        self._schema = columns(record)

    def append(self, records: Iterable[Record]) -> int:
        """Write the records as one more shard, if there are any, and return their number."""
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
        """Link the file to the next free number; unlike a rename, a link never overwrites."""
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
        return sum(self._count(path) for path in self.files())

    def __iter__(self) -> Iterator[Record]:
        for path in self.files():
            yield from self.read(path)

    def keys(self, *names: str) -> set[tuple[Any, ...]]:
        """Return the values of some columns over all records, without reading the others."""
        tables = (self._table(path, names) for path in self.files())
        columns = ([table[name].to_pylist() for name in names] for table in tables)
        return {row for lists in columns for row in zip(*lists, strict=True)}

    def remove(self) -> None:
        """Delete the shards and nothing else."""
        for path in self.files():
            path.unlink()

    def read(self, path: Path) -> Iterator[Record]:
        """Yield the records of one of the shards.

        Raises:
            UserError: it is damaged, no regular file, or holds records of another kind.
        """
        with open_regular(path, follow=False) as stream:
            file = self._open(path, stream)
            present = [name for name in self._schema if name in file.schema_arrow.names]
            for rows in _batches(path, file):
                yield from self._decoded(path, rows, present)

    def _count(self, path: Path) -> int:
        with open_regular(path, follow=False) as stream:
            return self._open(path, stream).metadata.num_rows

    def _decoded(
        self, path: Path, batch: pa.RecordBatch, present: Sequence[str]
    ) -> Sequence[Record]:
        with _undamaged(path):
            decoded = [self._schema[name].decode(batch[name]) for name in present]
            rows = zip(*decoded, strict=True)
            return [self.record(**dict(zip(present, row, strict=True))) for row in rows]

    def _table(self, path: Path, names: Sequence[str]) -> pa.Table:
        with open_regular(path, follow=False) as stream, _undamaged(path):
            return self._open(path, stream).read(columns=list(names))

    def _open(self, path: Path, stream: BufferedReader) -> pq.ParquetFile:
        with _undamaged(path):
            file = pq.ParquetFile(stream)
            _refuse_absurd(file, path)
            schema = file.schema_arrow
        types = {name: column.arrow for name, column in self._schema.items()}
        present = {field.name: field.type for field in schema}
        later = {name: types[name] for name in optional_fields(self.record) - present.keys()}
        if {**present, **later} != types:
            raise UserError(
                f"columns of {self.record.__name__} in {path}",
                ", ".join(f"{field.name} {field.type}" for field in schema),
                "use a run directory of this version",
            )
        return file


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turn the errors of Arrow and of the records for a damaged shard into a UserError."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"a Parquet file at {path}",
            f"a damaged one ({' '.join(str(error).split())[:160]})",
            "remove it and run the stage again",
        ) from error


def _batches(path: Path, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(batch_size=1024)
    while True:
        with _undamaged(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _refuse_absurd(file: pq.ParquetFile, path: Path) -> None:
    """Refuse a shard that would exhaust memory; stages write far smaller ones."""
    metadata = file.metadata
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    if sum(sizes) > _MOST_BYTES or min(sizes, default=0) < 0 or metadata.num_rows > _MOST_ROWS:
        raise UserError(
            f"at most {_MOST_BYTES:,} bytes and {_MOST_ROWS:,} rows in {path}",
            f"{sum(sizes):,} and {metadata.num_rows:,}",
            "remove it and run the stage again",
        )
