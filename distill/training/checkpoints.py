"""A run's checkpoints through Orbax: every step's parameters, the newest optimizer state."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from distill.core.errors import UserError

logger = logging.getLogger(__name__)

# What Orbax raises for files that are missing, cut short or overwritten.
DAMAGE = (OSError, ValueError, KeyError, TypeError)
OPTIMIZER_STATES = 2  # the newest, and the one before in case the newest is damaged


class Checkpoints:
    """A run's checkpoints, written while training goes on.

    ```
    DIRECTORY/params/STEP/     kept for evaluation and selection
    DIRECTORY/optimizer/STEP/  the newest two
    ```
    A step counts once both are whole; each appears under its name in one rename.

    Args:
        directory: made where there is none.
        keep_last: parameters kept, of the newest steps; None keeps all.
        keep_every: besides, keep the steps that this divides.
    """

    def __init__(
        self, directory: Path, *, keep_last: int | None = None, keep_every: int | None = None
    ) -> None:
        self.directory = Path(directory).absolute()
        kept = {"max_to_keep": keep_last, "keep_period": keep_every}
        self._params = _manager(self.directory / "params", create=True, **kept)
        self._optimizer = _manager(
            self.directory / "optimizer", create=True, max_to_keep=OPTIMIZER_STATES
        )

    def save(self, step: int, params: PyTree, optimizer: PyTree) -> None:
        """Save both in the background; their buffers may be reused once this returns."""
        self._optimizer.save(step, args=ocp.args.StandardSave({"state": optimizer}))
        self._params.save(step, args=ocp.args.StandardSave(params))

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
            try:
                found = (
                    _restore(self._params, step, params),
                    _restore(self._optimizer, step, {"state": optimizer})["state"],
                )
            except DAMAGE as error:
                logger.warning("checkpoint %d is damaged and skipped: %s", step, _first_line(error))
                continue
            self._forget_after(step)
            return step, *found
        if candidates:
            raise UserError(
                f"a whole checkpoint in {self.directory}",
                f"only damaged ones of steps {candidates}",
                "restore one or remove the directory to begin again",
            )
        self._forget_after(-1)  # half of a first checkpoint
        return None

    def _candidates(self) -> list[int]:
        both = set(self._params.all_steps()) & set(self._optimizer.all_steps())
        return sorted(both, reverse=True)

    def _forget_after(self, step: int) -> None:
        for manager in (self._params, self._optimizer):
            for later in [found for found in manager.all_steps() if found > step]:
                manager.delete(later)

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._optimizer.wait_until_finished()
        self._params.wait_until_finished()

    def close(self) -> None:
        """Wait, then end the background threads."""
        self._optimizer.close()
        self._params.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def steps(directory: Path) -> list[int]:
    """Return the steps whose parameters are whole, in order; 0 is the start."""
    path = Path(directory).absolute() / "params"
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
    path = Path(directory).absolute() / "params"
    manager = _manager(path, read_only=True)
    try:
        return _restore(manager, step, _saved_shapes(manager, step) if like is None else like)
    except DAMAGE as error:
        got = f"a damaged one: {_first_line(error)}"
        raise UserError(f"checkpoint {step} in {directory}", got, "use another step") from error
    finally:
        manager.close()


def _manager(path: Path, **how: Any) -> ocp.CheckpointManager:
    # Orbax reports each file that it touches, and what it makes of its options.
    logging.getLogger("absl").setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, **how)
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


def _restore(manager: ocp.CheckpointManager, step: int, like: PyTree) -> Any:
    saved, wanted = _shapes(_saved(manager, step)), _shapes(like)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"{name} of shape {wanted.get(name)} in checkpoint {manager.directory / str(step)}",
                f"{saved.get(name)}",
                "use the configuration of that run or another directory",
            )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return manager.restore(step, args=ocp.args.StandardRestore(abstract))


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
