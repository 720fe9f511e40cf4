"""Print what starts a run on a TPU slice, a SLURM cluster or GKE; with --yes, start it.

Each process runs `distill STAGE` with DISTILL_CLUSTER=detected, which lets JAX find the others.
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
# A pod that is evicted must not end as one that is done, or its job would not begin again.
EVICTED = {"DISTILL_TERMINATED_CODE": "143"}
GRACE_SECONDS = 120  # between SIGTERM and SIGKILL, to save a checkpoint
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
TOPOLOGY = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*){1,2}")


@dataclasses.dataclass(frozen=True)
class Command:
    """A program with its arguments and what it reads.

    Attributes:
        arguments: the program and its arguments; no shell reads them.
        text: what it reads from standard input.
    """

    arguments: tuple[str, ...]
    text: str = ""

    def __str__(self) -> str:
        """The command as a POSIX shell takes it."""
        line = shlex.join(self.arguments)
        return f"{line} <<'END_OF_INPUT'\n{self.text}END_OF_INPUT" if self.text else line


def main(arguments: Sequence[str]) -> int:
    """Print the commands of a target; run them one after the other where --yes is given.

    Returns:
        0, or the exit code of the command that failed.

    Raises:
        UserError: an argument cannot be what it is for, or the target's program is not installed.
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
    given = command.text or None
    return subprocess.run(command.arguments, input=given, text=True, check=False).returncode


def _stage(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The command line of each process.

    Raises:
        UserError: an argument is none of `distill STAGE`, or holds a control character.
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
    """Make a TPU slice and run the stage on each of its hosts."""
    where = [f"--zone={options.zone}"]
    where += [f"--project={options.project}"] if options.project else []
    slices = ["gcloud", "compute", "tpus", "tpu-vm"]
    what = [f"--accelerator-type={options.accelerator}", f"--version={options.version}"]
    what += ["--spot"] if options.spot else []
    # The remote shell reads one string, so it is quoted once for that shell and passed as one.
    script = f"{_assignments()} {shlex.join(stage)}"
    script = f"{options.setup} && {script}" if options.setup else script
    everywhere = ["--worker=all", f"--command={script}"]
    return [
        Command((*slices, "create", options.name, *where, *what)),
        Command((*slices, "ssh", options.name, *where, *everywhere)),
    ]


def slurm(options: argparse.Namespace, stage: Sequence[str]) -> list[Command]:
    """Submit a batch script; JAX takes one process for each GPU."""
    directives = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus_per_node,
        "gpus-per-node": options.gpus_per_node,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        # SIGTERM to the processes, not to the script, so long before the time is over.
        "signal": f"TERM@{GRACE_SECONDS}",
    }
    given = [f"#SBATCH --{name}={value}" for name, value in directives.items() if value]
    setup = [options.setup] if options.setup else []
    script = ["#!/bin/bash", *given, "#SBATCH --requeue", *setup, f"export {_assignments()}"]
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
    return [Command(("kubectl", "apply", "--filename=-"), _yaml(manifest) + "\n")]


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


def _yaml(value: Any, indent: int = 0) -> str:
    """Return YAML in blocks; every string is in JSON's quotes, so none can end its place.

    Example:
        >>> print(_yaml({"names": ["a", "no: b"], "count": 2}))
        "names":
          - "a"
          - "no: b"
        "count": 2
    """
    space = " " * indent
    match value:
        case Mapping():
            return "\n".join(
                f"{space}{json.dumps(key)}:{_below(value[key], indent)}" for key in value
            )
        case list():
            blocks = (_yaml(item, indent + 2) for item in value)
            return "\n".join(f"{space}- {block[indent + 2 :]}" for block in blocks)
        case _:
            return f"{space}{json.dumps(value)}"


def _below(value: Any, indent: int) -> str:
    nested = isinstance(value, Mapping | list)
    return f"\n{_yaml(value, indent + 2)}" if nested else f" {json.dumps(value)}"


# --- Arguments ---------------------------------------------------------------------------------


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
        return text

    return check


_label = _matching(LABEL, "a name of lower-case letters, digits and hyphens, at most 40")
_word = _matching(WORD, "letters, digits and any of . _ : / @ -")
_topology = _matching(TOPOLOGY, "a topology such as 4x4")
_path = _matching(re.compile(r"/[A-Za-z0-9._/-]*"), "an absolute path")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill launch",
        description=__doc__,
        epilog="--gin.NAME=VALUE after the flags is passed on. The run directory, with its dataset "
        "and manifests, has to lie where every host sees it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    targets = parser.add_subparsers(required=True, metavar="tpu|slurm|gke")
    _tpu_arguments(_target(targets, "tpu", tpu))
    _slurm_arguments(_target(targets, "slurm", slurm))
    _gke_arguments(_target(targets, "gke", gke))
    return parser


def _target(targets: Any, name: str, commands: Callable[..., list[Command]]) -> Any:
    found = targets.add_parser(name, help=commands.__doc__, allow_abbrev=False)
    found.set_defaults(commands=commands)
    found.add_argument("--gin_file", action="append", required=True, help="repeatable, later wins")
    found.add_argument("--run_dir", required=True, help="as the hosts see it")
    found.add_argument("--stage", default="train", type=_word, help="%(default)s")
    found.add_argument("--name", default="distill", type=_label, help="of what is made")
    found.add_argument("--yes", action="store_true", help="run what is printed")
    return found


def _setup_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--setup",
        default="",
        help="a line of shell before the stage, as it is: to install, mount or activate",
    )


def _tpu_arguments(parser: argparse.ArgumentParser) -> None:
    _setup_argument(parser)
    parser.add_argument("--zone", required=True, type=_word)
    parser.add_argument("--project", type=_word, help="gcloud's own where not given")
    parser.add_argument("--accelerator", default="v5litepod-16", type=_word, help="%(default)s")
    parser.add_argument("--version", default="v2-alpha-tpuv5-lite", type=_word, help="%(default)s")
    parser.add_argument("--spot", action="store_true", help="may be taken back; train goes on")


def _slurm_arguments(parser: argparse.ArgumentParser) -> None:
    _setup_argument(parser)
    parser.add_argument("--nodes", default=1, type=int, help="%(default)s")
    parser.add_argument("--gpus_per_node", default=8, type=int, help="%(default)s")
    parser.add_argument("--time", default="24:00:00", type=_word, help="%(default)s")
    parser.add_argument("--partition", type=_word)
    parser.add_argument("--account", type=_word)


def _gke_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, type=_word, help="with distill installed")
    parser.add_argument("--claim", required=True, type=_label, help="of the volume of --run_dir")
    parser.add_argument("--mount", default="/runs", type=_path, help="of the volume, %(default)s")
    parser.add_argument("--accelerator", default="tpu-v5-lite-podslice", type=_word)
    parser.add_argument("--topology", default="4x4", type=_topology, help="%(default)s")
    parser.add_argument("--chips_per_host", default=4, type=int, help="%(default)s")
    parser.add_argument("--restarts", default=10, type=int, help="%(default)s")
