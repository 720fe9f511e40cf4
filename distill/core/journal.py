"""An append-only text file; each entry ends with the SHA-256 of all lines above."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from distill.core import files
from distill.core.errors import UserError

_SEAL = re.compile(r"^# sha256 of the lines above: ([0-9a-f]{64})\n", re.MULTILINE)


def append(path: Path, entry: str) -> None:
    """Append an entry, which ends in a newline, and its seal in one atomic write.

    Raises:
        UserError: the file is damaged or no regular file.
    """
    earlier = read(path)
    seals(earlier, path)
    body = f"{earlier}{entry}"
    files.write_text(path, f"{body}# sha256 of the lines above: {_digest(body)}\n")


def read(path: Path) -> str:
    """Return the text, empty where there is no file; raises as `files.read_text`."""
    return files.read_text(path, follow=False) if path.exists() or path.is_symlink() else ""


def seals(content: str, path: Path) -> list[str]:
    """Return the seals in order, after checking each.

    Raises:
        UserError: a seal does not match the text above it, or text follows the last seal.
    """
    matches = list(_SEAL.finditer(content))
    for match in matches:
        if _digest(content[: match.start()]) != match[1]:
            raise _damaged(path, f"other lines above the seal {match[1][:8]}")
    if matches and matches[-1].end() != len(content):
        raise _damaged(path, "lines after the last seal")
    return [match[1] for match in matches]


def entries(content: str) -> Iterator[str]:
    """Yield the entries without their seals; text without a seal is one entry."""
    start = 0
    for match in _SEAL.finditer(content):
        yield content[start : match.start()]
        start = match.end()
    if content[start:]:
        yield content[start:]


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _damaged(path: Path, got: str) -> UserError:
    return UserError(f"{path} as the commands left it", got, "restore it or use another --run_dir")
