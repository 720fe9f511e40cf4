"""Hugging Face's T5: names and safetensors, to and from our parameters.

transformers and torch are not needed for either direction.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.core import files
from distill.core.errors import UserError
from distill.models import tensors as safetensors
from distill.models import weights
from distill.models.hugging_face_config import (
    AGAIN,
    Head,
    OwnHead,
    config_document,
    config_of,
    head_of,
    require_generation,
)
from distill.models.layers import Params
from distill.models.t5 import T5Config, T5Model
from distill.models.tensors import Tensor, Tensors
from distill.models.weights import CONFIG, WEIGHTS

__all__ = ["config_document", "config_of", "load", "names", "read", "renamed"]

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
# A checkpoint may name its one embedding after any of its uses, or hold it under several.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first releases of v1.0 hold a table that no model reads.
OTHER_WEIGHTS = {
    ".bin": "a pickle",
    ".pt": "a pickle",
    ".pth": "a pickle",
    ".ckpt": "a pickle",
    ".pkl": "a pickle",
    ".h5": "TensorFlow's",
    ".msgpack": "Flax's",
    ".gguf": "llama.cpp's",
    ".onnx": "ONNX's",
}
UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def names(config: T5Config) -> dict[str, tuple[str, bool]]:
    """Return Hugging Face's name of each of our parameters, and whether theirs is transposed.

    Example:
        >>> found = names(T5Config(32, 8, 2, 4, 16, 1, 1))
        >>> found["decoder/layers_0/encoder_decoder_attention/query/kernel"]
        ('decoder.block.0.layer.1.EncDecAttention.q.weight', True)
    """
    found = {
        "token_embedder/embedding": (EMBEDDING, False),
        "encoder/encoder_norm/scale": ("encoder.final_layer_norm.weight", False),
        "decoder/decoder_norm/scale": ("decoder.final_layer_norm.weight", False),
    }
    if not config.logits_via_embedding:
        found["decoder/logits_dense/kernel"] = (HEAD, True)
    encoder = [("attention", "SelfAttention", "pre_attention_layer_norm")]
    decoder = [
        ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
        ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
    ]
    for tower, count, attentions in (
        ("encoder", config.num_encoder_layers, encoder),
        ("decoder", config.num_decoder_layers, decoder),
    ):
        bias = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[f"{tower}/relpos_bias/rel_embedding"] = (bias, True)
        for layer in range(count):
            ours, theirs = f"{tower}/layers_{layer}", f"{tower}.block.{layer}.layer"
            for part, (attention, name, norm) in enumerate(attentions):
                found[f"{ours}/{norm}/scale"] = (f"{theirs}.{part}.layer_norm.weight", False)
                for word in ("query", "key", "value", "out"):
                    letter = "o" if word == "out" else word[0]
                    found[f"{ours}/{attention}/{word}/kernel"] = (
                        f"{theirs}.{part}.{name}.{letter}.weight",
                        True,
                    )
            last = f"{theirs}.{len(attentions)}"
            found[f"{ours}/pre_mlp_layer_norm/scale"] = (f"{last}.layer_norm.weight", False)
            gated = len(config.mlp_activations) == 2
            for word in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
                name = f"{last}.DenseReluDense.{word}.weight"
                found[f"{ours}/mlp/{word}/kernel"] = (name, True)
    return found


def renamed(tensors: Tensors, config: T5Config) -> dict[str, Tensor]:
    """Return our tensors under Hugging Face's names, in float32."""
    theirs = {}
    for ours, (name, transposed) in names(config).items():
        tensor = tensors[ours].cast("float32")
        theirs[name] = tensor.transposed() if transposed else tensor
    return theirs


def load(directory: Path) -> tuple[T5Model, Params]:
    """Return the model and its parameters in memory; see `read`."""
    model, tensors = read(directory)
    return model, weights.in_memory(tensors)


def read(directory: Path) -> tuple[T5Model, dict[str, Tensor]]:
    """Open a Hugging Face T5 of any version, its safetensors in one file or in shards.

    How the head is tied and scaled follows from the weights present, the configuration and the
    version of transformers that wrote it; see `hugging_face_config`. All that can be checked
    without running the model is: each weight is used, none is missing, each has its shape, copies
    of one parameter are equal, and each tensor refuses NaN when it is read.

    Returns:
        The model, and our parameters by path, still on disk.

    Raises:
        UserError: the directory holds another kind of model, or a file or a parameter is missing,
            one too many, or of another shape than the configuration says.
    """
    _refuse_adapters(directory)
    document = files.read_document(files.require_inside(directory / CONFIG))
    config = config_of(document)
    require_generation(directory)
    theirs = {name: t.finite(f"{name} of {directory}") for name, t in _open(directory).items()}
    _require_layers(theirs, config, directory)
    theirs, head = _with_head(theirs, document, directory)
    config = dataclasses.replace(config, logits_via_embedding=head.tied and head.scaled)
    found = _by_our_names(theirs, config, directory)
    model = T5Model(config)
    weights.require_shapes(model, found, directory)
    return model, found


def is_adapter(directory: Path) -> bool:
    """Return whether the weights are changes to those of another directory, as PEFT saves them."""
    return any(directory.glob("adapter_*"))


def _refuse_adapters(directory: Path) -> None:
    if is_adapter(directory):
        raise UserError(
            f"the weights of a whole T5 in {directory}",
            f"an adapter, {sorted(directory.glob('adapter_*'))[0].name}",
            "merge it into its model and save that",
        )


def _require_layers(theirs: Tensors, config: T5Config, directory: Path) -> None:
    """Refuse more layers than there are weights of, before their names are made."""
    layers = {name.partition(".layer.")[0] for name in theirs}
    for tower in ("encoder", "decoder"):
        count = getattr(config, f"num_{tower}_layers")
        present = sum(layer.startswith(f"{tower}.block.") for layer in layers)
        if count > present:
            raise UserError(f"{tower}.block.{present} of {count:,} in {directory}", "none", AGAIN)


def _by_our_names(theirs: Tensors, config: T5Config, directory: Path) -> dict[str, Tensor]:
    found = {}
    for ours, (name, transposed) in names(config).items():
        if name not in theirs:
            raise UserError(f"{name} in {directory}", "none", AGAIN)
        found[ours] = theirs[name].transposed() if transposed else theirs[name]
    read = {name for name, _ in names(config).values()} | {EMBEDDING, HEAD, *UNREAD}
    if more := sorted(theirs.keys() - read):
        raise UserError(
            f"the weights of {config.num_encoder_layers} and {config.num_decoder_layers} layers, "
            f"as {directory / CONFIG} says",
            f"{more[0]:.200} too",
            "restore the configuration of these weights",
        )
    return found


# --- Files -------------------------------------------------------------------------------------


def _open(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of all files by Hugging Face's names."""
    index = directory / f"{WEIGHTS}.index.json"
    if not index.exists():
        return _file(directory, WEIGHTS)
    weight_map = files.read_document(files.require_inside(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"a weight_map of tensors to files in {index}", "none", AGAIN)
    for file in weight_map.values():
        files.beside(directory, file)
    shards = {file: _file(directory, file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise UserError(f"{name:.200} in {directory / file}", "none", AGAIN)
    for file, tensors in shards.items():
        if stray := next((name for name in tensors if weight_map.get(name) != file), None):
            raise UserError(f"{stray:.200} of {directory / file} in {index}", "none", AGAIN)
    if (directory / WEIGHTS).exists():
        raise UserError(f"one file or shards in {directory}", "both", f"remove {WEIGHTS} or them")
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _file(directory: Path, name: str) -> dict[str, Tensor]:
    path = files.require_inside(directory / name)
    if not path.exists() and (others := _other_weights(directory)):
        raise UserError(
            f"{name} in {directory}",
            f"{_whole(others[0].name)} alone, which is {OTHER_WEIGHTS[others[0].suffix]}",
            "save it once with transformers' save_pretrained",
        )
    return safetensors.read(path)


def _whole(shard: str) -> str:
    return re.sub(r"-\d+-of-\d+", "", shard)


def _other_weights(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in OTHER_WEIGHTS)


# --- The embedding and the head ----------------------------------------------------------------


def _with_head(
    theirs: Mapping[str, Tensor], document: Mapping[str, Any], directory: Path
) -> tuple[dict[str, Tensor], Head]:
    """Return the tensors with one embedding, and a head where the model has one of its own."""
    own = OwnHead.ABSENT
    found = _with_one_embedding(theirs, directory)
    if HEAD in theirs:
        own = OwnHead.EQUAL if _equal(found[EMBEDDING], theirs[HEAD]) else OwnHead.OTHER
    head = head_of(document, own, directory)
    if not (head.tied and head.scaled):
        kernel = found[EMBEDDING] if head.tied else found[HEAD]
        # A head of its own behind scaled states is a scaled head.
        found[HEAD] = kernel.scaled(found[EMBEDDING].shape[-1] ** -0.5) if head.scaled else kernel
    return found, head


def _with_one_embedding(theirs: Mapping[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """Return the tensors with the embedding under its first name, after comparing its copies."""
    copies = [name for name in (EMBEDDING, *ALIASES) if name in theirs]
    copies += [HEAD] if HEAD in theirs and not copies else []
    if not copies:
        raise UserError(f"{EMBEDDING} in {directory}", "none", AGAIN)
    for name in copies[1:]:
        if not _equal(theirs[copies[0]], theirs[name]):
            raise UserError(
                f"{name} in {directory} the same as {copies[0]}, as T5 has it",
                "another table",
                "give a T5 with one embedding",
            )
    found = {name: tensor for name, tensor in theirs.items() if name not in ALIASES}
    return {**found, EMBEDDING: theirs[copies[0]]}


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and np.array_equal(first.read(), second.read())
