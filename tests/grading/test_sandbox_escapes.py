"""What hostile programs cannot reach or leave behind, wherever the sandbox's fallback may end."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_escapes import ESCAPES, HOST_SOCKET, MARKS, OUTLIVES, program
from sandbox_world import CASES, ROOT, denied, ordinary_python, run, start

from distill.grading.programs import extract
from distill.grading.protections import GUARANTEES
from distill.grading.sandbox import Limits, Sandbox, Submission, split_tests

DONE = "assert f() == 'done'"
# Only seccomp guards these, where a virtual machine has them; what else is guarded is tried too.
ALL_BUT_HOST = [name for name in GUARANTEES if name != "host sockets"]
REQUIRED = {"": GUARANTEES, "seccomp": ALL_BUT_HOST, "Landlock, seccomp": ALL_BUT_HOST}
# Without namespaces, what is left guards no network, no signals and no processes, or no files.
REFUSED = ("namespaces, Landlock", "namespaces, seccomp", "namespaces, Landlock, seccomp")
OPENED = [case for case in CASES if case not in REFUSED]


def _order(case, **given):
    return {"denied": denied(case), "require": [*REQUIRED.get(case, GUARANTEES)], **given}


def _skip_unless_opened(case, found):
    if "refused" in found:
        pytest.skip(f"this machine grants less than without {case or 'nothing'}")


@pytest.fixture(params=[False, True], ids=["as this user", "as an ordinary user"])
def ordinary(request):
    if request.param:
        ordinary_python()
    return request.param


@pytest.fixture(params=OPENED, ids=lambda case: f"without {case or 'nothing'}")
def case(request):
    return request.param


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REFUSED)
def test_where_too_little_is_held_no_program_is_run_and_one_sentence_says_why(case, ordinary):
    found = run(_order(case, candidates=[[program("return 1", judge=0), DONE]]), ordinary=ordinary)
    assert found["refused"].startswith("expected a sandbox that guards ")
    assert "\n" not in found["refused"] and "judged" not in found


def test_a_socket_to_the_host_is_refused_or_the_sandbox_is(ordinary):
    escape = program(HOST_SOCKET, judge=0)
    for case in ("", "seccomp"):
        found = run({"denied": denied(case), "candidates": [[escape, DONE]]}, ordinary=ordinary)
        if "refused" in found:
            assert "host sockets" in found["refused"]
        else:
            assert found["judged"][0][0] == "wrong"


# --- Escapes -----------------------------------------------------------------------------------


def test_no_program_escapes(case, ordinary):
    judge = os.getpid()
    candidates = [[program(body, judge=judge), DONE] for body in ESCAPES.values()]
    found = run(_order(case, candidates=candidates), ordinary=ordinary)
    _skip_unless_opened(case, found)
    outcomes = dict(zip(ESCAPES, found["judged"], strict=True))
    assert {name: judged for name, judged in outcomes.items() if judged[0] != "wrong"} == {}


def test_no_program_leaves_a_mark_for_a_later_one(case, ordinary):
    key = random.getrandbits(30)
    candidates = []
    for leave, find, _ in MARKS.values():
        candidates.append([program(f"{leave}\nreturn 'done'", judge=0, key=key), DONE])
        candidates.append([program(f"{find}\nreturn 'done'", judge=0, key=key), DONE])
    found = run(_order(case, candidates=candidates), ordinary=ordinary)
    _skip_unless_opened(case, found)
    later = dict(zip(MARKS, found["judged"][1::2], strict=True))
    assert {name: judged for name, judged in later.items() if judged[0] != "wrong"} == {}


def test_the_marks_are_real_where_nothing_guards():
    key = random.getrandbits(30)
    steps = [(name, step) for name, three in MARKS.items() for step in three]
    sources = [program(f"{step}\nreturn 'done'", judge=0, key=key) for _, step in steps]
    order = {"denied": [], "attempt": [], "require": []}
    found = run({**order, "candidates": [[source, DONE] for source in sources]})
    assert [
        judged for judged in zip(steps, found["judged"], strict=True) if judged[1][0] != "right"
    ] == []


REWRITES = """
import ctypes, importlib.util, marshal, os
forged = "import os\\nos.write(1, b'limits\\\\n')\\nos.write(1, b'=42\\\\n')\\nos._exit(0)"
code = marshal.dumps(compile(forged, "x", "exec"))
code = importlib.util.MAGIC_NUMBER + bytes(12) + code
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for fd in range(64):
    where = libc.mmap(None, ctypes.c_size_t(1 << 16), 3, 1, fd, ctypes.c_long(0))
    if where not in (None, 2**64 - 1):
        ctypes.memmove(where, code, len(code))
    try:
        os.pwrite(fd, code, 0)
    except OSError:
        pass
def f(): return 0
"""


def test_no_program_changes_what_later_programs_start_from(case, ordinary):
    wrong, right = (
        ["def f(): return 0", "assert f() == 42"],
        ["def f(): return 0", "assert f() == 0"],
    )
    hostile = [REWRITES, "assert f() == 42"]
    found = run(_order(case, candidates=[hostile, *[wrong, right] * 3]), ordinary=ordinary)
    _skip_unless_opened(case, found)
    outcomes = [outcome for outcome, _ in found["judged"]]
    assert outcomes == ["wrong", *["wrong", "right"] * 3]


def test_no_attack_of_the_collection_is_graded_right(tmp_path):
    collection = ROOT.parent / "shared" / "cases" / "sandbox" / "attacks.py"
    if not collection.exists():
        pytest.skip("the collection of attacks is not here")
    subprocess.run([sys.executable, collection], cwd=tmp_path, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "attacks.jsonl").open()]
    before = {*Path("/tmp").glob("case_*")}
    with Sandbox(limits=Limits(cpu_seconds=1, seconds=5.0)) as sandbox:
        submissions = [
            Submission(extract(row["prediction"]) or "", split_tests(row["tests"])[1])
            for row in rows
        ]
        outcomes = [judged.outcome for judged in sandbox.judge_all(submissions)]
    named = dict(zip([row["name"] for row in rows], outcomes, strict=True))
    assert {name: one for name, one in named.items() if one not in ("wrong", "undecided")} == {}
    assert {*Path("/tmp").glob("case_*")} == before


# --- What a program finds ----------------------------------------------------------------------

SLEEPS = "import time\nprint('x' * 10**6)\ndef f():\n    while True: time.sleep(0.01)"


def _confined(pid):
    """The pid of a process's confined grandchild that has received its candidate, if any."""
    for watcher in _children(pid):
        for child in _children(watcher):
            if "0" not in {path.name for path in Path(f"/proc/{child}/fd").iterdir()}:
                return child
    return None


def _children(pid):
    text = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in text for child in path.read_text().split()]


def _within(seconds, probe):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if (value := probe()) is not None:
                return value
        except OSError:
            pass
        time.sleep(0.01)
    raise AssertionError(f"expected a value within {seconds} s")


def test_a_program_finds_one_pipe_no_shared_mapping_and_no_other_descriptor(case, ordinary):
    if os.geteuid() != 0:
        pytest.skip("only the superuser sees into a confined process")
    order = _order(case, seconds=30.0, candidates=[[SLEEPS, "assert f() == 1"]])
    process = start(order, ordinary=ordinary)
    try:
        first = json.loads(process.stdout.readline())
        _skip_unless_opened(case, first)
        pid = _within(20, lambda: _confined(process.pid))
        folder = Path(f"/proc/{pid}")
        descriptors = {path.name: str(path.readlink()) for path in (folder / "fd").iterdir()}
        flags = [line for line in (folder / "fdinfo/3").read_text().splitlines() if "flags" in line]
        shared = [line for line in (folder / "maps").read_text().splitlines() if _is_shared(line)]
        environment = (folder / "environ").read_bytes()
        session = (folder / "stat").read_text().rpartition(")")[2].split()[3]
    finally:
        process.kill()
        process.communicate()
    assert list(descriptors) == ["3"] and descriptors["3"].startswith("pipe:[")
    assert int(flags[0].split()[1], 8) & 0o3 == os.O_WRONLY
    # The C library's own table of character sets, which is only read.
    assert all(
        line.split()[1] == "r--s" and line.endswith("gconv-modules.cache") for line in shared
    )
    assert b"SANDBOX_TEST" not in environment
    assert session == str(pid)


def _is_shared(line):
    return line.split()[1].endswith("s")


INVENTORY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f():
    found = {'descriptors': [], 'written': [], 'ipc': []}
    for fd in range(64):
        try:
            found['descriptors'].append((fd, oct(os.fstat(fd).st_mode & 0o170000)))
        except OSError:
            pass
    for folder, _, names in os.walk('/'):
        for path in (folder, *(os.path.join(folder, name) for name in names[:2])):
            for call, flags in ((os.open, os.O_RDWR), (os.open, os.O_WRONLY | os.O_TMPFILE)):
                try:
                    os.close(call(path, flags))
                    found['written'].append(path)
                except OSError:
                    pass
        if folder.count('/') > 6:
            break
    for name, arguments in (('shmget', (0, 4096, 0o1666)), ('msgget', (0, 0o1666)),
                            ('semget', (0, 1, 0o1666)), ('mq_open', (b'/x', 0o102, 0o666, None))):
        if getattr(libc, name)(*arguments) >= 0:
            found['ipc'].append(name)
    return found
"""


def test_the_writable_paths_and_shared_memory_of_a_program_are_none(case, ordinary):
    found = run(_order(case, asked=[[INVENTORY, "f()"]]), ordinary=ordinary)
    _skip_unless_opened(case, found)
    assert found["lines"] == [["={'descriptors': [(3, '0o10000',)], 'ipc': [], 'written': []}"]]


# --- Ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["", "seccomp"])
def test_no_program_outlives_its_judgement(case, ordinary):
    mark = f"outlives-{random.getrandbits(60)}"
    source = program(f"'{mark}'\n{OUTLIVES}", judge=0)
    process = start(_order(case, seconds=1.0, candidates=[[source, DONE]]), ordinary=ordinary)
    if "refused" in json.loads(process.stdout.readline()):
        process.communicate()
        pytest.skip("this machine grants less")
    pid = _within(20, lambda: _confined(process.pid))
    output, _ = process.communicate(timeout=60)
    assert json.loads(output)["judged"][0][0] in ("undecided", "wrong")
    assert _ends(pid)


def _ends(pid):
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def test_no_program_outlives_a_judge_that_is_killed(ordinary):
    source = program(OUTLIVES, judge=0)
    order = _order("seccomp", seconds=30.0, candidates=[[source, DONE]])
    process = start(order, ordinary=ordinary)
    if "refused" in json.loads(process.stdout.readline()):
        process.communicate()
        pytest.skip("this machine grants less")
    pid = _within(20, lambda: _confined(process.pid))
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert _ends(pid)
