"""Gin configuration: files and overrides in, configured stages out; the only importer of gin."""

import contextlib
import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config

from distill.core.errors import UserError
from distill.core.paths import shipped
from distill.core.store import atomic_path


def load(
    files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str] = (),
    modules: Sequence[str] = (),
) -> None:
    """Read the files, then the overrides; later ones win.

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
    except (ValueError, OSError, ImportError, AttributeError, NameError, SyntaxError) as error:
        raise UserError(
            "a configuration that loads",
            " ".join(str(error).split()),
            "compare the name with `distill STAGE --help` and the files in gin_configs",
        ) from error
    _refuse_missing()


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
def recorded(run_dir: Path) -> Iterator[None]:
    """Write the whole configuration beside the outputs, what was called and what was not.

    Where a UserError ends the block, an earlier start's configuration stays: a command that is
    refused as another run does not describe the one that is there.
    """
    path = Path(run_dir) / "config.gin"
    earlier = path.read_text() if path.exists() else None
    _write(path, gin.config_str())
    try:
        yield
    except UserError:
        if earlier is not None:
            _write(path, earlier)
        raise


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
