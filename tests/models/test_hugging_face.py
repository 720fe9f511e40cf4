import json

import jax
import numpy as np
import pytest
from models_world import V1_0, V1_1
from safetensors.numpy import save_file

from distill.core.errors import UserError
from distill.models import hugging_face, weights
from distill.models.tensors import Tensor

INDEX = "model.safetensors.index.json"


def theirs_of(model):
    """Arrays of a model under Hugging Face's names, drawn at random."""
    random = np.random.default_rng(0)
    shapes = weights.shapes(model)
    ours = {
        name: Tensor.of(random.normal(size=shape).astype("f4")) for name, shape in shapes.items()
    }
    renamed = hugging_face.renamed(ours, model.config)
    return {name: np.ascontiguousarray(tensor.read()) for name, tensor in renamed.items()}


def saved(directory, model, arrays, **changes):
    document = {**hugging_face.config_document(model.config), **changes}
    (directory / "config.json").write_text(json.dumps(document))
    save_file(arrays, directory / "model.safetensors")
    return directory


def read(directory):
    """The parameters of a directory by path, in memory."""
    return {name: tensor.read() for name, tensor in hugging_face.read(directory)[1].items()}


def in_shards(directory, model, arrays, count):
    """Save the arrays dealt out over `count` files, as transformers lays them out."""
    saved(directory, model, {})
    (directory / "model.safetensors").unlink()
    shards = {
        name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(arrays)
    }
    for file in set(shards.values()):
        save_file({n: a for n, a in arrays.items() if shards[n] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return directory


@pytest.fixture(scope="module")
def arrays():
    return theirs_of(V1_1)


@pytest.mark.parametrize("count", [1, 3])
def test_shards_are_read_as_one_file(tmp_path, arrays, count):
    (tmp_path / "one").mkdir()
    (tmp_path / "more").mkdir()
    one = read(saved(tmp_path / "one", V1_1, arrays))
    more = read(in_shards(tmp_path / "more", V1_1, arrays, count))
    jax.tree.map(np.testing.assert_array_equal, one, more)


def test_an_embedding_may_be_named_after_any_of_its_uses(tmp_path):
    tied = theirs_of(V1_0)
    wanted = read(saved(tmp_path, V1_0, tied))
    rows = tied.pop("shared.weight")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        found = read(saved(tmp_path, V1_0, {**tied, name: rows}))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_an_untied_head_that_was_left_out_as_the_embedding_is_the_embedding(tmp_path, arrays):
    headless = {name: array for name, array in arrays.items() if name != "lm_head.weight"}
    changes = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    found = read(saved(tmp_path, V1_1, headless, **changes))
    embedding = found["token_embedder/embedding"]
    np.testing.assert_array_equal(found["decoder/logits_dense/kernel"], embedding.T)
    with pytest.raises(UserError, match=r"lm_head.weight in .* got none"):
        read(saved(tmp_path, V1_1, headless))


def test_the_table_that_the_first_release_holds_in_vain_is_passed_over(tmp_path, arrays):
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    more = {**arrays, name: np.zeros((32, 2), np.float32)}
    found = read(saved(tmp_path, V1_1, more))
    assert found.keys() == weights.shapes(V1_1).keys()


def test_shards_that_are_missing_cut_or_of_others_are_named(tmp_path, arrays):
    in_shards(tmp_path, V1_1, arrays, 3)
    second = tmp_path / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"whole safetensors in .*00002-of-00003"):
        hugging_face.read(tmp_path)
    save_file({"other": np.zeros(1, np.float32)}, second)
    with pytest.raises(UserError, match=r"weight in .*00002-of-00003.safetensors, got none"):
        hugging_face.read(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=r"a file .*00002-of-00003.* got none"):
        hugging_face.read(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(UserError, match=r"got pytorch_model.bin alone, which is a pickle"):
        hugging_face.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 1}, r"the weights of 1 and 2 layers.*encoder.block.1.* too"),
        ({"num_layers": 3}, r"encoder.block.2.*, got none"),
        ({"d_ff": 32}, r"wi_0/kernel of shape \(16, 32\).* got \(16, 24\)"),
        ({"vocab_size": 300}, r"logits_dense/kernel of shape \(16, 300\).* got \(16, 272\)"),
        ({"feed_forward_proj": "relu"}, "DenseReluDense.wi.weight in .*, got none"),
        ({"d_model": 0}, "the shape of a T5 in its configuration, got expected embed_dim >= 1"),
        ({"d_kv": "64"}, "the shape of a T5 in its configuration"),
        ({"model_type": "umt5"}, "the config of a T5 .* got 'umt5'"),
    ],
)
def test_weights_of_another_shape_than_the_configuration_are_refused(
    tmp_path, arrays, changes, message
):
    saved(tmp_path, V1_1, arrays, **changes)
    with pytest.raises(UserError, match=message):
        hugging_face.read(tmp_path)
