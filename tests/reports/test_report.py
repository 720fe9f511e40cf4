import html.parser
import json
import logging
import re

import numpy as np
import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.records import Prediction, Problem, Trace, Verdict
from distill.core.store import Shards, Stage
from distill.reports import page
from distill.reports.report import report, run, table
from distill.training import select

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>\x00\x1b\u202e & \"$x_$"
SETS = ("gsm", "asdiv")
SPLITS = {"gsm": ("validation", "test"), "asdiv": ("selection", "report")}
# Right answers to the ten problems of each split, by step, as bits.
RIGHT = {0: "1000000000", 5: "1111110000", 9: "0111000000"}


def stage(run_dir, name, *, inputs=(), settings=None, **summary):
    with Stage.open(run_dir, name, settings=settings or {}, inputs=inputs) as opened:
        opened.finish(**summary)


def predictions(step, splits):
    for source in SETS:
        for split in set(SPLITS[source]) & set(splits):
            for number, right in enumerate(RIGHT[step]):
                outcome = "right" if right == "1" else "wrong"
                name = f"{source}/{split}/{number}"
                yield Prediction(step, name, source, split, HOSTILE, outcome, HOSTILE)


def harvested(run_dir):
    problems = [
        Problem(f"{source}/{split}/{number}", source, split, f"{number} {HOSTILE}", "8")
        for source in SETS
        for split in SPLITS[source]
        for number in range(10)
    ]
    Shards(run_dir / "problems", Problem).append(problems)
    stage(run_dir, "problems", problems=len(problems), settings={"name": HOSTILE})
    floats, ends = np.zeros(1, np.float32), np.zeros(1, np.int32)
    rest = ((b"x",), floats, (), floats[:0], ends, 0.0, "stop", "m", 0)
    traces = [Trace(f"gsm/train/{n}", 0, "Q", HOSTILE, *rest) for n in range(4)]
    Shards(run_dir / "traces", Trace).append(traces)
    stage(run_dir, "harvest", inputs=["problems"], traces=4)
    outcomes = ("right", "right", "right", "unparsed")
    Shards(run_dir / "verdicts", Verdict).append(
        Verdict(f"gsm/train/{n}", 0, outcome, "8", HOSTILE) for n, outcome in enumerate(outcomes)
    )
    counts = {"verdicts": 4, "outcomes": {"right": 3, "unparsed": 1}}
    stage(run_dir, "check", inputs=["harvest"], **counts, **{"yield": {"correct": 3, "n": 4}})


def trained(run_dir):
    pair = {"sum": 40.0, "count": 50}
    kinds = {"one_hot": 10, "exact": 40}
    stage(run_dir, "align", inputs=["check"], coverage=pair, kinds=kinds, dropped={HOSTILE: 1})
    stage(run_dir, "dataset", inputs=["align"], rows=3)
    lines = [{"step": n + 1, "loss": 3 - n / 4, "tokens_per_second": 100.0} for n in range(9)]
    (run_dir / "checkpoints").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "checkpoints" / "metrics.jsonl").write_text(text)
    stage(run_dir, "train", inputs=["dataset"], steps=9)


def finished(run_dir):
    harvested(run_dir)
    trained(run_dir)
    for step in RIGHT:
        sink = Shards(run_dir / "predictions", Prediction)
        sink.append(predictions(step, ("validation", "selection")))
    stage(run_dir, "evaluate", inputs=["train"])
    assert select.run(run_dir=run_dir)["chosen_step"] == 5
    for step in (5, 0):
        Shards(run_dir / "final", Prediction).append(predictions(step, ("report", "test")))
    stage(run_dir, "final", inputs=["select"])
    return run_dir


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("run"))


class Tags(html.parser.HTMLParser):
    """Counts elements and keeps attributes and text, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


# --- Laws --------------------------------------------------------------------------------------


def test_hostile_text_is_shown_and_makes_no_element(whole):
    run(run_dir=whole)
    text = (whole / "report.html").read_text()
    found = Tags(text)
    assert not {"script", "iframe", "link", "object"} & set(found.seen)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "</pre><script>alert(1)</script>" in "".join(found.text)
    assert "\x00" not in text
    assert "\x1b" not in text


PARTS = (
    "accuracy",
    "checkpoints",
    "training",
    "harvest",
    "alignment",
    "dataset",
    "samples",
    "traces",
)
EMPTY = {
    "run": "mine",
    "complete": {},
    "settings": {},
    "seconds": {},
    "absent": dict.fromkeys((*PARTS, "selection"), "stage final is not complete"),
}


@given(st.text())
def test_any_text_is_text_alone_and_can_be_encoded(value):
    absent = dict.fromkeys(EMPTY["absent"], value)
    settings = {"train": {"student": value}}
    text = page.page({**EMPTY, "run": value, "absent": absent, "settings": settings})
    plain = Tags(page.page({**EMPTY, "settings": {"train": {"student": "S"}}}))
    found = Tags(text)
    assert set(found.seen) == set(plain.seen)
    assert found.attributes == plain.attributes
    text.encode()


def test_hostile_text_of_an_attribute_stays_in_the_attribute():
    checkpoints = {"0": {HOSTILE: {"correct": 1, "n": 2}}}
    absent = {part: reason for part, reason in EMPTY["absent"].items() if part != "checkpoints"}
    found = Tags(page.page({**EMPTY, "checkpoints": checkpoints, "absent": absent}))
    attributes = dict(found.attributes)
    assert "<img src=x onerror='alert(2)'>" in attributes["alt"]
    assert not [name for name in attributes if name.startswith("on")]
    assert found.seen.count("img") == 1


def test_the_page_loads_nothing_from_outside(whole):
    run(run_dir=whole)
    text = (whole / "report.html").read_text()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in text
    sources = [v for k, v in Tags(text).attributes if k in ("src", "srcset", "href")]
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_a_report_of_the_same_run_is_the_same(whole):
    first = run(run_dir=whole)
    text = (whole / "report.html").read_text()
    assert run(run_dir=whole) == first == json.loads((whole / "report.json").read_text())
    assert (whole / "report.html").read_text() == text


# --- Goldens -----------------------------------------------------------------------------------


def test_the_keys_of_a_whole_run(whole):
    found = report(whole)
    assert found["accuracy"]["before"] == {name: {"correct": 1, "n": 10} for name in SETS}
    assert found["accuracy"]["after"] == {name: {"correct": 6, "n": 10} for name in SETS}
    assert found["selection"]["chosen_step"] == 5
    assert found["alignment"]["coverage"] == 0.8
    assert found["alignment"]["coverage_of"] == {"sum": 40.0, "count": 50}
    assert found["harvest"]["yield"] == 0.75
    assert found["harvest"]["yield_of"] == {"correct": 3, "n": 4}
    assert found["harvest"]["verdicts"] == {"right": 3, "unparsed": 1}
    assert found["training"]["curve"]["loss"] == [3 - n / 4 for n in range(9)]
    assert found["checkpoints"]["9"]["gsm"] == {"correct": 3, "n": 10}
    assert list(found["seconds"]) == [
        *("problems", "harvest", "check", "align", "dataset", "train", "evaluate", "select"),
        "final",
    ]
    assert set(found["absent"]) == {"export"}


def test_differences_are_paired_by_problem(whole):
    accuracy = report(whole)["accuracy"]
    gsm = accuracy["difference"]["gsm"]
    assert (gsm["gained"], gsm["lost"]) == (5, 0)
    assert gsm["value"] == near(0.5, terms=8)
    assert gsm["p_value"] == 2 / 2**5
    assert 0 < gsm["low"] < 0.5 < gsm["high"] < 1
    mean = accuracy["mean"]
    assert mean["before"]["value"] == near(0.1, terms=8)
    assert mean["difference"]["value"] == near(0.5, terms=8)
    assert gsm["low"] < mean["difference"]["low"]  # two sets tell more than one


def test_a_set_without_a_say_in_the_choice_is_shown_but_not_in_the_mean(tmp_path):
    finished(tmp_path)
    more = [Problem(f"words/test/{n}", "words", "test", "Sort b a.", "a b") for n in range(4)]
    Shards(tmp_path / "problems", Problem).append(more)
    Shards(tmp_path / "final", Prediction).append(
        Prediction(step, p.problem_id, "words", "test", "a b", "right", "a b")
        for p in more
        for step in (0, 5)
    )
    accuracy = report(tmp_path)["accuracy"]
    assert accuracy["after"]["words"] == {"correct": 4, "n": 4}
    assert accuracy["mean"]["sets"] == ["gsm", "asdiv"]
    assert accuracy["mean"]["after"]["value"] == near(0.6, terms=8)


def test_the_price_of_specialising_is_a_curve_with_intervals(tmp_path):
    general = {0: 9, 5: 4, 9: 2}
    for step, rights in general.items():
        sink = Shards(tmp_path / "predictions", Prediction)
        sink.append(predictions(step, ("validation", "selection")))
        for number in range(10):
            outcome = "right" if number < rights else "wrong"
            name = f"{HOSTILE}/selection/{number}"
            sink.append([Prediction(step, name, HOSTILE, "selection", "", outcome, None)])
    stage(tmp_path, "problems", problems=1)
    stage(tmp_path, "evaluate")
    select.run(run_dir=tmp_path, general=[HOSTILE])
    found = report(tmp_path)
    price = found["selection"]["price"]
    assert [(entry["step"], entry["general"]["value"]) for entry in price] == [
        (0, 0.9),
        (5, 0.4),
        (9, 0.2),
    ]
    assert [entry["specific"]["value"] for entry in price] == [0.1, 0.6, 0.3]
    assert all(entry["general"]["low"] < entry["general"]["value"] for entry in price)
    shown = Tags(page.page(found))
    assert "The price of specialising" in shown.text and "script" not in shown.seen


def test_what_was_contaminated_is_counted_by_kind_and_set(tmp_path):
    counts = {"dropped": 1203, "exact": 3, "similar": 1200, "by_set": {HOSTILE: {"similar": 7}}}
    stage(tmp_path, "problems", problems=1, contaminated=counts)
    found = report(tmp_path)
    assert found["problems"]["contaminated"] == counts
    shown = Tags(page.page(found))
    assert "1,203 training questions were left out." in shown.text
    text = [word.strip() for word in shown.text if word.strip()]
    place = text.index("held by")
    assert text[place : place + 3] == ["held by", "exact", "similar"]
    assert text[text.index("all") : text.index("all") + 3] == ["all", "3", "1,200"]
    assert "script" not in shown.seen


def test_samples_show_what_was_gained_kept_and_missed(whole):
    samples = report(whole)["samples"]
    assert [sample["kind"] for sample in samples] == [
        *["gained"] * 2,
        *["kept"] * 2,
        *["missed"] * 2,
    ]
    assert samples[0]["problem_id"] == "asdiv/report/1"


def test_the_table_holds_n_and_intervals(whole, caplog):
    with caplog.at_level(logging.INFO, "distill"):
        run(run_dir=whole)
    lines = table(report(whole)["accuracy"]).splitlines()
    assert [line.split()[0] for line in lines] == ["set", "gsm", "asdiv", "mean"]
    assert lines[-1].startswith("mean of 2")
    assert re.search(r"10\.0 \[1\.8, 40\.4\] +60\.0 \[31\.3, 83\.2\] +\+50\.0 \[", lines[1])
    assert [int(line.split()[-1]) for line in lines[1:]] == [10, 10, 20]
    assert lines[1] in caplog.text


# --- Partial runs ------------------------------------------------------------------------------


def test_a_run_that_only_harvested_says_what_is_absent(tmp_path):
    harvested(tmp_path)
    found = run(run_dir=tmp_path)
    assert "accuracy" not in found
    assert found["absent"]["accuracy"] == "stage final is not complete"
    assert found["harvest"]["yield_of"]["n"] == 4
    text = (tmp_path / "report.html").read_text()
    assert "Not known: stage final is not complete." in text
    assert "Not known: stage train is not complete." in text


def test_a_stage_that_was_killed_is_not_finished(tmp_path):
    harvested(tmp_path)
    with Stage.open(tmp_path, "align", settings={}, inputs=["check"]):
        pass
    found = run(run_dir=tmp_path)
    assert found["complete"]["align"] is False
    assert "alignment" not in found
    assert "align not finished" in (tmp_path / "report.html").read_text()


def test_checkpoints_without_a_choice_are_shown_unmarked(tmp_path):
    harvested(tmp_path)
    trained(tmp_path)
    sink = Shards(tmp_path / "predictions", Prediction)
    sink.append(predictions(0, ("validation", "selection")))
    stage(tmp_path, "evaluate", inputs=["train"])
    run(run_dir=tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "No checkpoint is chosen: stage select is not complete." in text
    assert "Accuracy on gsm, asdiv at steps 0." in text


# --- Refusals ----------------------------------------------------------------------------------


def test_a_student_that_was_only_evaluated_has_no_before_and_after(tmp_path):
    Shards(tmp_path / "predictions", Prediction).append(predictions(0, ("validation", "selection")))
    Shards(tmp_path / "final", Prediction).append(predictions(0, ("report", "test")))
    sets = [Problem(f"{name}/test/0", name, "test", "Why?", "8") for name in SETS]
    Shards(tmp_path / "problems", Problem).append(sets)
    for name in ("problems", "evaluate", "final"):
        stage(tmp_path, name)
    found = report(tmp_path)
    assert {"accuracy", "samples", "selection"} <= found["absent"].keys()
    assert "All checkpoints" in page.page(found)


def test_a_report_without_a_field_that_the_page_shows_is_refused_and_nothing_is_written(tmp_path):
    counts = {"dropped": 3, "exact": 3}
    stage(tmp_path, "problems", problems=1, contaminated=counts)
    with pytest.raises(UserError, match=r"got values of unexpected types .*Undefined.*by_set"):
        run(run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifests"]


def test_a_directory_without_a_run_is_refused_and_stays_as_it_was(tmp_path):
    with pytest.raises(UserError, match=r"expected a run in .*, got none"):
        run(run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
