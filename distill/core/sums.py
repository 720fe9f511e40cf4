"""Lists of SHA-256 beside the manifests, in the format of `sha256sum`; they are not signatures.

`sha256sum --check manifests/train.sha256` in a run directory checks one without this package.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from distill.core import files
from distill.core.errors import UserError

SUFFIX = ".sha256"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\x7f\\]+)")


def path_of(run_dir: Path, name: str) -> Path:
    """Return the path of the list of a stage or of the report."""
    return run_dir / "manifests" / f"{name}{SUFFIX}"


def of(run_dir: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files below a run directory by their paths in it.

    Raises:
        UserError: one cannot be read, is a link or no regular file, or has a name that no list
            can hold.
    """
    digests = {}
    for path in paths:
        name = path.relative_to(run_dir).as_posix()
        if not _LINE.fullmatch(f"{'0' * 64}  {name}"):
            raise UserError("names without control characters or backslashes", name, "rename it")
        digests[name] = files.sha256(path, follow=False)
    return digests


def text(digests: Mapping[str, str]) -> str:
    """Return the lines of a list, in the order of the paths."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def read(path: Path) -> dict[str, str]:
    """Return the digests of a list by path.

    Raises:
        UserError: it is missing, or not as `text` writes it.
    """
    content = files.read_text(path, follow=False)
    pairs = [_pair(line, path) for line in content.removesuffix("\n").split("\n") if line]
    digests = {name: digest for digest, name in pairs}
    if text(digests) != content:
        raise UserError(f"a list of SHA-256 in {path}", "other text", "restore it")
    return digests


def _pair(line: str, path: Path) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    parts = PurePosixPath(match[2]).parts if match else ()
    if match is None or ".." in parts or parts[:1] == ("/",):
        got = f"the line {line[:100]!r}"
        raise UserError(f"SHA-256, two spaces and a path in each line of {path}", got, "restore it")
    return match[1], match[2]
