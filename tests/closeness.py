"""How far apart two results of one law may lie: by the rounding of their sums, and no further.

Let u be half the spacing of the type at 1. A sum of n products satisfies, in whatever order it is
added, with or without fused multiply-add and in vectors of any width,

    |fl(x . y) - x . y| <= gamma_n |x| . |y|,   gamma_n = n u / (1 - n u),

and where the rounding errors are independent with mean zero, with probability near 1,

    |fl(x . y) - x . y| <= 4 sqrt(n) u |x| . |y|.

A rounding error lies in [-u, u], so its standard deviation is at most u when it is largest, and
u / sqrt(3) when it is spread evenly: 4 is at least four and typically seven deviations. The
smaller bound holds. Two computed results differ by at most twice that; one computed and one exact
result by less. Where sums follow one another (a layer, a norm, a softmax, the next layer), their
terms add up to the n of the whole, `depth`. An elementary function (exp, log, tanh) counts as four
terms, since XLA's are correct to a few units in the last place.

The scale stands for |x| . |y|. By default it is the largest magnitude of the expected array, which
is of the size of |x| . |y| where terms do not cancel in all places at once; where a difference
of large numbers is expected to be small, give their size.

Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, (3.5) and section 4.2;
Higham and Mary (2019), A New Approach to Probabilistic Rounding Error Analysis, theorem 3.1.
"""

import math

import numpy as np
import pytest

ELEMENTARY = 4
_EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def gap(terms, dtype="float32"):
    """Return the largest relative difference of two results that sum `terms` terms each.

    >>> gap(1, "float64") == 2.0**-52 / (1 - 2.0**-53)
    True
    """
    unit = _EPSILONS[np.dtype(dtype).name if dtype != "bfloat16" else dtype] / 2
    count = min(terms, 4 * math.sqrt(terms))
    return 2 * count * unit / (1 - count * unit)


def scale_of(expected):
    """Return the largest finite magnitude of the array, 0 where there is none."""
    magnitudes = np.abs(np.asarray(expected, np.float64))
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))


def assert_close(actual, expected, *, terms, dtype="float32", scale=None, name=""):
    """Assert that arrays agree everywhere within what rounding does to values of their scale."""
    size = scale_of(expected) if scale is None else scale
    np.testing.assert_allclose(
        np.asarray(actual, np.float64),
        np.asarray(expected, np.float64),
        rtol=0,
        atol=gap(terms, dtype) * size,
        err_msg=name,
    )


def near(expected, *, terms=1, dtype="float64", scale=0.0):
    """Return what equals each expected number, or each of a dict or list, within its rounding.

    Each number has its own size as its scale, or `scale` where that is larger.
    """
    share = gap(terms, dtype)
    return pytest.approx(expected, rel=share, abs=share * scale, nan_ok=True)


def depth(config, length, *, vocabulary=False):
    """Return the terms of the sums between the ids and a logit of a T5 or a decoder.

    Args:
        config: of the model.
        length: of the longest row that attention sees, in tokens.
        vocabulary: whether a softmax over the vocabulary follows.
    """
    heads = config.num_heads * config.head_dim
    scores = config.embed_dim + config.head_dim
    attention = scores + 2 * length + ELEMENTARY + heads
    mlp = config.embed_dim + ELEMENTARY + config.mlp_dim
    layer = attention + mlp + 2 * config.embed_dim
    if hasattr(config, "num_layers"):
        total = config.num_layers * layer + 2 * config.embed_dim
    else:
        total = config.num_encoder_layers * layer + 3 * config.embed_dim
        total += config.num_decoder_layers * (layer + attention + config.embed_dim)
    return total + vocabulary * (config.vocab_size + 2 * ELEMENTARY)


def assert_as_exact(actual, other, exact):
    """Assert that `actual` has at most twice the error of another program in the same type.

    Both are compared with the result in float64. Over thousands of values the root mean square
    of the rounding errors depends on the type and the sums, hardly on their order; so this bound
    is tight without a constant for the model.
    """
    wide = np.asarray(exact, np.float64)
    ours, theirs = (
        np.sqrt(np.mean((np.asarray(each, np.float64) - wide) ** 2)) for each in (actual, other)
    )
    assert ours <= 2 * theirs, f"expected an error of at most twice {theirs:.3g}, got {ours:.3g}"
