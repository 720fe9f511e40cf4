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
from distill.core.ports import Fire, Request, Sampling
from distill.corpus import hot
from distill.corpus.completions import Token, assemble, cut_at_stop
from distill.corpus.teacher import OpenAICompatible

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
    allowed = [pair for pair in top if hot.may_be_hot(pair[0])][:k]
    if not allowed:
        with pytest.raises(ValueError, match="a candidate that is whole characters, got none"):
            hot.draw(top, Fire(temperature, k), uniform)
        return
    text, nats, behaviour = hot.draw(top, Fire(temperature, k), uniform)
    assert (text, nats) in allowed and text not in (b"", b" \xff", b"\xf0")
    weights = np.exp(np.array([logprob for _, logprob in allowed]) / temperature)
    place = allowed.index((text, nats))
    assert np.exp(behaviour) == near(weights[place] / weights.sum(), terms=20, scale=20)
    below = weights[:place].sum() / weights.sum()
    assert below - 1e-9 <= uniform <= below + np.exp(behaviour) + 1e-9


def test_a_draw_by_hand():
    top = [(b"", -0.01), (b" I", -5.0), (b" He", -20.0), (b" So", -50.0)]
    found = [hot.draw(top, Fire(30.0, 2), uniform) for uniform in (0.0, 0.62, 0.63)]
    assert [text for text, *_ in found] == [b" I", b" I", b" He"]
    weight = np.exp(-0.5)  # fifteen nats at temperature 30
    assert found[2][1:] == (-20.0, near(np.log(weight / (1 + weight)), terms=16))


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


def drawn(asked, tokens, way, fire=FIRE):
    """Run `hot_token` on an endpoint that answers with these tokens in turn."""
    left = iter(tokens)

    async def ask(request, sampling):
        asked.append((request, sampling))
        return hot.First(next(left), 1, 1)

    return asyncio.run(hot.hot_token(ask, REQUESTS[0], SAMPLING, fire, way))


def test_an_end_that_the_server_draws_is_drawn_again_with_another_seed():
    top = ((b"", -0.5), (b" I", -1.0), (b" He", -2.0), (b"\xf0", -3.0), (b"So", -4.0))
    told = [hot.Reported(text, -1.0, top) for text in (b"", b"\xf0", b" He")]
    asked = []
    found = drawn(asked, told, hot.Way(hot.SERVER, 5))
    assert found.token.text == b" He"
    assert len({request.seed for request, _ in asked}) == 3
    assert {sampling.temperature for _, sampling in asked} == {30.0}
    both = np.array([-1.0, -2.0]) / 30
    assert found.behaviour == near(both[1] - np.logaddexp.reduce(both), terms=8)


def test_an_end_among_the_candidates_takes_no_place_where_the_draw_is_ours():
    top = ((b"", -0.5), (b" I", -1.0), (b" He", -2.0))
    told = hot.Reported(b"", -0.5, top)
    texts = set()
    for seed in range(20):
        asked = []
        request = dataclasses.replace(REQUESTS[0], seed=seed)

        async def ask(_, sampling, asked=asked):
            asked.append(sampling)
            return hot.First(told, 1, 1)

        way, fire = hot.Way(hot.CLIENT, 9), Fire(top_k=2)
        found = asyncio.run(hot.hot_token(ask, request, SAMPLING, fire, way))
        texts.add(found.token.text)
        assert (asked[0].temperature, asked[0].top_k, asked[0].max_tokens) == (1.0, 0, 1)
    assert texts == {b" I", b" He"}


def test_an_endpoint_whose_first_tokens_all_end_gives_a_failed_completion():
    told = [hot.Reported(b"", -0.5, ((b"", -0.5),))] * hot.DRAWS
    assert drawn([], told, hot.Way(hot.CLIENT, 5)) is None


def hot_of(text):
    return hot.Hot(Token(text, -1.0, ((text, -1.0),)), -1.4, 3, 1)


def test_a_stop_text_across_the_border_is_found():
    sampling = dataclasses.replace(SAMPLING, stop=("\n\n",))
    rest = assemble([Token(b"\n", -0.5), Token(b"So", -0.25)])
    whole = hot.joined(hot_of(b"\n"), dataclasses.replace(rest, prompt_tokens=4))
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
