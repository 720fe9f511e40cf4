"""Programs are compiled before they are needed, or beside those that run."""

import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_world import Echo, call, complete, connect, request, running, until, waiting

from distill.core import paths
from distill.core.ports import Request, Sampling
from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.programs import LocalPrograms, Program, usual
from distill.models.rows import room_for
from distill.models.sampling import LocalGenerator, bucket
from distill.models.saved import open_vocabulary
from distill.models.t5 import T5Config, T5Model
from distill.serving.server import compile_ahead

VOCABULARY = paths.shipped("data/vocabularies/student.model")
ENCODER = T5Model(T5Config(1152, 8, 1, 8, 8, 1, 1))
DECODER = DecoderModel(DecoderConfig(1152, 8, 1, 8, 8, 1))


class Slow:
    """Programs by the prompt's first letter, that compile once they are let."""

    def __init__(self):
        self.free, self.compiled, self.error = threading.Event(), [], None

    def program(self, request, sampling):
        return request.prompt[:1]

    def scoring_program(self, request, top_logprobs):
        return "Q"

    def is_compiled(self, program):
        return program in ("Q", *self.compiled)

    def compile(self, program):
        assert self.free.wait(60)
        if self.error:
            raise self.error
        self.compiled.append(program)


# --- Beside the requests -------------------------------------------------------------------------


def test_a_program_that_compiles_keeps_no_other_request_waiting():
    programs = Slow()
    with running(programs=programs) as port, ThreadPoolExecutor(2) as threads:
        fresh = threads.submit(complete, port, prompt="new")
        until(lambda: waiting(port) == 1)
        begun = time.monotonic()
        assert [complete(port)[0] for _ in range(10)] == [200] * 10
        assert time.monotonic() - begun < 5
        assert not fresh.done() and not programs.compiled
        programs.free.set()
        assert fresh.result()[0] == 200
        assert complete(port, prompt="new")[0] == 200
    assert programs.compiled == ["n"]


def test_a_program_that_nobody_waits_for_any_more_is_not_compiled():
    programs = Slow()
    with running(programs=programs) as port:
        ends = [connect(port, request(prompt=prompt)) for prompt in "abc"]
        until(lambda: waiting(port) == 3)
        ends[1].close()
        until(lambda: waiting(port) == 2)
        programs.free.set()
        until(lambda: waiting(port) == 0)
        for end in ends:
            end.close()
    assert programs.compiled == ["a", "c"]


def test_a_program_that_does_not_compile_is_a_fault_of_its_requests_alone():
    programs, generator = Slow(), Echo()
    programs.free.set()
    programs.error = RuntimeError("a secret of line 7")
    with running(generator, programs=programs) as port:
        status, answer = complete(port, prompt="new")
        assert status == 500 and "secret" not in str(answer)
        assert complete(port)[0] == 200 and call(port)[0] == 200
        programs.error = None
        assert complete(port, prompt="new")[0] == 200


# --- Ahead of them -------------------------------------------------------------------------------


@contextlib.contextmanager
def compilations():
    """Yield a list of what XLA compiles meanwhile."""
    found, on = [], True

    def note(event, seconds, **_):
        if on and "backend_compile" in event:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        on = False


@pytest.mark.parametrize(("network", "tokens"), [(ENCODER, 32), (DECODER, 33)])
def test_after_its_program_is_compiled_a_request_compiles_nothing(network, tokens):
    params = jax.jit(network.init)(jax.random.key(0))
    generator = LocalGenerator(network, params, open_vocabulary(VOCABULARY), batch_size=18)
    programs = LocalPrograms(generator)
    sampling = Sampling(temperature=2.0, max_tokens=tokens, stop=("\n",), top_p=0.9)
    requests = [Request(f"a b {n}", n) for n in range(18)]
    prefixed = [Request("a b", prefix="So")]
    scored = [Request("", completion="b c")]
    wanted = [*usual(64, tokens), programs.program(prefixed[0], sampling)]
    if network is DECODER:
        wanted.append(programs.scoring_program(scored[0], 5))
    for program in wanted:
        programs.compile(program)
    assert {programs.program(each, sampling) for each in requests} <= set(wanted)
    with compilations() as found:
        for some in (requests, requests[:2], prefixed):
            assert len(dict(generator.generate(some, sampling))) == len(some)
        assert network is ENCODER or len(dict(generator.score(scored, 5))) == 1
    assert not found
    longer = Request("a b " * 60)
    assert not programs.is_compiled(programs.program(longer, sampling))


@given(st.integers(1, 3000), st.integers(1, 2000), st.data())
def test_usual_programs_are_those_of_all_shorter_prompts_and_completions(prompt, tokens, data):
    found = set(usual(prompt, tokens))
    source = bucket(data.draw(st.integers(1, prompt)))
    room = room_for(data.draw(st.integers(1, tokens)))
    assert Program(source, 0, 8, 5, room) in found
    assert not list(usual(0, tokens)) and not list(usual(prompt, 0))


def test_compiling_ahead_reports_how_much_is_left(caplog):
    caplog.set_level(logging.INFO)
    programs = Slow()
    programs.free.set()
    compile_ahead(programs, ["a", "b", "c"], report_seconds=0)
    assert programs.compiled == ["a", "b", "c"]
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("compiling 3 programs") and said[-1].startswith("compiled 3 programs")
    assert said[1].startswith("compiled 1 of 3, about") and said[1].endswith("s left")
