# ruff: noqa: PTH115, PTH123 - importing pathlib takes longer than judging most candidates.
"""Confine the calling process for good, by every means that the machine grants.

    process, started                 watches; kills what it started when it is asked to end
      namespaces, limits
      `- fork: process, confined     what `confine` returns in
           empty root, Landlock, no privileges, seccomp

A means that the kernel refuses is absent from what `confine` returns; whether the rest is enough is
for the process outside to decide, before it sends anything hostile.
"""

import os
import resource
from collections.abc import Callable, Sequence

from distill.grading import kernel as linux
from distill.grading.protections import (
    EMPTY_ROOT,
    IPC_NAMESPACE,
    LANDLOCK,
    LIMITS,
    NETWORK_NAMESPACE,
    NO_CAPABILITIES,
    NO_HOST_SOCKETS,
    NO_NEW_PRIVILEGES,
    ORDINARY_USER,
    OWN_KEYRINGS,
    PID_NAMESPACE,
    SECCOMP,
    SINGLE_PROCESS,
    USER_NAMESPACE,
    UTS_NAMESPACE,
)

CPU_EXCEEDED = 128 + 24

# The id of the user that owns nothing, by convention of every distribution.
_NOBODY = 65534
_CLONE_FLAGS = {
    EMPTY_ROOT: linux.NEW_MOUNTS,
    UTS_NAMESPACE: linux.NEW_UTS,
    IPC_NAMESPACE: linux.NEW_IPC,
    PID_NAMESPACE: linux.NEW_PIDS,
    NETWORK_NAMESPACE: linux.NEW_NETWORK,
}
_NO_IPC = {"shmmni": "0", "msgmni": "0", "sem": "0 0 0 0"}


class Order:
    """What a confined process may use and read, as lists of texts.

    Args:
        cpu_seconds: whole seconds of processor time; 0 for no limit.
        memory_bytes: address space.
        open_files: descriptors at a time.
        wanted: protections to put in force, parted by colons.
        readable: folders whose files can still be opened for reading, likewise.
        hidden: folders directly in these whose files cannot, likewise.
    """

    def __init__(self, *texts: str) -> None:
        self.cpu_seconds, self.memory_bytes, self.open_files = map(int, texts[:3])
        lists = ([part for part in text.split(":") if part] for text in texts[3:])
        self.wanted, self.readable, self.hidden = lists


def confine(order: Order) -> list[str]:
    """Confine the process, in a fork of it, and return the protections in force.

    The process that calls stays outside as the fork's watcher and never returns: it ends as the
    fork ends, and kills it on SIGTERM or when its own parent ends. No means of the fork's reaches
    it. It wants a process with one thread.
    """
    kernel = linux.Kernel()
    superuser = os.geteuid() == 0
    _limit(order)
    entered = _enter_namespaces(kernel, order.wanted)
    _fork_and_watch(kernel, order)
    held = [LIMITS, *(name for name in entered if name != EMPTY_ROOT)]
    rooted = EMPTY_ROOT in entered and _holds(kernel.empty_root, order.readable, order.hidden)
    # Without an empty root the superuser keeps its id, as the library may be its own to read.
    may_leave = ORDINARY_USER in order.wanted and rooted
    if not superuser or (may_leave and _holds(_become_nobody)):
        held.append(ORDINARY_USER)
    held += _enter_user_namespace(kernel, order.wanted, held)
    if rooted:
        held.append(EMPTY_ROOT)
        _holds(kernel.enter_inner_root)
    steps: dict[str, Callable[[], None]] = {
        OWN_KEYRINGS: lambda: _own_keyrings(kernel, held),
        NO_CAPABILITIES: kernel.drop_capabilities,
        NO_NEW_PRIVILEGES: kernel.allow_no_new_privileges,
        LANDLOCK: lambda: kernel.landlock(order.readable, () if rooted else order.hidden),
        SINGLE_PROCESS: _check_single_process,
    }
    held += [name for name, step in steps.items() if name in order.wanted and _holds(step)]
    kernel.signal_at_parents_end(linux.SIGKILL)
    return [*held, *_filter(kernel, order.wanted)]


def _holds(step: Callable[..., None], *arguments: object) -> bool:
    """Whether the kernel let a step be taken; one that it refuses is absent from the report."""
    try:
        step(*arguments)
    except OSError:
        return False
    return True


def _limit(order: Order) -> None:
    for limit, most in (
        (resource.RLIMIT_AS, order.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, order.open_files),
        (resource.RLIMIT_MEMLOCK, 0),
        (getattr(resource, "RLIMIT_MSGQUEUE", 12), 0),
    ):
        resource.setrlimit(limit, (most, most))
    if order.cpu_seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (order.cpu_seconds, order.cpu_seconds))


# --- Namespaces --------------------------------------------------------------------------------


def _enter_namespaces(kernel: linux.Kernel, wanted: Sequence[str]) -> list[str]:
    """Enter those of the wanted namespaces that the kernel grants, and return their names."""
    names = [name for name in _CLONE_FLAGS if name in wanted]
    entered = [name for name in names if _enter(kernel, name)]
    user, group = os.geteuid(), os.getegid()
    if not entered and USER_NAMESPACE in wanted and _holds(kernel.unshare, linux.NEW_USER):
        # Refused to a superuser without capabilities, who enters the others all the same.
        _holds(kernel.map_ids, user, group)
        entered = [name for name in names if _enter(kernel, name)]
        entered.append(USER_NAMESPACE)
    return entered


def _enter(kernel: linux.Kernel, name: str) -> bool:
    before = os.readlink("/proc/self/ns/ipc") if name == IPC_NAMESPACE else ""
    entered = _holds(kernel.unshare, _CLONE_FLAGS[name])
    if entered and before and os.readlink("/proc/self/ns/ipc") != before:
        # Its shared memory and queues would otherwise count against no limit of the process.
        for limit, most in _NO_IPC.items():
            _holds(_write, f"/proc/sys/kernel/{limit}", most)
    return entered


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _enter_user_namespace(
    kernel: linux.Kernel, wanted: Sequence[str], held: Sequence[str]
) -> list[str]:
    """Enter a last one, in which no id means anything; what built the others is left outside.

    It parts the keyrings of a user whose superuser entered the other namespaces without it.
    """
    may_enter = USER_NAMESPACE in wanted and ORDINARY_USER in held
    if not may_enter or not _holds(kernel.unshare, linux.NEW_USER):
        return []
    return [USER_NAMESPACE] if USER_NAMESPACE not in held else []


def _own_keyrings(kernel: linux.Kernel, held: Sequence[str]) -> None:
    """Raise OSError unless no keyring is shared: the session's is left, the user's parted."""
    kernel.join_keyring()
    if USER_NAMESPACE not in held:
        raise OSError("expected a user namespace, which parts the keyrings of a user, got none")


# --- Processes ---------------------------------------------------------------------------------


def _fork_and_watch(kernel: linux.Kernel, order: Order) -> None:
    """Return in a child, the first process of a new pid namespace; the process itself watches."""
    signals = kernel.block(linux.SIGCHLD, linux.SIGTERM)
    kernel.signal_at_parents_end(linux.SIGTERM)
    child = os.fork()
    if child:
        os._exit(_watch(kernel, child, signals, order))
    kernel.signal_at_parents_end(linux.SIGKILL)
    os.setsid()
    kernel.unblock_all()


def _watch(kernel: linux.Kernel, child: int, signals: linux.Signals, order: Order) -> int:
    """Wait for the child, which holds the pipes alone, and return how it ended.

    The child is killed by its number, so that nothing it does to its session, group or signals lets
    it outlive the watcher.
    """
    os.closerange(0, order.open_files)
    ended, status, usage = os.wait4(child, os.WNOHANG)
    while not ended:
        if kernel.wait_for(signals) == linux.SIGTERM:
            os.kill(child, linux.SIGKILL)
        ended, status, usage = os.wait4(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    used = usage.ru_utime + usage.ru_stime
    if code == -linux.SIGKILL and order.cpu_seconds and used > order.cpu_seconds - 0.5:
        return CPU_EXCEEDED
    return code if code >= 0 else 128 - code


def _become_nobody() -> None:
    """Give up the superuser's id and what its files allow."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _check_single_process() -> None:
    """Raise OSError unless the limit on processes holds; the superuser is exempt from it."""
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        child = os.fork()
    except BlockingIOError:
        return
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    raise OSError("expected no second process, got one")


def _filter(kernel: linux.Kernel, wanted: Sequence[str]) -> list[str]:
    """Filter system calls, or where that is refused, find out whether sockets reach a host."""
    if SECCOMP in wanted and _holds(kernel.filter_calls):
        return [SECCOMP]
    return [NO_HOST_SOCKETS] if NO_HOST_SOCKETS in wanted and not kernel.reaches_host() else []
