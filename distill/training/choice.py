"""The choice of a checkpoint that `select` wrote to disk, checked whenever it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core import files
from distill.core.errors import UserError

STEPS = ("chosen_step", "validation_step")
SETS = ("selection", "validation", "general")


def path_of(run_dir: Path) -> Path:
    """Return the path of the choice."""
    return Path(run_dir) / "reports" / "selection.json"


def read(run_dir: Path) -> dict[str, Any]:
    """Return `reports/selection.json`; every field but the chosen step may be absent.

    Raises:
        UserError: it is missing, or not as `select` writes it.
    """
    path = path_of(run_dir)
    selection = files.read_object(path, follow=False)
    wrong = next((name for name in STEPS if not _is_step(selection.get(name, 0))), None)
    wrong = wrong or (None if "chosen_step" in selection else "chosen_step")
    wrong = wrong or (None if _is_rule(selection.get("rule", "")) else "rule")
    wrong = wrong or (None if _are_entries(selection.get("steps", [{"step": 0}])) else "steps")
    if wrong:
        got = f"{wrong} {selection.get(wrong)!r:.60}"
        raise UserError(f"the choice of stage select in {path}", got, "restore it")
    return selection


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_rule(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Mapping) and isinstance(value.get("type"), str)
    )


def _are_entries(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_entry, value))


def _is_entry(value: object) -> bool:
    if not isinstance(value, Mapping) or not _is_step(value.get("step")):
        return False
    tables = [value.get(name, {}) for name in SETS]
    return isinstance(value.get("score", 0), int | float) and all(
        isinstance(table, Mapping) and all(map(_is_pair, table.values())) for table in tables
    )


def _is_pair(value: object) -> bool:
    if not isinstance(value, Mapping) or value.keys() != {"correct", "n"}:
        return False
    correct, n = value["correct"], value["n"]
    return _is_step(correct) and _is_step(n) and n > 0 and correct <= n
