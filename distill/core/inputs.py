"""Files outside a run that its settings name: find them and compare them with the recorded ones."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from distill.core import files, paths
from distill.core.errors import UserError

# A larger input that has its recorded size and time of change is not read again to compare it.
_HASHED_ANEW = 1 << 26


@runtime_checkable
class ReadsFiles(Protocol):
    """A setting that reads files; the run records their digests."""

    def input_files(self) -> Iterable[Path]:
        """Return the files, or folders of files; missing ones are skipped."""
        ...


def paths_in(value: object) -> Iterator[Path]:
    """Yield the files that settings name, in the order of the settings."""
    if isinstance(value, ReadsFiles) and not isinstance(value, type):
        yield from map(Path, value.input_files())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from paths_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from paths_in(list(value.values()))
    elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        for item in value:
            yield from paths_in(item)


def identities(
    found: Iterable[Path], recorded: Mapping[str, dict[str, Any]], run_dir: Path
) -> dict[str, dict[str, Any]]:
    """Return the record of each input file, by its path in the settings.

    Raises:
        UserError: a file has another content than the one recorded.
    """
    now = {}
    for name, path in sorted(_present(found).items()):
        earlier = recorded.get(name, {})
        now[name] = _identity(path, earlier)
        if earlier and earlier.get("sha256") != now[name]["sha256"]:
            raise UserError(
                f"the content of {name} that the run in {run_dir} was made from",
                "another one",
                "restore the file or use another --run_dir",
            )
    return {**recorded, **now}


def _present(names: Iterable[Path]) -> dict[str, Path]:
    """Return the existing files, with those of a folder one by one, by the name in the settings."""
    found = {}
    for name in names:
        try:
            path = paths.find(name, "a file")
        except UserError:  # the code that reads it raises the error
            continue
        inner = (
            [each for each in sorted(path.rglob("*")) if each.is_file()] if path.is_dir() else []
        )
        found |= {str(name / each.relative_to(path)): each for each in inner}
        found |= {} if path.is_dir() else {str(name): path}
    return found


def _identity(path: Path, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's size, time of change and SHA-256."""
    with files.open_regular(path) as file:
        status = os.fstat(file.fileno())
        now = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        unchanged = all(earlier.get(name) == value for name, value in now.items())
        if unchanged and status.st_size > _HASHED_ANEW and "sha256" in earlier:
            return dict(earlier)
        return {**now, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
