"""Import a Hugging Face T5, or a T5X checkpoint with a vocabulary, as a student."""

import argparse
import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core import files
from distill.core.errors import UserError

if TYPE_CHECKING:
    from distill.models.hugging_face_vocabulary import Found
    from distill.models.t5 import T5Model
    from distill.models.tensors import Tensors

logger = logging.getLogger(__name__)

# An embedding has one row for each token, padded to at most the next multiple of this.
ROWS_MULTIPLE = 128
DTYPES = ("float32", "bfloat16", "float16")
EPILOG = """\
SRC is a directory of transformers (config.json, safetensors in one file or shards, spiece.model or
tokenizer.json) or the directory of one T5X checkpoint (checkpoint_STEP, also at gs://). The command
holds one tensor in memory at a time. OUT_DIR is for `train.run.student`; it is written atomically.

  distill import flan-t5-base students/flan_t5_base
  distill import t5_1_1_base/checkpoint_1000000 students/t5 --vocabulary sentencepiece.model
"""


def main(arguments: Sequence[str]) -> int:
    """Import and print the number of parameters and bytes."""
    options = _parser().parse_args(arguments)
    summary = convert(
        options.source,
        options.directory,
        vocabulary=options.vocabulary,
        dtype=options.dtype,
        rows=options.rows,
    )
    sizes = f"{summary['parameters']:,} parameters, {summary['bytes']:,} bytes"
    text = json.dumps(summary) if options.json else f"{sizes} in {options.directory}"
    sys.stdout.write(text + "\n")
    return 0


def convert(
    source: str,
    directory: Path,
    *,
    vocabulary: Path | None = None,
    dtype: str = "float32",
    rows: int | None = None,
) -> dict[str, Any]:
    """Write a student from public weights, one tensor in memory at a time.

    Rows that `rows` adds are copies of the padding token's row, which is never a target. Rows of
    zeros would be likelier than most tokens, whose logits are negative.

    Args:
        source: a directory of transformers, or the directory or URL of one T5X checkpoint.
        directory: the student, for `weights.load`; must not exist.
        vocabulary: a SentencePiece model; by default spiece.model of the source.
        dtype: dtype of the parameters on disk.
        rows: rows of the embedding and the head; unchanged by default.

    Returns:
        `source`, "hugging_face" or "t5x"; `parameters`, their number; `bytes` of the weights.

    Raises:
        UserError: the source is not a T5 or is incomplete, the vocabulary is missing or does not
            belong to the weights, or the directory exists.
    """
    from distill.models import weights

    if directory.exists():
        raise UserError(f"no directory {directory}", "one", "remove it or name another")
    kind, model, tensors = _read(source)
    rows = model.config.vocab_size if rows is None else rows
    name, pieces = _vocabulary(source, vocabulary, rows)
    model, tensors = _with_rows(model, tensors, rows)
    tensors = {
        name: tensor.cast(dtype).finite(f"{name} of {source} as {dtype}")
        for name, tensor in tensors.items()
    }
    _require_disk_space(directory, sum(tensor.nbytes for tensor in tensors.values()))
    logger.info("import: %d tensors of %s", len(tensors), source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(pieces.content)
        copied = weights.Vocabulary(path, pieces.extra_ids)
        if kind == "hugging_face":
            weights.require_exported(Path(source), copied)
        weights.write(directory, model, tensors, copied, dtype=dtype)
    return {
        "source": kind,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "bytes": (directory / weights.WEIGHTS).stat().st_size,
    }


def _require_disk_space(directory: Path, size: int) -> None:
    parent = next(path for path in directory.absolute().parents if path.exists())
    if (free := shutil.disk_usage(parent).free) < size:
        raise UserError(f"room for {size:,} bytes in {parent}", f"{free:,}", "free disk space")


def _read(source: str) -> "tuple[str, T5Model, Tensors]":
    """Return the kind of the source, its model and its tensors, which are read lazily."""
    from distill.models import hugging_face, t5x_checkpoint, weights

    config = Path(source) / weights.CONFIG
    if "://" not in source and not Path(source).is_dir():
        raise UserError(f"a directory {source}", "none", "name a directory of transformers or T5X")
    if "://" in source or not (config.exists() or hugging_face.is_adapter(Path(source))):
        return "t5x", *t5x_checkpoint.read(source)
    if config.exists() and "kind" in files.read_document(config):
        raise UserError(
            "weights to import", f"{source}, which is imported already", "train from it"
        )
    return "hugging_face", *hugging_face.read(Path(source))


def _with_rows(model: "T5Model", tensors: "Tensors", rows: int) -> "tuple[T5Model, Tensors]":
    """Return the model with `rows` rows of the embedding, and of the head if it has one."""
    import dataclasses

    axes = {"token_embedder/embedding": 0, "decoder/logits_dense/kernel": 1}
    resized: Mapping[str, Any] = {
        name: tensor.resized(axes[name], rows) if name in axes else tensor
        for name, tensor in tensors.items()
    }
    config = dataclasses.replace(model.config, vocab_size=rows)
    return dataclasses.replace(model, config=config), resized


def _vocabulary(source: str, path: Path | None, rows: int) -> "tuple[str, Found]":
    """Return the name and content of the vocabulary, whose size must fit the rows."""
    from distill.models import hugging_face_vocabulary

    name = hugging_face_vocabulary.SPIECE if path is None else path.name
    pieces = hugging_face_vocabulary.read(Path(source), path)
    tokens = len(hugging_face_vocabulary.tokens(pieces))
    if not 0 <= rows - tokens < ROWS_MULTIPLE:
        raise UserError(
            f"an embedding of {tokens:,} rows, as {path or source} has tokens, or up to "
            f"{ROWS_MULTIPLE - 1} more",
            f"{rows:,}",
            "give the vocabulary of these weights: --vocabulary",
        )
    return name, pieces


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill import",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="the weights to import")
    parser.add_argument("directory", metavar="OUT_DIR", type=Path, help="directory to create")
    parser.add_argument(
        "--vocabulary", type=Path, help="SentencePiece model; SRC/spiece.model by default"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="%(default)s")
    parser.add_argument(
        "--rows", type=int, help="rows of the embedding, such as 32128; unchanged by default"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
