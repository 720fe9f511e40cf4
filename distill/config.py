"""Gin configuration: files and overrides in, configured stages out; the only importer of gin."""

import ast
import contextlib
import datetime
import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config

from distill.core import credentials, files, journal
from distill.core.errors import UserError
from distill.core.paths import shipped
from distill.core.stages import CONFIG, version

_ONE_LINE = 1_000_000  # gin breaks texts that are longer than a line
# What gin, its parser and the modules that a file names raise.
_NO_CONFIGURATION = (
    *(ValueError, OSError, ImportError, AttributeError, NameError, SyntaxError),
    *(TypeError, LookupError, RuntimeError, MemoryError),
)


def load(
    files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str] = (),
    modules: Sequence[str] = (),
) -> None:
    """Read the files, then the overrides; later ones win.

    A gin file is a program: it may call any function of any module that can be imported.

    Args:
        files: gin files, looked up here, in `search_paths` and in the shipped `gin_configs`.
        overrides: statements such as `train.run.steps = 100`.
        search_paths: more folders to look in.
        modules: what overrides may name besides the modules that the files import.

    Raises:
        UserError: a file is missing, a name is unknown or a required value is not given.
    """
    for path in (shipped("gin_configs"), *search_paths):
        gin.add_config_file_search_path(str(path))
    # gin also looks a path up as a Python package, logs what is none as an error and stumbles over
    # folders of the same name; files are files here.
    gin_config._FILE_READERS[:] = [(open, os.path.isfile)]
    try:
        for file in files:
            gin.parse_config_file(file)
        gin.parse_config([*_imports(modules), *overrides])
    except _NO_CONFIGURATION as error:
        raise UserError(
            "a configuration that loads",
            credentials.mask(" ".join(str(error).split())),
            "compare the name with `distill STAGE --help` and the files in gin_configs",
        ) from error
    _refuse_missing()


def forget() -> None:
    """Drop every binding and import of the configurations that were loaded in this process."""
    gin.clear_config()


def literal(value: object) -> str:
    """Return a value as gin reads it; a text that begins with `@` or `%` is a reference.

    Raises:
        UserError: gin has no literal for it.

    Example:
        >>> literal("data/models/teacher"), literal("@saved.SavedModel()"), literal((1, "a", None))
        ("'data/models/teacher'", '@saved.SavedModel()', "(1, 'a', None)")
    """
    if isinstance(value, str) and value[:1] in ("@", "%"):
        return value
    if isinstance(value, Path):
        return repr(str(value))
    try:
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    except (ValueError, SyntaxError):
        pass
    raise UserError(
        "numbers, texts, lists, tuples and dictionaries of them as bindings",
        f"{type(value).__name__}",
        "name it in the gin file, as a reference that begins with @",
    )


def overrides(arguments: Sequence[str]) -> list[str]:
    """Return the statements of arguments `--gin.NAME=VALUE`.

    Raises:
        UserError: an argument is something else.
    """
    wrong = [item for item in arguments if not item.startswith("--gin.") or "=" not in item]
    if wrong:
        raise UserError(
            "--gin.NAME=VALUE, --gin_file, --gin_search_paths, --run_dir or --json",
            wrong[0],
            "see `distill --help`",
        )
    pairs = [item.removeprefix("--gin.").partition("=") for item in arguments]
    return [f"{name} = {value}" for name, _, value in pairs]


def _imports(modules: Sequence[str]) -> list[str]:
    """Return statements after which an override may name what the files import, and `modules`."""
    names = {statement.module for statement in gin_config._IMPORTS} | set(modules)
    pairs = [name.rpartition(".") for name in sorted(names) if not name.startswith("__gin__")]
    imports = [f"from {package} import {module}" for package, _, module in pairs]
    return ["from __gin__ import dynamic_registration", *imports] if imports else []


def _refuse_missing() -> None:
    missing = [
        line.split("=")[0].strip()
        for line in gin.config_str(max_line_length=10_000).splitlines()
        if line.endswith("%gin.REQUIRED")
    ]
    if missing:
        raise UserError(
            f"a value for {', '.join(missing)}",
            "gin.REQUIRED",
            f"give it in a gin file or as --gin.{missing[0]}=VALUE",
        )


def stages(default: Sequence[str]) -> Sequence[str]:
    """Return the stages that the loaded run consists of: its macro STAGES, or `default`."""
    try:
        return tuple(gin.query_parameter("STAGES/macro.value"))
    except ValueError:
        return tuple(default)


def configured(module: str, function: str) -> Callable[..., Any]:
    """Import a stage's function and return it with what gin binds to it."""
    plain = getattr(importlib.import_module(module), function)
    try:
        return gin.get_configurable(plain)
    except ValueError:  # No binding names it, so its defaults hold.
        return plain


def bound(module: str, function: str) -> dict[str, Any]:
    """Return what a stage would be called with: what gin binds, or else its defaults."""
    plain = getattr(importlib.import_module(module), function)
    parameters = inspect.signature(plain).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    try:
        return defaults | gin.get_bindings(plain)
    except ValueError:  # no binding names it
        return defaults


@contextlib.contextmanager
def recorded(run_dir: Path, command: str) -> Iterator[None]:
    """Add the whole configuration of a command to RUN_DIR/config.gin, which only grows.

    An entry holds what the command was given, all of it, also what no stage reads; later bindings
    win, so the file as a whole is a configuration of the run. The same configuration twice is one
    entry. Where a UserError ends the block before a stage was started or resumed, the file stays as
    it was: a command that is refused as another run does not describe the one that is there.

    Args:
        run_dir: the run directory.
        command: what the entry is headed by.

    Raises:
        UserError: the configuration holds a credential, or a link in the directory leads elsewhere;
            nothing is written then.
    """
    _refuse_credentials()
    path = Path(run_dir) / CONFIG
    files.require_plain(path.parent)
    earlier, started = journal.read(path), _manifests(path.parent)
    _add(path, earlier, gin.config_str(), command)
    try:
        yield
    except UserError:
        if earlier and _manifests(path.parent) == started:
            files.write_text(path, earlier)
        raise


def _refuse_credentials() -> None:
    where = "the configuration"
    credentials.refuse(gin.config_str(max_line_length=_ONE_LINE), where)
    for bindings in gin_config._CONFIG.values():
        for name, value in bindings.items():
            if isinstance(value, str) and (
                credentials.is_secret_name(name)
                or (name == "api_key_variable" and not credentials.is_variable(value))
            ):
                raise UserError(
                    f"no credentials in {where}",
                    f"a text as {name}",
                    "export the key and give the name of the variable as api_key_variable",
                )


def _manifests(run_dir: Path) -> dict[str, int]:
    """Return when each manifest was written."""
    found = (run_dir / "manifests").glob("*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def _add(path: Path, earlier: str, text: str, command: str) -> None:
    """Append a configuration as an entry, unless it is the last one's."""
    *_, last = ["", *journal.entries(earlier)]
    if _bindings(last) == _bindings(text):
        return
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = f"# distill {command}, version {version()}, {date}\n"
    known = set(earlier.splitlines())
    # gin wants all that it imports named once, and dynamic registration first.
    lines = [line for line in text.splitlines() if not (_is_import(line) and line in known)]
    journal.append(path, f"{head}{chr(10).join(lines).strip()}\n")


def _bindings(entry: str) -> list[str]:
    """Return the lines of an entry that bind something."""
    lines = entry.splitlines()
    return [line for line in lines if line and line[0] != "#" and not _is_import(line)]


def _is_import(line: str) -> bool:
    return line.startswith(("import ", "from "))
