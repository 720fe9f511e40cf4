"""Run the stages of a gin file, from the command line or from Python."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill import config
from distill.core.errors import UserError
from distill.runs.commands import MAIN_JOB, STAGES


def run(
    file: str | Path,
    *,
    run_dir: str | Path,
    bindings: Mapping[str, object] | None = None,
    search_paths: Sequence[str] = (),
    **macros: object,
) -> dict[str, Any]:
    """Run a file as `distill run --gin_file=FILE --run_dir=RUN_DIR` does.

    The same call again resumes a run that was stopped, and is quick where it is complete. A file is
    a program: gin may call any function that can be imported.

    Args:
        file: a gin file; looked up here, in `search_paths`, and among the files that ship.
        run_dir: where the run is written.
        bindings: values by gin name, such as `{"train.run.batch_size": 8}`.
        search_paths: more folders to look in.
        **macros: values by macro, such as `STEPS=100`. A text that begins with `@` or `%` is a
            reference; other texts are taken as they are.

    Returns:
        The counts that the last stage reported.

    Raises:
        UserError: the file does not load, or as the stages.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> run("runs/quickstart.gin", run_dir=folder, STAGES=("problems",),
        ...     bindings={"train/problems.BuiltIn.n": 10})["problems"] > 100
        True
    """
    values = {**macros, **(bindings or {})}
    overrides = [f"{name} = {config.literal(value)}" for name, value in values.items()]
    config.forget()  # of an earlier run in this process
    try:
        return execute([str(file)], overrides, run_dir=Path(run_dir), search_paths=search_paths)
    finally:
        config.forget()


def execute(
    files: Sequence[str],
    overrides: Sequence[str],
    *,
    run_dir: Path,
    command: str = "run",
    search_paths: Sequence[str] = (),
) -> dict[str, Any]:
    """Load a configuration and run its stages, or the one stage that `command` names.

    Args:
        files: gin files; later ones win.
        overrides: statements of gin, which win over the files.
        run_dir: where the run is written.
        command: `run`, `quickstart` or a stage.
        search_paths: more folders to look in.

    Returns:
        The counts that the last stage reported.

    Raises:
        UserError: the configuration does not load, names a stage that does not exist, or as the
            stages.
    """
    modules = [STAGES[command][0]] if command in STAGES else []
    config.load(files, overrides, search_paths, modules)
    names = (command,) if command in STAGES else config.stages(MAIN_JOB)
    for name in names:
        if name not in STAGES:
            raise UserError(f"stages of {', '.join(STAGES)} in STAGES", name, "correct the file")
    result: dict[str, Any] = {}
    # `distill report --run_dir=…` alone adds nothing to the record of the run.
    changes = bool(files or overrides)
    with config.recorded(run_dir, command) if changes else contextlib.nullcontext():
        for name in names:
            result = config.configured(*STAGES[name])(run_dir=run_dir)
    return result
