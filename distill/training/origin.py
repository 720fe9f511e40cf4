"""The start that a run's checkpoints come from: its vocabulary and weights, recorded and compared.

`RUN_DIR/checkpoints/start.json` records both when training begins. The vocabulary
of a run without this file is compared with that of its dataset's manifest.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from distill.core.errors import UserError
from distill.core.store import read_json, sha256, write_json
from distill.core.vocabulary_digest import VocabularyRecord, require_same
from distill.models.saved import open_vocabulary
from distill.models.weights import WEIGHTS, Vocabulary
from distill.targets import vocabulary as vocabularies
from distill.training import checkpoints

START = "start.json"
ALIGN_AGAIN = "align and build the dataset with the student's own vocabulary, or train another"


def require_dataset(run_dir: Path, directory: Path, vocabulary: Vocabulary) -> None:
    """Refuse a start of another vocabulary than the dataset's.

    Args:
        run_dir: the run.
        directory: of the start.
        vocabulary: the start's.

    Raises:
        UserError: the vocabularies differ, or the dataset's manifest is damaged.
    """
    path = Path(run_dir) / "manifests" / "dataset.json"
    settings = read_json(path).get("settings", {}) if path.is_file() else {}
    settings = settings if isinstance(settings, dict) else {}
    # Earlier versions called the setting `student`; their runs are compared as well.
    described = settings.get("vocabulary", settings.get("student"))
    described = described if isinstance(described, dict) else {}
    tokenizer = open_vocabulary(vocabulary.path, 0)
    if described.get("vocab_size") == tokenizer.vocab_size + vocabulary.extra_ids:
        tokenizer = open_vocabulary(vocabulary.path, vocabulary.extra_ids)
    whole = cast(vocabularies.Vocabulary, tokenizer)  # tokalign's tokenizers encode texts
    names = {"expected": f"the dataset in {run_dir}", "got": f"the student in {directory}"}
    vocabularies.require_described(described, whole, **names, do=ALIGN_AGAIN)


@contextlib.contextmanager
def recorded(run_dir: Path, directory: Path, vocabulary: Vocabulary) -> Iterator[None]:
    """Record the start beside the checkpoints if there are none; removed if training is refused.

    Raises:
        UserError: there are checkpoints that come from another start.
    """
    require(run_dir, directory, vocabulary)
    folder = Path(run_dir) / "checkpoints"
    path, existed = folder / START, folder.exists()
    new = not path.exists() and not checkpoints.steps(folder)
    if new:
        write_json(path, _record(directory, vocabulary))
    try:
        yield
    except UserError:
        if new and not checkpoints.steps(folder):
            path.unlink()
            _remove_empty(folder, existed=existed)
        raise


def require(run_dir: Path, directory: Path, vocabulary: Vocabulary) -> None:
    """Refuse a start that is not the one which the run's checkpoints come from.

    Nothing is compared in a run without checkpoints of a recorded start and without a dataset.

    Args:
        run_dir: the run.
        directory: of the start.
        vocabulary: the start's.

    Raises:
        UserError: its vocabulary or its weights are others.
    """
    path = Path(run_dir) / "checkpoints" / START
    if not path.is_file():
        if (Path(run_dir) / "manifests" / "dataset.json").is_file():
            require_dataset(run_dir, directory, vocabulary)
        return
    record = read_json(path)
    digests = record if isinstance(record, Mapping) else {}
    holder, do = f"the checkpoints in {path.parent}", "give the start that the run was trained from"
    expected = VocabularyRecord(holder, digests.get("vocabulary_sha256"))
    require_same(expected, vocabulary.recorded(f"the start in {directory}"), do)
    weights, mine = digests.get("weights_sha256"), sha256(directory / WEIGHTS)
    if weights != mine:
        raise UserError(
            f"the weights that {holder} come from, SHA-256 {str(weights)[:12]}",
            f"SHA-256 {mine[:12]} in {directory}",
            do,
        )


def _record(directory: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "vocabulary_sha256": vocabulary.digest,
        "extra_ids": vocabulary.extra_ids,
        "weights_sha256": sha256(directory / WEIGHTS),
    }


def _remove_empty(folder: Path, *, existed: bool) -> None:
    if not existed and not any(folder.iterdir()):
        folder.rmdir()
