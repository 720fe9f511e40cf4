"""A knowledge-distillation pipeline for small reasoning models.

These names are the public Python interface. Each is imported when it is first used, so that
`import distill` itself loads no JAX, TensorFlow or Arrow.

Example:
    >>> import distill
    >>> distill.grade("12 + 30 = 42. The answer is 42.", "42").outcome
    'right'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.core.ports import Completion, Fire, Generator, Request, Sampling, Scorer
    from distill.core.records import Problem, Trace, Verdict
    from distill.endpoints.teacher import OpenAICompatible
    from distill.grading.check import check
    from distill.grading.graders import grade
    from distill.interop.export import export
    from distill.models.saved import SavedModel
    from distill.models.scoring import Verifier
    from distill.problems.problems import JsonLines
    from distill.runs.job import run
    from distill.targets.align import align
    from distill.targets.inspection import inspect
    from distill.test_time.allocate import Policy
    from distill.test_time.answer import answer
    from distill.test_time.search import BestOf, LookAhead
    from distill.test_time.strategy import Models, Question
    from distill.test_time.vote import vote
    from distill.traces.harvest import harvest
    from distill.training.evaluate import evaluate

_MODULES = {
    "BestOf": "test_time.search",
    "Completion": "core.ports",
    "Fire": "core.ports",
    "Generator": "core.ports",
    "JsonLines": "problems.problems",
    "LookAhead": "test_time.search",
    "Models": "test_time.strategy",
    "OpenAICompatible": "endpoints.teacher",
    "Policy": "test_time.allocate",
    "Problem": "core.records",
    "Question": "test_time.strategy",
    "Request": "core.ports",
    "Sampling": "core.ports",
    "SavedModel": "models.saved",
    "Scorer": "core.ports",
    "Trace": "core.records",
    "Verdict": "core.records",
    "Verifier": "models.scoring",
    "align": "targets.align",
    "answer": "test_time.answer",
    "check": "grading.check",
    "evaluate": "training.evaluate",
    "export": "interop.export",
    "grade": "grading.graders",
    "harvest": "traces.harvest",
    "inspect": "targets.inspection",
    "run": "runs.job",
    "vote": "test_time.vote",
}

__all__ = [
    "BestOf",
    "Completion",
    "Fire",
    "Generator",
    "JsonLines",
    "LookAhead",
    "Models",
    "OpenAICompatible",
    "Policy",
    "Problem",
    "Question",
    "Request",
    "Sampling",
    "SavedModel",
    "Scorer",
    "Trace",
    "Verdict",
    "Verifier",
    "align",
    "answer",
    "check",
    "evaluate",
    "export",
    "grade",
    "harvest",
    "inspect",
    "run",
    "vote",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distill.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
