"""What every adapter of the Generator port must keep, whatever its model."""

import numpy as np

from distill.core.records import FINISH_REASONS
from distill.text.completions import tokens_of


def value(completion):
    vectors = (completion.logprobs, completion.top_logprobs, completion.top_ends)
    plain = (completion.text, completion.tokens, completion.top_tokens, completion.finish_reason)
    return (*plain, repr(completion.end_logprob), *(repr(vector.tolist()) for vector in vectors))


def keeps_the_laws(generate, requests):
    """Assert the laws of `generate(requests) -> Iterator[(index, Completion)]`.

    Each request is answered once; tokens spell the text; candidates are ranked and have no more
    than all the mass; a completion depends on its request alone, so neither order nor neighbours
    change it.
    """
    pairs = list(generate(requests))
    assert sorted(index for index, _ in pairs) == list(range(len(requests)))
    whole = {index: value(completion) for index, completion in pairs}
    for _, completion in pairs:
        spells_and_ranks(completion)
    turned = {len(requests) - 1 - n: value(found) for n, found in generate(requests[::-1])}
    assert turned == whole
    for n in range(min(2, len(requests))):
        ((index, alone),) = generate(requests[n : n + 1])
        assert index == 0 and value(alone) == whole[n]
    assert list(generate([])) == []


def spells_and_ranks(completion):
    assert completion.finish_reason in FINISH_REASONS
    if completion.finish_reason != "error":
        assert b"".join(completion.tokens).decode() == completion.text
    assert len(completion.tokens) == len(completion.logprobs) == len(completion.top_ends)
    assert not np.any(completion.logprobs > 0) and not completion.end_logprob > 0
    for token in tokens_of(completion):
        nats = [logprob for _, logprob in token.top]
        assert token.text and nats == sorted(nats, reverse=True)
        assert sum(np.exp(nats)) <= 1 + 1e-3
        assert len({name for name, _ in token.top}) == len(token.top)
