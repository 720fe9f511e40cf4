import dataclasses
import hashlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback

import gin
import pytest
from closeness import near
from fake_endpoint import FAULTS, KEY, endpoint
from generator_laws import keeps_the_laws
from hypothesis import given
from hypothesis import strategies as st

from distill.__main__ import main
from distill.core.errors import UserError
from distill.core.ports import Fire, Sampling
from distill.core.records import Problem, Trace
from distill.core.store import Shards, Stage, manifest
from distill.endpoints.session import Budget
from distill.endpoints.spending import SPENT, Spent, read_logs, spent_in
from distill.endpoints.teacher import OpenAICompatible
from distill.runs.soundness import check
from distill.text.completions import Token, assemble
from distill.text.prompts import TeacherPrompt
from distill.traces.harvest import harvest, run, sample_seed, score
from distill.traces.merge import merge
from distill.traces.replay import Replay

SAMPLING = Sampling(temperature=0.7, max_tokens=64)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def problems(count, chain="Add.\nThe answer is 3.\nMore."):
    return [Problem(f"s/train/{n}", "s", "train", f"Q{n}?", "3", chain) for n in range(count)]


@dataclasses.dataclass(frozen=True)
class Echo:
    """A generator that writes its prompt and seed, the last request first."""

    model: str = "echo"
    limit: int | None = dataclasses.field(default=None, repr=False)
    asked: list = dataclasses.field(default_factory=list, repr=False)

    def generate(self, requests, sampling):
        self.asked.extend(requests)
        for index in itertools.islice(reversed(range(len(requests))), self.limit):
            request = requests[index]
            tokens = [Token(request.prompt.encode(), -1.0), Token(b"%d" % request.seed, -2.0)]
            yield index, assemble([*tokens, Token(b"\nThe answer is 3"), Token(b".\n\nQ")])
        if self.limit is not None:
            raise UserError("a teacher", "none", "find one")

    def score(self, requests, top_logprobs=5):
        self.asked.extend(requests)
        for index, request in enumerate(requests):
            yield index, assemble([Token(request.completion.encode(), -1.0)])


def ready(run_dir, found):
    with Stage.open(run_dir, "problems", settings={}, outputs=["problems"]) as stage:
        Shards(run_dir / "problems", Problem).append(found)
        stage.finish(problems=len(found))
    return run_dir


def value(trace):
    vectors = (trace.logprobs, trace.top_logprobs, trace.top_ends)
    rest = (trace.prompt, trace.text, trace.tokens, trace.top_tokens, trace.finish_reason)
    return (*rest, trace.seed, *(repr(vector.tolist()) for vector in vectors))


def harvested(run_dir):
    found = [((t.problem_id, t.sample), value(t)) for t in Shards(run_dir / "traces", Trace)]
    assert len(found) == len(dict(found)), "a trace stands twice"
    return dict(found)


@given(st.integers(), st.text(), st.integers(0, 100))
def test_a_sample_seed_is_31_bits_and_its_own(seed, problem_id, sample):
    found = sample_seed(seed, problem_id, sample)
    assert found == sample_seed(seed, problem_id, sample) and 0 <= found < 2**31
    assert found != sample_seed(seed, problem_id, sample + 1)
    assert found != sample_seed(seed + 1, problem_id, sample)


def test_the_seeds_of_harvests_on_disk_stay_what_they_were():
    assert sample_seed(7, "gsm8k/train/0", 3) == 1_151_109_930


@given(st.integers(0, 4), st.integers(0, 3), st.data())
def test_what_is_done_is_skipped_and_changes_no_other(count, samples, data):
    whole = {
        (t.problem_id, t.sample): value(t)
        for t in harvest(
            problems(count), Echo(), samples=samples, sampling=SAMPLING, prompt=TeacherPrompt()
        )
    }
    wanted = [(f"s/train/{n}", sample) for n in range(count) for sample in range(samples)]
    assert sorted(whole) == wanted
    done = set(data.draw(st.lists(st.sampled_from(wanted or [("none", 0)]))))
    rest = harvest(
        problems(count),
        Echo(),
        samples=samples,
        sampling=SAMPLING,
        prompt=TeacherPrompt(),
        done=done,
    )
    found = {(t.problem_id, t.sample): value(t) for t in rest}
    assert found == {key: value for key, value in whole.items() if key not in done}


def test_a_trace_is_asked_and_cut_as_the_paper_does():
    (trace,) = harvest(
        problems(1), Echo(), samples=1, sampling=SAMPLING, prompt=TeacherPrompt(), seed=7
    )
    prompt = "Q: Q0?\nLet's think step by step\n"
    assert trace.prompt == prompt and trace.seed == sample_seed(7, "s/train/0", 0)
    assert trace.text == f"{prompt}{trace.seed}\nThe answer is 3."
    assert trace.tokens[-1] == b"." and (trace.model, trace.sample) == ("echo", 0)


def test_scoring_asks_for_the_chain_up_to_its_answer():
    generator = Echo()
    (trace,) = score(problems(1), generator, top_logprobs=5, prompt=TeacherPrompt())
    assert generator.asked[0].completion == trace.text == "Add.\nThe answer is 3."
    assert not list(score(problems(1), Echo(), top_logprobs=5, prompt=str, done={("s/train/0", 0)}))


def test_scoring_without_a_chain_is_refused():
    bare = problems(1, chain=None)
    with pytest.raises(UserError, match="a chain in every problem to score, got s/train/0 without"):
        list(score(bare, Echo(), top_logprobs=5, prompt=TeacherPrompt()))


def test_a_run_counts_what_is_on_disk_and_is_done_once(tmp_path):
    ready(tmp_path, problems(3))
    summary = run(run_dir=tmp_path, generator=Echo(), samples=2)
    prompts = b"".join(f"Q: Q{n}?\nLet's think step by step\n\0".encode() for n in range(3))
    assert summary == {
        "traces": 6,
        "tokens": 24,
        "tokens_with_fewer_candidates": 24,
        "finish_reasons": {"stop": 6},
        "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
    }
    again = Echo()
    assert run(run_dir=tmp_path, generator=again, samples=2) == summary and not again.asked
    assert len(harvested(tmp_path)) == 6


def test_what_was_harvested_before_a_failure_is_kept_and_not_asked_again(tmp_path):
    ready(tmp_path / "a", problems(4))
    ready(tmp_path / "b", problems(4))
    with pytest.raises(UserError, match="a teacher"):
        run(run_dir=tmp_path / "a", generator=Echo(limit=3), samples=2)
    assert len(harvested(tmp_path / "a")) == 3
    rest = Echo()
    run(run_dir=tmp_path / "a", generator=rest, samples=2)
    run(run_dir=tmp_path / "b", generator=Echo(), samples=2)
    assert len(rest.asked) == 5
    assert harvested(tmp_path / "a") == harvested(tmp_path / "b")


def test_a_replay_harvests_the_same_again(tmp_path):
    for name, scored in (("sampled", False), ("scored", True)):
        first, second = (
            ready(tmp_path / name, problems(3)),
            ready(tmp_path / f"{name}2", problems(3)),
        )
        run(run_dir=first, generator=Echo(), samples=2, score_chains=scored)
        replay = Replay(str(first / "traces"))
        assert replay.model == "echo"
        run(run_dir=second, generator=replay, samples=2, score_chains=scored)
        assert harvested(first) == harvested(second)


def test_a_replay_keeps_the_laws_of_generators(tmp_path):
    ready(tmp_path, problems(3))
    asked = Echo()
    run(run_dir=tmp_path, generator=asked, samples=2)
    replay = Replay(str(tmp_path / "traces"))
    keeps_the_laws(lambda requests: replay.generate(requests, SAMPLING), asked.asked)


def test_a_replay_without_a_request_s_trace_is_refused(tmp_path):
    ready(tmp_path, problems(1))
    run(run_dir=tmp_path, generator=Echo(), samples=1)
    replay = Replay(str(tmp_path / "traces"))
    with pytest.raises(UserError, match=r"a trace for each of 2 requests in .*, got 1 without one"):
        list(harvest(problems(2), replay, samples=1, sampling=SAMPLING, prompt=TeacherPrompt()))
    with pytest.raises(UserError, match=r"traces in .*, got none"):
        _ = Replay(str(tmp_path / "nowhere")).model


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_harvest_over_a_rough_endpoint_equals_a_calm_one(tmp_path, kind):
    found = {}
    for name, faults in (("calm", {}), ("rough", FAULTS)):
        ready(tmp_path / name, problems(30))
        with endpoint(faults=faults, quirks=True) as server:
            generator = OpenAICompatible(
                model="m", base_url=server.url, kind=kind, backoff=0.01, timeout=20
            )
            summary = run(run_dir=tmp_path / name, generator=generator, sampling=SAMPLING)
        assert summary["probe"]["keeps_seeds"] and summary["probe"]["top_logprobs"] == 5
        assert summary["traces"] == 120 and summary["finish_reasons"] == {"stop": 120}
        assert 0 < summary["tokens_with_fewer_candidates"] < summary["tokens"]
        found[name] = harvested(tmp_path / name)
    assert found["calm"] == found["rough"]
    assert all(
        text.endswith(f"answer is {text[-3:-1].strip()}.") for _, text, *_ in found["calm"].values()
    )


def test_the_key_reaches_no_file_of_the_run(tmp_path):
    ready(tmp_path, problems(2))
    with endpoint() as server:
        run(run_dir=tmp_path, generator=OpenAICompatible(model="m", base_url=server.url))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)
    generator = manifest(tmp_path, "harvest")["settings"]["generator"]
    shown = {"type": "OpenAICompatible", "model": "m", "kind": "completions"}
    assert generator == {**shown, "fire": None}


def leaky(path, body):
    """An endpoint that repeats the key wherever it can say something."""
    told = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": KEY}}
    if body.get("echo") or "top_k" in body or body.get("temperature", 1.0) > 2:
        return 401, told
    if body["seed"] % 5 == 0 and body["max_tokens"] > 1:
        return 200, {"choices": [{"text": "8", "logprobs": {"tokens": [KEY]}}]}
    if body["seed"] % 5 == 1 and body["max_tokens"] > 1:
        return 503, told
    return None


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_the_key_reaches_no_log_file_or_error_of_a_harvest_that_fails(tmp_path, kind, caplog):
    caplog.set_level(logging.DEBUG)
    ready(tmp_path, problems(4))
    told = []
    settings = {"kind": kind, "fire": Fire(top_k=4), "backoff": 0.001, "concurrency": 4}
    for override in (
        leaky,
        lambda *_: (401, {"error": {"message": f"no access for {KEY}", "code": KEY}}),
        lambda *_: (200, {"model": KEY, "system_fingerprint": KEY, "choices": []}),
    ):
        with endpoint(faults=FAULTS) as server, pytest.raises(UserError) as raised:
            server.override = override
            asks = OpenAICompatible("m", server.url, max_retries=1, **settings)
            run(run_dir=tmp_path, generator=asks, samples=2, sampling=SAMPLING)
        told.append("".join(traceback.format_exception(raised.value)))
    with endpoint(faults=FAULTS) as server:
        asks = OpenAICompatible("m", server.url, **settings)
        run(run_dir=tmp_path, generator=asks, samples=2, sampling=SAMPLING)
    assert "***" in "".join(told) and len(caplog.text) > 1000
    assert KEY not in caplog.text and KEY not in "".join(told)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4 and not any(KEY.encode() in path.read_bytes() for path in files)


RUN = """
import sys
from pathlib import Path
from distill.traces import harvest
from distill.endpoints.teacher import OpenAICompatible
harvest.run(
    run_dir=Path(sys.argv[1]),
    generator=OpenAICompatible(model="m", base_url=sys.argv[2], backoff=0.01, concurrency=4),
    sampling=harvest.Sampling(temperature=0.7, max_tokens=64),
    shard_traces=7,
)
"""


def killed_at(run_dir, url, least):
    """Start a harvest and kill it once it has `least` traces on disk."""
    with subprocess.Popen([sys.executable, "-c", RUN, run_dir, url], env=os.environ) as process:
        deadline = time.monotonic() + 30
        while len(Shards(run_dir / "traces", Trace)) < least and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    return process.returncode


def test_a_killed_harvest_resumes_without_hole_or_duplicate(tmp_path):
    for name in ("killed", "whole"):
        ready(tmp_path / name, problems(100))
    with endpoint(faults=FAULTS, quirks=True) as server:
        generator = OpenAICompatible(model="m", base_url=server.url, backoff=0.01)
        for least in (7, 150):
            assert killed_at(tmp_path / "killed", server.url, least) == -signal.SIGKILL
        assert 150 <= len(Shards(tmp_path / "killed" / "traces", Trace)) < 400
        for name in ("killed", "whole"):
            run(run_dir=tmp_path / name, generator=generator, sampling=SAMPLING)
    assert len(harvested(tmp_path / "killed")) == 400
    assert harvested(tmp_path / "killed") == harvested(tmp_path / "whole")


def test_a_terminated_harvest_writes_what_it_has(tmp_path):
    ready(tmp_path, problems(100))
    code = RUN.replace("shard_traces=7", "shard_traces=10**6")
    with endpoint() as server:
        command = [sys.executable, "-c", code, tmp_path, server.url]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 30
            while len(server.seen) < 60 and time.monotonic() < deadline:
                time.sleep(0.005)
            assert not Shards(tmp_path / "traces", Trace).files()
            process.terminate()
    assert len(harvested(tmp_path)) > 20


def test_a_generator_that_leaves_a_hole_is_found_out(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Forgetful(Echo):
        def generate(self, requests, sampling):
            yield from itertools.islice(super().generate(requests, sampling), 1)

    ready(tmp_path, problems(2))
    with pytest.raises(UserError, match="for each of 2 samples, got 1 without one"):
        run(run_dir=tmp_path, generator=Forgetful(), samples=1)
    assert run(run_dir=tmp_path, generator=Forgetful(), samples=1)["traces"] == 2


def test_an_endpoint_that_cannot_serve_is_refused_before_it_is_used(tmp_path):
    ready(tmp_path, problems(2))
    with endpoint() as server, pytest.raises(UserError, match=r"with 20 candidates .* at most 5"):
        generator = OpenAICompatible(model="m", base_url=server.url)
        run(run_dir=tmp_path, generator=generator, sampling=Sampling(top_logprobs=20))
    assert len(server.seen) < 12 and not harvested(tmp_path)


def test_parts_together_are_the_whole(tmp_path):
    for name in ("parts", "whole"):
        ready(tmp_path / name, problems(7))
    asked = []
    for part in [(2, 3), (0, 3), (1, 3), None]:
        generator = Echo()
        summary = run(run_dir=tmp_path / "parts", generator=generator, samples=2, part=part)
        asked.append(len(generator.asked))
    assert asked == [4, 6, 4, 0] and summary["traces"] == 14
    run(run_dir=tmp_path / "whole", generator=Echo(), samples=2)
    assert harvested(tmp_path / "parts") == harvested(tmp_path / "whole")


def priced(server, **settings):
    budget = Budget(dollars_per_million=(10.0, 100.0), **settings)
    return OpenAICompatible(model="m", base_url=server.url, budget=budget, concurrency=1)


def test_what_all_starts_spend_is_in_the_manifest_with_its_price(tmp_path):
    ready(tmp_path, problems(6))
    with endpoint() as server:
        for part in ((0, 2), (1, 2), None):
            run(run_dir=tmp_path, generator=priced(server), samples=2, part=part)
    spent = manifest(tmp_path, "harvest")["summary"]["spent"]
    prices = spent.pop("prices")
    # Ten tokens of each prompt and twenty of each completion, by the endpoint's own count.
    dollars = 12 * (10 * 10 + 20 * 100) / 1e6
    assert spent == {
        "starts": 2,
        "completions": 12,
        "untold": 0,
        "prompt_tokens": 120,
        "completion_tokens": 240,
        "dollars": near(dollars, terms=200),
    }
    own = {"model": "m", "prompt": 10.0, "completion": 100.0, "source": "the user", "date": None}
    assert prices == [own]


def test_a_budget_is_of_one_start_or_of_all(tmp_path):
    for name in ("each", "all"):
        ready(tmp_path / name, problems(6))
    with endpoint() as server:
        for starts in range(1, 4):
            match = r"a start within its budget of 60 tokens, got 60 spent"
            with pytest.raises(UserError, match=match):
                generator = priced(server, tokens=60)
                run(run_dir=tmp_path / "each", generator=generator, samples=2)
            assert len(harvested(tmp_path / "each")) == 2 * starts
        for limit, count in ((60, 2), (60, 2), (120, 4)):
            match = f"a harvest within its budget of {limit} tokens, got {limit} spent"
            with pytest.raises(UserError, match=match):
                generator = priced(server, tokens=limit, total=True)
                run(run_dir=tmp_path / "all", generator=generator, samples=2)
            assert len(harvested(tmp_path / "all")) == count
    kept = [
        Spent(**{f.name: row[f.name] for f in dataclasses.fields(Spent)})
        for row in read_logs(tmp_path / "all" / SPENT)
    ]
    assert sum(kept, Spent()) == spent_in(tmp_path / "all" / SPENT)
    assert spent_in(tmp_path / "all" / SPENT).tokens == 120


def machines(tmp_path, server):
    """Harvest two of three parts on machines of their own, a bit of it on both."""
    for n in range(2):
        where = ready(tmp_path / f"machine{n}", problems(7))
        run(run_dir=where, generator=priced(server), samples=2, part=(n, 3))
    run(run_dir=tmp_path / "machine1", generator=priced(server), samples=2, part=(0, 3))
    return [tmp_path / "machine0", tmp_path / "machine1"]


def test_harvests_of_several_machines_merge_without_hole_or_duplicate(tmp_path, capsys):
    into = ready(tmp_path / "into", problems(7))
    whole = ready(tmp_path / "whole", problems(7))
    with endpoint(quirks=True) as server:
        sources = machines(tmp_path, server)
        command = ["merge", str(into), *map(str, sources)]
        assert main(command) == 0 == main(command)
        first, again = map(json.loads, capsys.readouterr().out.split("\n")[:2])
        assert first == {"added": 10, "known": 6} and again == {"added": 0, "known": 16}
        asked = len(server.seen)
        summary = run(run_dir=into, generator=priced(server), samples=2)
        seen = server.seen[asked:]
        run(run_dir=whole, generator=priced(server), samples=2)
    assert sum(body["max_tokens"] == 256 for _, body, *_ in seen) == 4, "only the third part's"
    assert harvested(into) == harvested(whole) and summary["traces"] == 14
    assert summary["spent"]["starts"] == 4 and summary["spent"]["completions"] == 16 + 4
    assert check(into).faults == []


def test_a_merge_of_another_harvest_is_refused(tmp_path):
    into, other = ready(tmp_path / "into", problems(2)), ready(tmp_path / "other", problems(3))
    run(run_dir=other, generator=Echo(), samples=1)
    with pytest.raises(UserError, match=r"the problems of .*into in .*other, got others"):
        merge(into, [other])
    with pytest.raises(UserError, match=r"a harvest in .*into, got none"):
        merge(other, [into])
    same = ready(tmp_path / "same", problems(3))
    run(run_dir=same, generator=Echo(), samples=2)
    with pytest.raises(UserError, match=r"the harvest's samples=1 in .*same, got 2"):
        merge(ready(tmp_path / "new", problems(3)), [other, same])
    with pytest.raises(UserError, match="harvest with samples=2 where the run has 1"):
        merge(other, [same])


GIN = """
from __gin__ import dynamic_registration
from distill.traces import harvest
from distill.endpoints import teacher
harvest.run.generator = @teacher.OpenAICompatible()
harvest.run.samples = 2
teacher.OpenAICompatible.model = "m"
teacher.OpenAICompatible.base_url = "{}"
"""


def test_a_shard_of_the_command_line_is_a_part(tmp_path, capsys):
    ready(tmp_path, problems(4))
    with endpoint() as server:
        (tmp_path / "run.gin").write_text(GIN.format(server.url))
        command = ["harvest", f"--gin_file={tmp_path / 'run.gin'}", f"--run_dir={tmp_path}"]
        try:
            assert main([*command, "--shard=1/2"]) == 0
        finally:
            gin.clear_config()
    asked = {(f"s/train/{n}", sample) for n in (1, 3) for sample in range(2)}
    assert harvested(tmp_path).keys() == asked
    for wrong in (["--shard=2"], ["--shard=a/b"]):
        assert main([*command, *wrong]) == 2
        assert "expected harvest --shard=I/N, got harvest --shard" in capsys.readouterr().err
    assert main(["check", f"--run_dir={tmp_path}", "--shard=0/2"]) == 2


def test_an_odd_part_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a part \(i, n\) with 0 <= i < n, got \(3, 3\)"):
        run(run_dir=tmp_path, generator=Echo(), part=(3, 3))


def test_other_settings_are_refused(tmp_path):
    ready(tmp_path, problems(1))
    run(run_dir=tmp_path, generator=Echo(), samples=1)
    with pytest.raises(UserError, match="got harvest with samples=2 where the run has 1"):
        run(run_dir=tmp_path, generator=Echo(), samples=2)


@pytest.mark.parametrize(
    ("split", "match"),
    [("test", "expected a split of train, validation, got test"), ("validation", "got none")],
)
def test_a_split_that_is_not_there_or_not_for_harvesting_is_refused(tmp_path, split, match):
    ready(tmp_path, problems(1))
    with pytest.raises(UserError, match=match):
        run(run_dir=tmp_path, generator=Echo(), split=split)


# --- What no harvest of these settings wrote ---------------------------------------------------

FOREIGN = {
    "an unknown problem": {"problem_id": "../../etc/passwd"},
    "a sample beyond the samples": {"sample": 10**12},
    "a sample below 0": {"sample": -1},
    "another model": {"model": "another\x1b[31m"},
    "another prompt": {"prompt": "another prompt"},
    "another seed": {"seed": 1},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_trace_that_is_none_of_the_harvest_s_is_not_merged(tmp_path, what):
    into, source = (ready(tmp_path / name, problems(3)) for name in ("into", "source"))
    run(run_dir=source, generator=Echo(), samples=1)
    shards = Shards(source / "traces", Trace)
    *kept, last = list(shards)
    shards.remove()
    shards.append([*kept, dataclasses.replace(last, **FOREIGN[what])])
    with pytest.raises(UserError, match=r"traces of .* in .*source, got .*; merge harvests of one"):
        merge(into, [source])
    assert not list((into / "traces").glob("*")) and not (into / "spent").exists()


@pytest.mark.parametrize("name", ["traces/part-000000.parquet", "spent/x.json", "problems", "x"])
def test_a_merge_follows_no_link_out_of_its_source(tmp_path, name):
    into, source = (ready(tmp_path / each, problems(2)) for each in ("into", "source"))
    run(run_dir=source, generator=Echo(), samples=1)
    moved = tmp_path / "outside"
    (source / name).rename(moved) if (source / name).exists() else moved.write_text("{}")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to(moved)
    with pytest.raises(UserError, match=rf"alone at .*{name}, got a link"):
        merge(into, [source])
    assert not (into / "traces").exists()


def test_a_merge_of_a_part_with_other_settings_or_a_damaged_manifest_is_refused(tmp_path):
    into, source = (ready(tmp_path / each, problems(4)) for each in ("into", "source"))
    run(run_dir=source, generator=Echo(), samples=1, part=(0, 2))
    path = source / "manifests" / "harvest-0-of-2.json"
    other = json.loads(path.read_text())
    other["stage"], other["settings"]["seed"] = "harvest-1-of-2", 99
    path.with_name("harvest-1-of-2.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"the harvest's seed=0 in .*source, got 99"):
        merge(into, [source])
    for content in ("[]", "{}", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(UserError, match=r"in .*harvest-0-of-2\.json"):
            merge(into, [source])
