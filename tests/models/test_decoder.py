import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, depth
from flax.traverse_util import unflatten_dict
from models_world import TIED, UNTIED, logits_of, params_of, tokens

from distill.models.decoder import DecoderConfig
from distill.models.layers import by_path


@pytest.mark.parametrize("model", [TIED, UNTIED], ids=["tied", "untied"])
def test_packed_logits_equal_those_of_each_example_alone(model):
    rows = [tokens(1, 1, 6), tokens(2, 1, 6)]
    alone = [logits_of(model, decoder_input_tokens=row) for row in rows]
    batch = {
        "decoder_input_tokens": np.concatenate([*rows, np.zeros((1, 1), np.int32)], 1),
        "decoder_segment_ids": np.array([[1] * 6 + [2] * 6 + [0]]),
        "decoder_positions": np.array([[*range(6), *range(6), 0]]),
    }
    together = logits_of(model, **batch)
    assert_close(together[:, :12], jnp.concatenate(alone, 1), terms=depth(model.config, 13))


def test_logits_do_not_look_ahead():
    row = tokens(1, 1, 6)
    other = row.copy()
    other[0, 4:] = 9
    logits = [logits_of(TIED, decoder_input_tokens=x) for x in (row, other)]
    np.testing.assert_array_equal(logits[0][:, :4], logits[1][:, :4])


def test_one_key_head_equals_several_that_are_alike():
    wide = dataclasses.replace(TIED, config=dataclasses.replace(TIED.config, num_kv_heads=4))
    narrow = by_path(params_of(TIED))
    alike = {
        name: jnp.tile(x, (1, 4)) if name.endswith(("key/kernel", "value/kernel")) else x
        for name, x in narrow.items()
    }
    row = tokens(1, 1, 6)
    logits = [
        logits_of(model, params=unflatten_dict(flat, sep="/"), decoder_input_tokens=row)
        for model, flat in ((TIED, narrow), (wide, alike))
    ]
    assert_close(*logits, terms=depth(TIED.config, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers >= 1, got 0"),
        ({"head_dim": 7}, "even head_dim for rotation, got 7"),
        ({"num_kv_heads": 3}, "num_kv_heads to divide num_heads, got 3 and 4"),
    ],
)
def test_a_shape_that_no_decoder_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{**dataclasses.asdict(TIED.config), **change})
