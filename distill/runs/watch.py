"""Watch a run in the terminal: stage, step, loss, speed, time left and last checkpoint.

Reads RUN_DIR/manifests and RUN_DIR/checkpoints/metrics.jsonl and changes nothing, so it may look at
a run that has not begun, goes on, was killed or is done.
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
WIDTH = 48  # columns of the loss
RECENT = 50  # steps whose median makes the speed and the time left
TRAINING = ("train", "pretrain")
SHOWN = ("step", "loss", "seconds", "tokens_per_second")
LOCKS = Path("/proc/locks")
CLEAR = "\x1b[H\x1b[J"


def main(arguments: Sequence[str]) -> int:
    """Print what a run does, once or until interrupted.

    Raises:
        UserError: RUN_DIR is a file, or a manifest is damaged.
    """
    options = _parser().parse_args(arguments)
    if options.run_dir.is_file():
        raise UserError("a run directory", f"the file {options.run_dir}", "name the directory")
    watched = Watched(options.run_dir)
    if options.once or not sys.stdout.isatty():
        terminal.show(watched.page())
        return 0
    try:
        while True:
            page = watched.page()
            sys.stdout.write(CLEAR)
            terminal.show(page)
            sys.stdout.flush()
            time.sleep(options.interval)
    except KeyboardInterrupt:
        return 0


class Lines:
    """The whole lines of a metrics file that grows; read on from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []
        self._offset, self._inode = 0, -1

    def read(self) -> list[dict[str, Any]]:
        """Return all lines up to the last whole one; a resumed run's file is read anew."""
        if not self.path.exists():
            return []
        with files.open_regular(self.path, follow=False) as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:
                self.lines, self._offset, self._inode = [], 0, found.st_ino
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")
        self._offset += len(whole[0]) + len(whole[1])
        self.lines += [_figures(line, self.path) for line in whole[0].splitlines()]
        return self.lines


def _figures(line: bytes, path: Path) -> dict[str, Any]:
    """Return a line of metrics that holds what `watch` shows, as numbers."""
    found = files.parse_object(line, f"a line of {path}")
    wrong = [name for name in SHOWN if not isinstance(found.get(name), int | float)]
    if wrong or not isinstance(found["step"], int):
        name = wrong[0] if wrong else "step"
        raise UserError(f"a number as {name} in each line of {path}", "another", "restore the file")
    return found


@dataclasses.dataclass(frozen=True)
class Started:
    """A stage that has a manifest.

    Attributes:
        name: of the stage.
        manifest: as it stands.
        running: whether a process of this machine holds the stage's lock; None where that cannot be
            told.
    """

    name: str
    manifest: Mapping[str, Any]
    running: bool | None

    @property
    def state(self) -> str:
        """One word or two for people."""
        if self.manifest["complete"]:
            return "done"
        return {True: "running", False: "not running on this machine", None: "not done"}[
            self.running
        ]


class Watched:
    """A run directory under observation."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._lines = Lines(run_dir / "checkpoints" / "metrics.jsonl")

    def page(self) -> str:
        """Return what there is to see now."""
        stages = self._stages()
        if not stages:
            return f"{self.run_dir}: no stage has started"
        shown = [f"{self.run_dir}", *map(_stage, stages)]
        training = [stage for stage in stages if stage.name in TRAINING]
        if training:
            shown += _training(training[-1], self._lines.read(), self._last_checkpoint())
        return "\n".join(shown)

    def _stages(self) -> list[Started]:
        """The stages with a manifest, the one that was touched last at the end."""
        files.require_plain(self.run_dir / "manifests")
        paths = list((self.run_dir / "manifests").glob("*.json"))
        locked = _locked_inodes()
        return [
            Started(path.stem, read_manifest(path), _holds(path.with_suffix(".lock"), locked))
            for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)
        ]

    def _last_checkpoint(self) -> str:
        pointer = self.run_dir / "checkpoints" / "location.txt"
        if pointer.exists():
            return f"at {files.read_text(pointer, limit=4096, follow=False).strip()}"
        folders = (self.run_dir / "checkpoints" / "params").glob("*")
        steps = [int(folder.name) for folder in folders if folder.name.isdecimal()]
        return f"step {max(steps):,}" if steps else "none yet"


def _stage(stage: Started) -> str:
    seconds = stage.manifest["seconds"]
    spent = f" in {_duration(seconds)}" if stage.manifest["complete"] else ""
    return f"  {stage.name:<12} {stage.state}{spent}"


def _training(stage: Started, lines: Sequence[Mapping[str, Any]], checkpoint: str) -> list[str]:
    stated = stage.manifest["settings"].get("steps", 0)
    steps = stated if isinstance(stated, int) else 0
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
    """Speed over the recent steps; figures that a run does not have are left out."""
    rate = statistics.median(line["tokens_per_second"] for line in recent)
    parts = [f"{rate:,.0f} tokens/s", f"{seconds:.3g} s a step"]
    if all("input_wait_seconds" in line for line in recent):
        waited = sum(line["input_wait_seconds"] for line in recent)
        parts.append(f"{100 * waited / sum(line['seconds'] for line in recent):.1f} % input wait")
    if all("model_flops_utilisation" in line for line in recent):
        used = statistics.median(line["model_flops_utilisation"] for line in recent)
        parts.append(f"{100 * used:.1f} % of peak FLOPs")
    return ", ".join(parts)


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return the values as bars, means of equal stretches, the lowest and highest at the ends.

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
    """Return seconds for people.

    Example:
        >>> _duration(8.25), _duration(75), _duration(7_260)
        ('8.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _locked_inodes() -> set[int] | None:
    """The inodes on which some process of this machine holds a lock; asking for one would race."""
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
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="of `distill run`")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between looks")
    return parser
