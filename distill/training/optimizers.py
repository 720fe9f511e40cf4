"""AdamW, Adafactor and learning rate schedules as plain values, counted in optimizer steps."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

NOT_DECAYED = ("scale", "bias", "rel_embedding")


@runtime_checkable
class Schedule(Protocol):
    """Number of finished optimizer steps -> learning rate of the next."""

    def __call__(self, step: Array | int) -> Float[Array, ""]:
        """Return the rate."""
        ...


def _warm(step: Array | int, warmup: int) -> Float[Array, ""]:
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1) / max(warmup, 1))


def _share(step: Array | int, warmup: int, steps: int) -> Float[Array, ""]:
    done = jnp.asarray(step, jnp.float32) - warmup
    return jnp.clip(done / max(steps - warmup, 1), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """`rate` after a linear warm-up over `warmup` steps.

    Example:
        >>> [round(float(Constant(1e-2, warmup=4)(step)), 4) for step in (0, 1, 3, 9)]
        [0.0025, 0.005, 0.01, 0.01]
    """

    rate: float
    warmup: int = 0

    def __call__(self, step: Array | int) -> Float[Array, ""]:
        """Return the rate of the step after `step` finished ones."""
        return self.rate * _warm(step, self.warmup)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Warm-up, then half a cosine from `rate` to `final` at step `steps`.

    Example:
        >>> [round(float(Cosine(1.0, steps=10)(step)), 3) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """

    rate: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: Array | int) -> Float[Array, ""]:
        """Return the rate of the step after `step` finished ones."""
        share = 0.5 * (1 + jnp.cos(jnp.pi * _share(step, self.warmup, self.steps)))
        return _warm(step, self.warmup) * (self.final + (self.rate - self.final) * share)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Warm-up, then a line from `rate` to `final` at step `steps`.

    Example:
        >>> [round(float(Linear(1.0, steps=10)(step)), 3) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """

    rate: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: Array | int) -> Float[Array, ""]:
        """Return the rate of the step after `step` finished ones."""
        share = 1 - _share(step, self.warmup, self.steps)
        return _warm(step, self.warmup) * (self.final + (self.rate - self.final) * share)


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot:
    """Warm-up to `rate`, then rate * sqrt(warmup / step), T5's pre-training schedule.

    Example:
        >>> [round(float(InverseSquareRoot(1.0, warmup=4)(step)), 3) for step in (0, 3, 15)]
        [0.25, 1.0, 0.5]
    """

    rate: float
    warmup: int = 10_000

    def __call__(self, step: Array | int) -> Float[Array, ""]:
        """Return the rate of the step after `step` finished ones."""
        done = jnp.maximum(jnp.asarray(step, jnp.float32) + 1, max(self.warmup, 1))
        return self.rate * _warm(step, self.warmup) * jnp.sqrt(max(self.warmup, 1) / done)


@runtime_checkable
class Optimizer(Protocol):
    """What the trainer asks of an optimizer."""

    @property
    def schedule(self) -> Schedule:
        """The learning rate's course, for the metrics."""
        ...

    def transformation(self) -> optax.GradientTransformation:
        """Return gradients -> updates; clipping is the first of its parts."""
        ...


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019) after clipping by global norm.

    Attributes:
        schedule: learning rate.
        weight_decay: per step, times the learning rate.
        decay_all: decay norms' scales and biases too.
        clip: largest global norm of the gradient (of the mean loss); 0 does not clip.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """

    schedule: Schedule
    weight_decay: float = 0.01
    decay_all: bool = False
    clip: float = 5.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def transformation(self) -> optax.GradientTransformation:
        """Return gradients -> updates."""
        mask = None if self.decay_all else _decayed
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        return optax.chain(
            clip,
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=mask),
            optax.scale_by_learning_rate(lambda count: self.schedule(jnp.asarray(count))),
        )


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor with updates scaled by each parameter's size (Shazeer and Stern 2018), as T5 uses.

    T5 keeps 1 / sqrt(head_dim) in the query's weights, which are therefore small; a step of one
    size for all parameters, as Adam's, is too long for them. Here the rate is relative: 0.01 moves
    every parameter block by about a hundredth of its root mean square.

    Attributes:
        schedule: relative learning rate.
        decay_rate: exponent of the second moment's decay, 1 - step ** -decay_rate.
        clipping_threshold: largest root mean square of an update before scaling.
        clip: largest global norm of the gradient (of the mean loss); 0 does not clip.
    """

    schedule: Schedule
    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    clip: float = 0.0

    def transformation(self) -> optax.GradientTransformation:
        """Return gradients -> updates."""
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        return optax.chain(
            clip,
            optax.adafactor(
                lambda count: self.schedule(jnp.asarray(count)),
                decay_rate=self.decay_rate,
                clipping_threshold=self.clipping_threshold,
                multiply_by_parameter_scale=True,
            ),
        )


def _decayed(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", "") not in NOT_DECAYED, params
    )
