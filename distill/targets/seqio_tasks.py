"""Importing this module registers the tasks of one run, for tools like `seqio_cache_tasks`.

Such a tool imports a module and passes it no arguments, so environment variables name the run:
DISTILL_RUN_DIR, whose stage `align` is complete, and DISTILL_VOCABULARY, the vocabulary of that
stage. A task is named `distillation_` and its format. Beam's workers import the module as well, so
they need both variables, and the files at the same paths.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from distill.core.errors import UserError
from distill.targets import dataset

RUN_DIR, VOCABULARY = "DISTILL_RUN_DIR", "DISTILL_VOCABULARY"


def register(environment: Mapping[str, str]) -> list[str]:
    """Register the tasks of the run that the environment names, and return their names.

    Raises:
        UserError: a variable is not set or empty, or as `dataset.register`.
        ValueError: as `dataset.register`.
    """
    return dataset.register(
        run_dir=Path(_variable(environment, RUN_DIR, "a run directory")),
        vocabulary=_variable(environment, VOCABULARY, "the student's vocabulary"),
    )


def _variable(environment: Mapping[str, str], name: str, what: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise UserError(f"{what} in the environment variable {name}", "none", "set it")
    return value


register(os.environ)
