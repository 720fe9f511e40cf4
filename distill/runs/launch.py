"""Print the commands that start a run on a TPU slice, a SLURM cluster or GKE; --yes runs them.

Each process runs `distill STAGE` with DISTILL_CLUSTER=detected, by which JAX finds its peers.
"""

import argparse
import dataclasses
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill.core import credentials, terminal
from distill.core.errors import UserError

ENVIRONMENT = {"DISTILL_CLUSTER": "detected"}
# An evicted pod must not exit with 0, or Kubernetes would not restart its job.
EVICTED = {"DISTILL_TERMINATED_CODE": "143"}
GRACE_SECONDS = 120  # between SIGTERM and SIGKILL, to save a checkpoint
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
TOPOLOGY = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*){1,2}")


@dataclasses.dataclass(frozen=True)
class Command:
    """A program with its arguments and its standard input.

    Attributes:
        arguments: the program and its arguments; no shell parses them.
        text: its standard input.
    """

    arguments: tuple[str, ...]
    text: str = ""

    def __str__(self) -> str:
        """Return the command in the syntax of a POSIX shell."""
        line = shlex.join(self.arguments)
        return f"{line} <<'END_OF_INPUT'\n{self.text}END_OF_INPUT" if self.text else line


def main(arguments: Sequence[str]) -> int:
    """Print the commands of a target; with --yes, run them in order.

    Returns:
        0, or the exit code of the command that failed.

    Raises:
        UserError: an argument is invalid, or the target's program is not installed.
    """
    options, rest = _parser().parse_known_args(arguments)
    commands = options.commands(options, _stage(options, rest))
    terminal.show("\n\n".join(map(str, commands)))
    for command in commands if options.yes else ():
        if code := _run(command):
            return code
    return 0


def _run(command: Command) -> int:
    program = command.arguments[0]
    if shutil.which(program) is None:
        raise UserError(
            f"{program} on the PATH", "none", "install it or run the commands elsewhere"
        )
    stdin = command.text or None
    return subprocess.run(command.arguments, input=stdin, text=True, check=False).returncode


def _stage(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Return the command line of each process.

    Raises:
        UserError: `distill STAGE` does not take an argument, or it has a control character.
    """
    files = [f"--gin_file={file}" for file in options.gin_file]
    stage = ["distill", options.stage, *files, f"--run_dir={options.run_dir}", *rest]
    for argument in (*stage, getattr(options, "setup", "")):
        credentials.refuse(argument, "the arguments of a command that others can read")
        if not argument.isprintable():
            raise UserError("arguments without control characters", repr(argument), "rename it")
    for argument in rest:
        if not argument.startswith("--gin.") or "=" not in argument:
            raise UserError("--gin.NAME=VALUE after the flags", argument, "see `distill launch -h`")
    return stage


# --- Targets -----------------------------------------------------------------------------------


def tpu(options: argparse.Namespace, stage: Sequence[str]) -> list[Command]:
    """Create a TPU slice and run the stage on each of its hosts."""
    location = [f"--zone={options.zone}"]
    location += [f"--project={options.project}"] if options.project else []
    slices = ["gcloud", "compute", "tpus", "tpu-vm"]
    machine = [f"--accelerator-type={options.accelerator}", f"--version={options.version}"]
    machine += ["--spot"] if options.spot else []
    # The remote shell parses one string, so the command is quoted once for that shell.
    script = f"{_assignments()} {shlex.join(stage)}"
    script = f"{options.setup} && {script}" if options.setup else script
    remote = ["--worker=all", f"--command={script}"]
    return [
        Command((*slices, "create", options.name, *location, *machine)),
        Command((*slices, "ssh", options.name, *location, *remote)),
    ]


def slurm(options: argparse.Namespace, stage: Sequence[str]) -> list[Command]:
    """Submit a batch script with one process for each GPU."""
    directives = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus_per_node,
        "gpus-per-node": options.gpus_per_node,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        # Seconds before the time limit at which the processes, not the script, get SIGTERM.
        "signal": f"TERM@{GRACE_SECONDS}",
    }
    headers = [f"#SBATCH --{name}={value}" for name, value in directives.items() if value]
    setup = [options.setup] if options.setup else []
    script = ["#!/bin/bash", *headers, "#SBATCH --requeue", *setup, f"export {_assignments()}"]
    return [Command(("sbatch",), "\n".join([*script, f"srun {shlex.join(stage)}"]) + "\n")]


def gke(options: argparse.Namespace, stage: Sequence[str]) -> list[Command]:
    """Apply a JobSet with one pod for each host of a TPU slice."""
    chips = math.prod(int(size) for size in options.topology.split("x"))
    if chips % options.chips_per_host:
        raise UserError(
            f"a topology whose chips --chips_per_host={options.chips_per_host} divides",
            options.topology,
            "correct one of them",
        )
    manifest = _job_set(options, stage, hosts=chips // options.chips_per_host)
    return [Command(("kubectl", "apply", "--filename=-"), yaml_text(manifest) + "\n")]


def _job_set(options: argparse.Namespace, stage: Sequence[str], *, hosts: int) -> dict[str, Any]:
    container = {
        "name": "distill",
        "image": options.image,
        "command": list(stage),
        "env": [{"name": name, "value": value} for name, value in (ENVIRONMENT | EVICTED).items()],
        "resources": {"limits": {"google.com/tpu": options.chips_per_host}},
        "volumeMounts": [{"name": "runs", "mountPath": options.mount}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": options.accelerator,
            "cloud.google.com/gke-tpu-topology": options.topology,
        },
        "containers": [container],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": options.claim}}],
    }
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    nodes = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name, "annotations": nodes},
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts},
            "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
        },
    }


# --- Text --------------------------------------------------------------------------------------


def _assignments() -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in ENVIRONMENT.items())


def yaml_text(value: Any, indent: int = 0) -> str:
    """Return YAML in block style; strings are JSON strings, so a value cannot end its own quotes.

    Example:
        >>> print(yaml_text({"names": ["a", "no: b"], "count": 2}))
        "names":
          - "a"
          - "no: b"
        "count": 2
    """
    space = " " * indent
    match value:
        case Mapping():
            return "\n".join(
                f"{space}{json.dumps(key)}:{_nested_yaml(value[key], indent)}" for key in value
            )
        case list():
            blocks = (yaml_text(item, indent + 2) for item in value)
            return "\n".join(f"{space}- {block[indent + 2 :]}" for block in blocks)
        case _:
            return f"{space}{json.dumps(value)}"


def _nested_yaml(value: Any, indent: int) -> str:
    nested = isinstance(value, Mapping | list)
    return f"\n{yaml_text(value, indent + 2)}" if nested else f" {json.dumps(value)}"


# --- Arguments ---------------------------------------------------------------------------------


def _checker(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return text

    return check


_label = _checker(LABEL, "a name of lower-case letters, digits and hyphens, at most 40")
_word = _checker(WORD, "letters, digits and any of . _ : / @ -")
_topology = _checker(TOPOLOGY, "a topology such as 4x4")
_path = _checker(re.compile(r"/[A-Za-z0-9._/-]*"), "an absolute path")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill launch",
        description=__doc__,
        epilog="--gin.NAME=VALUE after the flags is passed to the stage. Every host must see the "
        "run directory, with its dataset and manifests, under the same path.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    targets = parser.add_subparsers(required=True, metavar="tpu|slurm|gke")
    _tpu_arguments(_target(targets, "tpu", tpu))
    _slurm_arguments(_target(targets, "slurm", slurm))
    _gke_arguments(_target(targets, "gke", gke))
    return parser


def _target(targets: Any, name: str, commands: Callable[..., list[Command]]) -> Any:
    parser = targets.add_parser(name, help=commands.__doc__, allow_abbrev=False)
    parser.set_defaults(commands=commands)
    parser.add_argument("--gin_file", action="append", required=True, help="repeatable, later wins")
    parser.add_argument("--run_dir", required=True, help="its path on the hosts")
    parser.add_argument("--stage", default="train", type=_word, help="%(default)s")
    parser.add_argument(
        "--name", default="distill", type=_label, help="name of the slice or job, %(default)s"
    )
    parser.add_argument("--yes", action="store_true", help="run the printed commands")
    return parser


def _setup_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--setup",
        default="",
        help="a line of shell to run before the stage, unquoted: to install, mount or activate",
    )


def _tpu_arguments(parser: argparse.ArgumentParser) -> None:
    _setup_argument(parser)
    parser.add_argument("--zone", required=True, type=_word)
    parser.add_argument("--project", type=_word, help="gcloud's default if absent")
    parser.add_argument("--accelerator", default="v5litepod-16", type=_word, help="%(default)s")
    parser.add_argument("--version", default="v2-alpha-tpuv5-lite", type=_word, help="%(default)s")
    parser.add_argument(
        "--spot", action="store_true", help="a slice that may be preempted; train resumes"
    )


def _slurm_arguments(parser: argparse.ArgumentParser) -> None:
    _setup_argument(parser)
    parser.add_argument("--nodes", default=1, type=int, help="%(default)s")
    parser.add_argument("--gpus_per_node", default=8, type=int, help="%(default)s")
    parser.add_argument("--time", default="24:00:00", type=_word, help="%(default)s")
    parser.add_argument("--partition", type=_word)
    parser.add_argument("--account", type=_word)


def _gke_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", required=True, type=_word, help="container image with distill installed"
    )
    parser.add_argument(
        "--claim", required=True, type=_label, help="persistent volume claim that holds --run_dir"
    )
    parser.add_argument(
        "--mount", default="/runs", type=_path, help="path of the volume, %(default)s"
    )
    parser.add_argument("--accelerator", default="tpu-v5-lite-podslice", type=_word)
    parser.add_argument("--topology", default="4x4", type=_topology, help="%(default)s")
    parser.add_argument("--chips_per_host", default=4, type=int, help="%(default)s")
    parser.add_argument("--restarts", default=10, type=int, help="%(default)s")
