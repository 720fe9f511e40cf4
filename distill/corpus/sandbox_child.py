# ruff: noqa: PTH103, PTH123 - importing pathlib takes longer than judging most candidates.
"""The inner side of the sandbox: closes itself in, then runs one candidate; it judges nothing.

It starts as `python -I -S sandbox_child.py CPU_SECONDS MEMORY_BYTES PROTECTIONS READABLE HIDDEN`
(lists parted by colons) and imports no more than it needs, because it starts anew for every
candidate. The outer side imports the names of the protections and `spell` from here.

    descriptor 0   in: the lengths of the parts, a new line, the parts: candidate, setup, calls
    descriptor 1   out: a line of the protections in force, then a line for each call:
                   "=" and the spelled value, "?" and the name of a type that has no literal,
                   or "!" and the exception, after which nothing follows
"""

import ctypes
import os
import resource
import struct
import sys
import types
from collections.abc import Callable, Sequence

LIMITS = "limits"
USER_NAMESPACE = "user namespace"
PID_NAMESPACE = "pid namespace"
NETWORK_NAMESPACE = "network namespace"
IPC_NAMESPACE = "ipc namespace"
UTS_NAMESPACE = "uts namespace"
EMPTY_ROOT = "empty root"
LANDLOCK = "landlock"
ORDINARY_USER = "ordinary user"
NO_CAPABILITIES = "no capabilities"
NO_NEW_PRIVILEGES = "no new privileges"
SINGLE_PROCESS = "single process"
SECCOMP = "seccomp"
PROTECTIONS = (
    LIMITS,
    USER_NAMESPACE,
    PID_NAMESPACE,
    NETWORK_NAMESPACE,
    IPC_NAMESPACE,
    UTS_NAMESPACE,
    EMPTY_ROOT,
    LANDLOCK,
    ORDINARY_USER,
    NO_CAPABILITIES,
    NO_NEW_PRIVILEGES,
    SINGLE_PROCESS,
    SECCOMP,
)

# The id of the user that owns nothing, by convention of every distribution.
_NOBODY = 65534
_DEEPEST = 50
_OPEN_FILES = 32
CPU_EXCEEDED = 128 + 24

# Numbers of Linux's uapi headers; `signal` would import `enum`, which takes milliseconds.
_SIGKILL = 9
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_FLAGS = {
    EMPTY_ROOT: _CLONE_NEWNS,
    UTS_NAMESPACE: 0x04000000,
    IPC_NAMESPACE: 0x08000000,
    PID_NAMESPACE: 0x20000000,
    NETWORK_NAMESPACE: 0x40000000,
}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446


# --- Values ------------------------------------------------------------------------------------


class NoLiteralError(TypeError):
    """A value that Python's literals cannot write."""


def spell(value: object) -> str:
    """Return a text of a plain value that is the same text exactly where the values are equal.

    The outer side compares such texts and so never parses what a candidate sent. As Python's `==`
    has it, 2, 2.0 and True + 1 are one number, sets have no order, tuples are no lists; a subclass
    counts as the plain class below it. Only nan differs: its spelling is equal, itself it is not.

    Raises:
        NoLiteralError: the value, or one inside it, is none of Python's literal types.
        ValueError: it nests deeper than 50 levels.

    Example:
        >>> spell([1.0, (2,), {"b", "a"}])
        "[1, (2,), {'a', 'b'}]"
        >>> spell(map(abs, [1]))
        Traceback (most recent call last):
            ...
        distill.corpus.sandbox_child.NoLiteralError: map
    """
    return _spell(value, _DEEPEST)


def _spell(value: object, deepest: int) -> str:
    if deepest < 0:
        raise ValueError(f"expected at most {_DEEPEST} levels of nesting, got more")
    if value is None:
        return "None"
    for kind, text in _SPELLINGS:
        if isinstance(value, kind):
            return text(value, deepest - 1)
    raise NoLiteralError(type(value).__name__)


def _spell_float(value: float, deepest: int) -> str:
    if float.is_integer(value):
        return int.__repr__(float.__int__(value))
    return float.__repr__(value)


def _spell_complex(value: complex, deepest: int) -> str:
    if not value.imag:
        return _spell(value.real, deepest)
    return f"({_spell(value.real, deepest)}, {_spell(value.imag, deepest)}j)"


def _spell_items(values: Sequence[object], deepest: int) -> str:
    return ", ".join([_spell(value, deepest) for value in values])


def _spell_set(value: set[object] | frozenset[object], deepest: int) -> str:
    texts = sorted([_spell(item, deepest) for item in set(value)])
    return "{" + ", ".join(texts) + "}" if texts else "set()"


def _spell_dict(value: dict[object, object], deepest: int) -> str:
    pairs = [(_spell(k, deepest), _spell(v, deepest)) for k, v in dict.items(value)]
    return "{" + ", ".join([f"{key}: {item}" for key, item in sorted(pairs)]) + "}"


_SPELLINGS: tuple[tuple[type | tuple[type, ...], Callable[..., str]], ...] = (
    (int, lambda value, _: int.__repr__(value)),
    (float, _spell_float),
    (str, lambda value, _: ascii(str.__str__(value))),
    (list, lambda value, deepest: f"[{_spell_items(list(value), deepest)}]"),
    (tuple, lambda value, deepest: f"({_spell_items(tuple(value), deepest)},)"),
    (dict, _spell_dict),
    ((set, frozenset), _spell_set),
    (complex, _spell_complex),
    ((bytes, bytearray), lambda value, _: bytes.__repr__(bytes(value))),
)


# --- Protections -------------------------------------------------------------------------------


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _holds(step: Callable[..., None], *arguments: object) -> bool:
    """Whether the kernel let a step be taken; one that it refuses is absent from the report."""
    try:
        step(*arguments)
    except OSError:
        return False
    return True


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    for limit, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(limit, (most, most))


class _Kernel:
    """The system calls that Python does not offer, each raising OSError where it is refused."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def unshare(self, flags: int) -> None:
        _checked(self._libc.unshare(ctypes.c_int(flags)))

    def mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        texts = (source.encode(), target.encode(), kind.encode())
        _checked(self._libc.mount(*texts, ctypes.c_ulong(flags), options.encode()))

    def prctl(self, option: int, first: int, second: bytes | None = None) -> None:
        zero = ctypes.c_ulong(0)
        _checked(self._libc.prctl(option, ctypes.c_ulong(first), second, zero, zero))

    def die_with_parent(self) -> None:
        self.prctl(_PR_SET_PDEATHSIG, _SIGKILL)

    # --- Namespaces

    def enter_namespaces(self, wanted: Sequence[str]) -> list[str]:
        """Enter those of the wanted namespaces that the kernel grants, and return their names."""
        names = [name for name in _CLONE_FLAGS if name in wanted]
        entered = [name for name in names if _holds(self.unshare, _CLONE_FLAGS[name])]
        user, group = os.geteuid(), os.getegid()
        if not entered and USER_NAMESPACE in wanted and _holds(self.unshare, _CLONE_NEWUSER):
            # Refused to a superuser without capabilities, who enters the others all the same.
            _holds(self._map_ids, user, group)
            entered = [name for name in names if _holds(self.unshare, _CLONE_FLAGS[name])]
            entered.append(USER_NAMESPACE)
        return entered

    def _map_ids(self, user: int, group: int) -> None:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    # --- Files

    def empty_root(self, readable: Sequence[str], hidden: Sequence[str]) -> None:
        """Replace the file system by a read-only one that holds only the readable folders.

        The new root is built over /proc, which exists everywhere and holds none of the folders.
        """
        root, closed = "/proc", _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        self.mount("none", "/", "", _MS_REC | _MS_PRIVATE)
        self.mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,mode=755")
        for folder in readable:
            os.makedirs(root + folder)
            self.mount(folder, root + folder, "", _MS_BIND)
            kept = os.statvfs(folder).f_flag & _MS_NOEXEC
            self.mount("none", root + folder, "", _MS_REMOUNT | _MS_BIND | closed | kept)
        for folder in hidden:
            self.mount("tmpfs", root + folder, "tmpfs", closed, "size=4k,mode=755")
        os.chdir(root)
        _checked(self._libc.syscall(_machine().pivot_root, b".", b"."))
        _checked(self._libc.umount2(b".", _MNT_DETACH))
        os.chdir("/")
        self.mount("none", "/", "", _MS_REMOUNT | _MS_BIND | closed | _MS_NOEXEC)

    def landlock(self, readable: Sequence[str], hidden: Sequence[str]) -> None:
        """Let files be opened for reading, and below the readable folders only."""
        call, read_file, read_folder = self._libc.syscall, 1 << 2, 1 << 3
        version = _checked(call(_SYS_LANDLOCK_CREATE, None, 0, 1))
        bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
        handled = struct.pack(
            "=QQQ", (1 << bits) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0
        )
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        ruleset = _checked(call(_SYS_LANDLOCK_CREATE, handled, ctypes.c_size_t(size), 0))
        whole = 0 if hidden else read_file
        rules = [(folder, read_folder | whole) for folder in readable]
        for entry in (entry for folder in readable for entry in os.scandir(folder) if hidden):
            if entry.path not in hidden:
                rules.append((entry.path, read_file | (read_folder if entry.is_dir() else 0)))
        for path, access in rules:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", access, opened)
            _checked(call(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0))
            os.close(opened)
        _checked(call(_SYS_LANDLOCK_RESTRICT, ruleset, 0))
        os.close(ruleset)

    # --- Privileges

    def become_nobody(self) -> None:
        """Give up the superuser's id and what its files allow."""
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)

    def drop_capabilities(self) -> None:
        header = struct.pack("=Ii", 0x20080522, 0)
        _checked(self._libc.capset(header, bytes(24)))

    def allow_no_new_privileges(self) -> None:
        self.prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def seccomp(self) -> None:
        """Refuse every system call but those that computing and reading files need."""
        program = _machine().filter()
        buffer = ctypes.create_string_buffer(program, len(program))
        # A length of two bytes, then, aligned to a pointer, where the program lies.
        header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer))
        self.prctl(_PR_SET_SECCOMP, 2, header)


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


# --- System calls that stay open ---------------------------------------------------------------


class _Machine:
    """One processor family: its audit number and its numbers of the system calls in use."""

    def __init__(self, audit: int, pivot_root: int, allowed: Sequence[int]) -> None:
        self.audit, self.pivot_root, self.allowed = audit, pivot_root, allowed

    def filter(self) -> bytes:
        """A BPF program: kill on another calling convention, allow the listed, refuse the rest."""
        load, jump_equal, jump_above, back = 0x20, 0x15, 0x35, 0x06
        kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050000 | 1
        steps = [
            (load, 0, 0, 4),
            (jump_equal, 1, 0, self.audit),
            (back, 0, 0, kill),
            (load, 0, 0, 0),
            (jump_above, 0, 1, 0x40000000),
            (back, 0, 0, kill),
        ]
        left = len(self.allowed)
        for index, number in enumerate(self.allowed):
            steps.append((jump_equal, left - index, 0, number))
        steps += [(back, 0, 0, refuse), (back, 0, 0, allow)]
        return b"".join(struct.pack("=HBBI", *step) for step in steps)


# name: x86-64, AArch64. Those of x86-64 alone are the old forms that older C libraries call.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "access": (21, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getdents": (78, None),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "faccessat2": (439, 439),
}


def _machine() -> _Machine:
    numbers = list(_ALLOWED.values())
    if os.uname().machine == "x86_64" and sys.maxsize > 2**32:
        return _Machine(0xC000003E, 155, [x86 for x86, _ in numbers])
    if os.uname().machine == "aarch64" and sys.maxsize > 2**32:
        return _Machine(0xC00000B7, 41, [arm for _, arm in numbers if arm is not None])
    raise OSError(f"expected x86-64 or AArch64, got {os.uname().machine}")


# --- The run -----------------------------------------------------------------------------------


class _Order:
    """What the command line asks for."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.cpu_seconds, self.memory_bytes = int(arguments[0]), int(arguments[1])
        lists = ([part for part in text.split(":") if part] for text in arguments[2:5])
        self.wanted, self.readable, self.hidden = lists


def _close_in(kernel: _Kernel, order: _Order) -> list[str]:
    """Take every wanted protection that the kernel grants, and return those in force."""
    superuser = os.geteuid() == 0
    held = [LIMITS, *kernel.enter_namespaces(order.wanted)]
    _fork_and_watch(kernel, order.cpu_seconds)
    hidden = order.hidden
    if EMPTY_ROOT in held:
        held.remove(EMPTY_ROOT)
        if _holds(kernel.empty_root, order.readable, hidden):
            held.append(EMPTY_ROOT)
            hidden = []
    # Without an empty root the superuser keeps its id, as the library may be its own to read.
    may_leave = ORDINARY_USER in order.wanted and EMPTY_ROOT in held
    if not superuser or (may_leave and _holds(kernel.become_nobody)):
        held.append(ORDINARY_USER)
    steps: dict[str, Callable[[], None]] = {
        NO_CAPABILITIES: kernel.drop_capabilities,
        NO_NEW_PRIVILEGES: kernel.allow_no_new_privileges,
        LANDLOCK: lambda: kernel.landlock(order.readable, hidden),
        SINGLE_PROCESS: _check_single_process,
    }
    held += [name for name, step in steps.items() if name in order.wanted and _holds(step)]
    kernel.die_with_parent()
    if SECCOMP in order.wanted and _holds(kernel.seccomp):
        held.append(SECCOMP)
    return held


def close_process_in(readable: Sequence[str]) -> list[str]:
    """Close the calling process in, for good: no writing, no socket, no process, few files.

    It dies with the thread that started it. Return the protections that the kernel granted.

    Args:
        readable: folders whose files can still be opened for reading.
    """
    kernel = _Kernel()
    kernel.die_with_parent()
    steps: dict[str, Callable[[], None]] = {
        NO_NEW_PRIVILEGES: kernel.allow_no_new_privileges,
        LANDLOCK: lambda: kernel.landlock(readable, ()),
        SECCOMP: kernel.seccomp,
    }
    return [name for name, step in steps.items() if _holds(step)]


def _fork_and_watch(kernel: _Kernel, cpu_seconds: int) -> None:
    """Go on in a child, the first process of a new pid namespace; the process itself watches."""
    kernel.die_with_parent()
    if child := os.fork():
        os._exit(_watch(child, cpu_seconds))


def _watch(child: int, cpu_seconds: int) -> int:
    """Wait for the child, which holds the pipes alone, and return how it ended."""
    os.closerange(0, _OPEN_FILES)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -_SIGKILL and usage.ru_utime + usage.ru_stime > cpu_seconds - 0.5:
        return CPU_EXCEEDED
    return code if code >= 0 else 128 - code


def _move_pipes() -> tuple[int, int]:
    """Move both pipes out of the way and turn the standard streams to nothing."""
    requests, answers, nothing = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    return requests, answers


def _receive(requests: int) -> list[str]:
    text = bytearray()
    while piece := os.read(requests, 1 << 16):
        text += piece
    os.close(requests)
    lengths, _, rest = text.partition(b"\n")
    parts = []
    for length in map(int, lengths.split()):
        parts.append(rest[:length].decode())
        del rest[:length]
    return parts


def _send(answers: int, text: str) -> None:
    rest = text.encode() + b"\n"
    while rest:
        rest = rest[os.write(answers, rest) :]


def _report_to(answers: int) -> Callable[..., None]:
    """The hook that whatever is raised, by a candidate or before it, ends in."""

    def report(kind: type[BaseException], error: BaseException, _: object) -> None:
        mark = "?" if kind is NoLiteralError else f"!{kind.__name__}: "
        _send(answers, (mark + ascii(str(error))[1:-1])[:200])

    return report


def _run(parts: Sequence[str], answers: int) -> None:
    """Run the candidate and send the value of each call, up to the first that raises.

    A function made of compiled code is the plain way to run a text in a module's namespace. This
    process exists to do so, and nothing that the candidate can reach here is worth protecting.
    """
    candidate, setup, *calls = parts
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    for source in (candidate, setup):
        types.FunctionType(compile(source, "<candidate>", "exec"), vars(module))()
    for call in calls:
        value = types.FunctionType(compile(call, "<call>", "eval"), vars(module))()
        _send(answers, "=" + spell(value))
    os._exit(0)


def main() -> None:
    """Close the process in, say with which protections, and run the candidate that follows."""
    order = _Order(sys.argv[1:])
    _limit(order.cpu_seconds, order.memory_bytes)
    requests, answers = _move_pipes()
    sys.excepthook = _report_to(answers)
    held = _close_in(_Kernel(), order)
    os.write(answers, ":".join(held).encode() + b"\n")
    _run(_receive(requests), answers)


if __name__ == "__main__":
    main()
