import dataclasses
import json
import random
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece
from closeness import assert_as_exact, assert_close, depth

from distill.core.errors import UserError
from distill.core.ports import Request, Sampling
from distill.core.store import Stage, write_json
from distill.interop.export import export, model_card, run, tokenizer_json
from distill.models import hugging_face, t5x_checkpoint, weights
from distill.models.sampling import LocalGenerator
from distill.models.t5 import T5Config, T5Model
from distill.training.checkpoints import Checkpoints
from tokalign.tokenizers import SentencePieceTokenizer

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "data" / "vocabularies" / "student.model"
T5 = ROOT.parent / "shared" / "tokenizers" / "t5.spiece.model"
V1_1 = T5Model(T5Config(1152, 32, 2, 8, 64, 2, 2))
V1_0 = T5Model(
    T5Config(1152, 32, 2, 8, 64, 2, 1, mlp_activations=("relu",), logits_via_embedding=True)
)
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
}


def texts(n):
    choice = random.Random(0)
    odd = "abc XYZ 0123,.?$½ﬁ\n\t\u3000\u200b▁éü中😀{}\\'\"-\u2013—…\u2028\u0085\xa0"
    words = ["Tom", "has", "12", "apples", "She gave", "$5.50", "  ", "\n\n", "48 cups."]
    for _ in range(n):
        parts = choice.choices([*words, *odd], k=choice.randrange(30))
        yield choice.choice(["", " "]).join(parts)


@pytest.fixture(scope="module", params=[V1_1, V1_0], ids=["v1.1", "v1.0"])
def exported(request, tmp_path_factory):
    model = request.param
    params = model.init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("exported") / "student"
    export(directory, model, params, STUDENT, card="# A card\n")
    return model, params, directory


def test_a_directory_holds_all_that_is_named_and_nothing_else(exported):
    model, _, directory = exported
    assert {path.name for path in directory.iterdir()} == FILES
    assert [path.name for path in directory.parent.iterdir()] == ["student"]
    config = json.loads((directory / "config.json").read_text())
    assert config["tie_word_embeddings"] == model.config.logits_via_embedding
    assert (directory / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize("path", [STUDENT, T5], ids=["student", "t5"])
def test_the_tokenizer_gives_the_ids_of_sentencepiece_and_eos(path):
    tokenizers = pytest.importorskip("tokenizers")
    if not path.exists():
        pytest.skip(f"no {path}")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(path)))
    for text in texts(600):
        ids = [*pieces.encode(text), 1]
        assert tokenizer.encode(text).ids == ids, text
        if 2 not in ids:
            assert tokenizer.decode(ids) == pieces.decode(ids)
    size = pieces.get_piece_size()
    assert tokenizer.token_to_id("<extra_id_0>") == size + 99
    assert tokenizer.encode("<extra_id_99>").ids == [size, 1]


@pytest.mark.slow
def test_transformers_gives_the_same_ids_logits_and_greedy_answers(exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params, directory = exported
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ours = SentencePieceTokenizer(STUDENT, 100)
    asked = [text for text in texts(40) if text.strip()][:20]
    for text in asked:
        assert tokenizer(text).input_ids == [*ours.encode(text), 1]

    batch = tokenizer(asked, return_tensors="pt", padding=True)
    target = np.random.default_rng(0).integers(3, 1100, (len(asked), 12))
    with torch.no_grad():
        narrow = theirs(**batch, decoder_input_ids=torch.tensor(target)).logits
        exact = theirs.double()(**batch, decoder_input_ids=torch.tensor(target)).logits
    theirs.float()
    logits = jax.jit(model.logits)(
        params, {"encoder_input_tokens": batch.input_ids.numpy(), "decoder_input_tokens": target}
    )
    assert_close(logits, exact, terms=depth(model.config, batch.input_ids.shape[1]))
    assert_as_exact(logits, narrow, exact)

    generator = LocalGenerator(model, params, ours, batch_size=32)
    barred = [0, 2, *range(1000, 1152)]
    greedy = theirs.generate(**batch, max_new_tokens=16, suppress_tokens=barred)
    answers = dict(generator.generate([Request(text) for text in asked], Sampling(0.0, 16)))
    for number, ids in enumerate(greedy.tolist()):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert answers[number].text == text


def test_the_stage_exports_the_chosen_checkpoint_with_its_figures(tmp_path):
    model, start, run_dir = (
        T5Model(T5Config(1152, 16, 2, 8, 24, 1, 1)),
        tmp_path / "start",
        tmp_path,
    )
    params = model.init(jax.random.key(0))
    weights.save(start, model, params, STUDENT)
    trained = jax.tree.map(lambda x: x + 1, params)
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        checkpoints.save(50, trained, {"count": np.zeros(())})
    write_json(run_dir / "reports" / "selection.json", {"chosen_step": 50})
    accuracy = {"0": {"svamp": {"correct": 1, "n": 9}}, "50": {"svamp": {"correct": 8, "n": 9}}}
    with pytest.raises(UserError, match="stage train"):
        run(run_dir=run_dir)
    for name, found in (("train", {}), ("select", {}), ("final", {"accuracy": accuracy})):
        with Stage.open(run_dir, name, settings={"student": str(start)}) as stage:
            stage.finish(**found)

    summary = run(run_dir=run_dir, t5x=True)
    assert summary == run(run_dir=run_dir, t5x=True) and summary["step"] == 50
    found, tensors = t5x_checkpoint.read(str(run_dir / "export_t5x" / "checkpoint_50"))
    assert found.config == dataclasses.replace(model.config, dropout_rate=0.1)
    jax.tree.map(np.testing.assert_array_equal, weights.in_memory(tensors), trained)
    assert {path.name for path in (run_dir / "export").iterdir()} == FILES
    _, params = hugging_face.load(run_dir / "export")
    jax.tree.map(np.testing.assert_array_equal, params, trained)
    card = (run_dir / "export" / "README.md").read_text()
    assert "| svamp | 11.1 % [2.0, 43.5] of 9 | 88.9 % [56.5, 98.0] of 9 |" in card


def test_what_transformers_cannot_load_is_refused(tmp_path):
    small = T5Model(T5Config(512, 16, 2, 8, 24, 1, 1))
    with pytest.raises(UserError, match="at most 512 tokens with its sentinels, got 1100"):
        export(tmp_path / "out", small, {}, STUDENT, card="")
    with pytest.raises(UserError, match="a SentencePiece model, got no file"):
        export(tmp_path / "out", V1_1, {}, tmp_path / "none", card="")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(UserError, match="a SentencePiece model in"):
        export(tmp_path / "out", V1_1, {}, tmp_path / "text", card="")
    silu = T5Model(T5Config(1152, 16, 2, 8, 24, 1, 1, mlp_activations=("silu", "linear")))
    with pytest.raises(UserError, match="mlp_activations of"):
        export(tmp_path / "out", silu, {}, STUDENT, card="")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


HOSTILE = "<script>alert(1)</script>|`x`](http://e)\x1b[31m\u202e\n# head"


def test_names_in_the_model_card_are_neither_markup_nor_codes():
    accuracy = {"0": {HOSTILE: {"correct": 1, "n": 2}}}
    card = model_card("a start", {"chosen_step": 0}, accuracy)
    (row,) = [line for line in card.splitlines() if "script" in line]
    assert "<" not in row and "\x1b" not in row and "\u202e" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 4 and not re.search(
        r"(?<!\\)[`\]]", row.split(" | ")[0]
    )
    assert "# head" not in card.splitlines()
