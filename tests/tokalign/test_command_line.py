import json
import subprocess
import sys

import pytest
from texts import T5

from tokalign.__main__ import main, parser


@pytest.fixture
def traces(tmp_path):
    path = tmp_path / "traces.jsonl"
    completion = {
        "tokens": ["Nat", "alia", " has", " $", "12", "\n", "She"],
        "token_logprobs": [-0.1] * 7,
        "top_logprobs": [{"Nat": -0.1, "He": -3.0}, {}, None, {}, {"12": -0.1}, {}, {"She": -0.1}],
    }
    chat = {"content": [{"token": "She", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    path.write_text("\n".join(json.dumps(entry) for entry in (completion, chat)))
    return path


@pytest.mark.parametrize("command", ["show", "report", "bench"])
def test_every_command_tells_its_use(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--student" in capsys.readouterr().out


def test_show_prints_both_rows_and_writes_a_page(shared, traces, tmp_path, capsys):
    page = tmp_path / "page.html"
    main(["show", str(traces), "--student", str(T5), "--html", str(page)])
    out = capsys.readouterr().out
    assert "Nat│alia│␣has│␣$│12│⏎│She" in out and "\033[3" in out and "merged" in out
    assert "<svg" in page.read_text() and "rgba(214,96,40" in page.read_text()
    assert list(tmp_path.glob("*.partial")) == []


def test_report_counts_positions_for_people_and_machines(shared, traces, capsys):
    main(["report", str(traces), "--student", str(T5)])
    assert "2 traces, 8 teacher tokens" in capsys.readouterr().out
    main(["report", str(traces), "--student", str(T5), "--json", "--rule", "paper"])
    found = json.loads(capsys.readouterr().out)
    assert found["traces"] == 2 and 0 < found["all"]["covered"] <= 1
    assert found["positions"] > found["digits"]["covered"]


def test_bench_gives_every_figure_to_machines(shared, capsys):
    texts = shared / "datasets" / "gsm8k" / "train.jsonl"
    options = ["--teacher", "p50k_base", "--student", str(T5), "--limit", "12", "--plain", "4"]
    main(["bench", str(texts), *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["recall"] == found["precision"] == 1
    assert found["dp_cost_equal"] == found["dp_cost_compared"] == 4
    assert set(found["traces_per_s"]) == {
        "plain_dtw", "exact", "dp", "plain_end_to_end", "marginal_end_to_end",
        "continued_end_to_end", "paper_end_to_end",
    }  # fmt: skip
    assert found["coverage"]["marginal"]["digits"]["covered"] > 0.9
    assert found["quality"]["marginal"]["ALL"] < found["quality"]["paper"]["ALL"]
    assert 0 < found["plain_dtw"]["recall"] < 1


def test_bad_files_are_refused(shared, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"text": 1}\n')
    with pytest.raises(ValueError, match=r"expected content or tokens in line 1 .* got .'text'"):
        main(["report", str(path), "--student", str(T5)])
    path.write_text("")
    with pytest.raises(ValueError, match=r"expected a number below 0, got 0"):
        main(["show", str(path), "--student", str(T5)])
    with pytest.raises(ValueError, match=r"expected at least one text"):
        main(["bench", str(path), "--teacher", "p50k_base", "--student", str(T5)])


def test_import_is_light():
    code = (
        "import sys, tokalign; "
        "heavy = {'jax', 'tensorflow', 'torch', 'tiktoken', 'sentencepiece', 'tokenizers'}; "
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert parser().prog == "python -m tokalign"
