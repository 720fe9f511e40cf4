# ruff: noqa: PTH102, PTH103, PTH123 - importing pathlib takes longer than judging most candidates.
"""The system calls of a confinement, which Python does not offer; each raises OSError if refused.

Numbers are those of Linux's uapi headers. `signal` would import `enum`, which takes milliseconds.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

from distill.grading.seccomp import machine

SIGKILL, SIGTERM, SIGCHLD = 9, 15, 17
NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_CLOSED = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
_SIG_BLOCK, _SIG_SETMASK, _SIGNAL_SET_BYTES = 0, 2, 128
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_KEYCTL_JOIN_SESSION_KEYRING = 1
_AF_VSOCK, _SOCK_STREAM = 40, 1
Signals = ctypes.Array[ctypes.c_char]

# Where the empty root holds an image of itself.
_INNER = "/inner"


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Kernel:
    """The calls, on the calling process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def unshare(self, flags: int) -> None:
        """Leave what the flags name, as namespaces of its own."""
        _checked(self._libc.unshare(ctypes.c_int(flags)))

    def _mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        texts = (source.encode(), target.encode(), kind.encode())
        _checked(self._libc.mount(*texts, ctypes.c_ulong(flags), options.encode()))

    def _prctl(self, option: int, first: int, second: bytes | None = None) -> None:
        zero = ctypes.c_ulong(0)
        _checked(self._libc.prctl(option, ctypes.c_ulong(first), second, zero, zero))

    # --- Signals

    def signal_at_parents_end(self, number: int) -> None:
        """Ask for a signal when the thread that started this process ends."""
        self._prctl(_PR_SET_PDEATHSIG, number)

    def block(self, *numbers: int) -> Signals:
        """Hold signals back until `wait_for`, and return their set."""
        signals = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
        for number in numbers:
            _checked(self._libc.sigaddset(signals, number))
        _checked(self._libc.sigprocmask(_SIG_BLOCK, signals, None))
        return signals

    def unblock_all(self) -> None:
        """Let every signal come again."""
        _checked(self._libc.sigprocmask(_SIG_SETMASK, bytes(_SIGNAL_SET_BYTES), None))

    def wait_for(self, signals: Signals) -> int:
        """Wait until one of the signals has come, and return its number."""
        number = ctypes.c_int()
        self._libc.sigwait(signals, ctypes.byref(number))
        return number.value

    # --- Namespaces

    def map_ids(self, user: int, group: int) -> None:
        """Make one user and group the superuser's in a new user namespace, and no other."""
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def empty_root(self, readable: Sequence[str], hidden: Sequence[str]) -> None:
        """Replace the file system by a read-only one that holds only the readable folders.

        The new root is built over /proc, which exists everywhere and holds none of the folders.
        """
        root = "/proc"
        self._mount("none", "/", "", _MS_REC | _MS_PRIVATE)
        self._mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,mode=755")
        os.mkdir(root + _INNER)
        for folder in readable:
            os.makedirs(root + folder)
            self._mount(folder, root + folder, "", _MS_BIND)
            kept = os.statvfs(folder).f_flag & _MS_NOEXEC
            self._mount("none", root + folder, "", _MS_REMOUNT | _MS_BIND | _CLOSED | kept)
        for folder in hidden:
            self._mount("tmpfs", root + folder, "tmpfs", _CLOSED, "size=4k,mode=755")
        self._mount("none", root, "", _MS_REMOUNT | _MS_BIND | _CLOSED | _MS_NOEXEC)
        self._mount(root, root + _INNER, "", _MS_BIND | _MS_REC)
        os.chdir(root)
        _checked(self._libc.syscall(machine().pivot_root, b".", b"."))
        _checked(self._libc.umount2(b".", _MNT_DETACH))
        os.chdir("/")

    def enter_inner_root(self) -> None:
        """Make the root's image inside itself the root.

        The kernel grants no user namespace, and so no capability, to a process whose root is not
        that of its mount namespace.
        """
        os.chroot(_INNER)
        os.chdir("/")

    # --- Files

    def landlock(self, readable: Sequence[str], hidden: Sequence[str]) -> None:
        """Allow opening files for reading only, and only below the readable folders."""
        call, read_file, read_folder = self._libc.syscall, 1 << 2, 1 << 3
        version = _checked(call(_SYS_LANDLOCK_CREATE, None, 0, 1))
        bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
        handled = struct.pack(
            "=QQQ", (1 << bits) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0
        )
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        ruleset = _checked(call(_SYS_LANDLOCK_CREATE, handled, ctypes.c_size_t(size), 0))
        for path, access in _landlock_rules(readable, hidden, read_file, read_folder):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", access, descriptor)
            _checked(call(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0))
            os.close(descriptor)
        _checked(call(_SYS_LANDLOCK_RESTRICT, ruleset, 0))
        os.close(ruleset)

    # --- Privileges

    def join_keyring(self) -> None:
        """Leave the session's keyring, which is shared with the parent process, for a new one."""
        call = (machine().keyctl, _KEYCTL_JOIN_SESSION_KEYRING, None)
        _checked(self._libc.syscall(*call))

    def drop_capabilities(self) -> None:
        """Give up every capability."""
        header = struct.pack("=Ii", 0x20080522, 0)
        _checked(self._libc.capset(header, bytes(24)))

    def allow_no_new_privileges(self) -> None:
        """Let no program that is executed grant anything."""
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def filter_calls(self) -> None:
        """Refuse every system call but those that computing and reading files need."""
        program = machine().filter()
        buffer = ctypes.create_string_buffer(program, len(program))
        # A length of two bytes, then, aligned to a pointer, where the program lies.
        header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer))
        self._prctl(_PR_SET_SECCOMP, 2, header)

    def reaches_host(self) -> bool:
        """Whether a socket to the host of a virtual machine can be made."""
        descriptor = self._libc.socket(_AF_VSOCK, _SOCK_STREAM, 0)
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor >= 0


def _landlock_rules(
    readable: Sequence[str], hidden: Sequence[str], read_file: int, read_folder: int
) -> list[tuple[str, int]]:
    """Paths and what may be done below each; rules cannot take back, so none names a hidden one."""
    if not hidden:
        return [(folder, read_folder | read_file) for folder in readable]
    rules = [(folder, read_folder) for folder in readable]
    for entry in (entry for folder in readable for entry in os.scandir(folder)):
        if entry.path not in hidden:
            rules.append((entry.path, read_file | (read_folder if entry.is_dir() else 0)))
    return rules
