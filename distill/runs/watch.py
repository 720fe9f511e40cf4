"""Watch a run in the terminal: stage, step, loss, speed, time left and last checkpoint.

Reads RUN_DIR/manifests and RUN_DIR/checkpoints/metrics.jsonl and changes nothing, so the run may be
pending, running, killed or complete.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core import files, terminal
from distill.core.errors import UserError
from distill.core.stages import read_manifest

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # columns of the loss curve
RECENT = 50  # steps whose median gives the speed and the time left
TRAINING = ("train", "pretrain")
SHOWN = ("step", "loss", "seconds", "tokens_per_second")
LOCKS = Path("/proc/locks")
CLEAR = "\x1b[H\x1b[J"


def main(arguments: Sequence[str]) -> int:
    """Print the state of a run, once or until interrupted.

    Raises:
        UserError: RUN_DIR is a file, or a manifest is damaged.
    """
    options = _parser().parse_args(arguments)
    if options.run_dir.is_file():
        raise UserError("a run directory", f"the file {options.run_dir}", "name the directory")
    monitor = RunMonitor(options.run_dir)
    if options.once or not sys.stdout.isatty():
        terminal.show(monitor.page())
        return 0
    try:
        while True:
            page = monitor.page()
            sys.stdout.write(CLEAR)
            terminal.show(page)
            sys.stdout.flush()
            time.sleep(options.interval)
    except KeyboardInterrupt:
        return 0


class MetricsReader:
    """Reads the complete lines of a growing metrics file, from the end of the previous read."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []
        self._offset, self._inode = 0, -1

    def read(self) -> list[dict[str, Any]]:
        """Return all complete lines; reads a resumed run's file again from its start."""
        if not self.path.exists():
            return []
        with files.open_regular(self.path, follow=False) as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self.lines, self._offset, self._inode = [], 0, status.st_ino
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")
        self._offset += len(whole[0]) + len(whole[1])
        self.lines += [_figures(line, self.path) for line in whole[0].splitlines()]
        return self.lines


def _figures(line: bytes, path: Path) -> dict[str, Any]:
    """Parse a line of metrics and require the numbers that `watch` shows."""
    figures = files.parse_object(line, f"a line of {path}")
    invalid = [name for name in SHOWN if not isinstance(figures.get(name), int | float)]
    if invalid or not isinstance(figures["step"], int):
        name, got = (invalid or ["step"])[0], "another value"
        raise UserError(f"a number as {name} in each line of {path}", got, "restore the file")
    return figures


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """A stage that has a manifest.

    Attributes:
        name: of the stage.
        manifest: its present content.
        running: whether a process of this machine holds the stage's lock; None if unknown.
    """

    name: str
    manifest: Mapping[str, Any]
    running: bool | None

    @property
    def state(self) -> str:
        """The state in words."""
        if self.manifest["complete"]:
            return "done"
        return {True: "running", False: "not running on this machine", None: "not done"}[
            self.running
        ]


class RunMonitor:
    """Reads the state of a run directory; call `page` repeatedly."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._lines = MetricsReader(run_dir / "checkpoints" / "metrics.jsonl")

    def page(self) -> str:
        """Return the present state as text."""
        stages = self._stages()
        if not stages:
            return f"{self.run_dir}: no stage has started"
        shown = [f"{self.run_dir}", *map(_stage, stages)]
        training = [stage for stage in stages if stage.name in TRAINING]
        if training:
            shown += _training(training[-1], self._lines.read(), self._last_checkpoint())
        return "\n".join(shown)

    def _stages(self) -> list[StageStatus]:
        """Return the stages with a manifest, ordered by the manifests' modification times."""
        files.require_plain(self.run_dir / "manifests")
        paths = list((self.run_dir / "manifests").glob("*.json"))
        locked = _locked_inodes()
        return [
            StageStatus(path.stem, read_manifest(path), _holds(path.with_suffix(".lock"), locked))
            for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)
        ]

    def _last_checkpoint(self) -> str:
        pointer = self.run_dir / "checkpoints" / "location.txt"
        if pointer.exists():
            return f"at {files.read_text(pointer, limit=4096, follow=False).strip()}"
        folders = (self.run_dir / "checkpoints" / "params").glob("*")
        steps = [int(folder.name) for folder in folders if folder.name.isdecimal()]
        return f"step {max(steps):,}" if steps else "none yet"


def _stage(stage: StageStatus) -> str:
    seconds = stage.manifest["seconds"]
    duration = f" in {_duration(seconds)}" if stage.manifest["complete"] else ""
    return f"  {stage.name:<12} {stage.state}{duration}"


def _training(stage: StageStatus, lines: Sequence[Mapping[str, Any]], checkpoint: str) -> list[str]:
    setting = stage.manifest["settings"].get("steps", 0)
    steps = setting if isinstance(setting, int) else 0
    if not lines:
        return [f"step 0 of {steps:,}"]
    last, recent = lines[-1], lines[-RECENT:]
    seconds = statistics.median(line["seconds"] for line in recent)
    left = steps - last["step"]
    share = f"{100 * last['step'] / steps:.0f} %" if steps else ""
    until = f", {_duration(left * seconds)} left" if left > 0 and stage.running else ""
    return [
        f"step {last['step']:,} of {steps:,} ({share}{until}), {stage.state}",
        f"loss {last['loss']:.4f} {sparkline([line['loss'] for line in lines])}",
        _speed(recent, seconds),
        f"last checkpoint: {checkpoint}",
    ]


def _speed(recent: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """Return the speed over the recent steps; omits figures that the lines do not have."""
    rate = statistics.median(line["tokens_per_second"] for line in recent)
    parts = [f"{rate:,.0f} tokens/s", f"{seconds:.3g} s a step"]
    if all("input_wait_seconds" in line for line in recent):
        wait = sum(line["input_wait_seconds"] for line in recent)
        parts.append(f"{100 * wait / sum(line['seconds'] for line in recent):.1f} % input wait")
    if all("model_flops_utilisation" in line for line in recent):
        utilisation = statistics.median(line["model_flops_utilisation"] for line in recent)
        parts.append(f"{100 * utilisation:.1f} % of peak FLOPs")
    return ", ".join(parts)


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return the values as bars, each the mean of an equal share, scaled from lowest to highest.

    Example:
        >>> sparkline([3.0, 2.0, 1.0, 1.0], width=4), sparkline([1.0])
        ('█▅▁▁', '▁')
    """
    count = min(width, len(values))
    borders = [len(values) * column // count for column in range(count + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(borders)]
    low, spread = min(means), max(means) - min(means)
    scale = (len(BARS) - 1) / spread if spread else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _duration(seconds: float) -> str:
    """Return seconds in the largest units that fit.

    Example:
        >>> _duration(8.25), _duration(75), _duration(7_260)
        ('8.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _locked_inodes() -> set[int] | None:
    """Return the inodes that a process of this machine locks, None if unknown.

    Reads the kernel's list: trying to take a lock would race with the stage.
    """
    if not LOCKS.exists():
        return None
    fields = (line.split() for line in LOCKS.read_text().splitlines() if " FLOCK " in line)
    # FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
    places = (words[words.index("FLOCK") + 4] for words in fields)
    return {int(place.rpartition(":")[2]) for place in places}


def _holds(lock: Path, locked: set[int] | None) -> bool | None:
    if locked is None or not lock.exists():
        return None
    return lock.stat().st_ino in locked


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="distill watch", description=summary)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of `distill run`")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between updates")
    return parser
