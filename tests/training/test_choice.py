"""The choice on disk is what `select` writes, or it is refused in one sentence."""

import json

import pytest

from distill.core.errors import UserError
from distill.training import choice

ENTRY = {"step": 5, "score": 0.5, "selection": {"a": {"correct": 1, "n": 2}}}
RIGHT = {"chosen_step": 5, "rule": "distill.training.select.mean", "steps": [ENTRY]}


def written(tmp_path, content):
    path = choice.path_of(tmp_path)
    path.parent.mkdir()
    path.write_text(content)
    return tmp_path


def test_a_choice_comes_back(tmp_path):
    assert choice.read(written(tmp_path, json.dumps(RIGHT))) == RIGHT


@pytest.mark.parametrize(
    "change",
    [
        {"chosen_step": None},
        {"chosen_step": "../../../etc"},
        {"chosen_step": True},
        {"chosen_step": -1},
        {"chosen_step": 10**30},
        {"chosen_step": 5.0},
        {"validation_step": [5]},
        {"rule": 7},
        {"rule": {"type": []}},
        {"steps": {}},
        {"steps": []},
        {"steps": [[]]},
        {"steps": [{**ENTRY, "step": "5"}]},
        {"steps": [{**ENTRY, "score": "<b>"}]},
        {"steps": [{**ENTRY, "selection": {"a": {"correct": 3, "n": 2}}}]},
        {"steps": [{**ENTRY, "selection": {"a": [1, 2]}}]},
        {"steps": [{**ENTRY, "general": []}]},
    ],
)
def test_a_choice_of_another_shape_is_refused(tmp_path, change):
    with pytest.raises(UserError, match=r"the choice of stage select in .*selection\.json"):
        choice.read(written(tmp_path, json.dumps(RIGHT | change)))


@pytest.mark.parametrize("content", ["[]", "", "null", "[" * 10**5, '{"chosen_step": NaN}', "\xff"])
def test_a_choice_that_is_no_object_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"selection\.json"):
        choice.read(written(tmp_path, content))
