"""The configuration of Hugging Face's T5: to and from our shape, and what it may not say.

Versions of transformers read the same configuration differently, so the version that saved a
directory decides. With `tie` for tie_word_embeddings, and the head present or left out as equal to
the embedding:

```
              transformers 4                      transformers 5
T5            tied and scaled where tie,          scaled where scale_decoder_outputs or else tie,
mT5           else a head of its own, not scaled  never scaled,
both                                              a head of its own where one is present
```
"""

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core import files
from distill.core.errors import UserError
from distill.models.t5 import T5Config
from distill.models.weights import CONFIG, LARGEST_SIZE

ACTIVATIONS = {"gated-gelu": ("gelu", "linear"), "relu": ("relu",)}
AGAIN = "download the directory again"
ARCHITECTURES = ("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "T5WithLMHeadModel")
GENERATION = "generation_config.json"
# Special tokens have T5's ids: training, generation and packing rely on them.
IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
# Fields with the values that leave a T5 what its own code computes.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": (None, False),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, True),
}
REASONS = {
    "quantization_config": "quantised weights",
    "auto_map": "code of its own",
    "pruned_heads": "attention heads removed",
    "tie_encoder_decoder": "one tower for both",
    "is_decoder": "a decoder alone",
    "is_encoder_decoder": "an encoder alone",
}


def config_document(config: T5Config) -> dict[str, Any]:
    """Return the fields of transformers' T5Config, for which versions 4 and 5 compute the same.

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
        **IDS,
        "dtype": "float32",
    }


def config_of(found: Mapping[str, Any]) -> T5Config:
    """Return our shape of transformers' T5Config; what it leaves out has transformers' default.

    Whether the head is tied is not only the configuration's to say; see `head_of`.

    Raises:
        UserError: it is no T5 with both towers and a head, or one that other code computes.
    """
    feed_forward = found.get("feed_forward_proj", _default(found, "relu", "gated-gelu"))
    if (
        found.get("model_type") not in ("t5", "mt5")
        or not isinstance(feed_forward, str)
        or feed_forward not in ACTIVATIONS
    ):
        raise UserError(
            f"the config of a T5 with feed_forward_proj of {list(ACTIVATIONS)}",
            f"{found.get('model_type')!r:.100} with {feed_forward!r:.100}",
            "give the directory of a T5, FlanT5 or mT5",
        )
    _refuse_other_models(found, gated=feed_forward.startswith("gated"))
    require_ids(found, CONFIG)
    try:
        return _shape(found, ACTIVATIONS[feed_forward])
    except (TypeError, ValueError) as error:
        raise UserError("the shape of a T5 in its configuration", str(error), AGAIN) from error


def _default(found: Mapping[str, Any], t5: Any, mt5: Any) -> Any:
    return mt5 if found.get("model_type") == "mt5" else t5


def _refuse_other_models(found: Mapping[str, Any], *, gated: bool) -> None:
    for name, plain in PLAIN.items():
        if found.get(name) not in plain:
            raise UserError(
                f"a T5 without {REASONS[name]}",
                f"{name} of {found[name]!r:.100} in {CONFIG}",
                "give the T5 that it was made from, or merge and save it whole",
            )
    architectures = found.get("architectures") or list(ARCHITECTURES)
    if not isinstance(architectures, list) or architectures[0] not in ARCHITECTURES:
        raise UserError(
            f"an encoder and a decoder with a head, {ARCHITECTURES[0]}",
            f"architectures of {architectures!r:.100} in {CONFIG}",
            "give the directory of a whole T5",
        )
    activation = "gelu_new" if gated else "relu"
    for name, value in (("dense_act_fn", activation), ("is_gated_act", gated)):
        if found.get(name, value) != value:
            raise UserError(
                f"{name} of {value!r}, as feed_forward_proj says",
                f"{found[name]!r:.100} in {CONFIG}",
                "give the directory of a T5, FlanT5 or mT5",
            )


def require_ids(found: Mapping[str, Any], file: str) -> None:
    """Refuse special tokens with other ids than T5's; what is absent has them.

    Args:
        found: a configuration of the model or of generation.
        file: its name, for the error.

    Raises:
        UserError: an id differs.
    """
    for name, wanted in IDS.items():
        got = found.get(name)
        if got is not None and (type(got) is bool or got not in (wanted, [wanted])):
            raise UserError(
                f"{name} {wanted}, as T5 has",
                f"{got!r:.100} in {file}",
                "give a T5 with the special tokens of T5",
            )


def require_generation(directory: Path) -> None:
    """Refuse a directory whose settings of generation have other special tokens than T5's."""
    if (directory / GENERATION).exists():
        require_ids(files.read_document(directory / GENERATION), GENERATION)


def _shape(found: Mapping[str, Any], mlp_activations: tuple[str, ...]) -> T5Config:
    def size(name: str, default: int) -> int:
        value = found.get(name, default)
        if type(value) is not int or not 0 <= value < LARGEST_SIZE:
            raise ValueError(f"expected {name} as an int, got {value!r:.50}")
        return value

    def number(name: str, default: float) -> float:
        value = found.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f"expected {name} from 0 to 1, got {value!r:.50}")
        return value

    num_layers = size("num_layers", _default(found, 6, 8))
    of_decoder = found.get("num_decoder_layers")
    return T5Config(
        vocab_size=size("vocab_size", _default(found, 32128, 250112)),
        embed_dim=size("d_model", 512),
        num_heads=size("num_heads", _default(found, 8, 6)),
        head_dim=size("d_kv", 64),
        mlp_dim=size("d_ff", _default(found, 2048, 1024)),
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers if of_decoder is None else size("num_decoder_layers", 0),
        mlp_activations=mlp_activations,
        logits_via_embedding=_ties(found),
        relative_attention_num_buckets=size("relative_attention_num_buckets", 32),
        relative_attention_max_distance=size("relative_attention_max_distance", 128),
        dropout_rate=number("dropout_rate", 0.1),
        layer_norm_epsilon=number("layer_norm_epsilon", 1e-6),
    )


def _ties(found: Mapping[str, Any]) -> bool:
    for name in ("tie_word_embeddings", "scale_decoder_outputs"):
        if type(found.get(name, True)) is not bool:
            raise ValueError(f"expected {name} as true or false, got {found[name]!r:.50}")
    return found.get("tie_word_embeddings", True)


# --- The head ----------------------------------------------------------------------------------


class OwnHead(enum.Enum):
    """What the weights hold as a head of its own."""

    ABSENT = "none"
    EQUAL = "one that equals the embedding"
    OTHER = "one that differs from the embedding"


@dataclasses.dataclass(frozen=True)
class Head:
    """How logits follow from the decoder's last states.

    Attributes:
        tied: by the embedding, not by a head of its own.
        scaled: after a product with embed_dim ** -0.5.
    """

    tied: bool
    scaled: bool


def head_of(found: Mapping[str, Any], own: OwnHead, source: Path | str) -> Head:
    """Return how the version of transformers that saved a directory computes its logits.

    Where no version is named, those that can have saved it have to agree.

    Args:
        found: the configuration.
        own: what the weights hold.
        source: of both, for the error.

    Raises:
        UserError: a head is missing, would not be used, or versions disagree about it.

    Example:
        >>> found = {"model_type": "mt5", "transformers_version": "5.0.0"}
        >>> head_of(found, OwnHead.OTHER, "mt5-small")
        Head(tied=False, scaled=False)
    """
    before, since = _before_5(found, own), _since_5(found, own)
    version = _major(found)
    if version == 5 or "scale_decoder_outputs" in found:  # which only version 5 writes
        return since
    if before is None and version is None and found["model_type"] == "mt5" and not since.tied:
        return since  # version 4 would have left this head out
    if before is None:
        tie = found.get("tie_word_embeddings", True)
        raise UserError(
            f"lm_head.weight in {source} {'as the embedding' if tie else 'of its own'}, since "
            f"tie_word_embeddings is {str(tie).lower()}",
            own.value,
            "load it with the version of transformers that it was trained with and save it again",
        )
    if version is None and before != since:
        raise UserError(
            f"transformers_version in the {CONFIG} of {source}, since versions 4 and 5 scale the "
            "output of this mT5 differently",
            "none",
            "load it with the version that it was trained with and save it again",
        )
    return before


def _major(found: Mapping[str, Any]) -> int | None:
    """Return 4 for all versions before 5 and 5 for later ones, None where none is named."""
    version = found.get("transformers_version")
    if version is None:
        return None
    number = re.match(r"(\d{1,3})\.", version) if isinstance(version, str) else None
    if number is None:
        raise UserError("a transformers_version such as 5.0.0", f"{version!r:.100}", AGAIN)
    return 4 if int(number[1]) < 5 else 5


def _before_5(found: Mapping[str, Any], own: OwnHead) -> Head | None:
    """Return the head, None where the weights are not what this configuration reads."""
    tie = found.get("tie_word_embeddings", True)
    if own is (OwnHead.OTHER if tie else OwnHead.ABSENT):
        return None
    return Head(own is not OwnHead.OTHER, tie)


def _since_5(found: Mapping[str, Any], own: OwnHead) -> Head:
    tie = found.get("tie_word_embeddings", True)
    scaled = found.get("scale_decoder_outputs", tie)
    return Head(own is not OwnHead.OTHER, found["model_type"] == "t5" and scaled)
