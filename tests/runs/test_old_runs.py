"""A run directory of version 0.1.0 resumes, or is refused in one line that names the version."""

import shutil
from pathlib import Path

import pytest

from distill.__main__ import main
from distill.core import stages

RECORDED = Path(__file__).with_name("recorded")


@pytest.fixture
def old(tmp_path):
    shutil.copytree(RECORDED / "run_0_1_0", tmp_path / "run")
    return tmp_path / "run"


def command(stage, run_dir):
    files = ("runs/quickstart.gin", RECORDED / "run_0_1_0.gin")
    return main([stage, *(f"--gin_file={file}" for file in files), f"--run_dir={run_dir}"])


def test_a_stage_whose_settings_have_not_changed_resumes(old):
    before = stages.manifest(old, "problems")
    assert command("problems", old) == 0
    assert stages.manifest(old, "problems") == before


def test_a_stage_whose_settings_have_new_names_is_refused_by_the_version_that_wrote_it(
    old, capsys, monkeypatch
):
    monkeypatch.setattr(stages, "version", lambda: "0.2.0")
    files = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    assert command("harvest", old) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "distill: " in line]
    assert len(lines) == 1
    assert "written by distill 0.1.0; use another --run_dir, or distill 0.1.0" in lines[0]
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == files


def test_verify_finds_it_sound_and_says_what_an_earlier_version_did_not_list(old, capsys):
    assert main(["verify", str(old)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not covered: align: files other than shards, written by an earlier version" in lines
    assert lines[-1] == "sound"


def test_verify_finds_a_shard_that_was_changed_or_added(old, capsys):
    shard = old / "aligned" / "part-000000.parquet"
    shard.with_name("part-000001.parquet").write_bytes(shard.read_bytes())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert main(["verify", str(old)]) != 0
    out = capsys.readouterr().out
    assert "aligned/part-000000.parquet" in out
    assert "fault: aligned/part-000001.parquet: it does not belong to the run" in out
