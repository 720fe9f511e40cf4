"""A random start for a student of any shape and vocabulary."""

from pathlib import Path
from typing import Any

import jax

from distill.core import paths
from distill.core.errors import UserError
from distill.core.store import Stage
from distill.models import weights
from distill.models.layers import by_path
from distill.targets import vocabulary as vocabularies

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("start",)


def directory(run_dir: Path, student: str | None) -> Path:
    """Return the directory of the start that a run trains.

    Args:
        run_dir: the run.
        student: a directory of `weights.save`, also one that ships; the run's own start if None.

    Raises:
        UserError: there is no such directory.
    """
    start = Path(run_dir) / "start" if student is None else student
    return paths.find(start, "the directory of a start")


def run(
    *, run_dir: Path, model: Any, vocabulary: str, extra_ids: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Draw a student's first parameters and write them with its vocabulary into RUN_DIR/start.

    `train` starts from it unless another start is bound.

    Args:
        run_dir: the run.
        model: a `T5Model` or `DecoderModel`.
        vocabulary: path of a SentencePiece model, also of one that ships.
        extra_ids: sentinels after its pieces.
        seed: of the parameters.

    Returns:
        `parameters`, their number.

    Raises:
        UserError: there is no such vocabulary, or the model has fewer rows than it has tokens.
    """
    tokenizer = vocabularies.load(vocabulary)
    tokens, rows = tokenizer.vocab_size + extra_ids, model.config.vocab_size
    if tokens > rows:
        raise UserError(
            f"a model of at least {tokens} rows, as {vocabulary} has tokens with its sentinels",
            str(rows),
            "raise the model's vocab_size",
        )
    described = vocabularies.setting(Path(run_dir), "initialise", tokenizer)
    settings = {"model": model, "vocabulary": described}
    settings |= {"extra_ids": extra_ids, "seed": seed}
    with Stage.open(run_dir, "initialise", settings=settings, outputs=OUTPUTS) as stage:
        if stage.complete:
            return stage.summary
        params = model.init(jax.random.key(seed))
        file = paths.find(vocabulary, "a SentencePiece model")
        weights.save(Path(run_dir) / "start", model, params, file, extra_ids=extra_ids)
        stage.finish(parameters=sum(array.size for array in by_path(params).values()))
        return stage.summary
