"""Files that others may have written: read with bounds, walked without following links."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from distill.core.errors import UserError

MOST_BYTES = 1 << 30  # of a file that is read at once
MOST_DEPTH = 64  # of lists and objects within each other
DOCUMENT_BYTES = 64 << 20  # of a JSON document of a model; an mT5's tokenizer.json has 16 MB


# --- Reading -----------------------------------------------------------------------------------


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading; refuse a FIFO, socket or device without waiting for it.

    Args:
        path: the file.
        follow: whether the path may be a link.

    Raises:
        UserError: there is no such file, it is something else, or it cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise _unreadable(path, error) from error
    if kind := _other_kind(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"a file {path}", kind, "put a regular file there")
    return os.fdopen(descriptor, "rb")


def _unreadable(path: Path, error: OSError | ValueError) -> UserError:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"a file {path}", "none", "correct the path or run what writes it")
    if number == errno.ELOOP:
        return UserError(f"a file {path}", "a link", "put the file itself there")
    if number == errno.ENXIO:
        return UserError(f"a file {path}", "a socket or a device", "put a regular file there")
    got = os.strerror(number) if number else str(error)
    return UserError(f"a file {path} that can be read", got, "correct the path or its permissions")


def _other_kind(mode: int) -> str | None:
    """Return the kind of file that a mode describes, None for a regular file."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: Path, *, limit: int = MOST_BYTES, follow: bool = True) -> bytes:
    """Return a regular file's content.

    Args:
        path: the file.
        limit: bytes at most.
        follow: whether the path may be a link.

    Raises:
        UserError: it is larger than `limit`, or as `open_regular`.
    """
    with open_regular(path, follow=follow) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"at most {limit:,} bytes in {path}", "more", "use a smaller file")
    return content


def read_text(path: Path, *, limit: int = MOST_BYTES, follow: bool = True) -> str:
    """Return a regular file's text in UTF-8; raises as `read_bytes`, and where it is no UTF-8."""
    try:
        return read_bytes(path, limit=limit, follow=follow).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"UTF-8 in {path}", str(error), "convert the file to UTF-8") from error


def read_json(path: Path, *, limit: int = MOST_BYTES, follow: bool = True) -> Any:
    """Return what a JSON file holds; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit=limit, follow=follow), str(path))


def read_object(path: Path, *, limit: int = MOST_BYTES, follow: bool = True) -> dict[str, Any]:
    """Return the object that a JSON file holds; raises as `read_json`, and for another value."""
    return _object(read_json(path, limit=limit, follow=follow), str(path))


def read_document(path: Path) -> dict[str, Any]:
    """Return the object of a JSON document of a model directory, in which no key occurs twice.

    Raises:
        UserError: it is larger than DOCUMENT_BYTES, a key of an object occurs twice, or as
            `read_object`.
    """
    content = read_bytes(path, limit=DOCUMENT_BYTES)
    return parse_object(content, str(path), unique_keys=True)


def parse_object(text: str | bytes, where: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """Return the object that a JSON text holds; raises as `parse_json`, and for another value."""
    return _object(parse_json(text, where, unique_keys=unique_keys), where)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"a JSON object in {where}", type(value).__name__, "correct it")
    return value


def parse_json(text: str | bytes, where: str, *, unique_keys: bool = False) -> Any:
    """Return the value of a JSON text that has no trap in it.

    Refused are numbers that are not finite or have more digits than Python converts, lists and
    objects deeper than MOST_DEPTH, and strings that no encoding can carry.

    Args:
        text: in UTF-8 where it is bytes.
        where: the place, for the error.
        unique_keys: whether an object with a key twice is refused too; otherwise the last counts.

    Raises:
        UserError: it is no such JSON.

    Example:
        >>> parse_json('{"n": 3}', "line 1")
        {'n': 3}
        >>> parse_json('{"n": 3, "n": 4}', "line 1", unique_keys=True)
        Traceback (most recent call last):
        distill.core.errors.UserError: expected JSON in line 1, got the key 'n' twice; correct or \
restore it
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            decoded,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique if unique_keys else None,
        )
        _refuse_depth(value)
        if "\\u" in decoded:  # half of a surrogate pair can be written no other way
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        got = " ".join(str(error).split())[:200]
        raise UserError(f"JSON in {where}", got, "correct or restore it") from error
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; a key that occurs twice is a ValueError."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key[:100]!r} twice")
        fields[key] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]}, which is beyond float64")
    return value


def _refuse_depth(value: object) -> None:
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEPTH + 1):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"lists and objects more than {MOST_DEPTH} deep")


def sha256(path: Path, *, follow: bool = True) -> str:
    """Return a regular file's SHA-256 in hexadecimal; raises as `open_regular`."""
    with open_regular(path, follow=follow) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Directories -------------------------------------------------------------------------------


def beside(directory: Path, name: object) -> Path:
    """Return the path of a file that a document names; it must be in the document's directory.

    Raises:
        UserError: the name is not a plain file name.

    Example:
        >>> beside(Path("model"), "../../etc/passwd")
        Traceback (most recent call last):
        distill.core.errors.UserError: expected the plain name of a file in model, got \
'../../etc/passwd'; restore the directory
    """
    if not isinstance(name, str) or Path(name).name != name or "\0" in name or "\\" in name:
        expected = f"the plain name of a file in {directory}"
        raise UserError(expected, f"{name!r:.200}", "restore the directory")
    return directory / name


def require_inside(path: Path) -> Path:
    """Return a path after checking that it is no link out of its directory.

    A cache of the Hugging Face hub consists of such links, from `snapshots/REVISION/` to `blobs/`
    of the same repository; these are followed.

    Raises:
        UserError: a link leads elsewhere.
    """
    home, target = (Path(os.path.realpath(each)) for each in (path.parent, path))
    cached = home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs")
    if not (target.is_relative_to(home) or cached):
        expected = f"{path.name} within {path.parent}"
        raise UserError(expected, "a link out of it", "copy the file into it")
    return path


def walk(directory: Path) -> Iterator[Path]:
    """Yield the regular files below a directory in order; none where there is no directory.

    A file that vanishes meanwhile, such as another process's temporary file, is skipped.

    Raises:
        UserError: a link, FIFO, socket or device is in the directory, or the directory is one.
    """
    waiting = [directory]
    while waiting:
        path = waiting.pop()
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                waiting += sorted(path.iterdir(), reverse=True)
                continue
        except FileNotFoundError:
            continue
        except OSError as error:
            got = os.strerror(error.errno or 0)
            raise UserError(f"{path} that can be read", got, "correct its permissions") from error
        if kind := _other_kind(mode):
            raise UserError(f"files and directories alone at {path}", kind, "take it away")
        yield path


def require_plain(directory: Path) -> None:
    """Refuse a tree with a link or special file in it; the directory itself may be a link.

    Raises:
        UserError: as `walk`.
    """
    for _ in walk(directory.resolve()):
        pass


# --- Writing -----------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is synced and replaces `path`."""
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
    """Return a unique hidden path beside `path`; it is random, as PIDs recur after a kill."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def sync(path: Path) -> None:
    """Force a file or directory onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: object) -> str:
    """Return what `write_json` writes; raises ValueError for a number that is not finite."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step; raises as `json_text`."""
    write_text(path, json_text(value))
