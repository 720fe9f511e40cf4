"""The command line: help without weight, one clear line for every mistake, exit code 2."""

import json
import os
import subprocess
import sys

import gin
import pytest

from distill import config
from distill.__main__ import main
from distill.runs.commands import STAGES

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
        "from __gin__ import dynamic_registration\nfrom distill.problems import problems\n" + text
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


@pytest.mark.parametrize("stage", ["evaluate", "final"])
def test_help_lists_the_options_that_evaluate_and_final_share(stage, capsys):
    assert main([stage, "--help"]) == 0
    text = capsys.readouterr().out.split("gin binds:")[1]
    assert ".options=@evaluate.Options()" in text
    assert "--gin.evaluate.Options.max_tokens=256" in text and "Options.set_options={}" in text


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
    imports = "from distill.traces import harvest\nfrom distill.core import ports\n"
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


# --- The run's record --------------------------------------------------------------------------


def test_the_record_of_configurations_only_grows_and_is_a_configuration(
    tmp_path, questions, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    record, overrides = tmp_path / "out" / "config.gin", ["train.run.steps = 3"]
    assert main(["problems", gin_file(tmp_path, sources(questions)), "--run_dir=out"]) == 0
    first = record.read_text()
    for _ in range(2):
        gin.clear_config()
        config.load([], overrides, modules=["distill.training.train"])
        with config.recorded(tmp_path / "out", "train"):
            pass
    second = record.read_text()
    assert second.startswith(first) and second.count("train.run.steps = 3") == 1
    assert "# distill train, version " in second
    gin.clear_config()
    config.load([str(record)], [])
    assert gin.query_parameter("train.run.steps") == 3
    assert gin.query_parameter("problems.JsonLines.path") == str(questions)
    assert main(["verify", "--checksums", "out"]) == 0


def test_a_changed_file_of_problems_is_refused_by_its_name(tmp_path, questions):
    file = gin_file(tmp_path, sources(questions))
    assert distill("problems", file, "--run_dir=out", cwd=tmp_path).returncode == 0
    questions.write_text(json.dumps({"question": "What is 2 + 3?", "answer": "5"}) + "\n")
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path), "questions.jsonl", "restore")


KEY = "sk-FAKEfake0123456789leak"


@pytest.mark.parametrize(
    "binding",
    [
        f"base_url='http://user:{KEY}@127.0.0.1:1/v1'",
        f"base_url='http://127.0.0.1:1/v1?key={KEY}'",
        f"base_url=('http://127.0.0.1:1/v1', 'http://u:{KEY}@127.0.0.1:2/v1')",
        "base_url='http://user:hunter22@127.0.0.1:1/v1'",
        f"model='{KEY}'",
        f"api_key_variable='{KEY}'",
        "api_key_variable='0a1b2c3d4e5f'",
        f"api_key='{KEY}'",
    ],
)
def test_a_credential_is_refused_before_anything_is_written_and_never_shown(
    tmp_path, questions, binding, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    text = "from distill.traces import harvest\nfrom distill.endpoints import teacher\n"
    text += f"{sources(questions)}harvest.run.generator = @teacher.OpenAICompatible()\n"
    text += "teacher.OpenAICompatible.model = 'm'\n"
    override = f"--gin.teacher.OpenAICompatible.{binding}"
    run_dir = tmp_path / "out"
    assert main(["problems", gin_file(tmp_path, text), override, f"--run_dir={run_dir}"]) == 2
    printed = "".join(capsys.readouterr())
    assert "expected" in printed and not run_dir.exists()
    for part in (KEY, "hunter22", "0a1b2c3d4e5f"):
        assert part not in printed


def test_codes_in_names_and_rows_reach_no_terminal(tmp_path):
    path = tmp_path / "a\x1b[31m\u202eb.jsonl"
    path.write_text('{"question": "\\u001b]0;pwned\\u0007", "answer": ["\\u009b31m"]}\n')
    file = gin_file(tmp_path, sources("a\\x1b[31m\\u202eb.jsonl"))
    result = distill("problems", file, "--run_dir=out", cwd=tmp_path)
    refused(result, "a\\x1b[31m\\u202eb.jsonl")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(result.stdout + result.stderr)


@pytest.mark.parametrize("kind", ["fifo", "directory", "zero", "deep", "digits", "surrogate"])
def test_a_file_of_problems_of_any_kind_ends_in_one_line(tmp_path, kind):
    path = tmp_path / "questions.jsonl"
    rows = {
        "deep": "[" * 100_000,
        "digits": f'{{"question": "Why?", "answer": {"9" * 5000}}}',
        "surrogate": '{"question": "\\ud800 ?", "answer": "1"}',
    }
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(rows[kind] + "\n")
    refused(distill("problems", gin_file(tmp_path, sources(path)), "--run_dir=out", cwd=tmp_path))


def test_a_deeply_nested_gin_file_is_one_line(tmp_path):
    file = gin_file(tmp_path, f"problems.run.sources = {'[' * 5000}{']' * 5000}\n")
    refused(distill("problems", file, "--run_dir=out", cwd=tmp_path))
