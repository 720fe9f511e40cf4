import ast
import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_world import ordinary_python

from distill.core.errors import UserError
from distill.core.records import OUTCOMES
from distill.grading import protections as guards
from distill.grading.sandbox import (
    GUARANTEES,
    PROTECTIONS,
    Assertion,
    Limits,
    Sandbox,
    Submission,
    judge,
    split_asserts,
)
from distill.grading.seccomp import ALLOWED
from distill.grading.spelling import NoLiteralError, spell

ROOT = Path(__file__).parent.parent.parent
NAMESPACES = {name for name in PROTECTIONS if name.endswith("namespace")}
QUICK = Limits(cpu_seconds=1, seconds=10.0, memory_bytes=256 << 20, answer_bytes=1 << 16)

# Every set of protections that guards all there is to guard, by what it goes without.
WITHOUT = {
    "nothing": set(),
    "namespaces": {*NAMESPACES, guards.EMPTY_ROOT},
    "user namespace": {guards.USER_NAMESPACE},
    "seccomp and Landlock": {guards.SECCOMP, guards.LANDLOCK},
}


# --- Asserts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "call", "expected"),
    [
        ("assert f(1) == 2", "f(1)", "2"),
        ("assert 2 == f(1)", "f(1)", "2"),
        ("assert f(1) == -2.5e3", "f(1)", "-2500.0"),
        ("assert sum(1, 2) == 3", "sum(1, 2)", "3"),
        ("assert f((1,), {'a': [2]}) == {3: (4,)}", "f((1,), {'a': [2]})", "{3: (4,)}"),
        ("assert sorted(f(1)) == [1], 'message'", "sorted(f(1))", "[1]"),
        ("assert set(f(1)) == set([1, 2])", "set(f(1))", "set([1, 2])"),
        ("assert f(1)[0].x == sys.getsizeof(())", "f(1)[0].x", "sys.getsizeof(())"),
        ("assert f(lambda x: x == 3 or x) == 1", "f(lambda x: x == 3 or x)", "1"),
        ("assert f(1) is None", "f(1)", "None"),
        ("assert f(1) is True", "f(1)", "True"),
        ("assert f(1)", "bool(f(1))", "True"),
        ("assert not f(1)", "bool(f(1))", "False"),
    ],
)
def test_an_assert_is_parted_into_call_and_expected_value(source, call, expected):
    (assertion,) = split_asserts(source)
    assert (assertion.call, assertion.expected) == (call, expected)
    assert assertion.relative == assertion.absolute == 0


@pytest.mark.parametrize(
    ("source", "relative", "absolute"),
    [
        ("assert math.isclose(f(1), 2.5)", 1e-9, 0),
        ("assert math.isclose(2.5, f(1))", None, None),
        ("assert isclose(f(1), 2.5, rel_tol=0.001)", 0.001, 0),
        ("assert math.isclose(f(1), 2.5, rel_tol=1e-3, abs_tol=1e-2)", 1e-3, 1e-2),
        ("assert abs(f(1) - 2.5) < 1e-6", 0, 1e-6),
        ("assert abs(2.5 - f(1)) <= 1", 0, 1),
        ("assert math.fabs(f(1) - 2.5) < 0.5", 0, 0.5),
        ("assert math.isclose(f(1), 2.5, rel_tol=g())", None, None),
        ("assert abs(f(1) - 2.5) < g()", None, None),
    ],
)
def test_tolerances_are_those_of_the_assert(source, relative, absolute):
    (assertion,) = split_asserts(source)
    if relative is None:
        assert assertion.call is None
    else:
        assert (assertion.call, assertion.expected) == ("f(1)", "2.5")
        assert (assertion.relative, assertion.absolute) == (relative, absolute)


@pytest.mark.parametrize(
    "source",
    [
        "assert f(1) in (2, 3)",
        "assert f(1) != 2",
        "assert f(1) > 2",
        "assert 1 < f(1) < 3",
        "assert f(1) == 2 or f(1) == 3",
        "assert (f(1) == 2) == True",
        "assert f(1) == f(2)",
        "assert f(1) == expected",
        "assert all(f(x) == 2 for x in (1, 2))",
        "assert all([f(1) == 2])",
        "assert (2 if f(1) == 2 else 3) == 2",
        "assert isinstance(f(1), int)",
        "assert 1 == 1",
        "f(1)",
        "for x in (1, 2): assert f(x) == 2",
    ],
)
def test_what_would_hand_over_the_expected_value_is_not_parted(source):
    assert [assertion.call for assertion in split_asserts(source)] == [None]


def test_joined_and_listed_asserts_are_parted_one_by_one():
    found = split_asserts("assert f(1) == 2 and not f(0)\nassert f(3) == 4")
    assert [assertion.call for assertion in found] == ["f(1)", "bool(f(0))", "f(3)"]


def test_no_python_is_refused():
    with pytest.raises(ValueError, match="expected Python asserts"):
        split_asserts("assert f(1) ==")


# --- Values ------------------------------------------------------------------------------------

numbers = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-3, 3).map(lambda x: round(x, 1)),
    st.sampled_from([0.0, -0.0, 1e300, 10**300, float("inf"), 0.1 + 0.2, 2**53 + 1, 2.0**53]),
    st.builds(complex, st.integers(-1, 1), st.integers(-1, 1)),
)
scalars = numbers | st.none() | st.text(max_size=3) | st.binary(max_size=2)
hashables = st.recursive(
    scalars, lambda x: st.tuples(x) | st.tuples(x, x) | st.frozensets(x, max_size=2), max_leaves=4
)
values = st.recursive(
    hashables,
    lambda x: st.one_of(
        st.lists(x, max_size=3),
        st.tuples(x, x),
        st.sets(hashables, max_size=3),
        st.dictionaries(hashables, x, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(values, values)
def test_values_are_spelled_alike_exactly_where_they_are_equal(a, b):
    assert (spell(a) == spell(b)) == (a == b)


@given(values)
def test_a_spelling_is_one_printable_line(value):
    assert spell(value).isascii() and spell(value).isprintable()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1], (1,)),
        ({}, set()),
        ("1", 1),
        (b"a", "a"),
        ((1), (1,)),
        ({1: 2}, {"1: 2"}),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ("a', 'b", ("a", "b")),
        (["a', 'b"], ["a", "b"]),
        (None, "None"),
        (float("nan"), "nan"),
    ],
)
def test_values_that_look_alike_are_spelled_apart(a, b):
    assert a != b and spell(a) != spell(b)


def test_subclasses_count_as_the_plain_class_below():
    class Odd(dict):
        def items(self):
            raise AssertionError("expected the plain class's items")

    assert spell(Odd(a=1)) == spell({"a": 1})


@pytest.mark.parametrize("value", [object(), map(abs, []), [object()], {1: len}, range(3)])
def test_what_no_literal_writes_is_refused(value):
    with pytest.raises(NoLiteralError):
        spell(value)


def test_deep_nesting_is_refused():
    value = []
    value.append(value)
    with pytest.raises(ValueError, match="50 levels"):
        spell(value)


# --- Judgements --------------------------------------------------------------------------------


# Only seccomp guards against sockets to the host of a virtual machine that has them.
ALL_BUT_HOST = [name for name in GUARANTEES if name != "host sockets"]


def _sandbox(without):
    attempt = [p for p in PROTECTIONS if p not in WITHOUT[without]]
    try:
        return Sandbox(limits=QUICK, require=ALL_BUT_HOST, attempt=attempt)
    except UserError as error:
        pytest.skip(f"without {without}: {error}")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(limits=QUICK) as opened:
        yield opened


@pytest.fixture(scope="module", params=["nothing", "namespaces", "seccomp and Landlock"])
def guarded(request):
    with _sandbox(request.param) as opened:
        yield opened


def _judge(sandbox, candidate, test, setup=""):
    submission = Submission(textwrap.dedent(candidate), split_asserts(test), setup)
    judgement = sandbox.judge(submission)
    assert judgement.outcome in OUTCOMES and "\n" not in judgement.reason
    return judgement


ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("candidate", "test", "outcome", "reason"),
    [
        (ADD, "assert add(1, 2) == 3", "right", "1 values as expected"),
        (ADD, "assert add(1, 2) == 3 and add(1, 2) == 4", "wrong", "gave 3, expected 4"),
        (ADD, "assert add([1], [2]) == [1, 2]", "right", ""),
        (ADD, "assert add([1], [2]) == (1, 2)", "wrong", r"gave \[1, 2\], expected \(1, 2,\)"),
        (ADD, "assert add((1,), ()) == (1,)", "right", ""),
        (ADD, "assert add(0.1, 0.2) == 0.3", "wrong", "gave 0.30000000000000004, expected 0.3"),
        (ADD, "assert abs(add(0.1, 0.2) - 0.3) < 1e-9", "right", ""),
        (ADD, "assert math.isclose(add(0.1, 0.2), 0.3)", "right", ""),
        (ADD, "assert math.isclose(add(0.1, 0.2), 0.31, rel_tol=1e-3)", "wrong", "expected 0.31"),
        (ADD, "assert math.isclose(add('', 'nan'), 0.3)", "wrong", "gave 'nan'"),
        (ADD, "assert abs(add(1, 9) - 9) < 1", "wrong", "gave 10, expected 9"),
        (ADD, "assert abs(add(1, 9) - 9) <= 1", "right", ""),
        (ADD, "assert abs(add(0, 9) - 9) < 0", "wrong", "gave 9, expected 9"),
        (ADD, "assert abs(add(1e999, 0) - 1e999) < 1", "wrong", "gave inf, expected inf"),
        (
            ADD,
            "assert abs(add(0, 2**60) - (2**60 + 1)) < 1",
            "wrong",
            "expected 1152921504606846977",
        ),
        (ADD, "assert add(1, 1.0) == 2", "right", ""),
        (ADD, "assert add(1, 2)", "right", ""),
        (ADD, "assert not add(1, -1)", "right", ""),
        (ADD, "assert add('a', 'ä\\n') == 'aä\\n'", "right", ""),
        (ADD, "assert add(1, '2') == 3", "wrong", "raised TypeError: unsupported operand"),
        (ADD, "assert add((), ()) == tuple(sorted([]))", "right", ""),
        (ADD, "assert add(0, 2) == len('ab') and add(1, 2) in (3, 4)", "undecided", "1 of the"),
        (ADD, "assert add(1, 2) in (3, 4)", "undecided", "1 of the asserts cannot be parted"),
        (ADD, "assert add(1, 2) in (3, 4) and add(1, 2) == 4", "wrong", "expected 4"),
        ("def add(", "assert add(1, 2) == 3", "wrong", "raised SyntaxError"),
        ("", "assert add(1, 2) == 3", "wrong", "raised NameError: name 'add' is not defined"),
        ("def add(a, b): yield 3", "assert add(1, 2) == 3", "wrong", "gave a generator"),
        ("\ud800", "assert add(1, 2) == 3", "wrong", "NameError|SyntaxError"),
        ("\0", "assert add(1, 2) == 3", "wrong", "null bytes"),
        ("x = float('nan')", "assert x == 0 * float('inf')", "wrong", "gave nan, expected nan"),
    ],
)
def test_a_verdict_follows_the_values(sandbox, candidate, test, outcome, reason):
    judgement = _judge(sandbox, candidate, test)
    assert judgement.outcome == outcome, judgement
    assert judgement.protections == sandbox.protections and judgement.seconds > 0
    assert re.search(reason, judgement.reason), judgement


@settings(max_examples=25, deadline=None)
@given(values, values)
def test_a_candidate_is_right_exactly_where_python_finds_the_values_equal(sandbox, a, b):
    for got, wanted in ((a, b), (a, a)):
        source = f"inf = float('inf')\ndef f():\n    return {got!r}\n"
        outcome = sandbox.judge(
            Submission(source, [Assertion("", "f()", _written(wanted))])
        ).outcome
        assert outcome == ("right" if got == wanted else "wrong")


def _written(value):
    """An expression of the value; literals have no word for infinity."""
    return ast.unparse(ast.parse(repr(value))).replace("inf", "1e999")


def test_setup_runs_between_candidate_and_calls(sandbox):
    candidate = (
        "class Node:\n    left = None\n\ndef depth(n): return 1 + depth(n.left) if n else 0\n"
    )
    setup = "root = Node()\r\nroot.left = Node()"
    assert _judge(sandbox, candidate, "assert depth(root) == 2", setup).outcome == "right"


def test_the_standard_library_can_be_imported(guarded):
    names = "array bisect cmath collections copy dataclasses datetime decimal enum fractions "
    names += "functools heapq itertools json math operator random re statistics string typing"
    source = f"import {', '.join(names.split())}\n@dataclasses.dataclass\nclass C:\n    x: int\n"
    judgement = _judge(guarded, source, "assert C(int(math.sqrt(9))).x == 3")
    assert judgement.outcome == "right", judgement


def test_many_are_judged_in_their_order(sandbox):
    asserts = split_asserts("assert f() == 3")
    submissions = [Submission(f"def f(): return {i % 4}", asserts) for i in range(40)]
    outcomes = [judgement.outcome for judgement in sandbox.judge_all(iter(submissions))]
    assert outcomes == ["right" if i % 4 == 3 else "wrong" for i in range(40)]


def test_a_long_candidate_is_handed_over_whole(sandbox):
    source = "x = 0\n" + "x += 1\n" * 50_000
    assert _judge(sandbox, source, "assert abs(x) == 50_000").outcome == "right"


def test_a_sandbox_of_its_own_judges_one():
    judgement = judge(ADD, split_asserts("assert add(1, 2) == 3"))
    assert judgement.outcome == "right"


def test_nothing_to_judge_by_is_refused():
    with pytest.raises(ValueError, match="at least one assertion"):
        Submission(ADD, [])


def test_an_expected_value_that_fails_is_the_asserts_fault(sandbox):
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        _judge(sandbox, ADD, "assert add(1, 2) == len('') // len('')")


@pytest.mark.parametrize(
    "wrong", [{"cpu_seconds": 0}, {"seconds": 0}, {"answer_bytes": 0}, {"memory_bytes": 1 << 20}]
)
def test_limits_that_let_nothing_run_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(Limits(), **wrong)


# --- Protections -------------------------------------------------------------------------------


def test_what_is_required_and_does_not_hold_is_refused():
    with pytest.raises(UserError, match="expected a sandbox that guards files, network"):
        Sandbox(attempt=[guards.NO_NEW_PRIVILEGES], require=["files", "network"])


@pytest.mark.parametrize("python", ["/nowhere/python", "/etc/passwd", "/bin/false"])
def test_a_python_that_does_not_start_is_refused(monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(UserError, match="expected a Python that starts as this user"):
        Sandbox(workers=1)


def test_a_system_without_its_protections_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"expected Linux, .*, got darwin"):
        Sandbox(workers=1)


@pytest.mark.parametrize("names", [{"require": ["peace"]}, {"attempt": ["secomp"]}])
def test_unknown_names_are_refused(names):
    with pytest.raises(ValueError, match="expected names of GUARANTEES and PROTECTIONS"):
        Sandbox(**names)


def test_less_can_be_required_and_is_declared():
    with Sandbox(attempt=[], require=["resources"]) as sandbox:
        judgement = _judge(sandbox, ADD, "assert add(1, 2) == 3")
    assert judgement.outcome == "right"
    assert set(judgement.protections) <= {guards.LIMITS, guards.ORDINARY_USER}


def test_protections_in_force_are_those_attempted(guarded):
    assert set(guarded.protections) <= set(PROTECTIONS)
    for name in ALL_BUT_HOST:
        assert GUARANTEES[name] & set(guarded.protections), name


@pytest.mark.parametrize("name", [p for p in PROTECTIONS if p != guards.LIMITS])
def test_a_protection_that_is_not_attempted_is_not_declared(name):
    with Sandbox(attempt=[p for p in PROTECTIONS if p != name], require=[]) as sandbox:
        ordinary = name == guards.ORDINARY_USER and os.geteuid() != 0
        assert (name in sandbox.protections) == ordinary
        assert _judge(sandbox, ADD, "assert add(1, 2) == 3").outcome == "right"


# --- Negative controls -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Host:
    """What lies open outside: each thing gives its secret to whom it lets in."""

    folder: Path
    port: int
    accepted: list

    @property
    def names(self):
        return {"FOLDER": str(self.folder), "PORT": self.port, "PID": os.getpid()}


@pytest.fixture(scope="module")
def host():
    folder = Path(tempfile.mkdtemp(prefix="sandbox-host-"))
    folder.chmod(0o777)
    (folder / "secret").write_text("secret")
    (folder / "kept").touch()
    (folder / "link").symlink_to(folder / "secret")
    accepted = []
    tcp = socket.create_server(("127.0.0.1", 0))
    local, abstract = (socket.socket(socket.AF_UNIX) for _ in range(2))
    local.bind(str(folder / "socket"))
    (folder / "socket").chmod(0o777)
    abstract.bind(f"\0{folder}")
    for server in (local, abstract, tcp):
        server.listen()
        threading.Thread(target=_accept, args=(server, accepted), daemon=True).start()
    yield Host(folder, tcp.getsockname()[1], accepted)
    for server in (local, abstract, tcp):
        server.close()
    shutil.rmtree(folder)


def _accept(server, accepted):
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        accepted.append(str(server.getsockname()))
        connection.close()


# Each does harm or raises; a candidate of it gives the right answer only after the harm is done.
HARMS = {
    "read the host's file": "open(FOLDER + '/secret').read()",
    "read through a symbolic link": "open(FOLDER + '/link').read()",
    "read by a path upwards": "open('../' * 9 + FOLDER + '/secret').read()",
    "list the host's folder": "import os; os.listdir(FOLDER)",
    "read the users": "open('/etc/passwd').read()",
    "read a process": "open(f'/proc/{PID}/environ').read()",
    "list processes": "import os; [p for p in os.listdir('/proc') if p.isdigit()][1]",
    "write a file": "open(FOLDER + '/written', 'w')",
    "make a folder": "import os; os.mkdir(FOLDER + '/made')",
    "make a symbolic link": "import os; os.symlink('/etc/passwd', FOLDER + '/forged')",
    "remove a file": "import os; os.unlink(FOLDER + '/kept')",
    "change a mode": "import os; os.chmod(FOLDER, 0o777)",
    "connect by TCP": "import socket; socket.create_connection(('127.0.0.1', PORT), 5)",
    "connect by a path": (
        "import socket; socket.socket(socket.AF_UNIX).connect(FOLDER + '/socket')"
    ),
    "connect by a name": "import socket; socket.socket(socket.AF_UNIX).connect('\\0' + FOLDER)",
    "signal the judge": "import os, signal; os.kill(PID, signal.SIGWINCH)",
    "signal the parent": "import os, signal; assert os.getppid(); os.kill(os.getppid(), 28)",
    "start a process": "import os\nif not os.fork(): os._exit(0)",
    "start a thread": "import threading; threading.Thread(target=print).start()",
    "start a program": "import subprocess, sys; subprocess.check_call(['/bin/true'])",
}

# As above, but refused, or without effect, on most machines already where nothing is guarded.
MORE_HARMS = {
    "trace the judge": "import ctypes; assert ctypes.CDLL(None).ptrace(16, PID, 0, 0) == 0",
    "trace the parent": (
        "import ctypes, os; assert os.getppid() and "
        "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0"
    ),
    "read the host by the root of a process": (
        "import os; open(os.path.join('/proc/1', 'root', 'etc', 'passwd')).read()"
    ),
    "mount": "import ctypes; assert not ctypes.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, 0)",
    "leave by chroot": "import os; os.chroot('..'); open('/etc/passwd').read()",
    "become the superuser": "import os; os.setuid(0); open('/etc/shadow').read()",
    "raise a limit": (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY)); 1 / 0"
    ),
    "bind a port": (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(s.getsockname(), 5)"
    ),
    "send a datagram": (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.sendto(b'x', ('127.0.0.1', PORT))"
    ),
    "fill a file in memory": "import os; os.write(os.memfd_create('x'), b'x')",
}


def _harmful(harm, names):
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return f"{given}def f():\n{textwrap.indent(harm, '    ')}\n    return 'done'\n"


@pytest.mark.parametrize("name", [*HARMS, *MORE_HARMS])
def test_no_harm_is_done(guarded, host, name):
    before = _state(host)
    candidate = _harmful((HARMS | MORE_HARMS)[name], host.names)
    judgement = _judge(guarded, candidate, "assert f() == 'done'")
    assert judgement.outcome == "wrong", judgement
    assert _state(host) == before


def _state(host):
    return len(host.accepted), sorted(host.folder.iterdir())


@pytest.mark.parametrize("name", HARMS)
def test_the_harm_is_real_where_nothing_guards(host, name):
    with Sandbox(attempt=[], require=[]) as unguarded:
        judgement = _judge(unguarded, _harmful(HARMS[name], host.names), "assert f() == 'done'")
    (host.folder / "kept").touch()
    for trace in ("written", "forged"):
        (host.folder / trace).unlink(missing_ok=True)
    shutil.rmtree(host.folder / "made", ignore_errors=True)
    assert judgement.outcome == "right", judgement


# Each looks for the expected value, or for a way around it.
CHEATS = {
    "walk the frames": """
        import gc, re, sys
        def f():
            frame, seen = sys._getframe(), []
            while frame:
                seen += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
                frame = frame.f_back
            seen += [repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple)]
            return re.search('secret-[0-9a-f]{16}', ''.join(seen)).group()
        """,
    "search the memory": """
        import ctypes, re
        def f():
            text = open('/proc/self/mem', 'rb')
            return re.search(rb'secret-[0-9a-f]{16}', text.read()).group().decode()
        """,
    "search the environment": """
        import os, re
        def f(): return re.search('secret-[0-9a-f]{16}', repr(os.environ)).group()
        """,
    "equal everything": """
        class Equal:
            __eq__ = __ne__ = __lt__ = __bool__ = __contains__ = lambda *_: True
            __hash__ = lambda _: 0
        def f(): return Equal()
        """,
    "equal everything as a text": """
        class Equal(str):
            __eq__ = lambda *_: True
            __hash__ = lambda _: 0
            __str__ = __repr__ = lambda _: 'secret'
        def f(): return Equal()
        """,
    "pretend to be a text": """
        class Pretender:
            __class__ = str
            def __eq__(self, other): return True
        def f(): return Pretender()
        """,
    "patch equality": """
        import builtins, gc
        for kind in (str, int, object):
            gc.get_referents(kind.__dict__)[0]['__eq__'] = lambda *_: True
        builtins.isinstance = lambda *_: True
        def f(): return ''
        """,
    "patch equality in memory": """
        import ctypes
        address = id(str)
        for offset in range(0, 400, 8):
            ctypes.c_void_p.from_address(address + offset).value = 0
        def f(): return ''
        """,
    "exit early": "import os\nos._exit(0)",
    "exit by the system": "import sys\nsys.exit(0)",
    "exit from the call": "def f(): raise SystemExit",
    "exit with closed pipes": "import os\nos.closerange(0, 64)\nos._exit(0)",
    "interrupt": "def f(): raise KeyboardInterrupt",
    "stop generating": "def f(): raise GeneratorExit",
    "abort": "import os\ndef f(): os.abort()",
    "crash": "import ctypes\ndef f(): ctypes.string_at(0)",
    "spoof the output": """
        import sys
        for stream in (sys.stdout, sys.stderr, sys.__stdout__):
            print("='right'\\n=True\\nright\\n1 values as expected", file=stream, flush=True)
        def f(): return 'right'
        """,
    "forge the messages": """
        import os
        for descriptor in range(64):
            for text in (b"limits\\n", b"='right'\\n", b"=True\\n", b"='secret'\\n"):
                try:
                    os.write(descriptor, text)
                except OSError:
                    pass
        def f(): return 'right'
        """,
    "change the judge's functions": """
        import sys
        main = sys.modules['__main__']
        main.spell = lambda _: 'True'
        main._send = lambda *_: None
        sys.excepthook = lambda *_: None
        def f(): raise ValueError
        """,
    "change the compiler": """
        import builtins
        builtins.compile = lambda *_: (lambda: True).__code__
        def f(): return True
        """,
    "contain itself": "def f():\n    x = []\n    x.append(x)\n    return x",
    "nest deeply": "def f():\n    x = []\n    for _ in range(10**6): x = [x]\n    return x",
    "recurse deeply": "def f(): return f()",
    "recurse in C": """
        import sys
        sys.setrecursionlimit(10**9)
        class C:
            def __repr__(self): return repr(self)
        def f(): return repr(C())
        """,
    "raise with a hostile message": """
        class Hostile(BaseException):
            def __str__(self): raise Hostile
        def f(): raise Hostile
        """,
    "raise a page": "def f(): raise ValueError('<script>\\n' * 10_000)",
    "give a huge number": "def f(): return 10**100_000",
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(guarded, monkeypatch, name):
    secret = f"secret-{secrets.token_hex(8)}"
    monkeypatch.setenv("SANDBOX_TEST_SECRET", secret)
    judgement = _judge(guarded, CHEATS[name], f"assert f() == {secret!r}")
    assert judgement.outcome == "wrong", judgement
    assert len(judgement.reason) < 400


BOMBS = {
    "processes": """
        import os
        def f():
            while True:
                try: os.fork()
                except OSError: pass
        """,
    "threads": """
        import threading, time
        def f():
            while True:
                try: threading.Thread(target=time.sleep, args=(1,)).start()
                except RuntimeError: pass
        """,
    "memory": "def f():\n    x = ['x']\n    while True: x += x",
    "memory at once": "def f(): return len('x' * (1 << 40))",
    "memory of the compiler": "def f(): return compile('-' * 100_000 + '1', '', 'eval')",
    "output": "def f():\n    while True: print('x' * 10_000)",
    "answers": "def f(): return 'x' * 10_000_000",
    "answers on every pipe": """
        import os
        while True:
            for descriptor in range(3, 64):
                try: os.write(descriptor, b'x' * 60_000)
                except OSError: pass
        """,
}

LOOPS = {
    "loop": "def f():\n    while True: pass",
    "loop at import": "while True: pass",
    "loop that catches all": "def f():\n    while True:\n        try: f()\n        except: pass",
    "loop with closed pipes": "import os\nos.closerange(0, 64)\nwhile True: pass",
    "loop that ignores signals": """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass
        """,
    "power": "def f(): return 9 ** 9 ** 9",
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_goes_off(guarded, name):
    start = time.monotonic()
    judgement = _judge(guarded, BOMBS[name], "assert f() == 1")
    assert judgement.outcome == "wrong", judgement
    assert time.monotonic() - start < QUICK.seconds + 2
    assert _judge(guarded, ADD, "assert add(1, 2) == 3").outcome == "right"


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_outlives_its_processor_time(sandbox, name):
    judgement = _judge(sandbox, LOOPS[name], "assert f() == 1")
    assert judgement.outcome == "wrong", judgement
    assert judgement.seconds < QUICK.seconds


def test_processor_time_decides_and_the_clock_does_not():
    with Sandbox(workers=1, limits=Limits(cpu_seconds=1, seconds=60.0)) as sandbox:
        looped = _judge(sandbox, LOOPS["loop"], "assert f() == 1")
    slept = "import time\ndef f(): time.sleep(60)"
    with Sandbox(workers=1, limits=Limits(cpu_seconds=1, seconds=0.5)) as sandbox:
        waited = _judge(sandbox, slept, "assert f() == 1")
    assert (looped.outcome, looped.reason) == ("wrong", "used 1 s of processor time")
    assert (waited.outcome, waited.reason) == ("undecided", "no answer within 0.5 s")


def test_system_calls_beyond_computing_are_refused(sandbox):
    if guards.SECCOMP not in sandbox.protections:
        pytest.skip("no seccomp on this machine")
    source = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def f():
            refused = set()
            for number in range(500):
                if number in ALLOWED: continue
                assert libc.syscall(number, -1, -1, -1, -1, -1, -1) == -1, number
                refused.add(ctypes.get_errno())
            return refused
        """
    column = 0 if os.uname().machine == "x86_64" else 1
    allowed = {numbers[column] for numbers in ALLOWED.values()}
    # The kernel's own trampolines of probes pass every filter; called by hand they kill the caller.
    allowed |= {335, 336}
    candidate = f"ALLOWED = {allowed}\n{textwrap.dedent(source)}"
    judgement = _judge(sandbox, candidate, "assert f() == {1}")
    assert judgement.outcome == "right", judgement


# --- Ends --------------------------------------------------------------------------------------


def _descendants(pid):
    """Pids of a process's children and theirs, those not yet reaped left out."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found = {pid}
    for _ in range(4):
        found |= {one for one, parent in parents.items() if parent in found}
    return found - {pid}


def _wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


CLOSES = """
import sys
from distill.grading.sandbox import *
with Sandbox(limits=Limits(cpu_seconds=1)) as sandbox:
    print(sandbox.judge(Submission(sys.argv[1], split_asserts("assert f() == 1"))), flush=True)
print("closed", flush=True)
sys.stdin.read()
"""


def test_a_closed_sandbox_leaves_no_process():
    with subprocess.Popen(
        [sys.executable, "-c", CLOSES, textwrap.dedent(BOMBS["processes"])],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert "outcome='wrong'" in process.stdout.readline()
        assert process.stdout.readline() == "closed\n"
        assert _wait_until(lambda: not _descendants(process.pid))
        process.stdin.close()


RUNS_FOREVER = """
from distill.grading.sandbox import *
with Sandbox(limits=Limits(cpu_seconds=500, seconds=500)) as sandbox:
    print("ready", flush=True)
    sandbox.judge(Submission("while True: pass", split_asserts("assert f() == 1")))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_their_parent_however_it_ends(number):
    process = subprocess.Popen(
        [sys.executable, "-c", RUNS_FOREVER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    assert _wait_until(lambda: len(_descendants(process.pid)) >= 6)
    children = _descendants(process.pid)
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    alive = {pid for pid in children if Path(f"/proc/{pid}").exists()}
    assert _wait_until(lambda: not any(_runs(pid) for pid in alive))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- Other users -------------------------------------------------------------------------------

JUDGES_ALL = """
import json, sys
from distill.grading.sandbox import *
given = json.load(sys.stdin)
limits, require = Limits(**given["limits"]), [g for g in GUARANTEES if g != "host sockets"]
with Sandbox(limits=limits, require=require, attempt=given["attempt"]) as sandbox:
    outcomes = {}
    for name, (candidate, test) in given["candidates"].items():
        outcomes[name] = sandbox.judge(Submission(candidate, split_asserts(test))).outcome
json.dump({"outcomes": outcomes, "protections": sandbox.protections}, sys.stdout)
"""


@pytest.mark.parametrize("without", WITHOUT)
def test_an_ordinary_user_is_guarded_alike(host, without):
    python, user = ordinary_python()
    before = _state(host)
    attempt = [p for p in PROTECTIONS if p not in WITHOUT[without]]
    candidates = {"good": (ADD, "assert add(1, 2) == 3")}
    for name, harm in (HARMS | MORE_HARMS).items():
        candidates[name] = (_harmful(harm, host.names), "assert f() == 'done'")
    for name, source in (
        CHEATS | {k: BOMBS[k] for k in ("processes", "threads", "memory")}
    ).items():
        candidates[name] = (textwrap.dedent(source), f"assert f() == {secrets.token_hex(8)!r}")
    given = {"limits": dataclasses.asdict(QUICK), "attempt": attempt, "candidates": candidates}
    ended = subprocess.run(
        [python, "-c", JUDGES_ALL],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=ROOT,
        **user,
    )
    if "UserError" in ended.stderr:
        pytest.skip(f"without {without}: {ended.stderr.splitlines()[-1]}")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["outcomes"].pop("good") == "right"
    assert {k: v for k, v in found["outcomes"].items() if v != "wrong"} == {}
    assert _state(host) == before
