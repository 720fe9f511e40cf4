"""Imported, it registers the tasks of one run; for tools like `seqio_cache_tasks`.

Such a tool takes a module to import and no arguments for it, so the environment tells which run:
DISTILL_RUN_DIR, whose stage `align` is complete, and DISTILL_STUDENT, the vocabulary it was given.
The tasks are `distillation_` and a format's name. Beam's workers import this too, so they need
both variables, and the files at the same paths.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from distill.core.errors import UserError
from distill.targets import dataset

RUN_DIR, STUDENT = "DISTILL_RUN_DIR", "DISTILL_STUDENT"


def register(environment: Mapping[str, str]) -> list[str]:
    """Register the tasks of the run that the environment names, and return their names.

    Raises:
        UserError: a variable is not set or empty, or as `dataset.register`.
        ValueError: as `dataset.register`.
    """
    return dataset.register(
        run_dir=Path(_variable(environment, RUN_DIR, "a run directory")),
        student=_variable(environment, STUDENT, "the student's vocabulary"),
    )


def _variable(environment: Mapping[str, str], name: str, what: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise UserError(f"{what} in the environment variable {name}", "none", "set it")
    return value


register(os.environ)
