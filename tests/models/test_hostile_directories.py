"""Model directories of any shape end in one sentence: no traceback, wait or large allocation."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from models_world import TIED, V1_0, V1_1
from safetensors.numpy import load_file, save_file

from distill.core.errors import UserError
from distill.models import hugging_face, tensors, weights
from distill.models.tensors import Tensor

WEIGHTS = "model.safetensors"
STUDENT = Path(__file__).parents[2] / "data" / "vocabularies" / "student.model"


def drawn(model):
    random = np.random.default_rng(0)
    shapes = weights.shapes(model).items()
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes}


def theirs_of(model):
    ours = {name: Tensor.of(array) for name, array in drawn(model).items()}
    return hugging_face.renamed(ours, model.config)


def framed(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(begin, end, **changes):
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One directory of our own and one of Hugging Face's."""
    root = tmp_path_factory.mktemp("whole")
    weights.save(root / "own", TIED, unflatten_dict(drawn(TIED), sep="/"), STUDENT)
    (root / "hf").mkdir()
    tensors.write(root / "hf" / WEIGHTS, theirs_of(V1_1), {"format": "pt"})
    config = hugging_face.config_document(V1_1.config)
    (root / "hf" / "config.json").write_text(json.dumps(config))
    return root


def copy(whole, tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    for file in (whole / name).iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def configured(directory, change):
    path = directory / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (framed(b"{}", length=2**63), "whole safetensors in .* one of 9,223,372,036"),
        (framed(b"{}", length=2**64 - 1), "whole safetensors"),
        (framed(b"{}", length=99_999_999), "one of 99,999,999 bytes in 10"),
        (b"abcde", "whole safetensors"),
        (b"", "whole safetensors"),
        (framed(b'{"a":' + b"[" * 10**5), "no header: .*recursion"),
        (framed(b"[]"), "no header: list"),
        (framed(b'{"a": 1, "a": 2}'), "the key 'a' twice"),
        (framed({"a": [1]}), "arrays of .* got a as"),
        (framed({"a": entry(-8, 0)}), "arrays of"),
        (framed({"a": entry(0, 8, shape=[-2])}, b"\0" * 8), "arrays of"),
        (framed({"a": entry(0, 8, shape=[2.0])}, b"\0" * 8), "arrays of"),
        (framed({"a": entry(0, 8, shape=[True, 2])}, b"\0" * 8), "arrays of"),
        (framed({"a": entry(0, 8, data_offsets=[0.0, 8.0])}, b"\0" * 8), "arrays of"),
        (framed({"a": entry(0, 8, data_offsets=[0, 8, 8])}, b"\0" * 8), "arrays of"),
        (framed({"a": entry(0, 8, dtype=["F32"])}, b"\0" * 8), "arrays of"),
        (framed({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "b at 4 where 8 is next"),
        (framed({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8), "b at 0 where 8 is next"),
        (framed({"a": entry(4, 8)}, b"\0" * 8), "a at 4 where 0 is next"),
        (framed({"a": entry(10**12, 10**12 + 8)}, b"\0" * 8), "where 0 is next"),
        (framed({"a": entry(0, 2**62)}, b"\0" * 8), "bytes where its header says"),
        (framed({"a": entry(0, 0, shape=[2**63, 0])}), "arrays of"),
        (framed({"a": entry(0, 8)}, b"\0" * 9), "bytes where its header says"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, content, message):
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=message):
        tensors.read(tmp_path / WEIGHTS)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_as_what_it_was_or_refused(whole, tmp_path_factory, data):
    content = bytearray((whole / "hf" / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(0, header - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flipped") / WEIGHTS
    path.write_bytes(content)
    try:
        found = {name: tensor.read() for name, tensor in tensors.read(path).items()}
    except UserError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(content)


OWN = {
    "10^9 layers": lambda d: d["config"].update(num_layers=10**9),
    "no layers": lambda d: d["config"].update(num_layers=-1),
    "layers in text": lambda d: d["config"].update(num_layers="4"),
    "a layer more": lambda d: d["config"].update(num_layers=3),
    "2^40 rows": lambda d: d["config"].update(vocab_size=2**40),
    "another width": lambda d: d["config"].update(embed_dim=64),
    "a flag in text": lambda d: d["config"].update(logits_via_embedding="no"),
    "a rate in text": lambda d: d["config"].update(dropout_rate="0.1"),
    "activations of numbers": lambda d: d["config"].update(mlp_activations=[[1], 2]),
    "activations as one text": lambda d: d["config"].update(mlp_activations="relu"),
    "a field of another model": lambda d: d["config"].update(experts=8),
    "a list as config": lambda d: d.update(config=[1]),
    "a list as kind": lambda d: d.update(kind=["t5"]),
    "a vocabulary above": lambda d: d["vocabulary"].update(file="../../../etc/passwd"),
    "a vocabulary elsewhere": lambda d: d["vocabulary"].update(file="/etc/passwd"),
    "a vocabulary with NUL": lambda d: d["vocabulary"].update(file="a\0b"),
    "a long name": lambda d: d["vocabulary"].update(file="a" * 5000),
    "a vocabulary as a list": lambda d: d["vocabulary"].update(file=[1]),
    "the directory": lambda d: d["vocabulary"].update(file="."),
    "10^9 sentinels": lambda d: d["vocabulary"].update(extra_ids=10**9),
    "sentinels in text": lambda d: d["vocabulary"].update(extra_ids="1"),
    "no vocabulary": lambda d: d.pop("vocabulary"),
}


@pytest.mark.parametrize("change", OWN.values(), ids=OWN)
def test_a_config_of_our_own_that_lies_is_refused_at_once(whole, tmp_path, change):
    directory = copy(whole, tmp_path, "own")
    configured(directory, change)
    start = time.monotonic()
    with pytest.raises(UserError):
        weights.load(directory)
    assert time.monotonic() - start < 10


TEXTS = [
    b"[]",
    b"\xff\xfe",
    b"[" * 10**5,
    b'{"kind": NaN}',
    b"",
    b"5",
    b'{"kind": "t5", "kind": 1}',
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("kind", ["own", "hf"])
def test_a_config_that_is_no_object_is_refused(whole, tmp_path, text, kind):
    directory = copy(whole, tmp_path, kind)
    (directory / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"JSON (object )?in .*config\.json"):
        (weights.load if kind == "own" else hugging_face.load)(directory)


HF = {
    "10^9 layers": ({"num_layers": 10**9, "num_decoder_layers": 10**9}, "encoder.block.2 of 1,000"),
    "width in text": ({"d_model": "x"}, "expected d_model as an int"),
    "rows as a flag": ({"vocab_size": True}, "expected vocab_size as an int"),
    "2^40 rows": ({"vocab_size": 2**40}, "expected vocab_size as an int"),
    "a list of activations": ({"feed_forward_proj": ["relu"]}, "the config of a T5"),
    "another activation": ({"dense_act_fn": "silu"}, "dense_act_fn of 'gelu_new'"),
    "not gated": ({"is_gated_act": False}, "is_gated_act of True"),
    "code of its own": ({"auto_map": {"AutoConfig": "evil.Evil"}}, "a T5 without code of its own"),
    "quantised": ({"quantization_config": {"bits": 8}}, "a T5 without quantised weights"),
    "an encoder alone": ({"architectures": ["T5EncoderModel"]}, "an encoder and a decoder"),
    "an encoder by its flag": ({"is_encoder_decoder": False}, "a T5 without an encoder alone"),
    "a classifier": ({"architectures": ["T5ForSequenceClassification"]}, "with a head"),
    "another pad": ({"pad_token_id": 1}, "pad_token_id 0, as T5 has, got 1"),
    "another EOS": ({"eos_token_id": 2}, "eos_token_id 1, as T5 has, got 2"),
    "two EOS": ({"eos_token_id": [1, 2]}, "eos_token_id 1, as T5 has"),
    "another start": ({"decoder_start_token_id": 1}, "decoder_start_token_id 0, as T5 has"),
    "a flag in text": ({"tie_word_embeddings": "no"}, "expected tie_word_embeddings as true"),
    "a version of numbers": ({"transformers_version": 5}, "a transformers_version such as"),
    "epsilon": ({"layer_norm_epsilon": 2}, "expected layer_norm_epsilon from 0 to 1"),
}


@pytest.mark.parametrize(("changes", "message"), HF.values(), ids=HF)
def test_a_config_of_another_model_is_refused_by_name(whole, tmp_path, changes, message):
    directory = copy(whole, tmp_path, "hf")
    configured(directory, lambda document: document.update(changes))
    with pytest.raises(UserError, match=message):
        hugging_face.read(directory)


def test_settings_of_generation_with_other_ids_are_refused(whole, tmp_path):
    directory = copy(whole, tmp_path, "hf")
    (directory / "generation_config.json").write_text('{"decoder_start_token_id": 5}')
    with pytest.raises(UserError, match=r"got 5 in generation_config.json"):
        hugging_face.read(directory)


def test_an_adapter_is_refused_by_name(whole, tmp_path):
    directory = copy(whole, tmp_path, "hf")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"a whole T5 .* got an adapter, adapter_config.json"):
        hugging_face.read(directory)


@pytest.mark.parametrize("kind", ["own", "hf"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(whole, tmp_path, kind, odd):
    directory = copy(whole, tmp_path, kind)
    arrays = load_file(directory / WEIGHTS)
    name = next(name for name in arrays if "norm" in name)
    arrays[name][3] = odd
    save_file(arrays, directory / WEIGHTS)
    with pytest.raises(UserError, match=rf"finite numbers in {re.escape(name)} of .* at 1 of"):
        (weights.load if kind == "own" else hugging_face.load)(directory)


INDEX = {
    "a list": b"[]",
    "a map that is a list": b'{"weight_map": ["a"]}',
    "a map to numbers": b'{"weight_map": {"a": 5}}',
    "no map": b"{}",
    "brackets": b"[" * 10**5,
    "a file above": b'{"weight_map": {"shared.weight": "../stolen.safetensors"}}',
    "a file elsewhere": b'{"weight_map": {"shared.weight": "/etc/passwd"}}',
    "a folder": b'{"weight_map": {"shared.weight": "sub/model.safetensors"}}',
}


@pytest.mark.parametrize("text", INDEX.values(), ids=INDEX)
def test_an_index_of_any_shape_reads_files_of_its_directory_only(whole, tmp_path, text):
    directory = copy(whole, tmp_path, "hf")
    (directory / WEIGHTS).rename(tmp_path / "stolen.safetensors")
    (directory / f"{WEIGHTS}.index.json").write_bytes(text)
    with pytest.raises(UserError):
        hugging_face.read(directory)


def test_a_tensor_that_the_index_does_not_name_is_refused(whole, tmp_path):
    directory = copy(whole, tmp_path, "hf")
    names = dict.fromkeys(tensors.read(directory / WEIGHTS), WEIGHTS)
    names.pop("shared.weight")
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match=r"shared.weight of .* got none"):
        hugging_face.read(directory)


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("kind", ["own", "hf"])
def test_a_pipe_or_a_device_is_refused_without_waiting(whole, tmp_path, kind, file):
    directory = copy(whole, tmp_path, kind)
    for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
        path = directory / file
        path.rmdir() if path.is_dir() else path.unlink()
        replace(path)
        with pytest.raises(UserError):
            (weights.load if kind == "own" else hugging_face.load)(directory)


def test_a_link_out_of_a_directory_is_refused_and_a_hub_cache_is_not(whole, tmp_path):
    directory = copy(whole, tmp_path, "hf")
    (directory / WEIGHTS).rename(tmp_path / "elsewhere")
    (directory / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="got a link out of it"):
        hugging_face.read(directory)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0f3", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (whole / "hf").iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert hugging_face.read(snapshot)[0] == V1_1


# --- The embedding and the head ----------------------------------------------------------------


def headed(tmp_path, model, changes, arrays):
    theirs = theirs_of(model).items()
    found = {name: np.ascontiguousarray(tensor.read()) for name, tensor in theirs}
    rows = found["shared.weight"]
    extra = {name: value(rows) for name, value in arrays.items()}
    document = {**hugging_face.config_document(model.config), **changes}
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_file({**found, **extra}, tmp_path / WEIGHTS)
    return hugging_face.read(tmp_path)


OLD, NEW = {"transformers_version": "4.57.1"}, {"transformers_version": "5.23.0"}
MT5, TIE = {"model_type": "mt5"}, {"tie_word_embeddings": True}
LM, OTHER = "lm_head.weight", {"lm_head.weight": lambda rows: rows + 1}
SAME = {"lm_head.weight": lambda rows: rows.copy()}
UNSCALED = {**TIE, "scale_decoder_outputs": False}
# (changes, arrays, scaled, its own head)
HEADS = {
    "4 tied": ({**OLD, **TIE}, {}, True, False),
    "4 tied with a copy": ({**OLD, **TIE}, SAME, True, False),
    "4 untied": ({**OLD, "tie_word_embeddings": False}, OTHER, False, True),
    "4 untied with a copy": ({**OLD, "tie_word_embeddings": False}, SAME, False, False),
    "4 mt5 tied": ({**OLD, **MT5, **TIE}, {}, True, False),
    "5 tied": ({**NEW, **TIE, "scale_decoder_outputs": True}, {}, True, False),
    "5 tied, not scaled": ({**NEW, **UNSCALED}, {}, False, False),
    "5 untied": ({**NEW, **UNSCALED}, OTHER, False, True),
    "5 untied and scaled": ({**NEW, **TIE, "scale_decoder_outputs": True}, OTHER, True, True),
    "5 mt5": ({**NEW, **MT5, **TIE}, OTHER, False, True),
    "5 mt5 tied": ({**NEW, **MT5, **TIE}, {}, False, False),
    "unnamed mt5 with a head": ({**MT5, **TIE}, OTHER, False, True),
    "unnamed t5": ({**TIE}, {}, True, False),
}


@pytest.mark.parametrize(("changes", "arrays", "scaled", "own"), HEADS.values(), ids=HEADS)
def test_the_head_follows_from_the_weights_and_the_version(tmp_path, changes, arrays, scaled, own):
    model, found = headed(tmp_path, V1_0, changes, arrays)
    embedding = found["token_embedder/embedding"].read()
    assert model.config.logits_via_embedding == (scaled and not own)
    if not model.config.logits_via_embedding:
        wanted = (embedding + 1 if own else embedding).T * (
            embedding.shape[1] ** -0.5 if scaled else 1
        )
        kernel = found["decoder/logits_dense/kernel"].read()
        np.testing.assert_allclose(kernel, wanted, rtol=1e-6)


REFUSED_HEADS = {
    "4 tied beside a head": ({**OLD, **TIE}, OTHER, "as the embedding, since .* is true"),
    "4 mt5 tied beside a head": ({**OLD, **MT5, **TIE}, OTHER, "got one that differs"),
    "4 without its head": ({**OLD, "tie_word_embeddings": False}, {}, "lm_head.weight in .* none"),
    "unnamed beside a head": ({**TIE}, OTHER, "got one that differs"),
    "unnamed mt5 tied": ({**MT5, **TIE}, {}, "transformers_version in"),
    "another table": (TIE, {"encoder.embed_tokens.weight": lambda rows: rows + 1}, "another table"),
    "a half table": (TIE, {"decoder.embed_tokens.weight": lambda rows: rows[:9]}, "another table"),
    "a bias": (TIE, {"lm_head.bias": lambda rows: rows[:, 0].copy()}, "lm_head.bias too"),
}


@pytest.mark.parametrize(
    ("changes", "arrays", "message"), REFUSED_HEADS.values(), ids=REFUSED_HEADS
)
def test_a_head_that_would_be_dropped_or_made_up_is_refused(tmp_path, changes, arrays, message):
    with pytest.raises(UserError, match=message):
        headed(tmp_path, V1_0, changes, arrays)
