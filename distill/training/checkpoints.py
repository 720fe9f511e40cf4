"""A run's checkpoints through Orbax: every step's parameters, the newest optimizer state."""

import functools
import logging
import math
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from distill.core.errors import UserError
from distill.core.store import atomic_path
from distill.models import processes

logger = logging.getLogger(__name__)

# What Orbax raises for files that are missing, cut short or overwritten.
DAMAGE = (OSError, ValueError, KeyError, TypeError)
OPTIMIZER_STATES = 2  # the newest, and the one before in case the newest is damaged
LOCATION = "location.txt"


class Checkpoints:
    """A run's checkpoints, written during training.

    ```
    DIRECTORY/params/STEP/     kept for evaluation and selection
    DIRECTORY/optimizer/STEP/  the newest two
    ```
    A step counts once both are whole; each appears under its name in one rename. With several
    processes all of them save and restore, each what its devices hold, in one directory.

    All parameters are kept unless an argument is set; then a step is kept if any argument keeps
    it, and the newest always is. Selection can choose only among those that stay.

    Args:
        directory: of `located`; made at the first save.
        keep_last: keep the newest steps.
        keep_every: keep the steps that this divides.
        keep_best: keep the steps of the lowest `loss` given to `save`.
    """

    def __init__(
        self,
        directory: Path | epath.Path,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: int | None = None,
    ) -> None:
        self.directory = located(directory)
        self._kept = _preservation(keep_last, keep_every, keep_best)
        self._ranked = keep_best is not None

    @functools.cached_property
    def _params(self) -> ocp.CheckpointManager:
        ranking = {"best_fn": _loss, "best_mode": "min"} if self._ranked else {}
        kept = {"preservation_policy": self._kept, **ranking}
        return _manager(self.directory / "params", create=True, **kept)

    @functools.cached_property
    def _optimizer(self) -> ocp.CheckpointManager:
        kept = ocp.checkpoint_managers.LatestN(OPTIMIZER_STATES)
        return _manager(self.directory / "optimizer", create=True, preservation_policy=kept)

    def save(
        self, step: int, params: PyTree, optimizer: PyTree, *, loss: float | None = None
    ) -> None:
        """Save both in the background; their buffers may be reused once this returns.

        Args:
            step: finished optimizer steps.
            params: of that step.
            optimizer: of that step.
            loss: by which `keep_best` ranks, lower is better; None ranks last.
        """
        metrics = {} if loss is None else {"loss": loss}
        self._optimizer.save(step, args=ocp.args.StandardSave({"state": optimizer}))
        self._params.save(
            step, args=ocp.args.StandardSave(params), metrics=metrics if self._ranked else None
        )

    def require_shapes(self, params: PyTree, optimizer: PyTree) -> None:
        """Refuse checkpoints of another shape before anything is read or computed.

        Raises:
            UserError: the newest readable one is of another model or optimizer.
        """
        kept = set(steps(self.directory)) & set(_on_disk(self.directory / "optimizer"))
        for step in sorted(kept, reverse=True):
            try:
                _require_shapes(self._params, step, params)
                return _require_shapes(self._optimizer, step, {"state": optimizer})
            except DAMAGE:
                continue  # `restore` reports it

    def restore(self, params: PyTree, optimizer: PyTree) -> tuple[int, PyTree, PyTree] | None:
        """Return (step, params, optimizer) of the newest whole checkpoint, or None where none is.

        Later checkpoints that are damaged or incomplete are removed: the run makes them again.

        Args:
            params: shapes, types and shardings wanted, as arrays or `jax.ShapeDtypeStruct`.
            optimizer: likewise.

        Raises:
            UserError: a checkpoint is of a model or an optimizer of another shape, or all are
                damaged.
        """
        candidates = self._candidates()
        for step in candidates:
            restored = self._attempt(step, params, optimizer)
            agreed = processes.all_agree(restored is not None)
            if agreed and restored is not None:
                self._forget_after(step)
                return step, *restored
        if candidates:
            raise UserError(
                f"a whole checkpoint in {self.directory}",
                f"only damaged ones of steps {candidates}",
                "restore one or remove the directory to start again",
            )
        self._forget_after(-1)  # half of a first checkpoint
        return None

    def _attempt(self, step: int, params: PyTree, optimizer: PyTree) -> tuple[PyTree, ...] | None:
        """Both parts of a step, or None where they are damaged."""
        try:
            return (
                _restore(self._params, step, params),
                _restore(self._optimizer, step, {"state": optimizer})["state"],
            )
        except DAMAGE as error:
            logger.warning("checkpoint %d is damaged and skipped: %s", step, _first_line(error))
            return None

    def _candidates(self) -> list[int]:
        both = set(self._params.all_steps()) & set(self._optimizer.all_steps())
        return sorted(both, reverse=True)

    def _forget_after(self, step: int) -> None:
        for manager in (self._params, self._optimizer):
            for later in [saved for saved in manager.all_steps() if saved > step]:
                manager.delete(later)

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        for manager in self._open():
            manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then end the background threads."""
        for manager in self._open():
            manager.close()

    def _open(self) -> list[ocp.CheckpointManager]:
        return [vars(self)[name] for name in ("_optimizer", "_params") if name in vars(self)]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def located(directory: Path | epath.Path) -> epath.Path:
    """Return where a directory's checkpoints are stored: there, or at the address of `place`."""
    if "://" in str(directory):
        return epath.Path(directory)
    pointer = Path(directory) / LOCATION
    if pointer.exists():
        return epath.Path(pointer.read_text().strip())
    return epath.Path(Path(directory).absolute())


def place(directory: Path, address: str) -> None:
    """Store the checkpoints of a directory at an address, which `located` returns from then on.

    Args:
        directory: of the run, on a file system.
        address: gs://…, s3://… or a path that all processes see.

    Raises:
        UserError: the directory has checkpoints elsewhere.
    """
    target = address if "://" in address else str(Path(address).absolute())
    if str(present := located(directory)) != target:
        if steps(present):
            raise UserError(
                f"checkpoints of {directory} at {target}",
                f"those at {present}",
                "use that place or another --run_dir",
            )
        with atomic_path(Path(directory) / LOCATION) as temporary:
            temporary.write_text(target + "\n")


def steps(directory: Path | epath.Path) -> list[int]:
    """Return the steps whose parameters are whole, in order; 0 is the start."""
    return _on_disk(located(directory) / "params")


def _on_disk(path: epath.Path) -> list[int]:
    return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def load_params(directory: Path, step: int, *, like: PyTree | None = None) -> PyTree:
    """Return the parameters of one step.

    Args:
        directory: of the checkpoints.
        step: one of `steps(directory)`.
        like: shapes, types and shardings wanted; without it, as saved on the first local device.

    Raises:
        UserError: there is no such step, it is damaged, or its shapes are not those of `like`.
    """
    if step not in steps(directory):
        raise UserError(
            f"a checkpoint in {directory}", f"none of step {step}", f"use one of {steps(directory)}"
        )
    manager = _manager(located(directory) / "params", read_only=True)
    try:
        return _restore(manager, step, _saved_shapes(manager, step) if like is None else like)
    except DAMAGE as error:
        got = f"a damaged one: {_first_line(error)}"
        raise UserError(f"checkpoint {step} in {directory}", got, "use another step") from error
    finally:
        manager.close()


def _preservation(
    last: int | None, every: int | None, best: int | None
) -> ocp.checkpoint_managers.PreservationPolicy:
    policies = ocp.checkpoint_managers
    if last is every is best is None:
        return policies.LatestN(None)
    kept: list[ocp.checkpoint_managers.PreservationPolicy] = [policies.LatestN(last or 1)]
    if every is not None:
        kept.append(policies.EveryNSteps(every))
    if best is not None:
        kept.append(policies.BestN(get_metric_fn=_loss, reverse=True, n=best))
    return policies.AnyPreservationPolicy(kept)


def _loss(metrics: dict[str, float]) -> float:
    return metrics.get("loss", math.inf)


def _manager(path: epath.Path, **how: Any) -> ocp.CheckpointManager:
    # Orbax reports each file that it touches, and what it makes of its options.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Two managers save a step at once; without names of their own their barriers are the same.
    apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=path.name)
    options = ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True, multiprocessing_options=apart, **how
    )
    return ocp.CheckpointManager(
        path, options=options, item_handlers=ocp.StandardCheckpointHandler()
    )


def _saved(manager: ocp.CheckpointManager, step: int) -> PyTree:
    """The tree of a step with Orbax's metadata in place of arrays."""
    metadata = manager.item_metadata(step)
    if metadata is None:
        raise FileNotFoundError(f"no metadata in {manager.directory / str(step)}")
    return dict(metadata.tree)


def _saved_shapes(manager: ocp.CheckpointManager, step: int) -> PyTree:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        _saved(manager, step),
    )


def _require_shapes(manager: ocp.CheckpointManager, step: int, like: PyTree) -> None:
    saved, wanted = _shapes(_saved(manager, step)), _shapes(like)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"{name} of shape {wanted.get(name)} in checkpoint {manager.directory / str(step)}",
                f"{saved.get(name)}",
                "use the configuration of that run or another directory",
            )


def _restore(manager: ocp.CheckpointManager, step: int, like: PyTree) -> Any:
    _require_shapes(manager, step, like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return manager.restore(step, args=ocp.args.StandardRestore(abstract))


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
