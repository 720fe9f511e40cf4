import dataclasses

import numpy as np
import pytest
from closeness import assert_close, depth
from models_world import ROWS, TIED, V1_0, V1_1, params_of, tokens

from distill.models import beam, decoding, hugging_face, stopping
from distill.models.decoding import Prompts, Vocabulary
from distill.models.layers import by_path
from distill.models.t5 import T5Model
from distill.models.tensors import Tensor

# transformers gives its cache as many layers as the encoder has
ALIKE = T5Model(dataclasses.replace(V1_0.config, num_encoder_layers=2))
LENGTHS = np.array([9, 5, 12], np.int32)


def prompts_of(beams):
    rows = len(LENGTHS) * beams
    ids = np.where(np.arange(16) < LENGTHS[:, None], tokens(0, 3, 16), 0)
    place = np.repeat(np.arange(len(LENGTHS)), beams)
    nothing = np.zeros((rows, 0), np.int32), np.zeros(rows, np.int32)
    return Prompts(ids, LENGTHS, place, *nothing, np.full(rows, stopping.INSIDE, np.int32))


def vocabulary():
    every = np.ones(ROWS, bool)
    return Vocabulary(every, every, every, np.zeros((8, ROWS), np.int32), np.array(1, np.int32))


def ours(model, params, beams, limit, **how):
    prompts, words = prompts_of(beams), vocabulary()
    return beam.search(model, params, prompts, words, beams=beams, limit=limit, **how)


def ended_at_eos(ids):
    row = ids.tolist()
    return row[: row.index(1) + 1] if 1 in row else row


def ending(params, logit):
    """The parameters with an EOS that is likelier, so that beams end at different lengths."""
    kernel = params["decoder"]["logits_dense"]["kernel"]
    scaled = kernel.at[:, 1].multiply(logit)
    return {**params, "decoder": {**params["decoder"], "logits_dense": {"kernel": scaled}}}


@pytest.mark.parametrize("name", ["v1.1", "v1.0"])
def test_the_beams_are_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = {"v1.1": V1_1, "v1.0": ALIKE}[name]
    params = params_of(model) if name == "v1.0" else ending(params_of(model), 3.0)
    tensors = {path: Tensor.of(array) for path, array in by_path(params).items()}
    config = transformers.T5Config(**hugging_face.config_document(model.config))
    theirs = transformers.T5ForConditionalGeneration(config).train(False)
    renamed = hugging_face.renamed(tensors, model.config)
    state = {key: torch.tensor(np.array(tensor.read())) for key, tensor in renamed.items()}
    if not model.config.logits_via_embedding:  # transformers ties the head until one is loaded
        theirs.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"])
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    prompts = prompts_of(1)
    mask = (np.arange(16) < LENGTHS[:, None]).astype(np.int64)
    stops = {True: "full", False: "unlikely", "never": "never"}
    for penalty, early in ((1.0, False), (0.0, True), (2.0, "never"), (-1.0, False)):
        wanted = theirs.generate(
            input_ids=torch.tensor(prompts.ids).long(),
            attention_mask=torch.tensor(mask),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=12,
            length_penalty=penalty,
            early_stopping=early,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = ours(model, params, 4, 12, length_penalty=penalty, stop=stops[early])
        terms = depth(model.config, 16, vocabulary=True) + 12
        assert_close(np.asarray(found.scores).reshape(-1), wanted.sequences_scores, terms=terms)
        rows = np.asarray(found.ids)[:, :, :12].reshape(12, -1)
        theirs_ids = [ended_at_eos(row[1:]) for row in wanted.sequences]
        assert [ended_at_eos(row)[: len(w)] for row, w in zip(rows, theirs_ids, strict=True)] == (
            theirs_ids
        )


@pytest.mark.parametrize("model", [V1_1, TIED], ids=["t5", "decoder"])
def test_one_beam_is_greedy(model):
    found = ours(model, params_of(model), 1, 12)
    greedy = decoding.decode(
        model,
        params_of(model),
        prompts_of(1),
        np.zeros((3, 2), np.uint32),
        decoding.greedy(3),
        vocabulary()._replace(transitions=np.full((8, ROWS), stopping.INSIDE, np.int32)),
        12,
        k=1,
    )
    for row in range(3):
        written = ended_at_eos(np.asarray(found.ids)[row, 0, :12])
        assert written == greedy.ids[: len(written), row].tolist()
