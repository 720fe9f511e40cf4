"""The commands of `distill launch`, as text; nothing is started but stand-ins on the PATH."""

import json
import shlex
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distill.__main__ import main
from distill.runs.launch import Command, yaml_text

RUN = ("--gin_file=runs/gsm8k_flan_t5_xl.gin", "--run_dir=/runs/xl")
TPU = ("launch", "tpu", "--zone=us-east5-a", *RUN)
SLURM = ("launch", "slurm", "--nodes=2", *RUN)
GKE = ("launch", "gke", "--image=registry.example/distill:1", "--claim=runs", *RUN)
printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


def printed(capsys, arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_tpu_makes_a_slice_and_trains_on_all_of_its_hosts(capsys):
    text = printed(capsys, [*TPU, "--spot", "--gin.train.run.batch_size=64"])
    create, ssh = (shlex.split(line) for line in text.strip().split("\n\n"))
    slices = ["gcloud", "compute", "tpus", "tpu-vm"]
    what = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert create == [*slices, "create", "distill", "--zone=us-east5-a", *what]
    assert ssh[:-1] == [*slices, "ssh", "distill", "--zone=us-east5-a", "--worker=all"]
    assert shlex.split(ssh[-1].removeprefix("--command=")) == [
        "DISTILL_CLUSTER=detected",
        *("distill", "train", *RUN, "--gin.train.run.batch_size=64"),
    ]


def test_slurm_submits_a_script_with_a_process_for_each_gpu(capsys):
    assert printed(capsys, [*SLURM, "--partition=gpu"]) == (
        "sbatch <<'END_OF_INPUT'\n"
        "#!/bin/bash\n"
        "#SBATCH --job-name=distill\n"
        "#SBATCH --nodes=2\n"
        "#SBATCH --ntasks-per-node=8\n"
        "#SBATCH --gpus-per-node=8\n"
        "#SBATCH --time=24:00:00\n"
        "#SBATCH --partition=gpu\n"
        "#SBATCH --signal=TERM@120\n"
        "#SBATCH --requeue\n"
        "export DISTILL_CLUSTER=detected\n"
        "srun distill train --gin_file=runs/gsm8k_flan_t5_xl.gin --run_dir=/runs/xl\n"
        "END_OF_INPUT\n"
    )


def test_gke_applies_a_job_set_with_a_pod_for_each_host(capsys):
    text = printed(capsys, [*GKE, "--topology=4x8"])
    first, *lines, last = text.splitlines()
    assert first == "kubectl apply --filename=- <<'END_OF_INPUT'" and last == "END_OF_INPUT"
    shown = "\n".join(lines)
    for part in (
        '"kind": "JobSet"',
        '"completions": 8',
        '"parallelism": 8',
        '"google.com/tpu": 4',
        '"cloud.google.com/gke-tpu-topology": "4x8"',
        '"terminationGracePeriodSeconds": 120',
        '- "--run_dir=/runs/xl"',
        '"name": "DISTILL_TERMINATED_CODE"',
        '"claimName": "runs"',
    ):
        assert part in shown, part


@pytest.mark.parametrize("target", [TPU, SLURM])
def test_setup_comes_before_the_stage_as_it_is(target, capsys):
    text = printed(capsys, [*target, "--setup=source .venv/bin/activate"])
    assert "source .venv/bin/activate" in text.split("distill train")[0]
    assert main([*target, "--setup=a\nb"]) == 2


@given(printable)
@example("$(reboot)")
@example("a'; reboot; '")
@example('"\nreboot'.replace("\n", "\\n"))
@example("`reboot` && reboot")
@example("END_OF_INPUT")
def test_no_name_leaves_its_place(name):
    """Whatever a run directory is called, the shell and the remote shell read it back whole."""
    stage = ["distill", "train", f"--run_dir={name}"]
    inner = shlex.join(stage)
    command = Command(("gcloud", "ssh", f"--command={inner}"))
    assert shlex.split(shlex.split(str(command))[2].removeprefix("--command=")) == stage
    assert yaml_text({"command": stage}).count("\n") == 3
    assert json.loads(yaml_text({"command": stage}).splitlines()[3].strip()[2:]) == stage[2]


HOSTILE = "/runs/$(touch pwned)'\"; touch pwned #`touch pwned`"
# gcloud and sbatch run what they are given as the far side would, distill writes it down.
STAND_INS = {
    "gcloud": 'for x; do :; done\ncase "$x" in --command=*) sh -c "${x#--command=}";; esac',
    "sbatch": "bash",
    "srun": '"$@"',
    "distill": 'printf "%s\\n" "$DISTILL_CLUSTER" "$@" > arguments',
}


@pytest.mark.parametrize("target", [TPU, SLURM])
def test_a_shell_that_runs_what_is_printed_runs_distill_and_nothing_else(target, tmp_path, capsys):
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    text = printed(capsys, [*target, f"--run_dir={HOSTILE}"])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, check=True)
    expected = ["detected", "train", RUN[0], f"--run_dir={HOSTILE}"]
    assert (tmp_path / "arguments").read_text().splitlines() == expected
    assert not (tmp_path / "pwned").exists()


def test_a_manifest_holds_a_hostile_name_as_one_string(capsys):
    text = printed(capsys, [*GKE, f"--run_dir={HOSTILE}"])
    [line] = [line for line in text.splitlines() if "--run_dir" in line]
    assert json.loads(line.strip().removeprefix("- ")) == f"--run_dir={HOSTILE}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*TPU, "--run_dir=a\nreboot"], "arguments without control characters"),
        ([*SLURM, "reboot"], "--gin.NAME=VALUE after the flags, got reboot"),
        ([*GKE, "--topology=3x3"], "a topology whose chips --chips_per_host=4 divides, got 3x3"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--name=A b", "--name=a\n#SBATCH --wrap=x", "--zone=a;b", "--zone=--help"]
)
def test_names_of_other_forms_are_refused(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*TPU, flag])
    assert "expected" in capsys.readouterr().err


def test_yes_runs_what_is_printed_and_passes_a_failure_on(tmp_path, monkeypatch, capsys):
    stand_in = tmp_path / "sbatch"
    stand_in.write_text(f"#!/bin/sh\ncat > {tmp_path}/script\nexit 3\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main([*SLURM, "--yes"]) == 3
    text = (tmp_path / "script").read_text()
    assert text.startswith("#!/bin/bash\n") and text in capsys.readouterr().out


def test_yes_without_the_program_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main([*TPU, "--yes"]) == 2
    assert "expected gcloud on the PATH, got none" in capsys.readouterr().err
