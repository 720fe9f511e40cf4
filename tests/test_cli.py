"""The command line: help without weight, one clear line for every mistake, exit code 2."""

import json
import subprocess
import sys

import pytest

from distill.__main__ import STAGES, main

COMMAND = (sys.executable, "-m", "distill")


def distill(*arguments, cwd, prefix=()):
    return subprocess.run(
        [*prefix, *COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources(path):
    return f"problems.run.sources = [@problems.JsonLines()]\nproblems.JsonLines.path = '{path}'\n"


def gin_file(tmp_path, text):
    path = tmp_path / "run.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\nfrom distill.corpus import problems\n" + text
    )
    return f"--gin_file={path}"


def refused(result, *parts):
    """Assert that a command ended with one line that holds the parts, and with exit code 2."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("distill: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for part in ("expected", "got", *parts):
        assert part in lines[0]


@pytest.mark.parametrize("stage", ["", *STAGES])
def test_help_answers_without_loading_anything_heavy(stage, tmp_path):
    code = (
        "import sys; from distill.__main__ import main; main(sys.argv[1:]);"
        "heavy = {'numpy', 'jax', 'tensorflow', 'gin', 'pyarrow'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    arguments = [stage, "--help"] if stage else ["--help"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "usage: distill" in run.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does_and_what_gin_binds(stage, capsys):
    assert main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.split("gin binds:")[0].splitlines()) >= 3
    assert f"--gin.{STAGES[stage][0].rpartition('.')[2]}.{STAGES[stage][1]}." in text or (
        stage in ("report",)
    )


def test_the_users_own_problems_are_read(tmp_path, questions):
    arguments = [gin_file(tmp_path, sources(questions)), "--run_dir=out"]
    assert distill("problems", *arguments, cwd=tmp_path).returncode == 0
    again = distill("problems", *arguments, cwd=tmp_path)
    assert again.returncode == 0 and "start" not in again.stderr
    assert (tmp_path / "out" / "config.gin").read_text().count("JsonLines.path") == 1


def test_an_override_needs_no_file(tmp_path, questions):
    result = distill(
        "problems",
        "--gin.problems.run.sources=[@problems.JsonLines()]",
        f"--gin.problems.JsonLines.path='{questions}'",
        "--run_dir=out",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_a_missing_source_is_one_line(tmp_path):
    file = gin_file(tmp_path, sources("nowhere.jsonl"))
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path), "nowhere.jsonl")


def test_a_missing_gin_file_is_one_line(tmp_path):
    refused(distill("run", "--gin_file=nowhere.gin", cwd=tmp_path), "nowhere.gin")


def test_a_row_without_an_answer_is_named_and_nothing_is_written(tmp_path, questions):
    with questions.open("a") as file:
        file.write(json.dumps({"question": "What is 1 + 1?"}) + "\n")
    file = gin_file(tmp_path, sources(questions))
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path), "answer", "6")
    assert list((tmp_path / "out").glob("problems/*")) == []


def test_a_misspelt_gin_name_is_one_line(tmp_path, questions):
    file = gin_file(tmp_path, sources(questions) + "problems.run.sourcs = 1\n")
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path), "sourcs")


def test_a_required_value_that_is_not_given_is_one_line(tmp_path):
    file = gin_file(tmp_path, "problems.run.sources = %gin.REQUIRED\nfrom gin import config\n")
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path), "problems.run.sources")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("harvest.run.generator = @ports.Request()\n", "prompt"),
        ("harvest.run.sampling = @ports.Sampling()\nports.Sampling.temperature = -1.0\n", "-1.0"),
    ],
)
def test_a_configured_value_that_is_refused_is_one_line(tmp_path, questions, line, part):
    imports = "from distill.corpus import harvest\nfrom distill.core import ports\n"
    file = gin_file(tmp_path, imports + sources(questions) + line)
    assert distill("problems", file, "--run_dir=out", cwd=tmp_path).returncode == 0
    refused(distill("harvest", file, "--run_dir=out", cwd=tmp_path), part)


def test_an_unknown_flag_is_one_line(tmp_path):
    refused(distill("problems", "--gin_fil=x", "--run_dir=out", cwd=tmp_path), "--gin_fil")


def test_the_run_directory_of_another_run_is_one_line(tmp_path, questions):
    file = gin_file(tmp_path, sources(questions))
    assert distill("problems", file, "--run_dir=out", cwd=tmp_path).returncode == 0
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": "What is 2 + 3?", "answer": "5"}) + "\n")
    file = gin_file(tmp_path, sources(other))
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path), "another --run_dir")


def test_a_stage_without_its_input_is_one_line(tmp_path):
    refused(distill("check", "--run_dir=out", cwd=tmp_path), "distill problems", "first")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, questions):
    code = (
        "import resource, runpy, signal, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500));"
        "sys.argv[0] = 'distill'; runpy.run_module('distill', run_name='__main__')"
    )
    file = gin_file(tmp_path, sources(questions))
    result = subprocess.run(
        [sys.executable, "-B", "-c", code, "problems", file, "--run_dir=out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    refused(result, "room", "free")
    assert list((tmp_path / "out").glob("problems/*")) == []
    assert distill("problems", file, "--run_dir=out", cwd=tmp_path).returncode == 0
