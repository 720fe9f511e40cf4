"""What transformers 4.46, 4.57 and 5 write, recorded by benchmarks/imports.py, is read as they do.

The weights are random here: names, shapes and configurations are theirs. The benchmark compares the
logits of the same directories.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from distill.core.errors import UserError
from distill.models import hugging_face, hugging_face_vocabulary, weights

RECORDED = sorted(Path(__file__).with_name("recorded").glob("*/*.json"))
STUDENT = Path(__file__).parents[2] / "data" / "vocabularies" / "student.model"
HEAD = "lm_head.weight"


def directory_of(folder, recorded):
    """Make a directory again, with random weights, and return them."""
    document = json.loads(recorded.read_text())
    for name, content in document["files"].items():
        (folder / name).write_text(json.dumps(content))
    if "spiece.model" in document["names"]:
        (folder / "spiece.model").write_bytes(STUDENT.read_bytes())
    random = np.random.default_rng(0)
    arrays = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in document["tensors"].items()
    }
    save_file(arrays, folder / "model.safetensors")
    return arrays


def test_each_version_is_recorded():
    assert {path.parent.name for path in RECORDED} == {"4.46", "4.57", "5"}


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_head_is_read_as_the_version_computes_it(tmp_path, recorded):
    arrays = directory_of(tmp_path, recorded)
    model, found = hugging_face.read(tmp_path)
    tied = recorded.stem.startswith("t5_v1_0")
    since_5 = recorded.parent.name == "5"
    scaled = tied or (recorded.stem.startswith("mt5_tied") and not since_5)
    assert model.config.logits_via_embedding == scaled
    assert (HEAD in arrays) == (not tied and "tied" not in recorded.stem)
    if not scaled:
        kernel = found["decoder/logits_dense/kernel"].read()
        np.testing.assert_array_equal(kernel, arrays.get(HEAD, arrays["shared.weight"]).T)
    assert found.keys() == weights.shapes(model).keys()


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_tokenizer_has_no_added_tokens(tmp_path, recorded):
    directory_of(tmp_path, recorded)
    if (tmp_path / "spiece.model").exists():
        found = hugging_face_vocabulary.read(tmp_path)
        assert found.content == STUDENT.read_bytes() and found.extra_ids == 100
    else:
        with pytest.raises(UserError, match=r"a vocabulary .* got none"):
            hugging_face_vocabulary.read(tmp_path)
