"""A run's figures on their way from the devices to JSONL, TensorBoard and the terminal."""

import itertools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from distill.core import files
from distill.core.errors import UserError
from distill.core.store import atomic_path, sync

logger = logging.getLogger(__name__)
SECONDS_PER_LINE = 30.0

Line = Mapping[str, int | float]
T = TypeVar("T")


class Figures(NamedTuple):
    """What optimizer steps measure, on the devices until somebody asks."""

    nats: Float[Array, "*steps"]
    weight: Float[Array, "*steps"]
    tokens: Int[Array, "*steps"]
    gradient_norm: Float[Array, "*steps"]
    learning_rate: Float[Array, "*steps"]


@runtime_checkable
class Metrics(Protocol):
    """A sink of lines, one for each optimizer step.

    A line holds `step` (finished steps, so the first is 1), `loss` (nats per token, of that step's
    batch before its update), `tokens` (sum of loss weights), `learning_rate`, `gradient_norm`
    (before clipping), `seconds` (mean over the steps of one fetch), `tokens_per_second`
    (of all towers, padding apart) and `input_wait_seconds` (of `seconds`, those in which the
    devices had nothing to do because the next batch was not there). Where the model's FLOPs and the
    accelerator's peak are known it holds `model_flops_utilisation`, the share of the peak that
    forward and backward take (padding counts, rematerialisation does not).
    """

    def resume(self, step: int) -> None:
        """Forget the lines after `step`, from which the run resumes."""
        ...

    def write(self, lines: Sequence[Line]) -> None:
        """Take the next lines."""
        ...

    def close(self) -> None:
        """Put everything where it lasts."""
        ...


class JsonLines:
    """One JSON object a line; only whole lines are ever appended."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def resume(self, step: int) -> None:
        """Cut the file after `step`, and after a line that a kill left unfinished."""
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, lines: Sequence[Line]) -> None:
        """Append the lines in one write."""
        text = "".join(json.dumps(dict(line), allow_nan=False) + "\n" for line in lines)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Force the file onto the disk."""
        if self.path.exists():
            sync(self.path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a metrics file; none where there is no file.

    Raises:
        UserError: a whole line is no object with a step and a loss, or it is no regular file.
    """
    if not Path(path).exists():
        return []
    whole = files.read_text(Path(path), follow=False).rpartition("\n")[0]
    lines = [files.parse_object(line, f"a line of {path}") for line in whole.split("\n") if line]
    for line in lines:
        if not isinstance(line.get("step"), int) or not isinstance(line.get("loss"), int | float):
            raise UserError(f"a step and a loss in each line of {path}", "none", "restore the file")
    return lines


class Progress:
    """A bar on a terminal, a log line each half minute elsewhere.

    Args:
        name: what stands before the bar.
        steps: where the run ends.
    """

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self._bar: tqdm | None = None
        self._last = time.monotonic()

    def resume(self, step: int) -> None:
        """Start from `step`."""
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=self.name, total=self.steps, initial=step, unit="step", dynamic_ncols=True
            )

    def write(self, lines: Sequence[Line]) -> None:
        """Show the newest line."""
        shown = _shown(lines[-1])
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(len(lines))
        elif time.monotonic() - self._last >= SECONDS_PER_LINE:
            logger.info("%s: step %d of %d, %s", self.name, lines[-1]["step"], self.steps, shown)
            self._last = time.monotonic()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _shown(line: Line) -> str:
    return f"loss {line['loss']:.4f}, {line['tokens_per_second']:.0f} tokens/s"


class Mirror:
    """A copy of a metrics file at an address without appends, such as gs:// or s3://.

    Objects there are written whole, so this is done at most each half minute and at the end.
    """

    def __init__(self, source: Path, target: epath.Path) -> None:
        self.source, self.target = Path(source), target
        self._last = -math.inf

    def resume(self, step: int) -> None:
        """Copy the lines that stay."""
        self._copy()

    def write(self, lines: Sequence[Line]) -> None:
        """Copy all lines if the last copy is old enough."""
        if time.monotonic() - self._last >= SECONDS_PER_LINE:
            self._copy()

    def close(self) -> None:
        """Copy all lines."""
        self._copy()

    def _copy(self) -> None:
        if self.source.exists():
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.target.write_text(self.source.read_text())
        self._last = time.monotonic()


class TensorBoard:
    """Event files through clu; built by `tensorboard` if its packages are installed.

    Args:
        make: makes clu's writer, and its directory with it, when the first lines come.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._writer = make, None

    def resume(self, step: int) -> None:
        """Do nothing: TensorBoard shows the newest value of a step."""

    def write(self, lines: Sequence[Line]) -> None:
        """Write every figure of every line."""
        self._writer = self._writer or self._make()
        for line in lines:
            scalars = {name: value for name, value in line.items() if name != "step"}
            self._writer.write_scalars(int(line["step"]), scalars)

    def close(self) -> None:
        """Flush the event file."""
        if self._writer is not None:
            self._writer.close()


def tensorboard(directory: Path | epath.Path) -> list[Metrics]:
    """Return a TensorBoard sink, or none where clu, TensorFlow or tensorboard are not installed."""
    try:
        from clu import metric_writers
    except ImportError as error:
        logger.info("no TensorBoard metrics: %s", error)
        return []
    return [TensorBoard(lambda: metric_writers.SummaryWriter(str(directory)))]


class Record:
    """Figures on their way from the devices to the sinks.

    Args:
        sinks: of the lines.
        seconds_at_peak: that the model FLOPs of a step take at the devices' peak, where known.
    """

    def __init__(self, sinks: Sequence[Metrics], seconds_at_peak: float | None = None) -> None:
        self._sinks, self._seconds_at_peak = sinks, seconds_at_peak
        self._waiting: list[tuple[range, Figures]] = []
        self._starved, self._last = 0.0, time.monotonic()
        self._nats, self._weight = 0.0, 0.0

    def timed(self, stacks: Iterator[T]) -> Iterator[T]:
        """Pass the stacks on; count the seconds in which the devices wait for one of them."""
        while True:
            before = time.monotonic()
            stack = next(stacks, None)
            if stack is None:
                return
            if not self._waiting or self._waiting[-1][1].nats.is_ready():  # type: ignore[attr]
                self._starved += time.monotonic() - before
            yield stack

    def add(self, steps: range, figures: Figures) -> None:
        """Keep the figures of `steps`, counted from 0, without waiting for them."""
        self._waiting.append((steps, figures))

    def flush(self) -> None:
        """Wait for the figures and write them.

        Raises:
            UserError: a loss or a gradient is not finite; the lines before it are written.
        """
        numbers = [step + 1 for steps, _ in self._waiting for step in steps]
        fetched = jax.device_get([figures for _, figures in self._waiting])
        columns = [np.concatenate(column).tolist() for column in zip(*fetched, strict=True)]
        rows = zip(numbers, *columns, strict=True)
        speed = self._speed(len(numbers))
        self._waiting = []
        self._write([_line(number, row, speed) for number, *row in rows])

    def mean_loss(self) -> float | None:
        """Return nats per token of the lines since the last call, None if there are none."""
        mean = self._nats / self._weight if self._weight else None
        self._nats, self._weight = 0.0, 0.0
        return mean

    def _speed(self, steps: int) -> dict[str, float]:
        """Return the wall-clock figures of a step, as means over the steps since the last fetch."""
        now = time.monotonic()
        seconds, starved = (now - self._last) / steps, self._starved / steps
        self._last, self._starved = now, 0.0
        speed = {"seconds": seconds, "input_wait_seconds": starved}
        if self._seconds_at_peak is not None:
            speed["model_flops_utilisation"] = self._seconds_at_peak / seconds
        return speed

    def _write(self, lines: Sequence[Line]) -> None:
        good = list(itertools.takewhile(_finite, lines))
        for sink in self._sinks if good else ():
            sink.write(good)
        self._nats += sum(line["loss"] * line["tokens"] for line in good)
        self._weight += sum(line["tokens"] for line in good)
        if len(good) < len(lines):
            line = lines[len(good)]
            raise UserError(
                f"a finite loss at step {line['step']}",
                f"loss {line['loss']} and gradient norm {line['gradient_norm']}",
                f"look at batch {line['step'] - 1} or lower the learning rate; "
                "earlier checkpoints stay",
            )


def _finite(line: Line) -> bool:
    return math.isfinite(line["loss"] + line["gradient_norm"])


def _line(number: int, row: Sequence[int | float], speed: Mapping[str, float]) -> Line:
    figures = dict(zip(Figures._fields, row, strict=True))
    nats, weight, tokens = (figures.pop(name) for name in ("nats", "weight", "tokens"))
    return {
        "step": number,
        "loss": nats / weight if weight else math.nan,
        "tokens": weight,
        **figures,
        **speed,
        "tokens_per_second": tokens / speed["seconds"],
    }
