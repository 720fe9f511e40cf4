"""A model of one layer and batches from a seed, small enough to compile in a moment."""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from distill.training.checkpoints import Checkpoints
from distill.training.losses import DistributionMatching
from distill.training.metrics import JsonLines, read_lines
from distill.training.optimizers import AdamW, Cosine
from distill.training.train import Course, train

VOCAB, WIDTH = 13, 8
RATE, EPS = 1e-2, 0.1


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Embed, add a hidden layer with dropout, project."""

    dropout_rate: float = 0.0

    def init(self, key):
        one, two, three = jax.random.split(key, 3)
        return {
            "embed": {"embedding": jax.random.normal(one, (VOCAB, WIDTH)) * 0.3},
            "mlp": {"kernel": jax.random.normal(two, (WIDTH, WIDTH)) * 0.3},
            "norm": {"scale": jnp.ones(WIDTH)},
            "head": {"kernel": jax.random.normal(three, (WIDTH, VOCAB)) * 0.3},
        }

    def logical_axes(self, params):
        return {
            "embed": {"embedding": ("vocab", "embed")},
            "mlp": {"kernel": ("relpos_buckets", "mlp")},
            "norm": {"scale": ("embed",)},
            "head": {"kernel": ("embed", "vocab")},
        }

    def logits(self, params, batch, *, dropout_key=None):
        hidden = params["embed"]["embedding"][batch["decoder_input_tokens"]]
        hidden = hidden + jnp.tanh(hidden @ params["mlp"]["kernel"]) * params["norm"]["scale"]
        if dropout_key is not None and self.dropout_rate:
            kept = jax.random.bernoulli(dropout_key, 1 - self.dropout_rate, hidden.shape)
            hidden = jnp.where(kept, hidden, 0.0) / (1 - self.dropout_rate)
        return hidden @ params["head"]["kernel"]


@dataclasses.dataclass(frozen=True)
class TinyBatches:
    """Targets follow from inputs, so there is something to learn."""

    rows: int = 4
    length: int = 6
    seed: int = 0
    bad_step: int = -1

    def batch(self, step):
        rng = np.random.default_rng((self.seed, step))
        inputs = rng.integers(1, VOCAB, (self.rows, self.length)).astype(np.int32)
        used = rng.integers(2, self.length + 1, (self.rows, 1))
        inside = np.arange(self.length) < used
        targets = ((inputs * 5 + 1) % VOCAB).astype(np.int32)
        weights = inside.astype(np.float32)
        if step == self.bad_step:
            weights[0, 0] = np.inf
        top_ids = np.stack([targets, (targets + 1) % VOCAB], -1).astype(np.int32)
        top_probs = np.broadcast_to(np.float32([0.7, 0.2]), top_ids.shape).copy()
        return {
            "decoder_input_tokens": np.where(inside, inputs, 0),
            "decoder_target_tokens": np.where(inside, targets, 0),
            "decoder_segment_ids": inside.astype(np.int32),
            "decoder_loss_weights": weights,
            "decoder_target_top_ids": top_ids * inside[..., None],
            "decoder_target_top_probs": top_probs * inside[..., None],
        }


def optimizer(**settings):
    """AdamW whose step is a smooth function of the gradient.

    With Adam's small eps a step is the gradient's sign; where it is near 0, its rounding would
    decide.
    """
    return AdamW(schedule=Cosine(RATE, steps=40, warmup=4), **{"eps": EPS, **settings})


def course(**settings):
    return Course(**{"steps": 12, "save_every": 4, "log_every": 3, **settings})


def train_tiny(
    directory, *, model=None, batches=None, loss=None, metrics=(), keep=None, **settings
):
    """Train in `directory`, where checkpoints and metrics.jsonl go."""
    model = model or Tiny(dropout_rate=0.1)
    named = {"optimizer": optimizer(), "course": course(), "key": jax.random.key(1), **settings}
    with Checkpoints(Path(directory) / "checkpoints", **(keep or {})) as checkpoints:
        return train(
            model,
            model.init(jax.random.key(0)),
            batches or TinyBatches(),
            loss or DistributionMatching(),
            checkpoints=checkpoints,
            sinks=[JsonLines(Path(directory) / "metrics.jsonl"), *metrics],
            **named,
        )


def curve(directory):
    """The lines of a run without the clock's part."""
    lines = read_lines(Path(directory) / "metrics.jsonl")
    return [{name: line[name] for name in line if "second" not in name} for line in lines]


class Slow(TinyBatches):
    """Batches that take a while, so that a signal finds the run under way."""

    seconds = 0.05

    def batch(self, step):
        time.sleep(self.seconds)
        return super().batch(step)


if __name__ == "__main__":
    train_tiny(sys.argv[1], batches=Slow(), course=course(steps=28, workers=int(sys.argv[2])))
