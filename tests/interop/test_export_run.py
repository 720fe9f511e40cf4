"""The shipped instructed student, exported and asked by transformers in another process."""

import importlib.util
import sys
from pathlib import Path

import pytest

from distill.core import paths
from distill.interop.export import export
from distill.models.saved import SavedModel

ROOT = Path(__file__).resolve().parents[2]
START = "data/models/student_instructed"


def parity():
    """Load the benchmark, which is no package."""
    path = ROOT / "benchmarks" / "export_parity.py"
    spec = importlib.util.spec_from_file_location("export_parity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_transformers_in_another_process_answers_100_problems_as_the_shipped_student(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    benchmark = parity()
    generator = SavedModel(START, batch_size=100).generator
    vocabulary = paths.shipped(START) / "student.model"
    export(tmp_path / "export", generator.network, generator.params, vocabulary, card="# A card\n")
    asked = benchmark.prompts_of(100)
    assert len(set(asked)) == 100
    found = benchmark.compare(tmp_path / "export", generator, asked, tmp_path)
    assert found["same_ids"] == found["same_answers"] == found["prompts"] == 100
    assert found["positions"] > 1000
    assert found["largest_difference"] <= benchmark.TOLERANCE


def test_a_difference_is_an_exit_code(monkeypatch, capsys):
    benchmark = parity()
    same = {"prompts": 9, "same_ids": 9, "same_answers": 9, "positions": 40}
    for worse, code in (({}, 0), ({"same_answers": 8}, 1), ({"largest_difference": 2e-3}, 1)):
        found = {**same, "largest_difference": 1e-6, **worse}
        monkeypatch.setattr(benchmark, "of_run", lambda *_, found=found: found)
        monkeypatch.setattr(sys, "argv", ["export_parity.py", "runs/some"])
        assert benchmark.main() == code
    assert "same_answers" in capsys.readouterr().out
