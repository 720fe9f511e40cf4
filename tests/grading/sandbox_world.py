"""Machines that grant less: deny system calls to a process, then open a sandbox in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Runs as `python -c RUNNER` with an order as JSON on standard input, and answers in JSON.
RUNNER = """
import ctypes, json, os, struct, sys
order = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
load, equal, back, refused = 0x20, 0x15, 0x06, 0x50000
steps = [(load, 0, 0, 0)]
for number, argument, error in order["denied"]:
    if argument is None:
        steps += [(equal, 0, 1, number), (back, 0, 0, refused | error)]
    else:
        steps += [(equal, 0, 4, number), (load, 0, 0, 16), (equal, 0, 1, argument)]
        steps += [(back, 0, 0, refused | error), (load, 0, 0, 0)]
steps.append((back, 0, 0, 0x7FFF0000))
program = b"".join(struct.pack("=HBBI", *step) for step in steps)
buffer = ctypes.create_string_buffer(program, len(program))
header = struct.pack("=H6xQ", len(steps), ctypes.addressof(buffer))
libc.syscall(250 if os.uname().machine == "x86_64" else 219, 1, None)  # a session's keyring
if order["denied"]:
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0
from distill.core.errors import UserError
from distill.grading.sandbox import Limits, Sandbox, Submission, split_asserts
given = {name: order[name] for name in ("require", "attempt") if name in order}
limits = Limits(cpu_seconds=1, seconds=order["seconds"], memory_bytes=256 << 20)
try:
    sandbox = Sandbox(workers=1, limits=limits, **given)
except UserError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
found = {"protections": sandbox.protections, "judged": []}
print(json.dumps({"opened": True}), flush=True)
with sandbox:
    for candidate, test in order["candidates"]:
        judged = sandbox.judge(Submission(candidate, split_asserts(test)))
        found["judged"].append([judged.outcome, judged.reason])
    for candidate, call in order["asked"]:
        found.setdefault("lines", []).append(sandbox.run(candidate, "", [call]).lines)
print(json.dumps(found))
"""

_EPERM, _EINVAL, _ENOSYS = 1, 22, 38
_SET_SECCOMP = 22


def denied(case: str) -> list[tuple[int, int | None, int]]:
    """Calls, an argument or None, and errors of a machine without what a case names, by x86-64."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of system calls are those of x86-64")
    without = {
        "namespaces": [(number, None, _EPERM) for number in (272, 165, 155, 166)],
        "Landlock": [(number, None, _ENOSYS) for number in (444, 445, 446)],
        "seccomp": [(157, _SET_SECCOMP, _EINVAL), (317, None, _ENOSYS)],
    }
    return [rule for name in case.split(", ") if name for rule in without[name]]


CASES = (
    "",
    "namespaces",
    "Landlock",
    "seccomp",
    "namespaces, Landlock",
    "namespaces, seccomp",
    "Landlock, seccomp",
    "namespaces, Landlock, seccomp",
)


def ordinary_python():
    """A Python that an ordinary user can start, and how to become one."""
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    fits = "import sys; sys.path.insert(0, '.'); import distill.grading.sandbox"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            subprocess.run([python, "-c", fits], cwd=ROOT, check=True, stderr=-3, **user)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python, user
    pytest.skip("no Python of 3.11 or later that an ordinary user can start")


def start(order, *, ordinary=False):
    """Start the runner in a process group of its own; it waits for nothing more."""
    python, user = ordinary_python() if ordinary else (sys.executable, {})
    process = subprocess.Popen(
        [python, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "SANDBOX_TEST": "secret"},
        **user,
    )
    process.stdin.write(json.dumps({"seconds": 5.0, "candidates": [], "asked": [], **order}))
    process.stdin.write("\n")
    process.stdin.flush()
    return process


def run(order, *, ordinary=False):
    """Return what the runner found."""
    process = start(order, ordinary=ordinary)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])
