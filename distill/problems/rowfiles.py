"""Read files of problems (JSON lines, JSON, XML); every error names file and line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from distill.core import files
from distill.core.errors import UserError

_MOST_DIGITS = 300


def content(path: Path) -> str:
    """Return a file's text.

    Raises:
        UserError: there is no such regular file, it is too large, or it is not in UTF-8.
    """
    return files.read_text(path)


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a file of JSON lines; skip lines of whitespace.

    Raises:
        UserError: a line is no JSON object, or as `content`.
    """
    for number, line in enumerate(content(path).split("\n"), 1):
        if not line.strip():
            continue
        yield number, files.parse_object(line, f"line {number} of {path}")


def text(row: dict[str, Any], key: str, where: str) -> str:
    """Return a row's text under a key, or its number as text.

    Raises:
        UserError: it is missing, only whitespace or of another type; `where` names the row.
    """
    value = row.get(key)
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        got = f"a number of more than {_MOST_DIGITS} digits"
        raise UserError(f"a text under {key!r} in {where}", got, "write it as a text")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain(value)
    if not isinstance(value, str) or not value.strip():
        got = "none" if value is None else f"{value!r:.80}"
        raise UserError(f"a text under {key!r} in {where}", got, "add it or drop the row")
    return value.strip()


def plain(value: float) -> str:
    """Write a number without the zero fraction that JSON sets carry."""
    return str(int(value)) if float(value).is_integer() else str(value)


def json_list(path: Path) -> list[dict[str, Any]]:
    """Return the list that a JSON file holds.

    Raises:
        UserError: it holds something else, or as `content`.
    """
    return _json(path, list)


def json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        UserError: it holds something else, or as `content`.
    """
    return _json(path, dict)


def _json(path: Path, kind: type) -> Any:
    value = files.read_json(path)
    if not isinstance(value, kind):
        raise UserError(f"a {kind.__name__} in {path}", type(value).__name__, "use the public file")
    return value


def xml_root(path: Path) -> ElementTree.Element:
    """Parse XML without a DOCTYPE, so that there are no entities to expand.

    Raises:
        UserError: it is no such XML, or as `content`.
    """
    text = content(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"XML without a DOCTYPE in {path}", "one", "use the public file")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"XML in {path}", str(error), "use the public file") from error
