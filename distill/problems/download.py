"""Fetch the public sets of `data/sources.json` once, whole and checked; reads nothing in them."""

import hashlib
import json
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path

from distill.core import files, paths
from distill.core.errors import UserError
from distill.core.store import atomic_path

logger = logging.getLogger(__name__)

_SECONDS = 60.0


def cache_dir() -> Path:
    """Return where fetched files are kept: $DISTILL_CACHE, or .cache/distill in the home folder."""
    chosen = os.environ.get("DISTILL_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "distill"


def fetch(name: str) -> Path:
    """Return the path of a public set's file, fetched if it is not in the cache yet.

    The file is checked against its sha256 each time; it appears under its name only when it is
    whole and right.

    Args:
        name: a key of `data/sources.json`.

    Raises:
        UserError: the address does not answer, or the content is not the one that is listed.
    """
    listed = json.loads(paths.shipped("data/sources.json").read_text(encoding="utf-8"))[name]
    path = cache_dir() / name
    if path.exists():
        _verify(
            files.read_bytes(path), listed["sha256"], f"{path}; remove it, or give another path"
        )
        return path
    logger.info("fetching %s (%s, %s)", name, listed["citation"], listed["licence"])
    content = _read(listed["address"], path)
    _verify(content, listed["sha256"], f"what {listed['address']} serves; give a path of your own")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _read(address: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as response:
            content = response.read(files.MOST_BYTES + 1)
        if len(content) > files.MOST_BYTES:
            raise UserError(f"at most {files.MOST_BYTES:,} bytes at {address}", "more", "fetch it")
        return content
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"an answer from {address}",
            str(error),
            f"try again with a network, put the file at {path}, or give its path to the source",
        ) from error


def _verify(content: bytes, sha256: str, where: str) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        place, _, do = where.partition("; ")
        raise UserError(f"sha256 {sha256}", f"{got} in {place}", do)
