"""The command line: `distill STAGE --gin_file=… --gin.NAME=VALUE --run_dir=…`."""

import argparse
import ast
import errno
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.runs.commands import STAGES, TOOLS

QUICKSTART = "runs/quickstart.gin"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM)
EPILOG = """\
A run directory holds all that a run made; the same command again resumes it.
`distill STAGE --help` lists what gin binds in a stage.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user, 130 if stopped."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in TOOLS:
        return _guarded(lambda: _tool(given[0], given[1:]), None)
    options, rest = _parser().parse_known_args(given)
    if options.help or options.command is None:
        _print(_help(options.command))
        return 0
    return _guarded(lambda: _run(options, rest), options.run_dir)


def _tool(name: str, arguments: Sequence[str]) -> int:
    return importlib.import_module(TOOLS[name]).main(arguments)


def _guarded(call: Callable[[], int], run_dir: Path | None) -> int:
    """Call; what the user can mend ends in one line and 2."""
    from distill.core.errors import UserError
    from distill.core.terminal import Formatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("distill").setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
    try:
        return call()
    except KeyboardInterrupt:
        _complain("stopped; run the same command to resume")
        return 130
    except UserError as error:
        _complain(str(error).partition("\n")[0])  # gin adds a second line: where it called
        return 2
    except (TypeError, ValueError) as error:
        name = re.search(r"In call to configurable '(\w+)'", str(error))
        if not name or name[1] in {function for _, function in STAGES.values()}:
            raise  # a fault of the program, not of a value that gin made
        what = f"a {name[1]} that can be made of its bindings"
        _complain(f"expected {what}, got: {str(error).splitlines()[0]}; correct the gin file")
        return 2
    except OSError as error:
        found = re.search(r"\[[Ee]rrno (\d+)\]", str(error))  # gin's copies lose the attribute
        number = error.errno or (int(found[1]) if found else 0)
        if number in DISK_FULL:
            _complain(f"expected room in {run_dir}, got: {os.strerror(number)}; free some disk")
        elif error.filename is not None or number in NO_ACCESS:
            place = error.filename or run_dir
            what = f"expected {place} that can be read or written"
            _complain(f"{what}, got: {os.strerror(number)}; correct the path or its permissions")
        else:
            raise
        return 2


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from distill import config
    from distill.runs import job

    overrides = [*config.overrides(rest), *_part(options)]
    files = options.gin_file or ([QUICKSTART] if options.command == "quickstart" else [])
    result = job.execute(
        files,
        overrides,
        run_dir=options.run_dir,
        command=options.command,
        search_paths=options.gin_search_paths,
    )
    if options.json:
        _print(json.dumps(result))
    return 0


def _part(options: argparse.Namespace) -> list[str]:
    from distill.core.errors import UserError

    if options.shard is None:
        return []
    found = re.fullmatch(r"(\d+)/(\d+)", options.shard)
    if options.command != "harvest" or found is None:
        got = f"{options.command} --shard={options.shard}"
        raise UserError("harvest --shard=I/N", got, "count the shards from 0")
    return [f"harvest.run.part = ({found[1]}, {found[2]})"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill",
        description=__import__("distill").__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", nargs="?", choices=["quickstart", "run", *STAGES, *TOOLS], metavar="STAGE"
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this help, or the stage's")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/quickstart"), help="%(default)s")
    parser.add_argument("--gin_file", action="append", help="a gin file; repeatable, later wins")
    parser.add_argument("--gin_search_paths", action="append", default=[], help="where to look")
    parser.add_argument("--shard", metavar="I/N", help="harvest every N-th problem, from the I-th")
    parser.add_argument("--json", action="store_true", help="print the last stage's result")
    return parser


def _help(command: str | None) -> str:
    if command not in STAGES:
        lines = [f"  {name:<13} {_docstring(name)[0].partition(chr(10))[0]}" for name in STAGES]
        whole = "  quickstart    run the main job on the built-in world\n  run           run a file"
        lines += ["tools:", *(f"  {name:<13} {_summary(TOOLS[name])}" for name in TOOLS)]
        return f"{_parser().format_help()}\nstages:\n{whole}\n" + "\n".join(lines)
    docstring, arguments = _docstring(command)
    arguments = [line for argument in arguments for line in _with_fields(command, argument)]
    bound = "\n".join(f"  --gin.{argument}" for argument in arguments)
    usage = f"usage: distill {command} --run_dir=DIR [--gin_file=FILE] [--gin.NAME=VALUE]"
    return f"{usage}\n\n{docstring}\n\ngin binds:\n{bound}"


def _docstring(command: str) -> tuple[str, list[str]]:
    """Return a stage's docstring and arguments from its source; importing it takes seconds."""
    module, function = STAGES[command]
    found = [
        node
        for node in _parsed(module).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    if not found:
        return "", []
    (node,) = found
    defaults = [f"={ast.unparse(value)}" if value else "" for value in node.args.kw_defaults]
    pairs = zip(node.args.kwonlyargs, defaults, strict=True)
    prefix = f"{module.rpartition('.')[2]}.{function}"
    names = [f"{prefix}.{a.arg}{default}" for a, default in pairs if a.arg != "run_dir"]
    return ast.get_docstring(node) or "", names


def _with_fields(command: str, argument: str) -> list[str]:
    """Return a stage's argument; `options`, of the module's class Options, with its fields."""
    module, function = STAGES[command]
    name = module.rpartition(".")[2]
    if not argument.startswith(f"{name}.{function}.options="):
        return [argument]
    (options,) = (
        node
        for node in _parsed(module).body
        if isinstance(node, ast.ClassDef) and node.name == "Options"
    )
    fields = [node for node in options.body if isinstance(node, ast.AnnAssign)]
    defaults = ((f.target, f.value) for f in fields if f.value is not None)
    lines = [
        f"{name}.Options.{ast.unparse(field)}="
        + ("{}" if isinstance(default, ast.Call) else ast.unparse(default))
        for field, default in defaults
    ]
    return [f"{name}.{function}.options=@{name}.Options()", *lines]


def _summary(module: str) -> str:
    return (ast.get_docstring(_parsed(module)) or "").partition("\n")[0]


def _parsed(module: str) -> ast.Module:
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text())


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(line: str) -> None:
    from distill.core import credentials, terminal

    sys.stderr.write(f"distill: {terminal.line(credentials.mask(line))}\n")


if __name__ == "__main__":
    sys.exit(main())
