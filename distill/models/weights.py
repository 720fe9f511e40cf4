"""Parameters on disk: our shipped directories and Hugging Face's T5; no training checkpoints."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from distill.core.errors import UserError
from distill.core.store import read_json, sync, temporary_beside
from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.layers import Params, by_path
from distill.models.t5 import T5Config, T5Model

Model = T5Model | DecoderModel
KINDS: dict[str, tuple[type[Model], type[T5Config] | type[DecoderConfig]]] = {
    "t5": (T5Model, T5Config),
    "decoder": (DecoderModel, DecoderConfig),
}
DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
ACTIVATIONS = {"gated-gelu": ("gelu", "linear"), "relu": ("relu",)}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary's file and the sentinels that follow its pieces."""

    path: Path
    extra_ids: int


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a directory beside `path` that takes its place, synced, when the block ends well.

    Where `path` exists its files of the same names are replaced one by one, others are left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if path.exists():
            for file in temporary.iterdir():
                file.replace(path / file.name)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(
    directory: Path,
    model: Model,
    params: Params,
    tokenizer_path: Path,
    *,
    dtype: str = "float32",
    extra_ids: int = 100,
) -> None:
    """Write a model with its vocabulary so that `load` needs nothing else.

    ```
    DIRECTORY/config.json        kind, shape, vocabulary
    DIRECTORY/model.safetensors  parameters by their path, encoder/layers_0/attention/...
    DIRECTORY/student.model      the vocabulary, and the .json beside it where there is one
    ```

    Args:
        directory: made; where it exists its files of these names are replaced.
        model: of `params`.
        params: float32.
        tokenizer_path: a SentencePiece `.model`, or a `.tiktoken` file with its `.json`.
        dtype: that the parameters are kept in; half of float32's size loses digits.
        extra_ids: sentinels after a SentencePiece model's pieces.

    Raises:
        UserError: there is no such vocabulary.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {DTYPES}, got {dtype!r}")
    if not tokenizer_path.is_file():
        raise UserError("a vocabulary", f"no file {tokenizer_path}", "give the path of one")
    kind = next(name for name, (of_kind, _) in KINDS.items() if isinstance(model, of_kind))
    flat = {name: jnp.asarray(x, dtype) for name, x in by_path(params).items()}
    config = {
        "kind": kind,
        "config": dataclasses.asdict(model.config),
        "vocabulary": {"file": tokenizer_path.name, "extra_ids": extra_ids},
    }
    with whole_directory(directory) as temporary:
        for file in (tokenizer_path, tokenizer_path.with_suffix(".json")):
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)
        save_file(flat, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load(directory: Path) -> tuple[Model, Params, Vocabulary]:
    """Return what `save` wrote, the parameters in float32.

    Raises:
        UserError: a file is missing or damaged, or the weights have not the shapes of the config.
    """
    found = read_json(directory / CONFIG)
    try:
        of_kind, of_config = KINDS[found["kind"]]
        fields = {**found["config"], "mlp_activations": tuple(found["config"]["mlp_activations"])}
        model = of_kind(of_config(**fields))  # type: ignore[arg-type]
        vocabulary = found["vocabulary"]
        path = directory / vocabulary["file"]
        extra_ids = vocabulary["extra_ids"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the config of a model in {directory / CONFIG}", repr(error), "restore the directory"
        ) from error
    params = unflatten_dict(read_tensors(directory / WEIGHTS), sep="/")
    require_shapes(model, params, directory)
    if not path.is_file():
        raise UserError(f"a vocabulary {path}", "none", "restore the directory")
    return model, params, Vocabulary(path, extra_ids)


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the arrays of a safetensors file, in float32.

    Raises:
        UserError: the file is missing, cut short or of another format.
    """
    if not path.is_file():
        raise UserError(f"weights in {path}", "no such file", "restore the directory")
    try:
        with safe_open(path, framework="flax") as file:
            return {name: file.get_tensor(name).astype(jnp.float32) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"whole safetensors in {path}", str(error), "restore the file") from error


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its path, nothing computed."""
    tree = jax.eval_shape(model.init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in by_path(tree).items()}


def require_shapes(model: Model, params: Params, source: Path) -> None:
    """Refuse parameters that are not those of the model.

    Raises:
        UserError: names or shapes differ; the first that do are named.
    """
    wanted = shapes(model)
    found = {name: x.shape for name, x in by_path(params).items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{name} of shape {wanted.get(name)} in {source}",
                f"{found.get(name)}",
                "use the weights of the same configuration",
            )


def hugging_face_names(config: T5Config) -> dict[str, tuple[str, bool]]:
    """Return Hugging Face's name of each of our parameters, and whether theirs is transposed.

    Example:
        >>> names = hugging_face_names(T5Config(32, 8, 2, 4, 16, 1, 1))
        >>> names["decoder/layers_0/encoder_decoder_attention/query/kernel"]
        ('decoder.block.0.layer.1.EncDecAttention.q.weight', True)
    """
    names = {
        "token_embedder/embedding": ("shared.weight", False),
        "encoder/encoder_norm/scale": ("encoder.final_layer_norm.weight", False),
        "decoder/decoder_norm/scale": ("decoder.final_layer_norm.weight", False),
    }
    if not config.logits_via_embedding:
        names["decoder/logits_dense/kernel"] = ("lm_head.weight", True)
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
        names[f"{tower}/relpos_bias/rel_embedding"] = (bias, True)
        for layer in range(count):
            ours, theirs = f"{tower}/layers_{layer}", f"{tower}.block.{layer}.layer"
            for part, (attention, name, norm) in enumerate(attentions):
                names[f"{ours}/{norm}/scale"] = (f"{theirs}.{part}.layer_norm.weight", False)
                for word in ("query", "key", "value", "out"):
                    letter = "o" if word == "out" else word[0]
                    names[f"{ours}/{attention}/{word}/kernel"] = (
                        f"{theirs}.{part}.{name}.{letter}.weight",
                        True,
                    )
            last = f"{theirs}.{len(attentions)}"
            names[f"{ours}/pre_mlp_layer_norm/scale"] = (f"{last}.layer_norm.weight", False)
            gated = len(config.mlp_activations) == 2
            for word in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
                name = f"{last}.DenseReluDense.{word}.weight"
                names[f"{ours}/mlp/{word}/kernel"] = (name, True)
    return names


def to_hugging_face(params: Params, config: T5Config) -> dict[str, np.ndarray]:
    """Return the parameters under Hugging Face's names, in float32."""
    flat = by_path(params)
    arrays = {}
    for ours, (theirs, transposed) in hugging_face_names(config).items():
        array = np.asarray(flat[ours], np.float32)
        arrays[theirs] = np.ascontiguousarray(array.T if transposed else array)
    return arrays


def hugging_face_config(config: T5Config) -> dict[str, Any]:
    """Return the fields of transformers' T5Config.

    Raises:
        UserError: transformers has no such activation.
    """
    names = {activations: name for name, activations in ACTIVATIONS.items()}
    if config.mlp_activations not in names:
        raise UserError(
            f"mlp_activations of {list(names)}",
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
        "feed_forward_proj": names[config.mlp_activations],
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


def config_from_hugging_face(found: Mapping[str, Any]) -> T5Config:
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
        mlp_activations=ACTIVATIONS[feed_forward],
        logits_via_embedding=tied,
        relative_attention_num_buckets=found.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=found.get("relative_attention_max_distance", 128),
        dropout_rate=found.get("dropout_rate", 0.1),
        layer_norm_epsilon=found.get("layer_norm_epsilon", 1e-6),
    )


def from_hugging_face(directory: Path) -> tuple[T5Model, Params]:
    """Read a Hugging Face T5 of either version, its safetensors in one file or in shards.

    Raises:
        UserError: a file or a parameter is missing, or has another shape than the config says.
    """
    config = config_from_hugging_face(read_json(directory / CONFIG))
    index = directory / f"{WEIGHTS}.index.json"
    files = set(read_json(index)["weight_map"].values()) if index.is_file() else {WEIGHTS}
    arrays: dict[str, Array] = {}
    for file in sorted(files):
        arrays |= read_tensors(directory / file)
    # A tied checkpoint may name its one embedding after any of its uses.
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        if name in arrays:
            arrays.setdefault("shared.weight", arrays[name])
    if "shared.weight" in arrays:
        arrays.setdefault("lm_head.weight", arrays["shared.weight"])
    flat = {}
    for ours, (theirs, transposed) in hugging_face_names(config).items():
        if theirs not in arrays:
            raise UserError(f"{theirs} in {directory}", "none", "download the directory again")
        flat[ours] = arrays[theirs].T if transposed else arrays[theirs]
    model, params = T5Model(config), unflatten_dict(flat, sep="/")
    require_shapes(model, params, directory)
    return model, params
