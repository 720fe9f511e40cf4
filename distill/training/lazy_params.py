"""A checkpoint's parameters while they stay on disk, for what is larger than the host's memory."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from distill.core.errors import UserError
from distill.models.layers import by_path
from distill.models.tensors import Tensor
from distill.training.checkpoints import DAMAGE, steps


def open_params(directory: Path, step: int) -> dict[str, Tensor]:
    """Return the parameters of one step by path; each is read on demand.

    Args:
        directory: of the checkpoints.
        step: one of `steps(directory)`.

    Raises:
        UserError: there is no such step or it is damaged, at once or when a parameter is read.
    """
    if step not in steps(directory):
        raise UserError(
            f"a checkpoint in {directory}", f"none of step {step}", f"use one of {steps(directory)}"
        )
    manager = _manager(directory)
    try:
        leaves = by_path(dict(manager.item_metadata(step).tree))
    except (*DAMAGE, AttributeError) as error:  # Orbax gives None where it finds no metadata
        raise _damaged(directory, step, error) from error
    finally:
        manager.close()
    return {
        name: Tensor(
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
            functools.partial(_read, directory, step, name, leaf),
        )
        for name, leaf in leaves.items()
    }


def _read(directory: Path, step: int, name: str, leaf: Any) -> np.ndarray:
    """Read one parameter, and no other, into the host's memory."""
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)}
    on_host = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
    part = ocp.args.PyTreeRestore(
        item=unflatten_dict(wanted, sep="/"),
        restore_args=unflatten_dict(on_host, sep="/"),
        partial_restore=True,
    )
    manager = _manager(directory)
    try:
        return by_path(dict(manager.restore(step, args=part)))[name]
    except DAMAGE as error:
        raise _damaged(directory, step, error) from error
    finally:
        manager.close()


def _manager(directory: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        Path(directory).absolute() / "params",
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers=ocp.PyTreeCheckpointHandler(),
    )


def _damaged(directory: Path, step: int, error: BaseException) -> UserError:
    got = f"a damaged one: {str(error).partition(chr(10))[0][:200]}"
    return UserError(f"checkpoint {step} in {directory}", got, "use another step")
