"""Laws of what ships in data/: small, complete, and as its pages say."""

import csv
import hashlib
import re
from pathlib import Path

import jax
import pytest

from distill.core import paths
from distill.models import weights

DATA = paths.shipped("data")
MODELS = ("teacher", "student_raw", "student_instructed")
PAGE = (DATA / "models" / "README.md").read_text()


def test_everything_shipped_weighs_at_most_30_megabytes():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= 30e6


def test_every_folder_and_file_at_the_top_is_on_the_page():
    page = (DATA / "README.md").read_text()
    for path in DATA.iterdir():
        assert path.name == "README.md" or f"`{path.name}" in page, path


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_one_on_the_page(name: str):
    listed = re.search(rf"\| {name} \|.*\| ([\d,]+) \| (\w{{64}}) \|", PAGE)
    assert listed
    _, params, vocabulary = weights.load(DATA / "models" / name)
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}" == listed[1]
    content = (DATA / "models" / name / weights.WEIGHTS).read_bytes()
    assert hashlib.sha256(content).hexdigest() == listed[2]
    assert vocabulary.path.is_file()


@pytest.mark.parametrize("name", MODELS)
def test_a_models_vocabulary_is_the_shipped_one(name: str):
    for path in (DATA / "models" / name).iterdir():
        if path.suffix in (".model", ".tiktoken") or path.name == "teacher.json":
            assert path.read_bytes() == (DATA / "vocabularies" / path.name).read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_curve_falls_to_what_the_page_says(name: str):
    with (DATA / "models" / "curves" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss_nats_per_token"]) for row in rows]
    tokens = [int(row["target_tokens"]) for row in rows]
    assert losses[-1] < 0.6 * losses[0]
    assert tokens == sorted(set(tokens))
    cells = f"| {int(rows[-1]['step']):,} | {tokens[-1]:,} | {losses[-1]:.3f} |"
    assert re.search(rf"\| {name} \|.*{re.escape(cells)}", PAGE), cells


def test_the_recipes_on_the_page_exist():
    named = re.findall(r"--gin_file=(runs/\w+\.gin)", PAGE)
    assert len(named) == len(MODELS)
    assert all((Path(paths.shipped("gin_configs")) / name).is_file() for name in named)
