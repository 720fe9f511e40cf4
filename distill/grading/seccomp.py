"""The filter of system calls: what computing and reading files need, and nothing that writes.

A call's number decides, but for three calls. Files open for reading only, and no mapping is both
writable and shared, whatever descriptors a process may have inherited.
"""

import os
import struct
import sys
from collections.abc import Sequence

# name: x86-64, AArch64. Those of x86-64 alone are the old forms that older C libraries call.
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "lseek": (8, 62),
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
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "faccessat2": (439, 439),
}

# The bits 0o100000 and 0o400000 are O_LARGEFILE and O_NOFOLLOW, one each on either machine.
_READING = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOCTTY | 0o100000 | 0o400000
_BEYOND_READING = 0xFFFFFFFF & ~_READING
_MAP_SHARED, _PROT_WRITE = 1, 2

# name: numbers as above, then (argument, bits): refused where each argument has one of its bits.
CHECKED = {
    "open": (2, None, ((1, _BEYOND_READING),)),
    "openat": (257, 56, ((2, _BEYOND_READING),)),
    "mmap": (9, 222, ((3, _MAP_SHARED), (2, _PROT_WRITE))),
}

# Opcodes of classic BPF and answers of seccomp, from Linux's uapi headers.
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_KILL, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | 1
_NUMBER, _CONVENTION, _ARGUMENTS = 0, 4, 16
_OTHER_CONVENTION = 0x40000000

_Step = tuple[int, int, int, int]
_Checks = Sequence[tuple[int, int]]


class Machine:
    """One processor family: its audit number and its numbers of the system calls in use."""

    def __init__(self, audit: int, pivot_root: int, keyctl: int, column: int) -> None:
        self.audit, self.pivot_root, self.keyctl = audit, pivot_root, keyctl
        numbers = (row[column] for row in ALLOWED.values())
        self.allowed = [number for number in numbers if number is not None]
        checked = ((row[column], row[2]) for row in CHECKED.values())
        self.checked = [(number, checks) for number, checks in checked if number is not None]

    def filter(self) -> bytes:
        """A BPF program: kill on another calling convention, allow the listed, refuse the rest."""
        steps = [
            (_LOAD, 0, 0, _CONVENTION),
            (_EQUAL, 1, 0, self.audit),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER),
            (_AT_LEAST, 0, 1, _OTHER_CONVENTION),
            (_RETURN, 0, 0, _KILL),
        ]
        for number, checks in self.checked:
            steps += _checked(number, checks)
        left = len(self.allowed)
        for index, number in enumerate(self.allowed):
            steps.append((_EQUAL, left - index, 0, number))
        steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
        return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _checked(number: int, checks: _Checks) -> list[_Step]:
    """Decide a call by the lower halves of its arguments; both machines are little-endian."""
    steps: list[_Step] = [(_EQUAL, 0, 4 * len(checks) + 1, number)]
    for argument, bits in checks:
        steps += [
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_AND, 0, 0, bits),
            (_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return [*steps, (_RETURN, 0, 0, _REFUSE)]


def machine() -> Machine:
    """Return the numbers of this machine.

    Raises:
        OSError: they are not known.
    """
    name = os.uname().machine if sys.maxsize > 2**32 else "32 bits"
    if name == "x86_64":
        return Machine(0xC000003E, pivot_root=155, keyctl=250, column=0)
    if name == "aarch64":
        return Machine(0xC00000B7, pivot_root=41, keyctl=219, column=1)
    raise OSError(f"expected x86-64 or AArch64, got {name}")
