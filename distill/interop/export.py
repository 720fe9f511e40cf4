"""Export a student as a Hugging Face directory: weights, tokenizer, generation settings, card."""

import html
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core import terminal
from distill.core.errors import UserError
from distill.core.records import Accuracy
from distill.core.store import Stage, manifest
from distill.models import hugging_face, t5x_checkpoint, tensors, weights
from distill.models.layers import Params, by_path
from distill.models.t5 import T5Model
from distill.models.tensors import Tensor, Tensors
from distill.models.unigram import SENTINELS, sentinels, tokenizer_json

logger = logging.getLogger(__name__)

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("export", "export_t5x")
MAX_NEW_TOKENS = 256


def export(
    directory: Path,
    model: T5Model,
    params: Params,
    sentencepiece_path: Path,
    *,
    card: str,
    extra_ids: int = SENTINELS,
) -> None:
    """Write a directory that transformers loads, atomically.

    ```
    config.json, generation_config.json, model.safetensors
    spiece.model, tokenizer.json, tokenizer_config.json, special_tokens_map.json
    README.md
    ```
    Args:
        directory: created if absent; existing files of these names are replaced.
        model: a T5, v1.0 or v1.1.
        params: float32.
        sentencepiece_path: the vocabulary.
        card: the model card, Markdown.
        extra_ids: number of sentinels to add after the pieces; 0 if the pieces contain them.

    Raises:
        UserError: the vocabulary is missing, larger than the embedding, or cannot be expressed
            exactly in the tokenizers library; or a parameter is not finite.

    Example:
        >>> import tempfile
        >>> from distill.core import paths
        >>> student = paths.shipped("data/models/student_instructed")
        >>> model, params, vocabulary = weights.load(student)
        >>> folder = Path(tempfile.mkdtemp()) / "student"
        >>> export(folder, model, params, vocabulary.path, card="A student.")
        >>> sorted(path.name for path in folder.glob("*.safetensors"))
        ['model.safetensors']
    """
    of_params = {name: Tensor.of(array) for name, array in by_path(params).items()}
    vocabulary = weights.Vocabulary(sentencepiece_path, extra_ids)
    write(directory, model, of_params, vocabulary, card=card)


def write(
    directory: Path, model: T5Model, params: Tensors, vocabulary: weights.Vocabulary, *, card: str
) -> None:
    """Write the directory of `export` with one parameter in memory at a time.

    Args:
        directory: as in `export`.
        model: as in `export`.
        params: the parameters by path.
        vocabulary: the SentencePiece model with its sentinels.
        card: the model card, Markdown.
    """
    tokenizer = tokenizer_json(vocabulary.path, vocabulary.extra_ids)
    size = len(tokenizer["model"]["vocab"])
    if size > model.config.vocab_size:
        raise UserError(
            f"a vocabulary of at most {model.config.vocab_size} tokens with its sentinels",
            f"{size} in {vocabulary.path}",
            "use the vocabulary that the student was trained with",
        )
    documents = {
        "config.json": hugging_face.config_document(model.config),
        "generation_config.json": generation_config(),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            **tokenizer_config(vocabulary.extra_ids),
            weights.DIGEST: vocabulary.digest,
        },
        "special_tokens_map.json": _special_tokens(vocabulary.extra_ids),
    }
    with weights.whole_directory(directory) as temporary:
        for name, document in documents.items():
            text = json.dumps(document, indent=1, ensure_ascii=False)
            (temporary / name).write_text(text + "\n", encoding="utf-8")
        finite = {name: tensor.finite(f"{name} to export") for name, tensor in params.items()}
        renamed = hugging_face.renamed(finite, model.config)
        tensors.write(temporary / "model.safetensors", renamed, {"format": "pt"})
        shutil.copyfile(vocabulary.path, temporary / "spiece.model")
        (temporary / "README.md").write_text(card, encoding="utf-8")


def generation_config() -> dict[str, Any]:
    """Return the settings of greedy decoding."""
    return {
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def _special_tokens(extra_ids: int) -> dict[str, Any]:
    return {
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": sentinels(extra_ids)[::-1],
    }


def tokenizer_config(extra_ids: int = SENTINELS) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, which AutoTokenizer reads first.

    PreTrainedTokenizerFast uses tokenizer.json unchanged. T5's own class builds another pipeline,
    which splits at whitespace that SentencePiece does not treat as whitespace.
    """
    return {
        **_special_tokens(extra_ids),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "extra_ids": extra_ids,
    }


# --- The stage ---------------------------------------------------------------------------------


def model_card(
    student: str, selection: Mapping[str, Any], accuracy: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the card of a distilled student: its training, its accuracy, how to load it.

    Args:
        student: name of the initial weights, Markdown.
        selection: `reports/selection.json`.
        accuracy: {step: {set: {"correct", "n"}}} of stage `final`, "0" the initial weights.
    """
    step = selection["chosen_step"]
    before, after = accuracy["0"], accuracy[str(step)]
    rows = [
        f"| {_plain(name)} | {Accuracy(**before[name])} | {Accuracy(**after[name])} |"
        for name in sorted(after)
    ]
    return CARD.format(student=student, step=step, rows="\n".join(rows))


def _plain(text: str) -> str:
    r"""Return a text on one line, escaped for Markdown, HTML and terminals.

    Example:
        >>> _plain("<b>a|b")
        '&lt;b&gt;a\\|b'
    """
    visible = terminal.line(text)
    return re.sub(r"([\\`*_{}\[\]()#+.!|~:@$-])", r"\\\1", html.escape(visible, quote=False))


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [t5, knowledge-distillation]
---
# A distilled student

A T5 that was trained from {student} on a teacher's chains of thought and its
distributions over tokens. Checkpoint {step}, chosen by held-out problems that neither training nor
the figures below saw.

| set | before | after |
|---|---|---|
{rows}

Greedy answers right, with 95 % intervals.

```python
from transformers import AutoTokenizer, T5ForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = T5ForConditionalGeneration.from_pretrained("PATH")
inputs = tokenizer("Q: ...\\nLet's think step by step", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```
"""


def run(*, run_dir: Path, student: str | None = None, t5x: bool = False) -> dict[str, Any]:
    """Export the chosen checkpoint into RUN_DIR/export, one parameter in memory at a time.

    Args:
        run_dir: the run; select and final are complete.
        student: directory of the initial weights; those of the stage train if None.
        t5x: whether to write RUN_DIR/export_t5x/checkpoint_STEP too, which T5X restores.

    Returns:
        `step`, the checkpoint; `parameters`, their number; `bytes`, of all files.

    Raises:
        UserError: an earlier stage is not complete, the initial weights or the checkpoint are
            damaged, or there is no SentencePiece vocabulary.
    """
    from distill.training import choice, initialise, origin
    from distill.training.lazy_params import open_params

    settings = {"t5x": True} if t5x else {}
    inputs = ("train", "select", "final")
    with Stage.open(run_dir, "export", settings=settings, inputs=inputs, outputs=OUTPUTS) as stage:
        if stage.complete:
            return stage.summary
        selection = choice.read(run_dir)
        start = student or manifest(run_dir, "train")["settings"]["student"]
        directory = initialise.directory(run_dir, start)
        model, params, vocabulary = weights.read(directory)
        origin.require(run_dir, directory, vocabulary)
        if not isinstance(model, T5Model):
            raise UserError("a student of T5's shape", f"{model}", "train a T5 to export it")
        if step := selection["chosen_step"]:
            params = open_params(run_dir / "checkpoints", step)
            weights.require_shapes(model, params, run_dir / "checkpoints")
        initial = _plain(start) if start else "a random start"
        accuracy = manifest(run_dir, "final")["summary"]["accuracy"]
        card = model_card(initial, selection, accuracy)
        write(run_dir / "export", model, params, vocabulary, card=card)
        if t5x:
            _write_t5x(run_dir / "export_t5x", params, step)
        size = sum(file.stat().st_size for file in (run_dir / "export").iterdir())
        count = sum(math.prod(tensor.shape) for tensor in params.values())
        stage.finish(step=step, parameters=count, bytes=size)
        return stage.summary


def _write_t5x(folder: Path, params: Tensors, step: int) -> None:
    directory = folder / f"checkpoint_{step}"
    if (
        not directory.exists()
    ):  # an existing one is complete: it was written atomically before an interruption
        t5x_checkpoint.write(directory, params, step=step)
