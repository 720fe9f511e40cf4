"""Read the files that problems come in: lines of JSON, a list, XML; each fault names its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from distill.core.errors import UserError


def content(path: Path) -> str:
    """Return a file's text.

    Raises:
        UserError: there is no such file, or it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"a file {path}", "none", "correct the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"UTF-8 in {path}", str(error), "convert the file to UTF-8") from error


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a file of JSON lines; blank lines are passed over.

    Raises:
        UserError: a line is no JSON object, or as `content`.
    """
    for number, line in enumerate(content(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"a JSON object in line {number} of {path}", str(error), "correct the line"
            ) from error
        if not isinstance(row, dict):
            got = type(row).__name__
            raise UserError(f"a JSON object in line {number} of {path}", got, "correct the line")
        yield number, row


def text(row: dict[str, Any], key: str, where: str) -> str:
    """Return a row's text under a key, or its number as text.

    Raises:
        UserError: it is missing, blank or of another kind; `where` names the row.
    """
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain(value)
    if not isinstance(value, str) or not value.strip():
        got = "none" if value is None else repr(value)
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
    try:
        found = json.loads(content(path))
    except json.JSONDecodeError as error:
        raise UserError(f"JSON in {path}", str(error), "use the public file") from error
    if not isinstance(found, kind):
        raise UserError(f"a {kind.__name__} in {path}", type(found).__name__, "use the public file")
    return found


def xml_root(path: Path) -> ElementTree.Element:
    """Parse XML that declares nothing: without a DOCTYPE there are no entities to expand.

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
