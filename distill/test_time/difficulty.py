"""Estimate the difficulty of questions for a generator, and divide them into equal bins by rank.

- oracle: pass@1 over samples of the generator, with the gold answers.
- predicted: the verifier's mean final score over the same samples, without gold answers.
- encoder: a ridge regression on the generator's mean encoder state, which costs one reading of the
  prompt where the others cost samples.

Source: Snell et al. 2024, arXiv 2408.03314, section 3.2, for the first two.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from distill.core import seeds
from distill.core.errors import UserError
from distill.models import layers
from distill.models.layers import Params
from distill.models.rows import bucket, rows_of
from distill.models.sampling import LocalGenerator
from distill.models.saved import SavedModel
from distill.models.t5 import T5, T5Model

BINS = 5
PENALTIES = tuple(float(10**power) for power in range(-1, 5))


def bins(ease: Mapping[str, float], count: int = BINS) -> dict[str, int]:
    """Return the bin of each question, from 0 for the easiest, of sizes that differ by at most 1.

    Questions of equal ease are ranked by a hash of their ids, so that a tie across a border is
    broken neither by chance nor by the order in which questions come.

    Args:
        ease: by problem_id, higher is easier.
        count: number of bins.

    Raises:
        ValueError: there are fewer questions than bins.

    Example:
        >>> bins({"a": 0.9, "b": 0.1, "c": 0.5}, 3)
        {'a': 0, 'c': 1, 'b': 2}
    """
    if not 1 <= count <= len(ease):
        raise ValueError(f"expected 1 to {len(ease)} bins, got {count}")
    ranked = sorted(seeds.shuffled(ease), key=lambda name: -ease[name])
    return {name: rank * count // len(ranked) for rank, name in enumerate(ranked)}


def edges(ease: Mapping[str, float], count: int = BINS) -> tuple[float, ...]:
    """Return the eases halfway between neighbouring bins, which put a new question into one.

    Example:
        >>> edges({"a": 0.9, "b": 0.1, "c": 0.5}, 3)
        (0.7, 0.3)
    """
    of_bin: list[list[float]] = [[] for _ in range(count)]
    for name, bin_ in bins(ease, count).items():
        of_bin[bin_].append(ease[name])
    return tuple((min(upper) + max(lower)) / 2 for upper, lower in pairwise(of_bin))


def bin_of(ease: float, edges_: Sequence[float]) -> int:
    """Return the bin of a question that was not among those the edges were drawn by.

    Example:
        >>> [bin_of(ease, (0.7, 0.3)) for ease in (0.8, 0.5, 0.2)]
        [0, 1, 2]
    """
    return sum(ease < edge for edge in edges_)


# --- The encoder's state -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A linear function of features, `bias + features @ weights`."""

    weights: Float[np.ndarray, "features"]
    bias: float

    def __call__(self, features: Float[np.ndarray, "question features"]) -> np.ndarray:
        """Return float [question]."""
        return features @ self.weights + self.bias


def ridge(
    features: Float[np.ndarray, "question features"],
    targets: Float[np.ndarray, "question"],
    penalties: Sequence[float] = PENALTIES,
) -> Linear:
    """Fit a ridge regression on standardised features, the bias free.

    The penalty is the one with the least leave-one-out error, which the hat matrix gives without
    refitting: the residual over 1 - h.

    Args:
        features: of each question.
        targets: what to predict.
        penalties: those to choose from.

    Source: Golub, Heath and Wahba 1979, Technometrics 21:215, on its exact leave-one-out form.
    """
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    u, s, vt = np.linalg.svd((features - mean) / scale, full_matrices=False)
    centred = targets - targets.mean()

    def error(penalty: float) -> float:
        shrunk = u * (s**2 / (s**2 + penalty))
        hat = (shrunk * u).sum(1) + 1 / len(u)
        left_out = (centred - shrunk @ (u.T @ centred)) / np.maximum(1 - hat, 1e-9)
        return float((left_out**2).mean())

    penalty = min(penalties, key=error)
    weights = vt.T @ (s / (s**2 + penalty) * (u.T @ centred)) / scale
    return Linear(weights, float(targets.mean() - mean @ weights))


def cross_fit(
    features: Float[np.ndarray, "question features"],
    targets: Float[np.ndarray, "question"],
    folds: Int[np.ndarray, "question"],
) -> np.ndarray:
    """Return float [question], each predicted by a fit to the questions of the other folds."""
    predicted = np.empty(len(targets))
    for fold in np.unique(folds):
        held = folds == fold
        predicted[held] = ridge(features[~held], targets[~held])(features[held])
    return predicted


def local(generator: object) -> LocalGenerator | None:
    """Return the model behind a generator in this process; None for an endpoint."""
    model = generator.generator if isinstance(generator, SavedModel) else generator
    return model if isinstance(model, LocalGenerator) else None


def encoder_means(
    generator: LocalGenerator, prompts: Sequence[str]
) -> tuple[Float[np.ndarray, "question embed"], list[int]]:
    """Return the mean encoder state of each prompt, and the tokens that were read for it.

    Raises:
        UserError: the model has no encoder.
    """
    network = generator.network
    if not isinstance(network, T5Model):
        raise UserError(
            "an encoder-decoder", type(network).__name__, "predict difficulty by samples"
        )
    tokenizer = generator.tokenizer
    rows = [network.prompt(tokenizer.encode(prompt), tokenizer.eos_id) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > generator.longest:
            raise UserError(
                f"prompts of at most {generator.longest} tokens",
                f"{len(row)} in {prompt:.60}...",
                "leave that question out",
            )
    batches = _padded(rows, generator.batch_size)
    means = [np.asarray(_encoded(network, generator.placed, *batch)) for batch in batches]
    return np.concatenate(means)[: len(rows)].astype(float), [len(row) for row in rows]


def _padded(
    rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield int32 [batch, source] of tokens and of which are some, all batches of one shape."""
    source = bucket(max(map(len, rows)))
    batch_size = rows_of(batch_size, source)
    for first in range(0, len(rows), batch_size):
        tokens, there = np.zeros((2, batch_size, source), np.int32)
        for place, row in enumerate(rows[first : first + batch_size]):
            tokens[place, : len(row)] = row
            there[place, : len(row)] = 1
        yield tokens, there


@functools.partial(jax.jit, static_argnames="network")
def _encoded(
    network: T5Model, params: Params, tokens: Any, there: Any
) -> Float[Array, "batch embed"]:
    states = layers.call(network.network, params, T5.encode, tokens, there)
    weights = there / there.sum(1, keepdims=True).clip(1)
    return (states * weights[..., None]).sum(1)
