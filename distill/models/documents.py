"""Files of a model directory that somebody else wrote, read with bounds: JSON objects and paths."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from distill.core.errors import UserError

LARGEST = 64 * 2**20  # bytes of a JSON document; an mT5's tokenizer.json has 16 MB
RESTORE = "restore the directory"


@contextlib.contextmanager
def opened(path: Path, kind: str = "a file") -> Iterator[BinaryIO]:
    """Open a regular file; a pipe or a device is refused, not waited for.

    Args:
        path: of the file.
        kind: what it should hold, for the error.

    Raises:
        UserError: there is no such file, or it is not a regular one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a NUL or a surrogate in the name is a ValueError
        missing = isinstance(error, FileNotFoundError)
        got = "no such file" if missing else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{kind} {path}", got, RESTORE) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{kind} {path}", "no regular file", RESTORE)
    with os.fdopen(descriptor, "rb") as file:
        yield file


def content(path: Path, kind: str = "a file", *, largest: int = LARGEST) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        UserError: there is no such file, it is not a regular one, or it is larger than `largest`.
    """
    with opened(path, kind) as file:
        read = file.read(largest + 1)
    if len(read) > largest:
        raise UserError(f"at most {largest:,} bytes in {path}", "more", RESTORE)
    return read


def read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file is missing, too large, or holds no JSON object.
    """
    try:
        return parse(content(path))
    except ValueError as error:
        raise UserError(f"JSON in {path}, an object", f"{error!s:.200}", RESTORE) from error


def parse(text: bytes) -> dict[str, Any]:
    """Return a JSON object, each key of which occurs once.

    Raises:
        ValueError: it is no JSON, no object, nested too deeply, or has a key twice.

    Example:
        >>> parse(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' occurs twice
    """
    try:
        parsed = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("too many brackets inside each other") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"a {type(parsed).__name__}")
    return parsed


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:100]!r} occurs twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text}, which is no number of JSON")


def beside(directory: Path, name: object) -> Path:
    """Return the path of a file that a document names; only files of its own directory may be.

    Raises:
        UserError: the name is no plain file name, or a link leads out of the directory.

    Example:
        >>> beside(Path("model"), "../../etc/passwd")
        Traceback (most recent call last):
        distill.core.errors.UserError: expected the plain name of a file in model, got \
'../../etc/passwd'; restore the directory
    """
    if not isinstance(name, str) or Path(name).name != name or "\0" in name or "\\" in name:
        raise UserError(f"the plain name of a file in {directory}", f"{name!r:.200}", RESTORE)
    return directory / name


def require_inside(path: Path) -> Path:
    """Return a path after checking that it is no link out of its directory.

    A cache of the Hugging Face hub is such links, from `snapshots/REVISION/` to `blobs/` of the
    same repository; these are followed.

    Raises:
        UserError: a link leads elsewhere.
    """
    home, place = (Path(os.path.realpath(found)) for found in (path.parent, path))
    cached = home.parent.name == "snapshots" and place.is_relative_to(home.parent.parent / "blobs")
    if not (place.is_relative_to(home) or cached):
        raise UserError(
            f"{path.name} within {path.parent}", "a link out of it", "copy the file into it"
        )
    return path
