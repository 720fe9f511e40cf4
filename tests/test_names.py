"""Names that were replaced stay replaced: as identifiers, module paths and bindings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("distill", "tokalign", "tests", "benchmarks", "gin_configs", "docs", "notebooks")
TEXTS = sorted(
    path
    for path in (ROOT / "README.md", *(p for name in FOLDERS for p in (ROOT / name).rglob("*")))
    if path.suffix in (".py", ".gin", ".md", ".ipynb")
    and path != Path(__file__)
    and "recorded" not in path.parts
)
PYTHON = [path for path in TEXTS if path.suffix == ".py"]

# Classes and functions by their old name.
IDENTIFIERS = {
    "Asking": "Client",
    "Door": "Gate",
    "Ledger": "SpendingLog",
    "Means": "Capabilities",
    "Shipped": "SavedModel",
    "Student": "Vocabulary",
    "Way": "SetOptions",
    "lying": "constrain",
    "through": "wrap",
}
# Modules and packages by their old name, and where they lie now.
MODULES = {
    "answered": "responses",
    "asked": "requests",
    "assess": "verifier_report",
    "corpus": "problems, grading, endpoints, traces, targets and text",
    "findings": "analysis",
    "hot": "fire",
    "inflight": "in_flight",
    "intervals": "statistics",
    "measured": "outcomes",
    "opened": "lazy_params",
    "scaling": "test_time",
}
# Bindings of gin by their old name.
BINDINGS = (
    r"\b(align|dataset)\.run\.student\b",
    r"\bdistillation\.(vocabulary|mixture)\.student\b",
    r"\bevaluate\.(run|final)\.(through|ways)\b",
    r"\bsampling\.Shipped\b",
    r"\bcross_blanks\b",
)


def names_of(tree):
    """Return every identifier that a program defines, uses or passes by keyword."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.alias(name=name):
                yield name.rpartition(".")[2]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_program_uses_an_old_name(path):
    found = IDENTIFIERS.keys() & set(names_of(ast.parse(path.read_text())))
    assert not found, {name: IDENTIFIERS[name] for name in found}


@pytest.mark.parametrize("name", MODULES)
def test_no_text_names_an_old_module(name):
    path = re.compile(rf"\b(distill|tests)(/\w+)*/{name}(\.py|/)|\bdistill(\.\w+)*\.{name}\b(?!\()")
    imported = re.compile(rf"^ *from distill[\w.]* import (.*, )?{name}\b", re.MULTILINE)
    for file in TEXTS:
        text = file.read_text()
        assert not path.search(text), (file, MODULES[name])
        assert not imported.search(text), (file, MODULES[name])


@pytest.mark.parametrize("binding", BINDINGS)
def test_no_text_has_an_old_binding(binding):
    assert [file for file in TEXTS if re.search(binding, file.read_text())] == []


def test_every_module_named_in_a_document_exists():
    for file in TEXTS:
        if file.suffix == ".md":
            for name in re.findall(
                r"`((?:distill|tokalign|tests|benchmarks)/[\w/]+\.py)", file.read_text()
            ):
                assert (ROOT / name).is_file(), (file, name)
