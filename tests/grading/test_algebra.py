"""Algebra where keys cannot tell: what it decides, and what hostile answers do not do to us."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.core.errors import UserError
from distill.grading import algebra, algebra_worker
from distill.grading.algebra import Algebra
from distill.grading.protections import PROTECTIONS, unguarded
from distill.grading.sandbox import Sandbox
from distill.text import answers


@pytest.fixture(scope="module")
def deciding():
    with Algebra(seconds=5) as found:
        yield found


# --- Goldens -----------------------------------------------------------------------------------

EQUAL = [
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("x + 1", "1+x"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"),
    ("(x+1)^2", "x^2 + 2x + 1"),
    (r"\{x^2 - 1, 1\}", r"\{1, (x-1)(x+1)\}"),
    ("y = -1/2*x + 3/4", "2x+4y-3=0"),
    (r"(\sqrt{8}, 1]", r"(2\sqrt{2}, 1]"),
    (r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]
DIFFERENT = [
    (r"2\sqrt{3}", r"\sqrt{13}"),
    ("x + 1", "x + 2"),
    (r"8\pi", "8"),
    ("6 - 5i", "6 + 5i"),
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
    (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
    (r"\frac{1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}"),
    ("10^{-400}", "0"),
    (r"\pi", "3.14159265358979323846"),
    (r"\{1,2\}", "(1,2)"),
    (r"\{\sqrt{4}, x\}", r"(\sqrt{4}, x)"),
    ("(x+1)^2", "x^2 + 1"),
]


@pytest.mark.parametrize(("prediction", "gold"), EQUAL)
def test_algebra_accepts_what_keys_leave_open(deciding, prediction: str, gold: str):
    assert answers.equal(prediction, gold) is not False
    assert deciding.equal(prediction, gold) is deciding.equal(gold, prediction) is True


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_algebra_refuses_what_differs(deciding, prediction: str, gold: str):
    assert deciding.equal(prediction, gold) is deciding.equal(gold, prediction) is False


@pytest.mark.parametrize(
    ("prediction", "gold"), [("52_8", "52"), ("10", "10%"), ("5 or 6", "5"), ("7", "7.0")]
)
def test_what_keys_decide_never_reaches_a_worker(prediction: str, gold: str):
    with Algebra() as idle:
        assert idle.equal(prediction, gold) is answers.equal(prediction, gold)
        assert idle.worker_pid() is None


def test_a_pair_is_compared_once():
    with Algebra() as once:
        first = once.equal("3x + 1", "1 + 3x")
        once.seconds = 0.0  # in which no worker compares a pair
        assert once.equal("3x + 1", "1 + 3x") is first is True
        assert once.killed == 0


# --- Hostile answers ---------------------------------------------------------------------------

ENDLESS = [
    "9^{9^{9^{9}}}",
    r"\frac{" * 30 + "x" + "}{2}" * 30,
    r"\int_0^1 e^{-x^{x^x}} dx",
]
UNREADABLE = [
    "{" * 60 + "x^2",
    "x^2}" + "}" * 60,
    r"\frac{x}",
    "x^",
    "((((x^2",
    "x^2\x00",
    "\ud800^2",
]


def test_what_takes_for_ever_is_undecided_in_time_and_the_next_pair_is_decided():
    with Algebra(seconds=0.5) as hurried:
        hurried.equal("x + 1", "1 + x")
        killed = 0
        for text in ENDLESS:
            start = time.monotonic()
            found = hurried.equal(text, "x^2")
            assert found is not True
            assert time.monotonic() - start < 30
            killed += found is None
        assert hurried.killed > 0 and killed > 0
        hurried.seconds = 20.0
        assert hurried.equal(r"2\sqrt{3}", r"\sqrt{12}") is True


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_not_accepted(deciding, text: str):
    assert deciding.equal(text, "x^2 + 1") is not True


def test_memory_beyond_the_limit_is_undecided():
    with Algebra(seconds=3, memory_bytes=200 << 20) as small:
        assert small.equal("x + 1", "1 + x") is True
        assert small.equal("(" * 20 + "x" + "+1)^{99}" * 20, "x^2") is not True
        assert small.equal("x + 1", "1 + x") is True


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('{}')^2",
        "\\text{{open('{}', 'w')}}^2",
        "x^2; import os; os.mkdir('{}')",
    ],
)
def test_no_text_is_run(deciding, tmp_path, text: str):
    target = tmp_path / "made"
    assert deciding.equal(text.format(target), "x^2") is not True
    assert not target.exists()


CONFINED = """
import os, socket, sys
from distill.grading import algebra_worker
print(len(algebra_worker.confine_worker(str(1 << 30), sys.argv[2])), flush=True)
for forbidden in (
    lambda: open(sys.argv[1], "w"),
    lambda: open("/etc/passwd"),
    lambda: open(algebra_worker.__file__.replace("distill/grading/algebra_worker", "conftest")),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    os.fork,
):
    try:
        forbidden()
    except OSError:
        os.write(1, b"refused ")
"""


def test_the_worker_cannot_write_open_sockets_or_start_processes(tmp_path, deciding):
    deciding.equal("x + 1", "1 + x")
    if unguarded(deciding.protections()):
        pytest.skip("this kernel grants no Landlock or seccomp")
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, str(tmp_path / "made"), ":".join(PROTECTIONS)],
        capture_output=True,
        text=True,
    )
    held, _, refused = done.stdout.partition("\n")
    assert int(held) == len(deciding.protections())
    assert refused == "refused " * 5


def test_what_confines_the_worker_is_what_confines_programs(deciding):
    deciding.equal("x + 1", "1 + x")
    with Sandbox(workers=1, require=[]) as sandbox:
        assert deciding.protections() == sandbox.protections


def test_protections_that_are_missing_are_reported():
    with Algebra(attempt=[]) as open_wide:
        assert open_wide.protections() is None
        assert open_wide.equal("x + 1", "1 + x") is True
        assert "files" in unguarded(open_wide.protections())


def test_no_protection_is_claimed_outside_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert algebra_worker.confine_worker(str(1 << 30), ":".join(PROTECTIONS)) == []


def test_a_worker_that_died_while_it_waited_is_replaced():
    with Algebra() as found:
        assert found.equal("x + 1", "1 + x") is True
        os.kill(found.worker_pid(), 9)
        while Path(f"/proc/{found.worker_pid()}/stat").read_text().rpartition(") ")[2][0] != "Z":
            time.sleep(0.01)
        assert found.equal("x + 3", "3 + x") is True
        assert found.killed == 0


def test_no_worker_is_left(deciding):
    with Algebra() as found:
        found.equal("x + 1", "1 + x")
        pid = found.worker_pid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_math_verify_it_is_refused(monkeypatch):
    monkeypatch.setattr(algebra.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package math-verify, got none; install it: .*math"):
        Algebra()
