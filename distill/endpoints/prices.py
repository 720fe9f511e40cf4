"""The prices of models: a table that ships, and before it a table of the user's own."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core import paths
from distill.core.errors import UserError
from distill.core.store import read_json
from distill.endpoints.spending import Price

SHIPPED = "data/prices.json"
# A snapshot has its model's price unless the table has one for it.
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def price_of(model: str, path: str | None = None) -> Price | None:
    """Return a model's price, None where no table has it.

    Args:
        model: its name; a snapshot's day may follow it.
        path: a file in the form of the shipped one, whose prices come first.

    Raises:
        UserError: the file is missing or has another form.

    Example:
        >>> price_of("gpt-4o-mini-2024-07-18").completion
        0.6
    """
    files = [*([Path(path)] if path else []), paths.shipped(SHIPPED)]
    for file in files:
        table = _table(file)
        for name in (model, _SNAPSHOT.sub("", model)):
            if name in table:
                return _price(name, table[name], file)
    return None


def _table(file: Path) -> Mapping[str, Any]:
    table = read_json(file)
    if not isinstance(table, dict):
        raise _odd(file, type(table).__name__)
    return table


def _price(model: str, row: Any, file: Path) -> Price:
    try:
        prompt, completion = (float(dollars) for dollars in row["dollars_per_million"])
        price = Price(model, prompt, completion, str(row["source"]), row.get("date"))
    except (KeyError, TypeError, ValueError) as error:
        raise _odd(file, f"{model} with {row!r:.80}") from error
    if min(prompt, completion) < 0:
        raise _odd(file, f"{model} with {row!r:.80}")
    return price


def _odd(file: Path, got: str) -> UserError:
    form = '{MODEL: {"dollars_per_million": [IN, OUT], "source": …, "date": …}}'
    return UserError(f"{form} in {file}", got, "correct the price table")
