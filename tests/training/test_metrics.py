import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from distill.training.metrics import (
    Figures,
    JsonLines,
    Mirror,
    Progress,
    Record,
    read_lines,
    tensorboard,
)

ROOT = Path(__file__).parent.parent.parent


def line(step):
    return {"step": step, "loss": 1.0 / step, "tokens_per_second": 10.0}


def test_lines_come_back_and_are_cut_at_the_resumed_step(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.resume(0)
    sink.write([line(1), line(2)])
    sink.write([line(3)])
    sink.close()
    assert read_lines(sink.path) == [line(1), line(2), line(3)]
    sink.resume(2)
    assert read_lines(sink.path) == [line(1), line(2)]
    sink.resume(0)
    assert read_lines(sink.path) == []


def test_unfinished_line_is_forgotten(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write([line(1), line(2)])
    sink.path.write_text(sink.path.read_text()[:-5])
    assert read_lines(sink.path) == [line(1)]
    sink.resume(2)
    sink.write([line(2)])
    assert read_lines(sink.path) == [line(1), line(2)]


def test_number_that_json_lacks_is_refused_and_leaves_no_trace(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        sink.write([line(1), {"step": 2, "loss": float("nan")}])
    assert read_lines(sink.path) == []


def test_progress_logs_a_line_each_half_minute_where_there_is_no_terminal(caplog, monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr("distill.training.metrics.time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        progress = Progress("train", 9)
        progress.resume(0)
        progress.write([line(1)])
        progress.write([line(2)])
        progress.write([line(4)])
        progress.close()
    assert caplog.messages == ["train: step 2 of 9, loss 0.5000, 10 tokens/s"]


def test_mirror_copies_whole_lines_to_an_address(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    mirror = Mirror(lines.path, epath.Path(tmp_path / "far" / "metrics.jsonl"))
    lines.resume(0)
    mirror.resume(0)
    for step in (1, 2):
        lines.write([line(step)])
        mirror.write([line(step)])
    assert read_lines(mirror.target) == []  # not half a minute since the copy before
    mirror.close()
    assert read_lines(mirror.target) == [line(1), line(2)]


def test_utilisation_and_mean_loss_follow_from_the_figures(tmp_path, monkeypatch):
    clock = iter([0.0, 4.0])
    monkeypatch.setattr("distill.training.metrics.time.monotonic", lambda: next(clock))
    sink = JsonLines(tmp_path / "metrics.jsonl")
    record = Record([sink], seconds_at_peak=0.5)
    figures = Figures(
        *(np.array([a, b]) for a, b in ((6.0, 1.0), (3.0, 1.0), (8, 4), (1, 1), (1, 1)))
    )
    record.add(range(0, 2), figures)
    record.flush()
    one, two = read_lines(sink.path)
    assert (one["loss"], two["loss"], one["seconds"]) == (2.0, 1.0, 2.0)
    assert one["model_flops_utilisation"] == 0.25 and one["tokens_per_second"] == 4.0
    assert record.mean_loss() == 7.0 / 4.0
    assert record.mean_loss() is None


@pytest.mark.slow
def test_tensorboard_holds_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    [sink] = tensorboard(tmp_path)
    sink.resume(0)
    sink.write([line(1), line(2)])
    sink.close()
    assert any(path.stat().st_size > 100 for path in tmp_path.iterdir())


HIDDEN = """
import sys
for name in ("tensorflow", "seqio", "tensorboard", "clu"):
    sys.modules[name] = None
from pathlib import Path
from training_world import Course, curve, train_tiny
from distill.training.metrics import tensorboard
path = Path(sys.argv[1])
train_tiny(path, metrics=tensorboard(path), course=Course(steps=2, save_every=2))
assert len(curve(path)) == 2
"""


def test_training_works_without_tensorflow_and_seqio(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-c", HIDDEN, tmp_path], env=environment, check=True)
