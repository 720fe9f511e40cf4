"""Laws of the rooms: their sizes, their files, and the contract that names every module."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path.relative_to(ROOT)
    for name in ("distill", "tokalign")
    for path in (ROOT / name).rglob("*.py")
)
LINES = {path: len((ROOT / path).read_text().splitlines()) for path in MODULES}
# Files of rules and word lists of the built-in world; no program to read.
PURE_DATA = {"heldout.py", "stories.py"}


def test_no_folder_with_its_subfolders_holds_more_than_18_percent_of_the_lines():
    lines = Counter()
    for path, count in LINES.items():
        for folder in path.parents:
            lines[str(folder)] += count
    rooms = {name: n for name, n in lines.items() if name not in (".", "distill")}
    total = sum(LINES.values())
    assert {name: n / total for name, n in rooms.items() if n > 0.18 * total} == {}


def test_no_file_exceeds_600_lines_unless_it_is_pure_data():
    long = {str(path): n for path, n in LINES.items() if n > 600 and path.name not in PURE_DATA}
    assert long == {}


def test_at_most_four_loose_files_lie_in_distill():
    assert len([path for path in MODULES if str(path.parent) == "distill"]) <= 4


@pytest.mark.parametrize("package", ["distill", "tokalign"])
def test_the_contract_names_every_room_and_every_module_has_one(package):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c for c in contracts["contracts"] if c.get("containers") == [package]]
    named = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    rooms = {
        path.relative_to(package).parts[0].removesuffix(".py")
        for path in MODULES
        if path.parts[0] == package
    }
    assert layers["exhaustive"] is True
    assert named == rooms - {"__init__"}
