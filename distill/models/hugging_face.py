"""Hugging Face's T5: names, configuration and safetensors, to and from our parameters.

transformers and torch are not needed for either direction.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.store import read_json
from distill.models import tensors as files
from distill.models import weights
from distill.models.layers import Params
from distill.models.t5 import T5Config, T5Model
from distill.models.tensors import Tensor, Tensors
from distill.models.weights import CONFIG, WEIGHTS

ACTIVATIONS = {"gated-gelu": ("gelu", "linear"), "relu": ("relu",)}
AGAIN = "download the directory again"
EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
# A checkpoint may name its one embedding after any of its uses, or hold it under several.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first releases of v1.0 hold a table that no model reads.
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


def config_document(config: T5Config) -> dict[str, Any]:
    """Return the fields of transformers' T5Config.

    Raises:
        UserError: transformers has no such activation.
    """
    spelt = {activations: name for name, activations in ACTIVATIONS.items()}
    if config.mlp_activations not in spelt:
        raise UserError(
            f"mlp_activations of {list(spelt)}",
            f"{config.mlp_activations}",
            "train a model of T5's shape to export it",
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": spelt[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "dtype": "float32",
    }


def config_of(found: Mapping[str, Any]) -> T5Config:
    """Return our shape of transformers' T5Config; what it leaves out has transformers' default.

    Raises:
        UserError: it is no T5, or one with an activation of its own.
    """
    feed_forward = found.get("feed_forward_proj", "relu")
    if found.get("model_type") not in ("t5", "mt5") or feed_forward not in ACTIVATIONS:
        raise UserError(
            f"the config of a T5 with feed_forward_proj of {list(ACTIVATIONS)}",
            f"{found.get('model_type')!r} with {feed_forward!r}",
            "give the directory of a T5, FlanT5 or mT5",
        )
    try:
        return _shape(found, ACTIVATIONS[feed_forward])
    except (TypeError, ValueError) as error:
        raise UserError("the shape of a T5 in its configuration", str(error), AGAIN) from error


def _shape(found: Mapping[str, Any], mlp_activations: tuple[str, ...]) -> T5Config:
    num_layers = found.get("num_layers", 6)
    # transformers 5 writes every T5 as tied and says by the scale whether it is.
    tied = found.get("scale_decoder_outputs", found.get("tie_word_embeddings", True) is not False)
    return T5Config(
        vocab_size=found.get("vocab_size", 32128),
        embed_dim=found.get("d_model", 512),
        num_heads=found.get("num_heads", 8),
        head_dim=found.get("d_kv", 64),
        mlp_dim=found.get("d_ff", 2048),
        num_encoder_layers=num_layers,
        num_decoder_layers=found.get("num_decoder_layers") or num_layers,
        mlp_activations=mlp_activations,
        logits_via_embedding=tied,
        relative_attention_num_buckets=found.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=found.get("relative_attention_max_distance", 128),
        dropout_rate=found.get("dropout_rate", 0.1),
        layer_norm_epsilon=found.get("layer_norm_epsilon", 1e-6),
    )


def load(directory: Path) -> tuple[T5Model, Params]:
    """Return the model and its parameters in memory; see `read`."""
    model, tensors = read(directory)
    return model, weights.in_memory(tensors)


def read(directory: Path) -> tuple[T5Model, dict[str, Tensor]]:
    """Open a Hugging Face T5 of any version, its safetensors in one file or in shards.

    A head that transformers left out, since it is the embedding itself, is read as the embedding.

    Returns:
        The model, and our parameters by path, still on disk.

    Raises:
        UserError: a file or a parameter is missing, one too many, or of another shape than the
            configuration says.
    """
    document = read_json(directory / CONFIG)
    config = config_of(document)
    theirs = _by_one_name(_open(directory), tied=document.get("tie_word_embeddings", True))
    found = {}
    for ours, (name, transposed) in names(config).items():
        if name not in theirs:
            raise UserError(f"{name} in {directory}", "none", AGAIN)
        found[ours] = theirs[name].transposed() if transposed else theirs[name]
    _refuse_unread(theirs, config, directory)
    model = T5Model(config)
    weights.require_shapes(model, found, directory)
    return model, found


def _open(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of all files by Hugging Face's names."""
    index = directory / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return files.read(_only_file(directory))
    weight_map = read_json(index).get("weight_map", {})
    shards = {file: files.read(directory / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise UserError(f"{name} in {directory / file}", "none", AGAIN)
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _only_file(directory: Path) -> Path:
    if not (directory / WEIGHTS).is_file() and list(directory.glob("pytorch_model*.bin")):
        raise UserError(
            f"{WEIGHTS} in {directory}",
            "pytorch_model.bin alone, which is a pickle",
            "save it once with transformers' save_pretrained",
        )
    return directory / WEIGHTS


def _by_one_name(theirs: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    found = dict(theirs)
    for name in (*ALIASES, HEAD) if tied else ALIASES:
        if name in found:
            found.setdefault(EMBEDDING, found[name])
    if tied and EMBEDDING in found:
        found.setdefault(HEAD, found[EMBEDDING])
    return found


def _refuse_unread(theirs: Mapping[str, Tensor], config: T5Config, directory: Path) -> None:
    read = {name for name, _ in names(config).values()} | {EMBEDDING, HEAD, *ALIASES, *UNREAD}
    if more := sorted(theirs.keys() - read):
        raise UserError(
            f"the weights of {config.num_encoder_layers} and {config.num_decoder_layers} layers, "
            f"as {directory / CONFIG} says",
            f"{more[0]} too",
            "restore the configuration of these weights",
        )
