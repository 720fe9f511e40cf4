"""Tiny models and a byte vocabulary that the tests of this folder share."""

import contextlib
import functools
import math

import jax
import numpy as np
from closeness import assert_close, depth, scale_of

from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.t5 import T5Config, T5Model

SOURCE = 160  # tokens, more than any prompt of a generator here and its answer
ROWS = 272  # the byte vocabulary's 258 tokens, and rows that are none
V1_1 = T5Model(T5Config(ROWS, 16, 2, 8, 24, 2, 2))
V1_0 = T5Model(
    T5Config(ROWS, 16, 2, 8, 24, 1, 2, mlp_activations=("relu",), logits_via_embedding=True)
)
SMALL = T5Model(T5Config(ROWS, 8, 1, 8, 8, 1, 1))
TIED = DecoderModel(DecoderConfig(ROWS, 16, 4, 8, 24, 2))
UNTIED = DecoderModel(
    DecoderConfig(ROWS, 16, 2, 8, 24, 1, num_kv_heads=2, logits_via_embedding=False)
)
MODELS = {"t5-v1.1": V1_1, "t5-v1.0": V1_0, "decoder-tied": TIED, "decoder-untied": UNTIED}


class ByteVocabulary:
    """Bytes, shifted by two: pad 0, EOS 1, then the 256 bytes."""

    eos_id = 1
    vocab_size = 258

    def encode(self, text):
        return [byte + 2 for byte in text.encode()]

    def spell(self, text, *, start=False):
        return self.encode(text.decode())

    def token_bytes(self, token_id):
        return bytes([token_id - 2]) if token_id > 1 else b""


class WordVocabulary(ByteVocabulary):
    """A few letters and words, of which the longest that fits is taken; all of it is text."""

    words = (b"a", b"b", b"c", b"d", b"e", b"f", b" ", b"\n", b"ab\ncd", b" cat", b" dog.")
    words += tuple(bytes([byte]) for byte in b"ghijklmnopqrstuvwxyz.")
    vocab_size = 2 + len(words)

    def encode(self, text):
        ids, left = [], text.encode()
        while left:
            word = max((w for w in self.words if left.startswith(w)), key=len)
            ids.append(2 + self.words.index(word))
            left = left[len(word) :]
        return ids

    def token_bytes(self, token_id):
        return self.words[token_id - 2] if token_id > 1 else b""


@functools.cache
def params_of(model):
    return model.init(jax.random.key(1))


@functools.partial(jax.jit, static_argnames="model")
def compiled_logits(model, params, batch, key):
    return model.logits(params, batch, dropout_key=key)


def logits_of(model, key=None, params=None, **batch):
    return compiled_logits(model, params_of(model) if params is None else params, batch, key)


def assert_same_nats(model, found, expected, length=SOURCE):
    """Assert that log-probabilities agree within the rounding of two programs of a model.

    Their scale is that of the logits they follow from: at least an even share of the vocabulary.
    """
    scale = max(scale_of(expected), math.log(model.config.vocab_size))
    terms = depth(model.config, length, vocabulary=True)
    assert_close(found, expected, terms=terms, scale=scale)


def tokens(seed, *shape):
    return np.random.default_rng(seed).integers(2, 258, shape, dtype=np.int32)


@contextlib.contextmanager
def compilations():
    """Yield a list of what XLA compiles meanwhile."""
    found, on = [], True

    def note(event, seconds, **_):
        if on and "backend_compile" in event:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        on = False
