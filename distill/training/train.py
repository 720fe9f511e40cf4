"""The trainer of the student and of the built-in starts; `run` is the stage `train`."""

import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree

from distill.core import files
from distill.core.errors import UserError
from distill.core.ports import Batches
from distill.core.records import PackedExample
from distill.core.store import Shards, Stage
from distill.models import accelerators, flops, partitioning, processes, weights
from distill.models.decoder import DecoderModel
from distill.models.partitioning import RULES
from distill.models.processes import Cluster
from distill.models.t5 import T5Model
from distill.training import checkpoints as saved
from distill.training import initialise, metrics, origin, placement
from distill.training.checkpoints import Checkpoints
from distill.training.feed import PackedBatches, ahead, in_order
from distill.training.losses import DistributionMatching, Loss
from distill.training.metrics import Metrics, Record
from distill.training.optimizers import AdamW, Constant, Optimizer
from distill.training.step import Key, Model, State, compiled

logger = logging.getLogger(__name__)
# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("checkpoints",)
METRICS = "metrics.jsonl"
# For supervisors that take 0 as the end of the run, as Kubernetes does of a pod that it evicts.
TERMINATED_CODE = "DISTILL_TERMINATED_CODE"

# Fu et al. 2023, section 4 and the public code.
PAPER_LOSS = DistributionMatching()
PAPER_OPTIMIZER = AdamW(schedule=Constant(5e-4, warmup=10))


@dataclasses.dataclass(frozen=True)
class Course:
    """The length of a run and its division; only `steps` and `microbatches` affect the result.

    Attributes:
        steps: optimizer steps in all.
        save_every: steps between checkpoints; step 0 and the last are saved besides.
        log_every: steps between fetches of the figures, the only times the host waits.
        microbatches: parts of a batch whose gradients are summed, to save memory.
        steps_per_call: optimizer steps compiled into one call, to save dispatches.
        workers: processes that make batches; 0 makes them in a thread.
    """

    steps: int
    save_every: int
    log_every: int = 10
    microbatches: int = 1
    steps_per_call: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        least = {name: 0 if name == "workers" else 1 for name in dataclasses.asdict(self)}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"{name} >= {bound}", f"{getattr(self, name)}", "correct it")

    def calls(self, start: int) -> Iterator[range]:
        """Yield the steps of each call from `start` on.

        Calls begin at multiples of `steps_per_call` and end at checkpoints; what does not fill one
        is taken in single steps, so a resumed run computes what an undisturbed one does.
        """
        step = start
        while step < self.steps:
            border = min(self.steps, (step // self.save_every + 1) * self.save_every)
            whole = step % self.steps_per_call == 0 and step + self.steps_per_call <= border
            stop = step + (self.steps_per_call if whole else 1)
            yield range(step, stop)
            step = stop

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows the step that makes `step` finished ones."""
        return step % self.save_every == 0 or step == self.steps


def train(
    model: Model,
    params: PyTree,
    batches: Batches,
    loss: Loss,
    *,
    optimizer: Optimizer,
    course: Course,
    key: Key,
    checkpoints: Checkpoints,
    sinks: Sequence[Metrics] = (),
    mesh: Mesh | None = None,
    rules: Mapping[str, str | None] = RULES,
) -> PyTree:
    """Train from `params`, or from the newest checkpoint there is, to the end of the course.

    The loss of a step is sum over count of the whole global batch, over all devices and
    microbatches. Dropout's randomness is folded from `key` and the step, batches are addressed by
    step, so a run that is killed and started again computes what an undisturbed one does, bit for
    bit on CPU. With several processes each makes the rows that its own devices need, and all stop
    after the same step when SIGTERM comes to one of them.

    Args:
        model: gives logits for a batch.
        params: the start, arrays or tensors on disk; copied, so the caller may keep it.
        batches: the input; picklable where the course has workers.
        loss: (sum of nats, sum of weights) of logits and a batch.
        optimizer: with its schedule.
        course: length, checkpoints and cuts.
        key: of dropout.
        checkpoints: the start is saved as step 0.
        sinks: of one line a step; they forget lines after the resumed step.
        mesh: of `partitioning.mesh`; without it all devices share the batch.
        rules: logical axis to mesh axis.

    Returns:
        The parameters after the last step.

    Raises:
        UserError: the loss or the gradient is not finite (no checkpoint is saved of that step); or,
            before anything is computed or written, the batch or a parameter cannot be divided, a
            checkpoint has another shape, or a step does not fit in memory.
        SystemExit: with code 0, or DISTILL_TERMINATED_CODE, after SIGTERM; the finished steps are
            saved.
    """
    code = _code_when_terminated(os.environ)
    mesh = mesh or partitioning.mesh()
    layout = placement.state_layout(model, params, optimizer, mesh, rules)
    rows = placement.batch_layout(batches.batch(0), mesh, course.microbatches)
    checkpoints.require_shapes(layout.params, layout.optimizer)
    advance = compiled(model, loss, optimizer, course.microbatches, layout, rules)
    first = next(course.calls(0))
    placement.require_room(advance, layout, placement.stacked(rows, len(first)), key)
    state = _start(params, layout, optimizer, checkpoints)
    start = int(state.step)
    for sink in sinks:
        sink.resume(start)
    logger.info("train: %s", _device_line(layout, mesh))
    mine = in_order(placement.share(batches, rows), course.calls(start), workers=course.workers)
    stacks = _placed(mine, lambda stack: placement.put(stack, rows))
    record = Record(sinks, seconds_at_peak(model, rows, mesh))
    with _termination() as terminated, contextlib.closing(ahead(stacks)) as feed:
        state, stopped = _follow(
            zip(course.calls(start), record.timed(feed), strict=True),
            state,
            lambda state, stack: advance(state, stack, key),
            course,
            record=record,
            checkpoints=checkpoints,
            terminated=terminated,
        )
        checkpoints.wait()
        for sink in sinks:
            sink.close()
    if stopped:
        logger.info("terminated: step %d is saved", int(state.step))
        raise SystemExit(code)
    return state.params


def _follow(
    calls: Iterable[tuple[range, Any]],
    state: State,
    advance: Callable[[State, Any], tuple[State, metrics.Figures]],
    course: Course,
    *,
    record: Record,
    checkpoints: Checkpoints,
    terminated: Callable[[], bool],
) -> tuple[State, bool]:
    """Take the calls until they end or the process shall; return the state and whether it shall."""
    for steps, stack in calls:
        state, figures = advance(state, stack)
        record.add(steps, figures)
        stops = terminated()
        saves = course.saves(steps.stop) or stops
        if saves or steps.stop // course.log_every > steps.start // course.log_every:
            record.flush()
        if saves:
            loss = record.mean_loss()
            checkpoints.save(steps.stop, state.params, state.optimizer, loss=loss)
        if stops:
            return state, True
    return state, False


def _code_when_terminated(environment: Mapping[str, str]) -> int:
    code = environment.get(TERMINATED_CODE, "0")
    if not code.isdecimal() or int(code) > 255:
        raise UserError(f"{TERMINATED_CODE} from 0 to 255", code, "correct or unset it")
    return int(code)


def _start(params: PyTree, layout: State, optimizer: Optimizer, checkpoints: Checkpoints) -> State:
    """Return the newest checkpoint's state, or that of `params`, saved as step 0."""
    restored = checkpoints.restore(layout.params, layout.optimizer)
    if restored is None:
        state = placement.initial_state(params, layout, optimizer)
        checkpoints.save(0, state.params, state.optimizer)
        checkpoints.wait()
        return state
    step, params, inner = restored
    if step:
        logger.info("train: resumes from step %d", step)
    return State(params, inner, placement.spread(np.int32(step), layout.step))


def _placed(
    stacks: Generator[Mapping[str, np.ndarray]], place: Callable[[Mapping[str, np.ndarray]], Any]
) -> Generator[Any]:
    with contextlib.closing(stacks):
        for stack in stacks:
            yield place(stack)


def _device_line(layout: State, mesh: Mesh) -> str:
    size = placement.bytes_per_device((layout.params, layout.optimizer)) / placement.GIGABYTE
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({axes})"
    return f"{devices}, {jax.process_count()} processes, {size:.2f} GB of state a device"


def seconds_at_peak(model: Model, rows: placement.Layout, mesh: Mesh) -> float | None:
    """Return what the model FLOPs of a step take at the peak of all devices.

    Args:
        model: of the step.
        rows: layout of a batch.
        mesh: of the devices.

    Returns:
        Seconds, None where the peak or the model is not known.
    """
    peak = accelerators.peak_flops(mesh.devices.flat[0].device_kind)
    if peak is None or not isinstance(model, T5Model | DecoderModel):
        return None
    batch, target = rows["decoder_input_tokens"].shape
    source = rows["encoder_input_tokens"].shape[1] if "encoder_input_tokens" in rows else 0
    return batch * flops.training_flops(model.config, source, target) / (peak * mesh.size)


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Yield whether SIGTERM has arrived; call it once after each call of the trainer.

    With several processes JAX catches the signal and agrees on the call after which all stop, so
    that none waits in a collective for one that has gone. Python handles signals in the main
    thread alone; in another thread the answer stays False.
    """
    event, calls = threading.Event(), itertools.count()
    if jax.distributed.is_initialized():
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    elif threading.current_thread() is not threading.main_thread():
        yield event.is_set
    else:
        before = signal.signal(signal.SIGTERM, lambda *_: event.set())
        try:
            yield event.is_set
        finally:
            signal.signal(signal.SIGTERM, before)


# --- The stage ---------------------------------------------------------------------------------


def fit(
    model: Model,
    params: PyTree,
    batches: Batches,
    loss: Loss,
    *,
    directory: Path,
    optimizer: Optimizer,
    course: Course,
    seed: int = 0,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: int | None = None,
    tensorboard: bool = True,
    mesh: Mesh | None = None,
    rules: Mapping[str, str | None] = RULES,
) -> tuple[PyTree, dict[str, Any]]:
    """Train in a directory of one's own: checkpoints, metrics.jsonl and TensorBoard events.

    With several processes the first alone writes metrics.

    Returns:
        The parameters after the last step, and the counts that a stage reports: steps, tokens (sum
        of loss weights), first and last loss (nats per token, mean over a tenth of the steps) and
        the seconds that the devices waited for batches. The counts are those of the metrics file,
        so only the first process has them.
    """
    sinks = _sinks(directory, course.steps, tensorboard=tensorboard) if processes.is_first() else []
    kept = {"keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
    with Checkpoints(directory, **kept) as checkpoints:
        params = train(
            model,
            params,
            batches,
            loss,
            optimizer=optimizer,
            course=course,
            key=jax.random.key(seed),
            checkpoints=checkpoints,
            sinks=sinks,
            mesh=mesh,
            rules=rules,
        )
    return params, counts(metrics.read_lines(directory / METRICS)) if processes.is_first() else {}


def _sinks(directory: Path, steps: int, *, tensorboard: bool) -> list[Metrics]:
    """Metrics of a run; TensorBoard's events and a copy of the lines go with the checkpoints."""
    file, place = directory / METRICS, saved.located(directory)
    sinks: list[Metrics] = [metrics.JsonLines(file), metrics.Progress("train", steps)]
    if place != epath.Path(directory.absolute()):
        sinks.append(metrics.Mirror(file, place / METRICS))
    return sinks + metrics.tensorboard(place) if tensorboard else sinks


def counts(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return what the stage reports of its lines of metrics, which are not none."""
    tenth = max(len(lines) // 10, 1)
    waits = [line["input_wait_seconds"] for line in lines if "input_wait_seconds" in line]
    return {
        "steps": len(lines),
        "tokens": sum(line["tokens"] for line in lines),
        "loss_first": _mean_loss(lines[:tenth]),
        "loss_last": _mean_loss(lines[-tenth:]),
        "input_wait_seconds": round(sum(waits), 3),
    }


def _mean_loss(lines: Sequence[Mapping[str, float]]) -> float:
    nats = sum(line["loss"] * line["tokens"] for line in lines)
    return nats / sum(line["tokens"] for line in lines)


def run(
    *,
    run_dir: Path,
    steps: int,
    save_every: int,
    student: str | None = None,
    batch_size: int = 32,
    loss: Loss = PAPER_LOSS,
    optimizer: Optimizer = PAPER_OPTIMIZER,
    seed: int = 0,
    microbatches: int = 1,
    steps_per_call: int = 1,
    log_every: int = 10,
    workers: int = 0,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: int | None = None,
    tensorboard: bool = True,
    model_settings: Mapping[str, Any] | None = None,
    mesh: Callable[[], Mesh] = partitioning.mesh,
    rules: Mapping[str, str | None] = RULES,
    cluster: Cluster | None = None,
    checkpoint_dir: str | None = None,
) -> dict[str, Any]:
    """Train the student on RUN_DIR/dataset and keep checkpoints in RUN_DIR/checkpoints.

    Args:
        run_dir: the run; its stage `dataset` is complete.
        steps: optimizer steps in all.
        save_every: steps between checkpoints; the start is step 0.
        student: directory of the start, as `distill.models.weights.save` writes it; what stage
            `initialise` left in the run if None.
        batch_size: packed rows of an optimizer step, over all devices.
        loss: distribution matching by default; see `distill.training.losses`.
        optimizer: AdamW at 5e-4 by default, as Fu et al. 2023.
        seed: of the order of rows and of dropout.
        microbatches: parts of a batch whose gradients are summed, to save memory.
        steps_per_call: optimizer steps compiled into one call, to save dispatches.
        log_every: steps between fetches of the figures.
        workers: processes that make batches; 0 makes them in a thread.
        keep_last: checkpoints kept, the newest; without this and the next two all are kept, for
            `select` to choose from.
        keep_every: besides, keep the steps that this divides.
        keep_best: besides, keep as many with the lowest loss on the rows since the checkpoint
            before; held-out accuracy is not known yet when a checkpoint is dropped.
        tensorboard: write event files too, where TensorFlow and tensorboard are installed.
        model_settings: fields of the start's configuration that hold while it is trained, such as
            {"dtype": "bfloat16", "dropout_rate": 0.1}.
        mesh: makes the mesh; bind `partitioning.mesh.fsdp` and its other axes.
        rules: logical axis to mesh axis, None for a copy on each.
        cluster: `processes.Detected()` or `processes.Given()` where several processes train
            together, or else the value of DISTILL_CLUSTER; each runs `distill train` with the same
            files in a run directory that all see.
        checkpoint_dir: where checkpoints, TensorBoard events and a copy of metrics.jsonl go
            instead of RUN_DIR/checkpoints: a path, gs://… or s3://….

    Returns:
        `steps`, `tokens`, `loss_first`, `loss_last` and `input_wait_seconds`, as from `fit`.

    Raises:
        UserError: `dataset` is not complete or of another vocabulary, the start is damaged, the
            batch or a parameter cannot be divided, a step does not fit in memory, the processes
            do not meet, or the loss is not finite.
        SystemExit: with code 0, after SIGTERM; the same command resumes.
    """
    processes.join(cluster)
    course = Course(steps, save_every, log_every, microbatches, steps_per_call, workers)
    settings = {"student": student, "steps": steps, "save_every": save_every, "seed": seed}
    settings |= {"batch_size": batch_size, "microbatches": microbatches}
    settings |= {"loss": loss, "optimizer": optimizer, "model_settings": model_settings}
    inputs = ["dataset"] if student else ["initialise", "dataset"]
    opened = _opened(Path(run_dir), settings, inputs, checkpoint_dir)
    with processes.held_by_first(opened) as stage:
        if processes.told(stage is not None and stage.complete):
            return stage.summary if stage else {}
        model, params = start_of(run_dir, student, model_settings or {})
        directory = initialise.directory(run_dir, student)
        vocabulary = weights.read(directory)[2]
        origin.require_dataset(Path(run_dir), directory, vocabulary)
        rows = Shards(Path(run_dir) / "dataset", PackedExample)
        batches = PackedBatches(rows, batch_size, seed)
        _refuse_other_vocabulary(batches.largest_id, model.config.vocab_size)
        recorded = origin.recorded(Path(run_dir), directory, vocabulary)
        with recorded if stage is not None else contextlib.nullcontext():
            _, summary = fit(
                model,
                params,
                batches,
                loss,
                directory=Path(run_dir) / "checkpoints",
                optimizer=optimizer,
                course=course,
                seed=seed,
                keep_last=keep_last,
                keep_every=keep_every,
                keep_best=keep_best,
                tensorboard=tensorboard,
                mesh=mesh(),
                rules=rules,
            )
        if stage is not None:
            stage.finish(**summary)
        return summary


@contextlib.contextmanager
def _opened(
    run_dir: Path,
    settings: Mapping[str, Any],
    inputs: Sequence[str],
    checkpoint_dir: str | None,
) -> Iterator[Stage]:
    """The stage; its checkpoints are where they shall be before it looks at what it has written."""
    files.require_plain(run_dir)
    if checkpoint_dir is not None:
        saved.place(run_dir / "checkpoints", checkpoint_dir)
    reads = [settings["student"]]
    with Stage.open(
        run_dir, "train", settings=settings, inputs=inputs, reads=reads, outputs=OUTPUTS
    ) as stage:
        yield stage


def start_of(
    run_dir: Path, student: str | None, settings: Mapping[str, Any]
) -> tuple[weights.Model, PyTree]:
    """Return the model as it is trained, and its parameters, which are not read yet.

    Args:
        run_dir: of the run.
        student: as of `run`.
        settings: as `model_settings` of `run`.

    Raises:
        UserError: a setting is none of the model's, or the start is damaged.
    """
    model, tensors, _ = weights.read(initialise.directory(run_dir, student))
    flat = {name: tensor.cast("float32") for name, tensor in tensors.items()}
    known = {field.name for field in dataclasses.fields(model.config)}
    if unknown := sorted(settings.keys() - known):
        raise UserError(
            f"model_settings of {', '.join(sorted(known))}", unknown[0], "correct the name"
        )
    config = dataclasses.replace(model.config, **settings)
    return dataclasses.replace(model, config=config), unflatten_dict(flat, sep="/")


def _refuse_other_vocabulary(largest: int, vocab_size: int) -> None:
    if largest >= vocab_size:
        raise UserError(
            f"ids below the student's {vocab_size} rows",
            f"{largest} in the dataset",
            "align and build the dataset with the student's own vocabulary",
        )
