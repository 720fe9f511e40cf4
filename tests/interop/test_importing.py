"""`distill import` through the command line: both sources, their faults, kills and transformers."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece
from closeness import assert_as_exact, assert_close, depth, gap
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from distill.__main__ import main
from distill.core.errors import UserError
from distill.interop.export import write
from distill.models import hugging_face, t5x_checkpoint, weights
from distill.models.t5 import T5Config, T5Model
from distill.models.tensors import Tensor
from tokalign.tokenizers import SentencePieceTokenizer

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "data" / "vocabularies" / "student.model"
ROWS = 1152  # the vocabulary's 1,100 tokens, and rows that are none
V1_1 = T5Model(T5Config(ROWS, 16, 2, 8, 24, 1, 1))
V1_0 = T5Model(
    T5Config(ROWS, 16, 2, 8, 24, 1, 1, mlp_activations=("relu",), logits_via_embedding=True)
)
HEAD, EMBEDDING = "decoder/logits_dense/kernel", "token_embedder/embedding"


def drawn(model):
    random = np.random.default_rng(0)
    shapes = weights.shapes(model).items()
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes}


def tensors_of(arrays):
    return {name: Tensor.of(array) for name, array in arrays.items()}


def exported(directory, model=V1_1):
    """A Hugging Face directory of random weights."""
    vocabulary = weights.Vocabulary(STUDENT, 100)
    write(directory, model, tensors_of(drawn(model)), vocabulary, card="")
    return directory


def imported(*arguments):
    assert main(["import", *map(str, arguments)]) == 0
    model, tensors, vocabulary = weights.read(arguments[1])
    return model, {name: tensor.read() for name, tensor in tensors.items()}, vocabulary


def refused(capsys, *arguments):
    """Return the one line with which a command ended, and that it left nothing behind."""
    before = sorted(Path(arguments[1]).parent.iterdir())
    assert main(["import", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill:")]
    assert "expected" in line and "got" in line
    assert sorted(Path(arguments[1]).parent.iterdir()) == before
    return line


@pytest.mark.parametrize("model", [V1_1, V1_0], ids=["v1.1", "v1.0"])
def test_an_exported_student_is_imported_as_it_was(tmp_path, model):
    found, arrays, vocabulary = imported(exported(tmp_path / "hf", model), tmp_path / "ours")
    assert found == model and vocabulary.extra_ids == 100
    jax.tree.map(np.testing.assert_array_equal, arrays, drawn(model))
    assert vocabulary.path.read_bytes() == STUDENT.read_bytes()


def test_a_t5x_checkpoint_is_imported_with_a_vocabulary(tmp_path, capsys):
    source = tmp_path / "checkpoint_3"
    t5x_checkpoint.write(source, tensors_of(drawn(V1_1)), step=3)
    found, arrays, vocabulary = imported(
        source, tmp_path / "ours", "--vocabulary", STUDENT, "--json"
    )
    assert found == V1_1 and vocabulary.path.name == "student.model"
    jax.tree.map(np.testing.assert_array_equal, arrays, drawn(V1_1))
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "t5x"
    assert told["parameters"] == sum(array.size for array in arrays.values())


def test_rows_are_cut_to_the_tokens_and_filled_again(tmp_path):
    source = exported(tmp_path / "hf")
    cut, few, _ = imported(source, tmp_path / "cut", "--rows", "1100")
    assert cut.config.vocab_size == 1100
    np.testing.assert_array_equal(few[HEAD], drawn(V1_1)[HEAD][:, :1100])
    vocabulary = weights.Vocabulary(STUDENT, 100)
    write(tmp_path / "small", cut, tensors_of(few), vocabulary, card="")
    filled, many, _ = imported(tmp_path / "small", tmp_path / "filled", "--rows", ROWS)
    assert filled == V1_1
    for name, rows in ((EMBEDDING, many[EMBEDDING]), (HEAD, many[HEAD].T)):
        real = few[name] if name == EMBEDDING else few[name].T
        np.testing.assert_array_equal(rows[:1100], real)
        np.testing.assert_array_equal(rows[1100:], np.broadcast_to(real[0], (52, 16)))


def test_half_the_bytes_on_request(tmp_path):
    source = exported(tmp_path / "hf")
    _, arrays, _ = imported(source, tmp_path / "half", "--dtype", "bfloat16")
    whole = drawn(V1_1)
    assert sum(array.nbytes for array in arrays.values()) * 2 == sum(
        array.nbytes for array in whole.values()
    )
    narrow = arrays[HEAD].astype("f4")
    np.testing.assert_allclose(narrow, whole[HEAD], rtol=gap(1, "bfloat16") / 2)


@pytest.mark.parametrize(("model", "rows"), [(V1_1, 1100), (V1_0, ROWS)], ids=["v1.1", "v1.0"])
def test_what_transformers_saved_gives_its_ids_and_logits_and_goes_back(tmp_path, model, rows):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = dataclasses.replace(model.config, vocab_size=rows)
    document = hugging_face.config_document(shape)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**document)).eval()
    if not shape.logits_via_embedding:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn_like(theirs.shared.weight))
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="80KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    shutil.copyfile(STUDENT, tmp_path / "hf" / "spiece.model")
    found, arrays, vocabulary = imported(tmp_path / "hf", tmp_path / "ours")
    assert found.config == shape

    write(tmp_path / "back", found, tensors_of(arrays), vocabulary, card="")
    back = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    for name, array in theirs.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], array, rtol=0, atol=0)
    text = "Tom has 12 apples."
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = [*SentencePieceTokenizer(vocabulary.path, vocabulary.extra_ids).encode(text), 1]
    assert tokenizer(text).input_ids == ids
    batch = {"encoder_input_tokens": np.array([ids]), "decoder_input_tokens": np.array([[0, *ids]])}
    params = unflatten_dict(arrays, sep="/")
    rows = torch.tensor([ids]), torch.tensor([[0, *ids]])
    with torch.no_grad():
        narrow = theirs(rows[0], decoder_input_ids=rows[1]).logits
        exact = theirs.double()(rows[0], decoder_input_ids=rows[1]).logits
    logits = jax.jit(found.logits)(params, batch)
    assert_close(logits, exact, terms=depth(shape, len(ids) + 1))
    assert_as_exact(logits, narrow, exact)


def cut_short(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def of_another_shape(directory):
    text = (directory / "config.json").read_text().replace('"d_ff": 24', '"d_ff": 48')
    (directory / "config.json").write_text(text)


def shards_that_are_gone(directory):
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "arguments", "part"),
    [
        (cut_short, [], "bytes where its header says"),
        (of_another_shape, [], "wi_0/kernel of shape (16, 48)"),
        (shards_that_are_gone, [], "model-00001-of-00002.safetensors"),
        (lambda d: (d / "spiece.model").unlink(), [], "give a SentencePiece model: --vocabulary"),
        (lambda d: (d / "config.json").write_text("{"), [], "JSON in"),
        (lambda d: (d / "config.json").unlink(), [], "the index checkpoint of a T5X checkpoint"),
        (lambda d: None, ["--rows", "1099"], "an embedding of 1,100 rows"),
        (lambda d: None, ["--rows", "1228"], "an embedding of 1,100 rows"),
        (lambda d: None, ["--rows", "0"], "an embedding of 1,100 rows"),
        (lambda d: None, ["--vocabulary", ROOT / "README.md"], "a SentencePiece model in"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
    tmp_path, capsys, damage, arguments, part
):
    source = exported(tmp_path / "hf")
    damage(source)
    assert part in refused(capsys, source, tmp_path / "ours", *arguments)


def test_a_vocabulary_of_other_weights_is_refused(tmp_path, capsys):
    t5 = ROOT.parent / "shared" / "tokenizers" / "t5.spiece.model"
    if not t5.is_file():
        pytest.skip(f"no {t5}")
    line = refused(capsys, exported(tmp_path / "hf"), tmp_path / "ours", "--vocabulary", t5)
    assert "an embedding of 32,100 rows" in line and "got 1,152" in line


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    source = exported(tmp_path / "hf")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "room for" in refused(capsys, source, tmp_path / "ours")


def test_sentinels_that_are_among_the_pieces_are_not_added_again(tmp_path):
    """T5X's vocabularies and mT5's hold them; Hugging Face's T5 adds them to its pieces."""
    names = [f"<extra_id_{number}>" for number in reversed(range(100))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Tom has 12 apples.", "She gave 5 of them to Ann."] * 20),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=140,
        hard_vocab_limit=False,
        user_defined_symbols=names,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    model = T5Model(dataclasses.replace(V1_1.config, vocab_size=128))
    t5x_checkpoint.write(tmp_path / "checkpoint_0", tensors_of(drawn(model)), step=0)
    given = ("--vocabulary", tmp_path / "sp.model")
    found, arrays, vocabulary = imported(tmp_path / "checkpoint_0", tmp_path / "ours", *given)
    assert vocabulary.extra_ids == 0
    write(tmp_path / "hf", found, tensors_of(arrays), vocabulary, card="")
    document = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    assert len(document["model"]["vocab"]) == pieces.get_piece_size()
    special = {token["content"]: token["id"] for token in document["added_tokens"]}
    assert special["<extra_id_7>"] == pieces.piece_to_id("<extra_id_7>")
    again, _, kept = imported(tmp_path / "hf", tmp_path / "again")
    assert again == model and kept.extra_ids == 0


def test_nothing_is_written_over(tmp_path, capsys):
    source = exported(tmp_path / "hf")
    imported(source, tmp_path / "ours")
    assert "remove it or name another" in refused(capsys, source, tmp_path / "ours")
    assert "which is imported already" in refused(capsys, tmp_path / "ours", tmp_path / "again")
    assert "a directory" in refused(capsys, tmp_path / "none", tmp_path / "again")


HALF = """
import os, signal, sys
sys.modules.update(dict.fromkeys(["tensorflow", "seqio", "torch", "transformers", "t5x"]))
from distill.models import tensors
taken = []
def half(name, tensor, whole=tensors._bytes):
    taken.append(name)
    if len(taken) == 10:
        os.kill(os.getpid(), signal.SIGNUM)
    return whole(name, tensor)
tensors._bytes = half
from distill.__main__ import main
sys.exit(main(["import", *sys.argv[1:]]))
"""


def until_half(signum, *arguments):
    """Import in another process that gets a signal when it has written nine tensors.

    What `import` must not need cannot be imported there.
    """
    code = HALF.replace("SIGNUM", signum)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


def test_a_killed_import_leaves_nothing_that_looks_whole_and_the_next_begins_clean(tmp_path):
    source = exported(tmp_path / "hf")
    killed = until_half("SIGKILL", source, tmp_path / "ours")
    assert killed.wait(60) == -signal.SIGKILL
    (left,) = {path.name for path in tmp_path.iterdir()} - {"hf"}
    assert left == ".ours.partial"
    _, arrays, _ = imported(source, tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, arrays, drawn(V1_1))
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "ours"}


def test_a_second_import_to_the_same_place_is_refused_while_the_first_runs(tmp_path, capsys):
    source = exported(tmp_path / "hf")
    stopped = until_half("SIGSTOP", source, tmp_path / "ours")
    weights_file = tmp_path / ".ours.partial" / "model.safetensors"
    deadline = time.monotonic() + 60
    while not weights_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        line = refused(capsys, source, tmp_path / "ours")
        assert f"one process that writes {tmp_path / 'ours'}" in line
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.wait(60) == 0
    assert weights.load(tmp_path / "ours")[0] == V1_1


def changed(directory, change):
    """Rewrite the weights of a directory."""
    file = directory / "model.safetensors"
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)
    return directory


def test_numbers_that_are_not_finite_or_leave_the_dtype_are_refused_either_way(tmp_path, capsys):
    source = exported(tmp_path / "hf")
    changed(source, lambda arrays: arrays["shared.weight"].__setitem__((3, 1), 1e6))
    line = refused(capsys, source, tmp_path / "ours", "--dtype", "float16")
    assert "finite numbers in token_embedder/embedding" in line and "as float16" in line
    changed(source, lambda arrays: arrays["shared.weight"].__setitem__((3, 1), np.nan))
    assert "finite numbers in shared.weight" in refused(capsys, source, tmp_path / "ours")
    arrays = drawn(V1_1)
    arrays[HEAD][0, 0] = np.inf
    with pytest.raises(UserError, match="finite numbers in decoder/logits_dense/kernel to export"):
        vocabulary = weights.Vocabulary(STUDENT, 100)
        write(tmp_path / "back", V1_1, tensors_of(arrays), vocabulary, card="")
    assert not (tmp_path / "back").exists()


def test_a_directory_of_transformers_5_imports_from_its_tokenizer_json(tmp_path):
    source = exported(tmp_path / "hf")
    document = json.loads((source / "tokenizer.json").read_text())
    steps = document["normalizer"]["normalizers"]
    (document["normalizer"],) = [step for step in steps if step["type"] == "Precompiled"]
    splits = [{"type": "WhitespaceSplit"}, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splits}
    (source / "tokenizer.json").write_text(json.dumps(document))
    (source / "spiece.model").unlink()
    _, _, vocabulary = imported(source, tmp_path / "ours")
    found, wanted = (SentencePieceTokenizer(path, 100) for path in (vocabulary.path, STUDENT))
    assert vocabulary.extra_ids == 100 and found.vocab_size == wanted.vocab_size
    for text in ("Tom has 12 apples.", " a  b\n½ e\u0301 \u3000\u032f ", "<x> 中😀", ""):
        assert found.encode(text) == wanted.encode(text)


def test_byt5_and_adapters_are_refused_by_name(tmp_path, capsys):
    source = exported(tmp_path / "hf")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    given = ("--vocabulary", STUDENT)
    assert "ByT5Tokenizer" in refused(capsys, source, tmp_path / "ours", *given)
    (source / "adapter_config.json").write_text("{}")
    (source / "config.json").unlink()
    assert "an adapter" in refused(capsys, source, tmp_path / "ours", *given)
