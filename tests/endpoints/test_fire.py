"""FIRE at an endpoint: the draw, two requests as one completion, the masks, the seeds."""

import asyncio
import dataclasses

import numpy as np
import pytest
from closeness import near
from fake_endpoint import KEY, endpoint, sample
from generator_laws import keeps_the_laws, value
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.ports import Fire, Request, Sampling, Usage
from distill.endpoints.fire import (
    CLIENT,
    DRAWS,
    SERVER,
    FireMethod,
    FirstToken,
    HotToken,
    draw,
    draw_hot_token,
    hot_seed,
    join,
    may_be_hot,
)
from distill.endpoints.teacher import OpenAICompatible
from distill.text.completions import Token, assemble, cut_at_stop

FIRE = Fire(top_k=4)
SAMPLING = Sampling(temperature=0.7, max_tokens=64)
REQUESTS = [Request(f"Q: number {n}?\n", seed=n) for n in range(20)]
NAMES = st.sampled_from([b"", b" I", b" He", b" \xff", b"\xf0", "é".encode(), b"So", b"4"])


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def teacher(server, **settings):
    settings = {"backoff": 0.01, "timeout": 20.0, "fire": FIRE, **settings}
    return OpenAICompatible(model="m", base_url=server.url, **settings)


def colder(path, body):
    """An API that caps the temperature, as OpenAI's does."""
    if body.get("temperature", 1.0) > 2 or "top_k" in body:
        return 400, {"error": {"message": "temperature is at most 2"}}
    return None


@given(
    st.lists(st.tuples(NAMES, st.floats(-20, 0)), unique_by=lambda pair: pair[0], max_size=8),
    st.integers(1, 8),
    st.floats(0.1, 100),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_among_the_k_likeliest_that_may_be_hot(top, k, temperature, uniform):
    top = sorted(top, key=lambda pair: -pair[1])
    allowed = [pair for pair in top if may_be_hot(pair[0])][:k]
    if not allowed:
        with pytest.raises(ValueError, match="a candidate that is whole characters, got none"):
            draw(top, Fire(temperature, k), uniform)
        return
    hot = draw(top, Fire(temperature, k), uniform)
    text, nats, behaviour = hot.token.text, hot.token.logprob, hot.behaviour_logprob
    assert (text, nats) in allowed and text not in (b"", b" \xff", b"\xf0")
    weights = np.exp(np.array([logprob for _, logprob in allowed]) / temperature)
    place = allowed.index((text, nats))
    assert np.exp(behaviour) == near(weights[place] / weights.sum(), terms=20, scale=20)
    below = weights[:place].sum() / weights.sum()
    assert below - 1e-9 <= uniform <= below + np.exp(behaviour) + 1e-9


def test_the_seed_of_a_hot_draw_stays_what_it_was():
    assert hot_seed(7, 3) == 1_774_356_331


def test_a_draw_by_hand():
    top = [(b"", -0.01), (b" I", -5.0), (b" He", -20.0), (b" So", -50.0)]
    hot = [draw(top, Fire(30.0, 2), uniform) for uniform in (0.0, 0.62, 0.63)]
    assert [one.token.text for one in hot] == [b" I", b" I", b" He"]
    weight = np.exp(-0.5)  # fifteen nats at temperature 30
    assert hot[2].token.logprob == -20.0
    assert hot[2].behaviour_logprob == near(np.log(weight / (1 + weight)), terms=16)


@pytest.mark.parametrize("kind", ["completions", "chat"])
@pytest.mark.parametrize("override", [None, colder], ids=["server", "client"])
def test_hot_completions_keep_the_laws_of_generators(kind, override):
    with endpoint() as server:
        server.override = override
        generator = teacher(server, kind=kind)
        keeps_the_laws(lambda requests: generator.generate(requests, SAMPLING), REQUESTS[:5])


@pytest.mark.parametrize("override", [None, colder], ids=["server", "client"])
def test_a_hot_completion_is_a_drawn_token_and_its_continuation(override):
    with endpoint() as server:
        server.override = override
        found = dict(teacher(server).generate(REQUESTS, SAMPLING))
    firsts = {completion.tokens[0] for completion in found.values()}
    assert len(firsts) == FIRE.top_k
    for index, completion in found.items():
        request = REQUESTS[index]
        _, _, top = sample(request.prompt, request.seed)[0]
        ranked = dict(top[:4])
        first = completion.tokens[0]
        rest = sample(request.prompt + first.decode(), request.seed)
        assert completion.tokens[1:] == tuple(piece for piece, *_ in rest)
        assert completion.logprobs[0] == near(ranked[first], dtype="float32")
        hot_nats = {name: nats / 30 for name, nats in ranked.items()}
        expected = hot_nats[first] - np.logaddexp.reduce(list(hot_nats.values()))
        assert completion.behaviour_logprobs[0] == near(expected, terms=2, dtype="float32")
        assert np.isnan(completion.behaviour_logprobs[1:]).all()
        assert completion.top_ends[0] == 5
        assert (completion.prompt_tokens, completion.completion_tokens) == (20, 40)


def test_faults_change_no_hot_completion():
    faults = {"limit": 0.1, "fault": 0.1, "cut": 0.05, "malformed": 0.05}
    found = []
    for settings in ({}, {"faults": faults}):
        with endpoint(**settings) as server:
            made = dict(teacher(server, max_retries=20).generate(REQUESTS, SAMPLING))
            found.append([value(made[index]) for index in range(len(REQUESTS))])
    assert found[0] == found[1]


def test_too_few_candidates_leave_the_behaviour_of_a_servers_draw_absent():
    with endpoint() as server:
        found = dict(teacher(server, fire=Fire(top_k=16)).generate(REQUESTS[:3], SAMPLING))
        asked = [body for _, body, *_ in server.seen if body.get("temperature") == 30.0]
    assert asked and all(body["top_k"] == 16 and body["max_tokens"] == 1 for body in asked)
    assert all(np.isnan(c.behaviour_logprobs).all() for c in found.values())


class Scripted:
    """A client whose endpoint answers with these first tokens in turn."""

    def __init__(self, tokens):
        self.left, self.sent = iter(tokens), []

    async def first(self, request, sampling):
        self.sent.append((request, sampling))
        return FirstToken(next(self.left), Usage(1, 1))


def hot_token(client, method, request=REQUESTS[0]):
    return asyncio.run(draw_hot_token(client, request, SAMPLING, method))


def test_an_end_that_the_server_draws_is_drawn_again_with_another_seed():
    top = ((b"", -0.5), (b" I", -1.0), (b" He", -2.0), (b"\xf0", -3.0), (b"So", -4.0))
    client = Scripted([Token(text, -1.0, top) for text in (b"", b"\xf0", b" He")])
    hot = hot_token(client, FireMethod(FIRE, SERVER, 5))
    assert hot.token.text == b" He"
    assert len({request.seed for request, _ in client.sent}) == 3
    assert {sampling.temperature for _, sampling in client.sent} == {30.0}
    both = np.array([-1.0, -2.0]) / 30
    assert hot.behaviour_logprob == near(both[1] - np.logaddexp.reduce(both), terms=8)


def test_an_end_among_the_candidates_takes_no_place_where_the_draw_is_ours():
    top = ((b"", -0.5), (b" I", -1.0), (b" He", -2.0))
    texts = set()
    for seed in range(20):
        client = Scripted([Token(b"", -0.5, top)])
        request = dataclasses.replace(REQUESTS[0], seed=seed)
        hot = hot_token(client, FireMethod(Fire(top_k=2), CLIENT, 9), request)
        texts.add(hot.token.text)
        ((_, sampling),) = client.sent
        assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (1.0, 0, 1)
    assert texts == {b" I", b" He"}


def test_an_endpoint_whose_first_tokens_all_end_gives_no_hot_token():
    client = Scripted([Token(b"", -0.5, ((b"", -0.5),))] * DRAWS)
    assert hot_token(client, FireMethod(FIRE, CLIENT, 5)) is None


def hot_of(text):
    return HotToken(Token(text, -1.0, ((text, -1.0),)), -1.4, Usage(3, 1))


def test_a_stop_text_across_the_border_is_found():
    sampling = dataclasses.replace(SAMPLING, stop=("\n\n",))
    rest = assemble([Token(b"\n", -0.5), Token(b"So", -0.25)])
    whole = join(hot_of(b"\n"), dataclasses.replace(rest, prompt_tokens=4))
    assert whole.text == "\n\nSo" and whole.prompt_tokens == 7 and whole.completion_tokens is None
    cut = cut_at_stop(whole, sampling)
    assert (cut.text, cut.tokens, cut.finish_reason) == ("", (), "stop")
    kept = cut_at_stop(whole, dataclasses.replace(sampling, include_stop=True))
    assert (kept.text, kept.tokens) == ("\n\n", (b"\n", b"\n"))
    assert len(kept.behaviour_logprobs) == 2


def test_one_token_alone_needs_no_continuation():
    with endpoint() as server:
        short = dataclasses.replace(SAMPLING, max_tokens=1)
        ((_, found),) = teacher(server).generate(REQUESTS[:1], short)
        assert (len(found.tokens), found.finish_reason) == (1, "length")


def test_the_user_decides_who_draws_where_both_can():
    with endpoint() as server:
        found = teacher(server, hot_by="client").probe(SAMPLING, scored=False)
        assert found["fire"]["drawn_by"] == "client"
        server.override = colder
        with pytest.raises(UserError, match="that draws at temperature 30 among 4, got one that"):
            list(teacher(server, hot_by="server").generate(REQUESTS[:1], SAMPLING))
    with pytest.raises(UserError, match="hot_by server, client or None, got me"):
        OpenAICompatible(model="m", hot_by="me")


def test_hot_tokens_further_on_are_refused():
    with pytest.raises(UserError, match=r"hot tokens at the first position .*got positions"):
        OpenAICompatible(model="m", fire=Fire(positions=(0, 5)))
