"""The processes of one run: how they find each other and what the first tells the others."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill.core.errors import UserError

T = TypeVar("T")
CLUSTER = "DISTILL_CLUSTER"
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@runtime_checkable
class Cluster(Protocol):
    """How this process becomes one of several."""

    def join(self) -> None:
        """Start `jax.distributed`.

        Raises:
            UserError: the others cannot be told from what is given.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Detected:
    """What JAX finds out by itself: TPU pods, GKE, SLURM, Open MPI, Kubernetes.

    Attributes:
        method: one of JAX's `cluster_detection_method`, such as "slurm", "ompi", "mpi4py" or "k8s";
            None takes the first that fits.
        timeout: seconds to wait for the others.
    """

    method: str | None = None
    timeout: int = 300

    def join(self) -> None:
        """Start `jax.distributed` with what JAX detects."""
        try:
            jax.distributed.initialize(
                cluster_detection_method=self.method, initialization_timeout=self.timeout
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(
                "a TPU pod, GKE, SLURM, Open MPI or Kubernetes that JAX detects",
                str(error).partition("\n")[0],
                "start `distill train` there, or give addresses with processes.Given",
            ) from error


@dataclasses.dataclass(frozen=True)
class Given:
    """Addresses that the user gives, in gin or by environment, which differs between processes.

    Attributes:
        address: host:port of process 0; JAX_COORDINATOR_ADDRESS where None.
        count: number of processes; JAX_NUM_PROCESSES where None.
        index: of this process, from 0; JAX_PROCESS_ID where None.
        timeout: seconds to wait for the others.
    """

    address: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: int = 300

    def join(self) -> None:
        """Start `jax.distributed` with the address and the numbers."""
        address, count, index = self.resolved(os.environ)
        try:
            jax.distributed.initialize(address, count, index, initialization_timeout=self.timeout)
        except RuntimeError as error:
            raise UserError(
                f"{count} processes that meet at {address}",
                str(error).partition("\n")[0],
                "start all of them with `distill train`, process 0 at that address",
            ) from error

    def resolved(self, environment: Mapping[str, str]) -> tuple[str, int, int]:
        """Return address, count and index.

        Raises:
            UserError: one is missing, is no number or is out of range.

        Example:
            >>> Given("10.0.0.1:1234", 2).resolved({"JAX_PROCESS_ID": "1"})
            ('10.0.0.1:1234', 2, 1)
        """
        address = self.address or environment.get(ADDRESS, "")
        count = _number(self.count, environment.get(COUNT))
        index = _number(self.index, environment.get(INDEX))
        if not address.rpartition(":")[2].isdecimal() or not 0 <= index < count:
            raise UserError(
                f"{ADDRESS}=HOST:PORT, {COUNT} and {INDEX} from 0 below it, or the same in "
                "processes.Given",
                f"address {address or None}, count {count}, index {index}",
                "set what is missing or wrong; -1 stands for none",
            )
        return address, count, index


CLUSTERS: Mapping[str, type[Detected] | type[Given]] = {"detected": Detected, "given": Given}


def _number(given: int | None, found: str | None) -> int:
    """What is given, or else what the environment says, or -1."""
    if given is not None:
        return given
    return int(found) if found is not None and found.isdecimal() else -1


def join(cluster: Cluster | None) -> None:
    """Make this process one of the cluster's; nothing where there is none or it has joined.

    JAX must not have touched a device before.

    Args:
        cluster: where None, what DISTILL_CLUSTER says: "detected" or "given".

    Raises:
        UserError: the variable says something else, or the others are not found.
    """
    named = os.environ.get(CLUSTER)
    if named is not None and named not in CLUSTERS:
        raise UserError(f"{CLUSTER} of {', '.join(CLUSTERS)}", named, "correct or unset it")
    cluster = CLUSTERS[named]() if cluster is None and named is not None else cluster
    if cluster is not None and not jax.distributed.is_initialized():
        cluster.join()


def is_first() -> bool:
    """Whether this process is the one that writes manifests and metrics."""
    return jax.process_index() == 0


def told(flag: bool) -> bool:
    """Return the first process' flag on every process."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(flag)))


def all_agree(flag: bool) -> bool:
    """Whether the flag is set on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(flag))))


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager[T]) -> Iterator[T | None]:
    """Enter a context on the first process alone; what it refuses ends all of them.

    Yields:
        What the context gives to the first process, None to the others.

    Raises:
        UserError: the first process was refused.
    """
    refusal, held = None, None
    with contextlib.ExitStack() as stack:
        if is_first():
            try:
                held = stack.enter_context(context)
            except UserError as error:
                refusal = error
        if not told(refusal is None):
            raise refusal or UserError(
                "process 0 to begin", "its refusal", "read the line that it printed"
            )
        yield held
