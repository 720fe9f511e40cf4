import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_as_exact, assert_close, depth
from models_world import MODELS, TIED, V1_0, V1_1, logits_of, params_of, tokens
from safetensors.numpy import load_file, save_file

from distill.core.errors import UserError
from distill.models import hugging_face, weights
from distill.models.layers import by_path
from distill.models.tensors import Tensor


def theirs_of(model):
    """The parameters of a model under Hugging Face's names."""
    ours = {name: Tensor.of(array) for name, array in by_path(params_of(model)).items()}
    renamed = hugging_face.renamed(ours, model.config)
    return {name: np.ascontiguousarray(tensor.read()) for name, tensor in renamed.items()}


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_saved_model_is_loaded_as_it_was(model, tmp_path, student_vocabulary):
    weights.save(tmp_path / "m", model, params_of(model), student_vocabulary, extra_ids=7)
    loaded, params, vocabulary = weights.load(tmp_path / "m")
    assert loaded == model
    equal(params, params_of(model))
    assert vocabulary == weights.Vocabulary(tmp_path / "m" / "student.model", 7)
    assert vocabulary.path.read_bytes() == student_vocabulary.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_bytes_lose_digits_only(dtype, tmp_path, student_vocabulary):
    weights.save(tmp_path / "m", TIED, params_of(TIED), student_vocabulary, dtype=dtype)
    _, params, _ = weights.load(tmp_path / "m")
    narrow = jnp.dtype(dtype)  # by NumPy: XLA has no float16 on processors without F16C
    expected = jax.tree.map(lambda x: np.asarray(x).astype(narrow), params_of(TIED))
    equal(params, jax.tree.map(lambda x: x.astype("float32"), expected))
    file = tmp_path / "m" / "model.safetensors"
    assert file.stat().st_size < 0.6 * sum(x.nbytes for x in by_path(params_of(TIED)).values())


def test_the_json_beside_a_vocabulary_comes_along(tmp_path):
    (tmp_path / "v.tiktoken").write_text("YQ== 0\n")
    (tmp_path / "v.json").write_text('{"pattern": "."}')
    weights.save(tmp_path / "m", TIED, params_of(TIED), tmp_path / "v.tiktoken")
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
        "v.json",
        "v.tiktoken",
    ]


def test_saving_again_replaces_its_own_files_and_leaves_others(tmp_path, student_vocabulary):
    weights.save(tmp_path / "m", TIED, params_of(TIED), student_vocabulary)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    zeros = jax.tree.map(jnp.zeros_like, params_of(TIED))
    weights.save(tmp_path / "m", TIED, zeros, student_vocabulary)
    equal(weights.load(tmp_path / "m")[1], zeros)
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_save_that_fails_leaves_nothing(tmp_path, student_vocabulary):
    with pytest.raises(UserError, match="a vocabulary, got no file"):
        weights.save(tmp_path / "m", TIED, params_of(TIED), tmp_path / "none.model")
    with pytest.raises(TypeError), weights.whole_directory(tmp_path / "m") as temporary:
        (temporary / "half").write_text(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [V1_1, V1_0], ids=["v1.1", "v1.0"])
def test_hugging_face_names_map_each_parameter_once_and_back(model, tmp_path):
    arrays = theirs_of(model)
    names = hugging_face.names(model.config)
    assert set(names) == set(by_path(params_of(model)))
    assert len(arrays) == len(names)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face.config_document(model.config)))
    save_file(arrays, tmp_path / "model.safetensors")
    found, params = hugging_face.load(tmp_path)
    assert found == model
    equal(params, params_of(model))


@pytest.mark.parametrize("model", [V1_1, V1_0], ids=["v1.1", "v1.0"])
def test_a_model_that_transformers_made_gives_its_logits(model, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(**hugging_face.config_document(model.config))
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    if not model.config.logits_via_embedding:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn_like(theirs.shared.weight))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path)
    ours, params = hugging_face.load(tmp_path)
    assert ours == model
    source, target = tokens(1, 2, 150), tokens(2, 2, 140)
    source[1, 100:] = 0
    given = {
        "input_ids": torch.tensor(source).long(),
        "attention_mask": torch.tensor(source != 0).long(),
        "decoder_input_ids": torch.tensor(target).long(),
    }
    with torch.no_grad():
        narrow = theirs(**given).logits
        exact = theirs.double()(**given).logits
    batch = {"encoder_input_tokens": source, "decoder_input_tokens": target}
    logits = logits_of(ours, params=params, **batch)
    assert_close(logits, exact, terms=depth(ours.config, 150))
    assert_as_exact(logits, narrow, exact)


def damaged(tmp_path, student_vocabulary):
    weights.save(tmp_path / "m", TIED, params_of(TIED), student_vocabulary)
    return tmp_path / "m"


def test_damaged_directories_are_refused(tmp_path, student_vocabulary):
    directory = damaged(tmp_path, student_vocabulary)
    file, config = directory / "model.safetensors", directory / "config.json"
    whole, text = file.read_bytes(), config.read_text()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="whole safetensors in"):
        weights.load(directory)
    file.write_bytes(whole)
    config.write_text(text.replace('"mlp_dim": 24', '"mlp_dim": 32'))
    with pytest.raises(UserError, match=r"wi_0/kernel of shape \(16, 32\).*got \(16, 24\)"):
        weights.load(directory)
    config.write_text(text.replace("decoder", "encoder"))
    with pytest.raises(UserError, match="the config of a model in"):
        weights.load(directory)
    config.write_text(text)
    arrays = load_file(file)
    arrays.pop("decoder/decoder_norm/scale")
    save_file(arrays, file)
    with pytest.raises(UserError, match="decoder_norm/scale of shape"):
        weights.load(directory)
    file.unlink()
    with pytest.raises(UserError, match=r"a file .*model.safetensors, got none"):
        weights.load(directory)
    with pytest.raises(UserError, match=r"a file .*config.json"):
        weights.load(tmp_path / "none")


def test_other_models_of_hugging_face_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(UserError, match=r"the config of a T5 .* got 'bart' with 'relu'"):
        hugging_face.load(tmp_path)
