"""The benchmark of the built-in models: its estimator against its definition, and a small run."""

import importlib.util
import itertools
from pathlib import Path

import pytest
from closeness import near

ROOT = Path(__file__).resolve().parents[1]


def _benchmark():
    path = ROOT / "benchmarks" / "builtin_models.py"
    spec = importlib.util.spec_from_file_location("builtin_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = _benchmark()


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(k: int, right: int):
    samples = [True] * right + [False] * (6 - right)
    draws = [any(drawn) for drawn in itertools.combinations(samples, k)]
    assert BENCHMARK.pass_at(k, right, 6) == near(sum(draws) / len(draws), terms=24)


def test_the_mean_of_a_few_values_worked_by_hand():
    found = BENCHMARK.mean([0.0, 1.0, 1.0, 0.0])
    assert found == pytest.approx(
        {"value": 0.5, "low": -0.066, "high": 1.066, "n": 4}, rel=0, abs=5e-4
    )


def test_every_set_is_one_that_nothing_trains_on():
    for name, _, problems in BENCHMARK.sets(3):
        assert name.partition(",")[0].endswith((" test", " report"))
        assert {problem.split for problem in problems} <= {"test", "report"}


@pytest.mark.slow
def test_a_small_measurement_is_a_table(monkeypatch):
    first = next(iter(BENCHMARK.sets(2)))
    monkeypatch.setattr(BENCHMARK, "sets", lambda _: [first])
    table = BENCHMARK.table(BENCHMARK.measure(2, 2))
    assert "| pass@2 | " in table
    assert "| gsm test | " in table
    assert "| greedy accuracy | student_raw | student_instructed |" in table
