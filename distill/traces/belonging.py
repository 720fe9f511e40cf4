"""Whether a trace is one that a harvest of given settings could have written; for `merge`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.records import Problem, Trace
from distill.text.prompts import TeacherPrompt
from distill.traces.harvest import sample_seed


class Belonging:
    """What the traces of one harvest have in common.

    A model that the settings do not name is that of the first trace. A prompt that they do not
    describe has the problem's question in it, and is the same for all samples of a problem.

    Args:
        settings: of the harvest, as its manifest holds them.
        problems: of the run.

    Raises:
        UserError: the settings are not those of a harvest.
    """

    def __init__(self, settings: Mapping[str, Any], problems: Iterable[Problem]) -> None:
        split, samples, seed = (settings.get(name) for name in ("split", "samples", "seed"))
        if not (isinstance(split, str) and isinstance(samples, int) and isinstance(seed, int)):
            raise UserError("a harvest's split, samples and seed", "others", "harvest anew")
        self._asked = {p.problem_id: p.question for p in problems if p.split == split}
        self._samples = samples
        self._seed = None if settings.get("score_chains") else seed
        self._model = described_model(settings.get("generator"))
        self._prompt = described_prompt(settings.get("prompt"))
        self._prompts: dict[str, str] = {}

    def require(self, trace: Trace, place: Path) -> None:
        """Refuse a trace that is none of the harvest's.

        Args:
            trace: to be looked at.
            place: where it lies, for the error.

        Raises:
            UserError: it is of a problem or sample that is not asked, of another model or prompt,
                or its seed is not the one of its sample.
        """
        question = self._asked.get(trace.problem_id)
        if question is None or not 0 <= trace.sample < self._samples:
            got = f"{trace.problem_id!r:.80} sample {trace.sample}"
            raise _refusal("problems and samples that the harvest asks", place, got)
        if self._model is None:
            self._model = trace.model
        if trace.model != self._model:
            raise _refusal(f"model {self._model!r:.80}", place, f"{trace.model!r:.80}")
        if not self._is_prompt(trace, question):
            got = f"another prompt of {trace.problem_id!r:.80}"
            raise _refusal("the harvest's prompts", place, got)
        if self._seed is not None:
            wanted = sample_seed(self._seed, trace.problem_id, trace.sample)
            if trace.seed != wanted:
                got = f"{trace.seed} of {trace.problem_id!r:.80}"
                raise _refusal("the harvest's seeds", place, got)

    def _is_prompt(self, trace: Trace, question: str) -> bool:
        if self._prompt is not None:
            return trace.prompt == self._prompt(question)
        known = self._prompts.setdefault(trace.problem_id, trace.prompt)
        return question in trace.prompt and trace.prompt == known


def _refusal(expected: str, place: Path, got: str) -> UserError:
    return UserError(f"traces of {expected} in {place}", got, "merge harvests of one configuration")


def described_model(generator: object) -> str | None:
    """Return what a described generator calls its model, None where the settings do not say.

    Example:
        >>> described_model({"type": "SavedModel", "path": "data/models/teacher"})
        'teacher'
    """
    if not isinstance(generator, Mapping):
        return None
    if isinstance(generator.get("model"), str):
        return generator["model"]
    if isinstance(generator.get("path"), str):
        return Path(generator["path"]).name
    return described_model(generator.get("generator"))


def described_prompt(prompt: object) -> Callable[[str], str] | None:
    """Return the prompt that settings describe, None where it is not `TeacherPrompt`."""
    if not isinstance(prompt, Mapping) or prompt.get("type") != TeacherPrompt.__name__:
        return None
    shown = prompt.get("demonstrations", [])
    fields = [{k: v for k, v in each.items() if k != "type"} for each in shown]
    return TeacherPrompt(tuple(Problem(**each) for each in fields))
