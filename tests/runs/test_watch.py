"""What `distill watch` shows of runs in every state."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.__main__ import main
from distill.core.store import Stage
from distill.runs import watch
from distill.runs.watch import MetricsReader, RunMonitor, sparkline


def line(step, **more):
    return {
        "step": step,
        "loss": 8.0 / step,
        "seconds": 0.5,
        "tokens_per_second": 1000.0,
        "input_wait_seconds": 0.005,
        **more,
    }


def metrics(run_dir, count, tail=""):
    path = run_dir / "checkpoints" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line(step + 1)) + "\n" for step in range(count)) + tail)
    return path


def page(run_dir):
    return RunMonitor(run_dir).page()


@pytest.fixture
def killed(tmp_path):
    """A run whose trainer was killed while it wrote the 41st line."""
    with Stage.open(tmp_path, "dataset", settings={}) as stage:
        stage.finish(rows=3)
    with Stage.open(tmp_path, "train", settings={"steps": 100}):
        pass
    metrics(tmp_path, 40, tail='{"step": 41, "lo')
    (tmp_path / "checkpoints" / "params" / "20").mkdir(parents=True)
    (tmp_path / "checkpoints" / "params" / "40.orbax-checkpoint-tmp").mkdir()
    return tmp_path


def test_a_run_that_has_not_started_and_one_that_is_not_there_say_so(tmp_path):
    assert page(tmp_path) == f"{tmp_path}: no stage has started"
    assert page(tmp_path / "none").endswith("no stage has started")
    assert not (tmp_path / "none").exists()


def test_a_killed_run_shows_its_last_whole_line_and_checkpoint(killed):
    shown = page(killed)
    assert "dataset      done in" in shown
    assert "step 40 of 100 (40 %), not running on this machine" in shown
    assert "loss 0.2000 █" in shown
    assert "1,000 tokens/s, 0.5 s a step, 1.0 % input wait" in shown
    assert "% of peak" not in shown  # what cannot be computed is absent
    assert shown.endswith("last checkpoint: step 20")


def test_a_running_stage_shows_the_time_left(killed):
    with Stage.open(killed, "train", settings={"steps": 100}):
        assert "step 40 of 100 (40 %, 30.0 s left), running" in page(killed)


def test_a_finished_run_and_a_stage_before_its_first_step(killed):
    with Stage.open(killed, "train", settings={"steps": 100}) as stage:
        stage.finish(steps=100)
    assert "(40 %), done" in page(killed)
    (killed / "checkpoints" / "metrics.jsonl").unlink()
    assert page(killed).endswith("step 0 of 100")


def test_model_flops_utilisation_is_shown_where_it_is_known(killed):
    path = killed / "checkpoints" / "metrics.jsonl"
    path.write_text(json.dumps(line(1, model_flops_utilisation=0.375)) + "\n")
    assert "37.5 % of peak FLOPs" in page(killed)


def test_checkpoints_elsewhere_are_named(killed):
    (killed / "checkpoints" / "location.txt").write_text("gs://bucket/run\n")
    assert page(killed).endswith("last checkpoint: at gs://bucket/run")


def test_lines_are_read_on_and_anew_after_a_resume(tmp_path):
    path = metrics(tmp_path, 3, tail='{"step"')
    lines = MetricsReader(path)
    assert [found["step"] for found in lines.read()] == [1, 2, 3]
    metrics(tmp_path, 5)
    assert [found["step"] for found in lines.read()] == [1, 2, 3, 4, 5]
    metrics(tmp_path, 2)
    assert [found["step"] for found in lines.read()] == [1, 2]
    path.unlink()
    assert lines.read() == []


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.integers(1, 60))
def test_sparkline_has_a_bar_for_each_column_and_reaches_both_ends(values, width):
    bars = sparkline(values, width)
    assert len(bars) == min(width, len(values)) and set(bars) <= set(watch.BARS)
    assert watch.BARS[0] in bars


def test_the_command_prints_once_without_a_terminal_and_refuses_a_file(killed, capsys):
    assert main(["watch", str(killed), "--once"]) == 0
    assert "step 40 of 100" in capsys.readouterr().out
    assert main(["watch", str(killed / "manifests" / "train.json")]) == 2
    assert "expected a run directory" in capsys.readouterr().err


def test_watching_imports_no_jax():
    code = "import sys; from distill.runs import watch; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "line", ["null", "[1]", "xx", '{"step": 1}', '{"step": "1", "loss": 1}', "[" * 100_000]
)
def test_a_damaged_line_of_metrics_is_one_sentence(killed, line, capsys):
    with (killed / "checkpoints" / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert main(["watch", str(killed), "--once"]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_codes_in_what_is_watched_reach_no_terminal(killed, capsys):
    (killed / "checkpoints" / "location.txt").write_text("else\x1b]0;pwned\x07\u202e\n")
    assert main(["watch", str(killed), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b]0;pwned" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)
