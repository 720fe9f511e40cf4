"""FLOPs of the models by their shapes, matrix products alone; times nothing and runs nothing."""

from distill.models.decoder import DecoderConfig
from distill.models.reader import SURPRISES
from distill.models.scoring import ScoringModel
from distill.models.t5 import T5Config

BACKWARD = 2  # a product's gradient is one product for each of its two factors


def forward_flops(config: T5Config | DecoderConfig, source: int, target: int) -> int:
    """Return the FLOPs of one row through the network, all of its positions at once.

    A product of [m, n] with [n, o] counts 2 m n o; lookups, norms, softmax and dropout count
    nothing. Attention counts every pair of positions, masked ones too, as they are computed.

    Args:
        config: the network's shape.
        source: tokens that the encoder reads; of a decoder-only network, the prompt.
        target: tokens of the decoder; of a decoder-only network, those after the prompt.

    Returns:
        FLOPs, logits of every decoder position included; times the rows for a batch.

    Example:
        >>> forward_flops(T5Config(32128, 512, 6, 64, 1024, 8, 8), 128, 128)
        16089350144

    Source:
        Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B, with exact shapes in place of
        6 N.
    """
    match config:
        case T5Config():
            return _encoder(config, source) + _t5_decoder(config, source, target, target**2, target)
        case DecoderConfig():
            length = source + target
            return _decoder(config, length, length**2, length)


def decoding_flops(config: T5Config | DecoderConfig, source: int, target: int) -> int:
    """Return the FLOPs of writing `target` tokens after `source`, one by one with a cache.

    Each token attends to those before it and itself, and logits are computed for written tokens
    alone. Candidates that are written and dropped have to be counted by the caller.

    Args:
        config: the network's shape.
        source: tokens of the prompt.
        target: tokens written.

    Returns:
        FLOPs, reading the prompt included; counted as in `forward_flops`.
    """
    match config:
        case T5Config():
            written = _t5_decoder(config, source, target, _pairs(target), target)
            return _encoder(config, source) + written
        case DecoderConfig():
            # The first step is fed the last token of the prompt, the last token is fed to none.
            length = source + max(target - 1, 0)
            return _decoder(config, length, _pairs(length), target)


def scoring_flops(model: ScoringModel, source: int, target: int) -> int:
    """Return the FLOPs of scoring all steps of one solution in one pass.

    Args:
        model: the network and, where it has one, its reader.
        source: tokens of the prompt.
        target: tokens of the solution.

    Returns:
        FLOPs, counted as in `forward_flops`; the network's logits too, though only a reader needs
        them.
    """
    config, reader = model.network.config, model.reader
    network = forward_flops(config, source, target)
    if reader is None:
        return network
    source = source if reader.prompt else 0
    features = source * config.embed_dim + target * (3 * config.embed_dim + SURPRISES)
    return network + 2 * features * reader.width + forward_flops(reader.stack, source, target)


def training_flops(config: T5Config | DecoderConfig, source: int, target: int) -> int:
    """Return the model FLOPs of one row in a training step: forward and backward.

    What rematerialisation computes anew is no model FLOP, so a step's utilisation is comparable
    with and without it.
    """
    return (1 + BACKWARD) * forward_flops(config, source, target)


def _encoder(config: T5Config, source: int) -> int:
    layer = _attention(config, config.num_heads, source, source, source**2) + _mlp(config, source)
    return config.num_encoder_layers * layer


def _t5_decoder(config: T5Config, source: int, target: int, pairs: int, projected: int) -> int:
    layer = (
        _attention(config, config.num_heads, target, target, pairs)
        + _attention(config, config.num_heads, target, source, target * source)
        + _mlp(config, target)
    )
    return config.num_decoder_layers * layer + _logits(config, projected)


def _decoder(config: DecoderConfig, length: int, pairs: int, projected: int) -> int:
    layer = _attention(config, config.num_kv_heads, length, length, pairs) + _mlp(config, length)
    return config.num_layers * layer + _logits(config, projected)


def _attention(
    config: T5Config | DecoderConfig, kv_heads: int, queries: int, keys: int, pairs: int
) -> int:
    """Query and out, key and value, then scores and their mix over `pairs` of positions."""
    joined, kv_joined = config.num_heads * config.head_dim, kv_heads * config.head_dim
    maps = 2 * queries * config.embed_dim * joined + 2 * keys * config.embed_dim * kv_joined
    return 2 * (maps + 2 * pairs * joined)


def _mlp(config: T5Config | DecoderConfig, length: int) -> int:
    kernels = len(config.mlp_activations) + 1
    return kernels * 2 * length * config.embed_dim * config.mlp_dim


def _logits(config: T5Config | DecoderConfig, projected: int) -> int:
    return 2 * projected * config.embed_dim * config.vocab_size


def _pairs(length: int) -> int:
    """Pairs of a position and one not after it."""
    return length * (length + 1) // 2
