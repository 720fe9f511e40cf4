import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from closeness import ELEMENTARY, near
from models_world import TIED, V1_1, ByteVocabulary, WordVocabulary, assert_same_nats, params_of

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.models import rows, weights
from distill.models.sampling import Beam, Fire, LocalGenerator, bucket
from distill.models.saved import SavedModel
from distill.models.stopping import cut_at_text, with_text
from tokalign.tokenizers import SentencePieceTokenizer

SHORT = Sampling(max_tokens=24)
ROOT = Path(__file__).parent.parent.parent


def generator(model=TIED, vocabulary=None, **settings):
    tokenizer = vocabulary or WordVocabulary()
    return LocalGenerator(model, params_of(model), tokenizer, batch_size=4, **settings)


def requests(n):
    return [Request("abcdef "[: 1 + i % 7] * (1 + i), seed=i) for i in range(n)]


def same(first, second):
    return (
        first.text == second.text
        and np.array_equal(first.logprobs, second.logprobs)
        and first.top_tokens == second.top_tokens
        and np.array_equal(first.top_logprobs, second.top_logprobs)
    )


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_a_completion_depends_on_its_request_alone(model):
    asked = [*requests(5), Request("a longer one " * 6, seed=5)]
    together = dict(generator(model).generate(asked, SHORT))
    assert sorted(together) == list(range(6))
    for number in (0, 5):
        (_, alone), *_ = generator(model).generate([asked[number]], SHORT)
        assert same(alone, together[number])
    for place, completion in generator(model).generate(asked[::-1], SHORT):
        assert same(completion, together[5 - place])


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_tokens_are_the_bytes_of_the_text_and_scoring_gives_what_generating_gave(model):
    asked = requests(4)
    written = dict(generator(model).generate(asked, SHORT))
    again = [dataclasses.replace(r, completion=written[i].text) for i, r in enumerate(asked)]
    for completion in written.values():
        assert b"".join(completion.tokens) == completion.text.encode()
        assert len(completion.top_logprobs) == len(completion.top_tokens)
    for number, scored in generator(model).score(again):
        assert scored.text == written[number].text
        if scored.tokens == written[number].tokens:
            assert_same_nats(model, scored.logprobs, written[number].logprobs)


def test_scoring_a_text_gives_the_logprobs_of_its_tokens_and_of_its_end():
    asked = [Request("a question", completion="some text"), Request("b", completion="")]
    scored = dict(generator().score(asked, top_logprobs=2))
    assert scored[0].tokens == tuple(bytes([byte]) for byte in b"some text")
    assert scored[0].top_ends.tolist() == list(range(2, 20, 2))
    assert (scored[0].logprobs < 0).all() and scored[0].end_logprob < 0
    assert scored[1].text == "" and scored[1].end_logprob < 0
    assert scored[0].finish_reason == "stop"


def test_equal_seeds_give_equal_samples_and_others_differ():
    asked = [Request("abc", seed=seed) for seed in (7, 7, 8, 7 + 2**40)]
    written = [c for _, c in sorted(generator().generate(asked, SHORT), key=lambda pair: pair[0])]
    assert same(written[0], written[1])
    assert len({completion.text for completion in written}) == 3


def test_greedy_does_not_depend_on_the_seed():
    asked = [Request("abc", seed=seed) for seed in (1, 2)]
    first, second = dict(generator().generate(asked, Sampling(0.0, 8))).values()
    assert same(first, second)


def test_a_stop_text_ends_the_completion_before_it():
    asked = requests(8)
    plain = dict(generator().generate(asked, Sampling(max_tokens=24)))
    stopped = dict(generator().generate(asked, Sampling(max_tokens=24, stop=("\n", "a"))))
    for number, completion in stopped.items():
        cuts = [at for at in map(plain[number].text.find, ("\n", "a")) if at >= 0]
        assert completion.text == plain[number].text[: min(cuts, default=None)]
        assert b"".join(completion.tokens) == completion.text.encode()
        assert (completion.finish_reason == "stop") or not cuts


def completion(*tokens, reason="length"):
    n = len(tokens)
    ends = np.arange(1, n + 1)
    text = b"".join(tokens).decode()
    nats = -np.arange(1.0, n + 1)
    return Completion(text, tokens, nats, tokens, nats, ends, float("nan"), reason)


def stopping_at(*stop, include=False):
    return Sampling(stop=stop, include_stop=include)


def test_a_token_across_the_stop_keeps_its_bytes_before_it():
    tokens = (b"So", b" 8", b".\n\n", b"Q:")
    cut = cut_at_text(completion(*tokens), stopping_at("\n"), -np.ones(4))
    assert (cut.text, cut.tokens, cut.finish_reason) == ("So 8.", (b"So", b" 8", b"."), "stop")
    assert np.isnan(cut.end_logprob) and cut.logprobs.tolist() == [-1, -2, -3]
    ends = np.array([-1, -2, -0.5])
    whole = cut_at_text(completion(b"So", b" 8.", b"\n\n"), stopping_at("\n", "Q"), ends)
    assert (whole.tokens, whole.end_logprob) == ((b"So", b" 8."), -0.5)
    assert cut_at_text(whole, stopping_at("x"), np.array([])) is whole
    assert cut_at_text(completion(b"Q: a"), stopping_at("Q"), np.array([])).tokens == ()


def test_an_included_stop_is_the_last_part_and_the_first_complete_one_counts():
    tokens = (b"So", b" 8", b".\n\n", b"Q:")
    cut = cut_at_text(completion(*tokens), stopping_at("\n", include=True), -np.ones(4))
    assert (cut.text, cut.tokens, cut.finish_reason) == ("So 8.\n", (b"So", b" 8", b".\n"), "stop")
    long = cut_at_text(completion(b"abc", b"d"), stopping_at("abcd", "c"), -np.ones(2))
    assert long.text == "ab"


def test_half_a_character_at_the_end_is_cut_and_a_broken_one_is_an_error():
    half = with_text(_raw(b"a", "é".encode()[:1]))
    assert (half.text, half.tokens, half.finish_reason) == ("a", (b"a",), "length")
    broken = with_text(_raw(b"a", b"\xff", b"b"))
    assert (broken.text, broken.tokens, broken.finish_reason) == ("a", (b"a",), "error")


def _raw(*tokens):
    return dataclasses.replace(completion(*[b"x"] * len(tokens)), tokens=tokens)


def test_a_hot_token_keeps_its_behaviour_beside_the_models_own():
    asked = [Request("abc", seed=seed) for seed in range(8)]
    fire = Fire(temperature=30.0, top_k=4)
    found = dict(generator(fire=fire).generate(asked, Sampling(max_tokens=4)))
    for made in found.values():
        likeliest = made.top_logprobs[: made.top_ends[0]][:4] / 30
        own = made.logprobs[0] / 30
        expected = own - np.logaddexp.reduce(likeliest)
        assert made.behaviour_logprobs[0] == near(
            expected, terms=4 + 2 * ELEMENTARY, dtype="float32", scale=math.log(4)
        )
        assert len(made.behaviour_logprobs) == len(made.tokens)
    plain = dict(generator().generate(asked[:1], SHORT))
    assert not len(plain[0].behaviour_logprobs)


def test_hot_first_tokens_make_samples_more_diverse():
    asked = [Request("abc", seed=seed) for seed in range(16)]
    settings = Sampling(temperature=0.05, max_tokens=4)
    plain = {c.text for _, c in generator().generate(asked, settings)}
    hot = {c.text for _, c in generator(fire=Fire(top_k=8)).generate(asked, settings)}
    assert len(hot) > len(plain)


def test_min_p_reaches_the_draw_and_1_is_greedy():
    asked = [Request("abc", seed=n) for n in range(3)]
    drawn, cut, greedy = (
        dict(generator().generate(asked, dataclasses.replace(SHORT, **how)))
        for how in ({}, {"min_p": 1.0}, {"temperature": 0.0})
    )
    assert [cut[n].text for n in range(3)] == [greedy[n].text for n in range(3)]
    assert [cut[n].text for n in range(3)] != [drawn[n].text for n in range(3)]


@pytest.mark.parametrize("stop", [("cat",), ("b", "e f"), ("a ", "\ncd", "dog. a")])
@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_a_row_stops_with_the_token_that_completes_a_stop_text(model, stop):
    asked = requests(8)
    plain = dict(generator(model).generate(asked, SHORT))
    how = dataclasses.replace(SHORT, stop=stop, include_stop=True)
    for number, found in generator(model).generate(asked, how):
        whole, at = plain[number], _first_end(plain[number].text, stop)
        assert found.text == whole.text[:at]
        ends = np.cumsum([len(token) for token in whole.tokens])
        drawn = whole.completion_tokens if at is None else np.searchsorted(ends, at) + 1
        assert found.completion_tokens == drawn
        assert found.finish_reason == (whole.finish_reason if at is None else "stop")


def _first_end(text, stop):
    ends = [text.find(each) + len(each) for each in stop if each in text]
    return min(ends, default=None)


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_a_completion_goes_on_after_its_prefix_whoever_is_beside(model):
    prefixes = ["", "abc", "a cat", "", "ab" * 20, "f"]
    asked = [Request("abcdef", seed=n, prefix=prefix) for n, prefix in enumerate(prefixes)]
    together = dict(generator(model).generate(asked, SHORT))
    plain = [dataclasses.replace(request, prefix="") for request in asked]
    for number, request in enumerate(asked):
        ((_, alone),) = generator(model).generate([request], SHORT)
        assert same(alone, together[number])
        read = WordVocabulary().encode(request.prompt + request.prefix)
        assert alone.prompt_tokens == len(read) + 1
    for number, found in generator(model).generate(plain, SHORT):
        assert same(found, together[number]) == (not prefixes[number])
    assert dict(generator(model).generate(asked[::-1], SHORT))[0].text == together[5].text


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_a_greedy_text_can_be_cut_anywhere_between_tokens_and_goes_on_alike(model):
    greedy = Sampling(0.0, max_tokens=24)
    byte = ByteVocabulary()
    ((_, whole),) = generator(model, byte).generate([Request("abc")], greedy)
    cuts = [n for n in range(1, 24) if whole.text[:n].isascii()][:6]
    asked = [Request("abc", prefix=whole.text[:n]) for n in cuts]
    for number, rest in generator(model, byte).generate(asked, greedy):
        n = cuts[number]
        assert whole.text[n:] == rest.text[: len(whole.text) - n]
        size = len(whole.logprobs) - n
        assert_same_nats(model, whole.logprobs[n:], rest.logprobs[:size])


def test_a_completion_is_scored_after_its_prefix():
    asked = [Request("abc", completion="f cat", prefix=prefix) for prefix in ("", "ab")]
    whole = Request("abc", completion="abf cat")
    scored = dict(generator().score([*asked, whole]))
    assert [c.text for c in scored.values()] == ["f cat", "f cat", "abf cat"]
    np.testing.assert_array_equal(scored[1].logprobs, scored[2].logprobs[2:])
    assert scored[1].end_logprob == scored[2].end_logprob
    assert np.abs(scored[0].logprobs - scored[1].logprobs).max() > 0.01


def test_tokens_read_and_drawn_are_counted():
    asked = [Request("abc def", seed=n) for n in range(6)]
    for _, found in generator(V1_1).generate(asked, SHORT):
        assert found.prompt_tokens == 8
        assert found.completion_tokens == len(found.tokens) + (found.finish_reason == "stop")


def test_hot_positions_count_from_the_first_token_after_the_prefix():
    asked = [Request("abc", seed=n, prefix="ab") for n in range(16)]
    settings = Sampling(temperature=0.0, max_tokens=1)
    found = generator(V1_1, fire=Fire(top_k=8)).generate(asked, settings)
    assert len({completion.text for _, completion in found}) > 1


def test_a_sentencepiece_text_begins_without_the_prefix_blank(tmp_path, student_vocabulary):
    tokenizer = SentencePieceTokenizer(student_vocabulary, 100)
    model = dataclasses.replace(V1_1, config=dataclasses.replace(V1_1.config, vocab_size=1152))
    asked = [Request("Tom has 3 apples.", seed=i, completion="He has 12.") for i in range(3)]
    made = LocalGenerator(model, params_of(model), tokenizer, batch_size=4)
    for _, scored in made.score(asked[:1]):
        assert scored.text == "He has 12." and scored.tokens[0] == b"He"
    for _, written in made.generate(asked, SHORT):
        assert b"".join(written.tokens) == written.text.encode()
        ids = tokenizer.encode(written.text)
        assert tokenizer.decode(ids) == " ".join(written.text.split())

    weights.save(tmp_path / "student", model, params_of(model), student_vocabulary)
    shipped = SavedModel(str(tmp_path / "student"), batch_size=4)
    assert (
        repr(shipped) == f"SavedModel(path={str(tmp_path / 'student')!r}, batch_size=4, fire=None)"
    )
    assert shipped.model == "student"
    (_, first), *_ = made.generate(asked[:1], SHORT)
    (_, again), *_ = shipped.generate(asked[:1], SHORT)
    assert same(first, again)


def test_buckets_are_few_and_waste_less_than_half():
    sizes = {bucket(n) for n in range(1, 1025)}
    assert sorted(sizes) == [64, 128, 192, 256, 384, 512, 768, 1024]
    assert all(n <= bucket(n) < 2 * max(n, 32) + 1 for n in range(1, 1025))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"at most 272 tokens, got 300 in"):
        many = type("Many", (ByteVocabulary,), {"vocab_size": 300})
        generator(vocabulary=many())
    with pytest.raises(UserError, match="a completion to score, got request 1 without one"):
        list(generator().score([Request("a", completion="b"), Request("c")]))
    with pytest.raises(ValueError, match="0 <= min_p <= 1"):
        Sampling(min_p=1.5)
    with pytest.raises(ValueError, match="temperature > 0, top_k >= 1"):
        Fire(top_k=0)
    with pytest.raises(UserError, match=r"the directory of a model.* nowhere"):
        list(SavedModel("nowhere").generate([Request("a")], SHORT))


# --- Beams -------------------------------------------------------------------------------------

GREEDY = Sampling(temperature=0.0, max_tokens=12, top_logprobs=2)


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_one_beam_writes_what_greedy_decoding_writes(model):
    asked = [*requests(5), Request("abc", prefix="ab")]
    plain = dict(generator(model).generate(asked, GREEDY))
    found = dict(Beam(beams=1)(generator(model)).generate(asked, GREEDY))
    for number, completion in plain.items():
        assert found[number].text == completion.text
        assert found[number].finish_reason == completion.finish_reason
        assert found[number].prompt_tokens == completion.prompt_tokens
        assert found[number].completion_tokens == completion.completion_tokens
        assert_same_nats(model, found[number].logprobs, completion.logprobs)


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_beams_find_texts_at_least_as_likely_and_do_not_see_each_other(model):
    asked = requests(5)
    searching = Beam(beams=4, length_penalty=0.0)(generator(model))

    def nats(completion):
        end = completion.end_logprob if completion.finish_reason == "stop" else 0.0
        return completion.logprobs.sum() + end

    plain = dict(generator(model).generate(asked, GREEDY))
    found = dict(searching.generate(asked, GREEDY))
    assert all(nats(found[n]) >= nats(plain[n]) - 1e-4 for n in plain)
    for number, completion in searching.generate(asked[::-1], GREEDY):
        assert same(completion, found[4 - number])


def test_the_batch_grows_to_whole_beams():
    assert Beam(beams=3)(generator()).batch_size == 6
    with pytest.raises(UserError, match="a batch_size that 3 beams divide, got 4"):
        generator(beam=Beam(beams=3))


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"stop": ("a",)}])
def test_what_a_beam_cannot_honour_is_refused(change):
    sampling_ = dataclasses.replace(GREEDY, **change)
    with pytest.raises(UserError, match="temperature 0, no stop texts and no hot tokens"):
        list(Beam()(generator()).generate(requests(1), sampling_))
    with pytest.raises(ValueError, match="beams >= 1, got 0"):
        Beam(beams=0)


def test_a_beam_needs_a_model_in_this_process():
    class Elsewhere:
        model = "elsewhere"

    with pytest.raises(UserError, match="a model in this process for beam search, got elsewhere"):
        Beam()(Elsewhere())


# --- Devices -----------------------------------------------------------------------------------

FOUR = """
import json, sys
import jax
from distill.core.ports import Request, Sampling
from distill.models.saved import SavedModel
tensor = int(sys.argv[1])
generator = SavedModel("data/models/student_instructed", batch_size=8, tensor=tensor).generator
asked = [Request(f"Q: What is {n} + {n + 7}?", seed=n) for n in range(10)]
found = {}
for temperature in (0.0, 1.0):
    sampling = Sampling(temperature, max_tokens=40, top_logprobs=1)
    found[temperature] = sorted(
        (n, made.text, made.logprobs.tolist()) for n, made in generator.generate(asked, sampling)
    )
again = [Request(r.prompt, completion=found[0.0][n][1]) for n, r in enumerate(asked)]
found["scored"] = sorted((n, c.text, c.logprobs.tolist()) for n, c in generator.score(again))
devices = {len(leaf.devices()) for leaf in jax.tree.leaves(generator.placed)}
kernel = generator.placed["decoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
parts = kernel.shape[1] // kernel.addressable_shards[0].data.shape[1]
print(json.dumps([list(devices), parts, list(found.values())]))
"""


@functools.cache
def written(count, tensor):
    """Return what so many devices write, of which `tensor` share a copy of the parameters."""
    devices = f"--xla_force_host_platform_device_count={count}"
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"}
    ran = subprocess.run(
        [sys.executable, "-c", FOUR, str(tensor)],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    devices, parts, kinds = json.loads(ran.stdout)
    assert devices == [count] and parts == tensor
    return kinds


@pytest.mark.parametrize("tensor", [1, 2])
def test_four_devices_write_and_measure_what_one_does(tensor):
    student = weights.read(ROOT / "data" / "models" / "student_instructed")[0]
    for one, four in zip(written(1, 1), written(4, tensor), strict=True):
        for (place, text, nats), other in zip(one, four, strict=True):
            assert [place, text] == other[:2]
            assert_same_nats(student, nats, other[2], length=80)


def test_devices_that_a_copy_cannot_be_shared_by_are_refused():
    cut = generator(tensor=3)
    with pytest.raises(UserError, match="a mesh of 1 devices, got data=-1, fsdp=1, tensor=3"):
        list(cut.generate(requests(1), SHORT))


# --- Lengths from outside ----------------------------------------------------------------------


@pytest.mark.parametrize("model", [TIED, V1_1], ids=["decoder", "t5"])
def test_a_request_that_is_too_long_is_left_out_and_changes_no_other(model, caplog):
    asked = [*requests(2), Request("abc " * 200), Request("a", prefix="abc " * 200)]
    short = generator(model, longest=100)
    found = dict(short.generate(asked, SHORT))
    alone = dict(generator(model).generate(asked[:2], SHORT))
    assert sorted(found) == [0, 1, 2, 3]
    for number in (0, 1):
        assert same(found[number], alone[number])
    for number in (2, 3):
        assert (found[number].text, found[number].finish_reason) == ("", "too_long")
    assert "request 2 is left out: it has 8" in caplog.text
    scored = [Request("a", completion="abc " * 200), Request("a", completion="abc")]
    of = dict(short.score(scored))
    assert of[0].finish_reason == "too_long" and of[1].text == "abc"


def test_batches_of_long_rows_have_fewer_rows_and_give_the_same():
    asked = requests(5)
    whole = dict(generator(TIED).generate(asked, SHORT))
    pairs = 2 * 64**2
    fewer = [rows.rows_of(*each, most_pairs=pairs) for each in ((4, 64), (4, 512), (6, 512, 3))]
    assert fewer == [2, 1, 3]
    narrow = dataclasses.replace(generator(TIED), most_pairs=pairs)
    for number, completion in narrow.generate(asked, SHORT):
        assert completion.text == whole[number].text
        np.testing.assert_allclose(completion.logprobs, whole[number].logprobs, atol=1e-5)


def test_a_chain_of_37_000_characters_is_refused_before_anything_is_allocated():
    chain = "abcdefg " * 4_700
    (number, completion), *rest = SavedModel("data/models/teacher").score(
        [Request("Q: How many? A:", completion=chain)]
    )
    assert (number, completion.finish_reason, rest) == (0, "too_long", [])
