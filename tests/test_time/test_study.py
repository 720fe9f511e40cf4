"""The study whole over a planted tree: figures by hand, stopped and gone on, refusals."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close, near
from planted import Planted, Tree, solutions

from distill.__main__ import main
from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Sampling
from distill.core.records import Answered, Problem
from distill.core.statistics import Bootstrap
from distill.core.store import Shards, Stage
from distill.models import scoring, weights
from distill.models.flops import decoding_flops, forward_flops
from distill.models.t5 import T5Config, T5Model
from distill.reports import page, report
from distill.runs import soundness
from distill.test_time import analysis, outcomes, study
from distill.test_time.allocate import Policy
from distill.test_time.analysis import Eases, Options
from distill.test_time.metropolis import Metropolis
from distill.test_time.outcomes import Records, Shapes
from distill.test_time.search import LookAhead

SMALL, LARGE = T5Config(1104, 64, 2, 32, 128, 2, 2), T5Config(1104, 128, 2, 64, 384, 3, 3)
JUDGE = scoring.ScoringModel(T5Model(SMALL))
STRATEGIES = (LookAhead(), LookAhead(ahead=1), Metropolis(chains=2))
BUDGETS = (1, 4, 16)
ROOT = Path(__file__).parent.parent.parent
KILLED = ROOT / "tests" / "runs" / "killed.py"


@dataclasses.dataclass(frozen=True)
class Grown:
    """A planted tree as a frozen generator, so that a manifest can tell it from others."""

    model: str = "tree"

    def generate(self, requests, sampling):
        """Yield completions in reverse order."""
        return Tree().generate(requests, sampling)

    def score(self, requests, top_logprobs=5):
        """Refuse."""
        raise AssertionError


@dataclasses.dataclass(frozen=True)
class Valued:
    """Planted values as a frozen scorer."""

    model: str = "planted"

    def score(self, solutions):
        """Yield scores in reverse order."""
        return Planted().score(solutions)


def problem(number):
    return Problem(f"made/report/{number}", "made", "report", f"What is {number}?", "8")


def ready(run_dir, count=20):
    with Stage.open(run_dir, "problems", settings={}, outputs=["problems"]) as stage:
        Shards(run_dir / "problems", Problem).append([problem(n) for n in range(count)])
        stage.finish()


def run(run_dir, **how):
    how = {"budgets": BUDGETS, "strategies": STRATEGIES, "resamples": 50, **how}
    how = {"sampling": Sampling(max_tokens=8, top_logprobs=0), "difficulty_samples": 8, **how}
    how = {"larger": {"large": Grown("larger")}, "bins": 2, **how}
    return study.run(run_dir=run_dir, generator=Grown(), scorer=Valued(), **how)


def test_the_study_writes_its_records_reports_and_policies(tmp_path):
    ready(tmp_path)
    summary = run(tmp_path)
    # Samples, samples apart, two greedy, and of budgets: 3 beams, 2 look-aheads, 3 of Metropolis.
    assert (summary["questions"], summary["records"]) == (20, 20 * (2 + 2 + 3 + 2 + 3))
    found = json.loads((tmp_path / "reports" / "scale.json").read_text())
    names = ["best_of-weighted", "best_of-best", "best_of-majority"]
    names += ["beam-sqrt", "lookahead-1-sqrt", "metropolis-2-1-4"]
    assert [each["strategy"] for each in found["curves"]] == names
    points = {each["strategy"]: each["points"] for each in found["curves"]}
    assert [point["budget"] for point in points["lookahead-1-sqrt"]] == [4, 16]
    # The verifier is right about the tree, the likeliest answer of which is 8.
    assert points["beam-sqrt"][-1]["value"] == 1.0 and found["greedy"]["value"] == 1.0
    right = sum(chance for text, chance in solutions().items() if text.endswith("is 8"))
    assert points["best_of-weighted"][0]["value"] == pytest.approx(right, abs=0.1)
    assert points["best_of-majority"][1]["tokens"]["verifier_read"] == 0
    assert points["best_of-weighted"][1]["tokens"]["verifier_read"] > 0
    assert points["beam-sqrt"][0]["flops"] is None and found["matched"] == []
    for point in points["best_of-weighted"]:
        assert point["low"] <= point["value"] <= point["high"]
        assert {kind: len(rows) for kind, rows in point["by_bin"].items()} == {
            "oracle": 2,
            "predicted": 2,
        }
    tables = (tmp_path / "reports" / "scale.md").read_text()
    assert (
        "paired by question, in points" in tables
        and "| beam-sqrt |" in tables
        and "| policy, oracle bins |" in tables
    )
    policy = Policy.load(tmp_path / "reports" / "scale-policy-predicted.json")
    assert policy.budgets == BUDGETS and policy.samples == 8 and len(policy.edges) == 1
    assert soundness.check(tmp_path).sound


def test_a_stopped_study_resumes_with_the_missing_records(tmp_path, monkeypatch):
    ready(tmp_path / "whole")
    ready(tmp_path / "stopped")
    run(tmp_path / "whole", shard_solutions=16)
    asked, plain = [], study.answer

    def stopping(task, problems, prompt, after=None):
        if after is not None and len(asked) >= after:
            raise KeyboardInterrupt
        asked.extend((task.name, task.budget, p.problem_id) for p in problems)
        return plain(task, problems, prompt)

    monkeypatch.setattr(study, "answer", lambda *given: stopping(*given, after=50))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", shard_solutions=16)
    on_disk = len(Shards(tmp_path / "stopped" / "scale", Answered))
    asked.clear()
    monkeypatch.setattr(study, "answer", stopping)
    run(tmp_path / "stopped", shard_solutions=16)
    assert 50 <= on_disk < 70 and len(asked) == len(set(asked)) == 240 - on_disk
    reports = [tmp_path / name / "reports" / "scale.json" for name in ("whole", "stopped")]
    assert reports[0].read_text() == reports[1].read_text()
    assert run(tmp_path / "stopped")["records"] == 240


def test_other_settings_and_too_few_problems_are_refused(tmp_path):
    ready(tmp_path, count=3)
    with pytest.raises(UserError, match="at least 4 problems of report, test, got 3"):
        run(tmp_path)
    run(tmp_path, bins=1)
    with pytest.raises(UserError, match=r"scale with bins=2"):
        run(tmp_path)


# --- Figures by hand ---------------------------------------------------------------------------


def record(strategy, budget, number, *rights, score=0.5, drawn=10):
    """Return a record whose candidates answer 8 where they are right; 20 tokens are the prompt."""
    return Answered(
        strategy,
        budget,
        problem(number).problem_id,
        "8" if rights[0] else "7",
        bool(rights[0]),
        budget,
        20,
        len(rights),
        20 * len(rights),
        drawn * len(rights),
        0 if strategy.startswith("greedy") else len(rights),
        0 if strategy.startswith("greedy") else 35 * len(rights),
        tuple(b"" for _ in rights),
        tuple(b"8" if right else b"7" for right in rights),
        np.array(rights, np.uint8),
        np.full(len(rights), score, np.float32),
    )


def made_records():
    """Four questions: the samples are right on two, the beam on the other two."""
    rows = []
    for number in range(4):
        easy = number < 2
        rows.append(record("difficulty", 2, number, easy, easy, score=0.9 if easy else 0.2))
        rows.append(record("samples", 4, number, *[easy] * 4))
        rows += [record("beam-sqrt", budget, number, *[not easy] * budget) for budget in (1, 4)]
        rows += [record("greedy", 1, number, easy), record("greedy/large", 1, number, True)]
    return Records.of(rows, [problem(number) for number in range(4)])


def test_the_policy_and_equal_flops_by_hand():
    records, options = made_records(), Options((1, 4), 2, (1.0, 1e9), Bootstrap(50))
    oracle, predicted = outcomes.sampled_eases(records)
    assert_close([oracle, predicted], [[1, 1, 0, 0], [0.9, 0.9, 0.2, 0.2]], terms=8)
    eases = Eases({"oracle": oracle, "predicted": predicted})
    found, policies = analysis.analyse(
        records, eases, Shapes(SMALL, JUDGE, {"greedy/large": LARGE}), options
    )
    # Each bin has the strategy that is right on it, in both folds.
    assert found["policies"]["oracle"]["points"][0]["value"] == 1.0
    chosen = found["policies"]["predicted"]["strategies"]
    assert chosen == [[["best_of-weighted"]] * 2, [["beam-sqrt"]] * 2]
    assert policies["predicted"].choose(1, 4) == ("beam-sqrt", 4)
    assert policies["predicted"].edges == (near(0.55, terms=4, dtype="float32"),)
    one = decoding_flops(SMALL, 20, 10) + forward_flops(SMALL, 20, 15)
    beam = next(each for each in found["curves"] if each["strategy"] == "beam-sqrt")
    assert [point["flops"] for point in beam["points"]] == [one, 4 * one]
    # Right where the samples are wrong and wrong where they are right.
    assert [point["less_baseline"]["value"] for point in beam["points"]] == [0.0, 0.0]
    assert beam["points"][0]["less_baseline"]["low"] == -1.0
    majority = next(each for each in found["curves"] if each["strategy"] == "best_of-majority")
    assert majority["points"][1]["flops"] == 4 * decoding_flops(SMALL, 20, 10)
    # The samples that estimate difficulty cost two solutions more.
    assert found["policies"]["oracle"]["flops"] == [3 * one, 6 * one]
    times = decoding_flops(LARGE, 20, 10) / decoding_flops(SMALL, 20, 10)
    row = next(r for r in found["matched"] if r["counted"] == "samples" and r["ratio"] == 1.0)
    # The report keeps six decimals of the first, and four times their rounding reaches the second.
    assert row["times"] == pytest.approx(times, rel=0, abs=5.1e-7)
    assert row["allowed"] == pytest.approx(times + 3 * (times - 1), rel=0, abs=2.1e-6)
    assert (row["budget"], row["ours"], row["theirs"]) == (4, 1.0, 1.0)
    assert row["difference"]["value"] == 0.0
    # With everything counted, the FLOPs of the larger model's inference alone pay for less.
    greedy = decoding_flops(SMALL, 20, 10)
    for row in found["matched"]:
        if row["counted"] == "flops":
            costs = {None: 0, 1: 3 * one / greedy, 4: 6 * one / greedy}
            assert row["budget"] == max(
                (b for b, cost in costs.items() if cost <= row["allowed"]), key=costs.get
            )


def test_what_is_not_known_stays_unknown():
    records, options = made_records(), Options((1, 4), 2, (1.0,), Bootstrap(50))
    oracle, predicted = outcomes.sampled_eases(records)
    eases = Eases({"oracle": oracle, "predicted": predicted})
    found, _ = analysis.analyse(
        records, eases, Shapes(None, None, {"greedy/large": LARGE}), options
    )
    assert found["matched"] == [] and found["policies"]["oracle"]["flops"] == [None, None]


def test_the_runs_report_shows_the_study(tmp_path):
    ready(tmp_path)
    run(tmp_path)
    found = report.report(tmp_path)
    assert found["scaling"] == json.loads((tmp_path / "reports" / "scale.json").read_text())
    html = page.page(found)
    assert "Compute at test time" in html and "lookahead-1-sqrt" in html
    assert "policy, predicted bins" in html and "Bin 2" in html
    del found["scaling"]
    assert "Compute at test time" not in page.page(found)


def shipped_small(directory):
    """Return the shipped study's command less its run directory, small, with a fresh verifier."""
    student = "data/models/student_instructed"
    network, params, vocabulary = weights.load(paths.find(student, "a model"))
    model = scoring.ScoringModel(network)
    scoring.save(directory / "verifier", model, model.with_head(params), vocabulary, {})
    bound = {
        "QUESTIONS": 3,
        "STUDENT": f"'{student}'",
        "MEDIUM": "'data/models/student_raw'",
        "VERIFIER": f"'{directory / 'verifier'}'",
        "study.run.budgets": (1, 4),
        "study.run.difficulty_samples": 1,
        "study.run.strategies": "[@beam_sqrt/search.LookAhead()]",
        "study.run.larger": '{"medium": @medium/saved.SavedModel()}',
        "study.run.resamples": 50,
        "saved.SavedModel.batch_size": 12,
        "scoring.Verifier.batch_size": 12,
        "ports.Sampling.max_tokens": 16,
    }
    arguments = [f"--gin.{name}={value}" for name, value in bound.items()]
    return ["scale", "--gin_file=runs/scale.gin", "--json", *arguments], network


def test_the_shipped_run_file_works_small_and_killed_ends_as_undisturbed(tmp_path, capsys):
    command, network = shipped_small(tmp_path)
    assert main([*command, f"--run_dir={tmp_path / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 12
    found = json.loads((tmp_path / "run" / "reports" / "scale.json").read_text())
    assert found["sets"] == {"gsm": 3, "multi": 3, "asdiv": 3, "svamp": 3}
    assert set(found["policies"]) == {"encoder", "oracle", "predicted"}
    # Both students have one shape, so that M is 1 whatever R is.
    assert {row["times"] for row in found["matched"]} == {1.0} and len(found["matched"]) == 18
    assert all(each["points"][0]["flops"] > 0 for each in found["curves"])
    encoder = Policy.load(tmp_path / "run" / "reports" / "scale-policy-encoder.json")
    assert encoder.estimator.weights.shape == (network.config.embed_dim,)

    killer = [sys.executable, str(KILLED), "os.link", r"scale/part-.*\.parquet", "4"]
    disturbed = f"--run_dir={tmp_path / 'killed'}"
    killed = subprocess.run([*killer, *command, disturbed], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "reports" / "scale.json").exists()
    assert len(Shards(tmp_path / "killed" / "scale", Answered)) > 0
    assert main([*command, disturbed]) == 0
    names = ("scale.json", "scale.md", "scale-policy-encoder.json")
    for name in names:
        one, other = (tmp_path / run / "reports" / name for run in ("run", "killed"))
        assert one.read_bytes() == other.read_bytes()
