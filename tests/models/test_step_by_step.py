"""A chain that a shipped model writes step by step is the one that it writes in one go."""

import dataclasses

import pytest

from distill.core import paths
from distill.core.ports import Request, Sampling
from distill.models.saved import SavedModel
from distill.problems.builtin import arithmetic
from distill.text import prompts, steps

GREEDY = Sampling(temperature=0.0, max_tokens=96, top_logprobs=0)
STEP = dataclasses.replace(GREEDY, stop=steps.STOPS, include_stop=True)


def asked(count):
    problems = [arithmetic.problem("gsm", "train", n) for n in range(count)]
    return [Request(prompts.FORMATS["zero_shot_cot"].encoder_input(each)) for each in problems]


def grown(generator, requests):
    """Ask for one step at a time until each chain has ended by itself; return them in steps."""
    chains = [[] for _ in requests]
    open_ = list(range(len(requests)))
    while open_:
        begun = [dataclasses.replace(requests[n], prefix="".join(chains[n])) for n in open_]
        found = dict(generator.generate(begun, STEP))
        for place, n in enumerate(open_):
            chains[n].append(steps.ended(found[place].text))
        open_ = [n for place, n in enumerate(open_) if found[place].text.endswith(steps.STOPS)]
    return chains


@pytest.mark.parametrize("name", ["student_instructed", "teacher"])
def test_growing_step_by_step_is_writing_in_one_go(name):
    generator = SavedModel(str(paths.shipped("data") / "models" / name), batch_size=8).generator
    requests = asked(8)
    whole = dict(generator.generate(requests, GREEDY))
    chains = grown(generator, requests)
    assert ["".join(chain) for chain in chains] == [whole[n].text for n in range(8)]
    assert [tuple(chain) for chain in chains] == [steps.split(whole[n].text) for n in range(8)]
    assert min(map(len, chains)) > 1
