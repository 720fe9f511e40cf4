"""Laws of the tree as a whole."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sorted(
    path
    for name in ("distill", "tokalign", "tests", "benchmarks")
    for path in (ROOT / name).rglob("*.py")
)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_evaluates_or_swallows(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "shelve"} & set(names)
            assert not unsafe or path.is_relative_to(ROOT / "tests"), path
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), path
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, path
            assert ast.unparse(node.type) not in ("Exception", "BaseException"), path


def test_only_config_imports_gin_and_only_features_dataset_and_t5x_import_seqio():
    importers = {"gin": set(), "seqio": set(), "tensorflow": set()}
    for path in (ROOT / "distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                for name in {name.partition(".")[0] for name in names} & importers.keys():
                    importers[name].add(path.name)
    assert importers["gin"] == {"config.py"}
    assert importers["seqio"] | importers["tensorflow"] <= {"features.py", "dataset.py", "t5x.py"}


def test_training_models_and_core_never_reach_tensorflow_or_seqio():
    for folder in ("models", "training", "core"):
        for path in (ROOT / "distill" / folder).rglob("*.py"):
            assert not re.search(r"distill\.targets\.(features|dataset)", path.read_text()), path
