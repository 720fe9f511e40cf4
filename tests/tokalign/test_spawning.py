"""Worker processes and the script that asks for them; each test is a script of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

BARE = """
print("the script runs")
import tokalign
token = tokalign.TeacherToken(b"4", -0.1, ((b"4", -0.1),))
student = tokalign.SentencePieceTokenizer("data/vocabularies/student.model")
found = list(tokalign.project_batch([[token]] * 3, student, processes=2))
assert len(found) == 3
print("projected")
"""

GUARDED = """
import tokalign

class Mine(tokalign.SentencePieceTokenizer):
    pass

if __name__ == "__main__":
    token = tokalign.TeacherToken(b"4", -0.1, ((b"4", -0.1),))
    student = Mine("data/vocabularies/student.model")
    assert len(list(tokalign.project_batch([[token]] * 3, student, processes=2))) == 3
    print("projected")
"""


def ran(tmp_path, text):
    script = tmp_path / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("text", [BARE, GUARDED], ids=["no guard", "a class of the script"])
def test_workers_run_the_script_again_only_for_its_own_classes(tmp_path, text):
    found = ran(tmp_path, text)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("the script runs") == (text is BARE)
    assert found.stdout.count("projected") == 1
