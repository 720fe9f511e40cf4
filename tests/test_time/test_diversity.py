"""FIRE against regular sampling: the estimators by hand, the stage whole, stopped and refused."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from closeness import assert_close, near
from hypothesis import given
from hypothesis import strategies as st

from distill.__main__ import main
from distill.core.errors import UserError
from distill.core.ports import Sampling
from distill.core.records import Problem, Trace
from distill.core.statistics import Bootstrap
from distill.core.store import Shards, Stage, manifest
from distill.grading.check import GRADERS
from distill.models.sampling import Fire
from distill.models.saved import SavedModel
from distill.runs import soundness
from distill.test_time import diversity
from distill.test_time.vote import some_right
from distill.text.completions import Token, assemble
from distill.traces import harvest


@st.composite
def counts(draw):
    n = draw(st.integers(1, 7))
    return draw(st.integers(1, n)), n, draw(st.integers(0, n))


@given(counts())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(drawn):
    k, n, right = drawn
    subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert some_right(right, n, k) == near(sum(map(any, subsets)) / len(subsets), terms=16)


def test_pass_at_refuses_more_than_there_is():
    with pytest.raises(ValueError, match="expected k of 1 to 4 samples, got 5"):
        some_right(1, 4, 5)
    with pytest.raises(ValueError, match="expected 0 to 4 right samples, got 5"):
        some_right(5, 4, 1)


def test_a_constant_difference_is_certain_however_questions_vary():
    regular = np.random.default_rng(0).normal(size=(50, 4))
    found = diversity.compare(regular, regular + 0.5, 5, Bootstrap(200))
    for of_measure in found["difference"].values():
        assert all(value == near(0.5, terms=50, scale=4) for value in of_measure.values())
    assert found["fire"]["pass@1"]["high"] - found["fire"]["pass@1"]["low"] > 0.1


def problem(number, split="selection"):
    return Problem(f"made/{split}/{number}", "made", split, f"What is {number} + 1?", "8")


def traces(texts, number=0):
    for sample, text in enumerate(texts):
        completion = assemble([Token(text.encode(), -1.0)])
        yield Trace(
            f"made/selection/{number}", sample, "", **completion.trace_fields(), model="m", seed=0
        )


def test_measures_by_hand():
    texts = ["The answer is 8", "So 8. The answer is 8.0", "The answer is 9", "No idea", "nine"]
    found = diversity.measure(traces(texts), [problem(0)], GRADERS["default"], 5)
    assert diversity.measures(5) == ["pass@1", "pass@5", "distinct answers", "distinct right texts"]
    assert_close(found, [[2 / 5, 1, 2, 2]], terms=8, dtype="float64")


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Answers 8 where it is cold, and 8 or 9 in four wordings where the first token is hot."""

    fire: Fire | None = None
    model: str = "made up"

    def generate(self, requests, sampling):
        """Yield completions in reverse order."""
        assert sampling.top_p < 1 and sampling.top_k and sampling.top_logprobs == 0
        assert self.fire is None or self.fire.top_k == sampling.top_k
        for index in reversed(range(len(requests))):
            draw = requests[index].seed % 4 if self.fire else 0
            yield index, assemble([Token(f"{draw}: The answer is {8 + draw % 2}".encode(), -1.0)])

    def score(self, requests, top_logprobs=5):
        """Refuse."""
        raise AssertionError


def ready(run_dir, count=3, split="selection"):
    with Stage.open(run_dir, "problems", settings={}, outputs=["problems"]) as stage:
        Shards(run_dir / "problems", Problem).append([problem(n, split) for n in range(count)])
        stage.finish()


def run(run_dir, generator=None, **how):
    how = {"samples": 10, "top_k": (16,), "resamples": 50, **how}
    return diversity.run(run_dir=run_dir, generator=generator or MadeUp(), **how)


def test_the_stage_fills_the_grid_writes_its_reports_and_is_sound(tmp_path):
    ready(tmp_path)
    assert run(tmp_path) == {"settings": 4, "questions": {"made": 3}}
    found = json.loads((tmp_path / "reports" / "diversity.json").read_text())
    names = ["p0.7-k16-m0", "p0.7-k16-m0.01", "p0.9-k16-m0", "p0.9-k16-m0.01"]
    assert [row["name"] for row in found["settings"]] == names
    compared = found["settings"][0]["sets"]["made"]
    assert compared["regular"]["pass@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (
        compared["difference"]["pass@1"]["high"]
        < 0
        < compared["difference"]["distinct answers"]["low"]
    )
    assert (tmp_path / "reports" / "diversity-made.png").read_bytes()[:4] == b"\x89PNG"
    assert "| p0.7-k16-m0 | 100.0 → " in (tmp_path / "reports" / "diversity.md").read_text()
    assert len(list((tmp_path / "diversity").rglob("*.parquet"))) == 8
    checked = soundness.check(tmp_path)
    assert checked.sound and checked.records["diversity"] == 8 * 3 * 10
    next((tmp_path / "diversity" / f"{names[0]}-fire").glob("*.parquet")).unlink()
    assert not soundness.check(tmp_path).sound


def test_a_stopped_comparison_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    for name in ("whole", "stopped"):
        ready(tmp_path / name)
    run(tmp_path / "whole")
    asked = []

    def ask(self, requests, sampling, *, stop_after=None):
        for number, pair in enumerate(plain(self, requests, sampling)):
            if stop_after is not None and len(asked) >= stop_after:
                raise KeyboardInterrupt
            asked.append(number)
            yield pair

    plain = MadeUp.generate
    monkeypatch.setattr(MadeUp, "generate", lambda *given: ask(*given, stop_after=100))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", shard_traces=7)
    on_disk = sum(
        len(Shards(folder, Trace)) for folder in (tmp_path / "stopped" / "diversity").iterdir()
    )
    asked.clear()
    monkeypatch.setattr(MadeUp, "generate", ask)
    run(tmp_path / "stopped")
    assert 90 < on_disk <= 100 and len(asked) == 240 - on_disk
    reports = [tmp_path / name / "reports" / "diversity.json" for name in ("whole", "stopped")]
    assert reports[0].read_text() == reports[1].read_text()


def test_what_cannot_be_compared_is_refused(tmp_path):
    ready(tmp_path)
    with pytest.raises(UserError, match=r"with FIRE, as saved\.SavedModel, got object"):
        run(tmp_path, generator=object())
    with pytest.raises(UserError, match="got test; leave the others to evaluate"):
        run(tmp_path, splits=("test",))
    with pytest.raises(UserError, match="problems of validation, got none"):
        run(tmp_path, splits=("validation",))
    with pytest.raises(UserError, match="at least 1 sample"):
        run(tmp_path, samples=0)


def test_the_shipped_run_file_works_small(tmp_path, capsys):
    arguments = ["--gin.QUESTIONS=1", "--gin.diversity.run.samples=5", "--json"]
    arguments += [f"--gin.diversity.run.{name}" for name in ("top_k=(16,)", "min_p=(0.01,)")]
    arguments += ["--gin.saved.SavedModel.batch_size=5", "--gin.ports.Sampling.max_tokens=24"]
    command = ["diversity", "--gin_file=runs/fire.gin", f"--run_dir={tmp_path}", *arguments]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == {"asdiv": 1, "svamp": 1, "multi": 1}
    assert len(Shards(tmp_path / "diversity" / "p0.9-k16-m0.01-fire", Trace)) == 15


GIN = """
from __gin__ import dynamic_registration
from distill.core import ports
from distill.traces import harvest
from distill.problems import problems
from distill.models import saved

STAGES = ("problems", "harvest")
problems.run.sources = [@problems.BuiltIn()]
problems.BuiltIn.family = "gsm"
problems.BuiltIn.split = "train"
problems.BuiltIn.n = 2
harvest.run.samples = 6
harvest.run.generator = @saved.SavedModel()
harvest.run.sampling = @ports.Sampling()
ports.Sampling.temperature = 0.7
ports.Sampling.max_tokens = 24
ports.Sampling.min_p = 0.01
saved.SavedModel.path = "data/models/teacher"
saved.SavedModel.batch_size = 12
"""


def test_a_harvest_uses_fire_where_gin_says_so_and_its_manifest_tells(tmp_path):
    (tmp_path / "run.gin").write_text(GIN)
    command = ["run", f"--gin_file={tmp_path / 'run.gin'}"]
    bound = ["--gin.saved.SavedModel.fire=@ports.Fire()", "--gin.ports.Fire.top_k=8"]
    assert main([*command, f"--run_dir={tmp_path / 'plain'}"]) == 0
    assert main([*command, f"--run_dir={tmp_path / 'fire'}", *bound]) == 0
    settings = manifest(tmp_path / "fire", "harvest")["settings"]
    fire = {"type": "Fire", "temperature": 30.0, "top_k": 8, "positions": [0]}
    assert settings["generator"]["fire"] == fire and settings["sampling"]["min_p"] == 0.01
    assert manifest(tmp_path / "plain", "harvest")["settings"]["generator"]["fire"] is None
    first = {
        name: {trace.tokens[0] for trace in Shards(tmp_path / name / "traces", Trace)}
        for name in ("plain", "fire")
    }
    assert len(first["fire"]) > len(first["plain"])


def test_a_harvest_with_fire_keeps_the_models_own_log_probabilities(tmp_path):
    ready(tmp_path, count=2, split="train")
    hot = SavedModel("data/models/teacher", batch_size=8, fire=Fire())
    sampling = Sampling(temperature=0.7, max_tokens=24)
    harvest.run(run_dir=tmp_path, generator=hot, samples=4, sampling=sampling)
    written = list(Shards(tmp_path / "traces", Trace))
    # The unlikeliest of 16 candidates at 30 times the temperature still has its cold probability.
    assert min(trace.logprobs[0] for trace in written) < np.log(1 / 16)
    for trace in written:
        told = dict(zip(trace.top_tokens[:5], trace.top_logprobs[:5], strict=True))
        if trace.tokens[0] in told:
            assert trace.logprobs[0] == pytest.approx(
                told[trace.tokens[0]], abs=5e-4
            )  # two halves of a step
