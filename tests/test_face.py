"""The public Python interface: its names, its cost, and examples that run."""

import doctest
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import distill

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def seconds(code):
    """Return the least seconds of three runs of Python."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    return min(times)


def test_the_face_is_what_the_reference_lists():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == distill.__all__


def test_every_name_is_there_and_says_what_it_is():
    for name in distill.__all__:
        assert getattr(distill, name).__doc__, name
    assert set(distill.__all__) <= set(dir(distill))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'distill' has no attribute 'Shape'"):
        distill.Shape  # noqa: B018


def test_importing_distill_loads_nothing_heavy_and_takes_a_tenth_of_a_second():
    heavy = ("jax", "tensorflow", "pyarrow", "numpy", "gin", "seqio")
    code = f"import sys, distill; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert seconds(code) - seconds("") < 0.1


@pytest.mark.parametrize("name", distill.__all__)
def test_each_name_has_an_example_that_runs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    value = getattr(distill, name)
    found = doctest.DocTestFinder(recurse=False).find(value, name)
    tests = [test for test in found if test.examples]
    assert tests, f"{name} has no example"
    module = sys.modules[value.__module__]
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for test in tests:
        test.globs = dict(vars(module))
        result = doctest.DocTestRunner(optionflags=flags).run(test)
        assert result.failed == 0


def test_the_example_in_the_readme_has_at_most_fifteen_lines_and_runs(tmp_path):
    (example,) = re.findall(r"```python\n(import distill\n.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "right" in done.stdout


def test_a_file_runs_from_python_twice_and_forgets_the_first(tmp_path):
    first = {"train/problems.BuiltIn.n": 5}
    one = distill.run(
        "runs/quickstart.gin", run_dir=tmp_path / "1", STAGES=("problems",), bindings=first
    )
    two = distill.run(
        "runs/quickstart.gin",
        run_dir=tmp_path / "2",
        STAGES=("problems",),
        bindings={"train/problems.BuiltIn.n": 9, "validation/problems.BuiltIn.n": 101},
    )
    assert two["problems"] - one["problems"] == 4 + 1
    again = distill.run(
        "runs/quickstart.gin", run_dir=tmp_path / "1", STAGES=("problems",), bindings=first
    )
    assert again == one


def test_what_gin_cannot_write_is_refused(tmp_path):
    from distill.core.errors import UserError

    with pytest.raises(UserError, match="as bindings, got object; name it in the gin file"):
        distill.run("runs/quickstart.gin", run_dir=tmp_path, STEPS=object())
    with pytest.raises(UserError, match=r"stages of problems, .* in STAGES, got prblems"):
        distill.run("runs/quickstart.gin", run_dir=tmp_path, STAGES=("prblems",))
