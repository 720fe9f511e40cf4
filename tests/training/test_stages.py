"""The stages train and pretrain, run small, as the command line runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill.core.errors import UserError
from distill.core.records import PackedExample
from distill.core.store import Shards, Stage, manifest
from distill.models import weights
from distill.models.t5 import T5Config, T5Model
from distill.training import checkpoints
from distill.training.metrics import read_lines
from distill.training.optimizers import AdamW, Constant
from distill.training.pretraining import InstructionBatches, vocabulary
from distill.training.train import run

ROOT = Path(__file__).parent.parent.parent
MODEL = T5Model(T5Config(1104, 8, 2, 4, 16, 1, 1))
STUDENT = "data/vocabularies/student.model"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("start") / "tiny"
    weights.save(directory, MODEL, MODEL.init(jax.random.key(0)), ROOT / STUDENT)
    return directory


def rows(count):
    """Packed rows of single-step problems with one-hot targets."""
    batches = InstructionBatches(
        vocabulary(path=STUDENT), {"single_step": 1.0}, {"zero_shot_cot": 1.0}, count, 48, 32
    )
    batch = batches.batch(0)
    hot = (batch["decoder_loss_weights"] > 0).astype(np.float32)
    batch["decoder_target_top_ids"] = batch["decoder_target_tokens"][..., None]
    batch["decoder_target_top_probs"] = hot[..., None]
    return [PackedExample(**{name: batch[name][row] for name in batch}) for row in range(count)]


@pytest.fixture
def run_dir(tmp_path):
    fill(tmp_path, rows(8))
    return tmp_path


def fill(directory, examples):
    with Stage.open(directory, "dataset", settings={}) as stage:
        Shards(directory / "dataset", PackedExample).append(examples)
        stage.finish(rows=len(examples))


SMALL = {
    "steps": 4,
    "save_every": 2,
    "batch_size": 4,
    "tensorboard": False,
    "optimizer": AdamW(schedule=Constant(1e-2)),
}


def test_train_leaves_checkpoints_and_metrics_runs_once_and_keeps_its_settings(run_dir, start):
    summary = run(run_dir=run_dir, student=str(start), **SMALL)
    assert checkpoints.steps(run_dir / "checkpoints") == [0, 2, 4]
    lines = read_lines(run_dir / "checkpoints" / "metrics.jsonl")
    assert len(lines) == summary["steps"] == 4
    assert summary["tokens"] == sum(line["tokens"] for line in lines)
    assert summary["loss_last"] < summary["loss_first"]
    first = checkpoints.load_params(run_dir / "checkpoints", 0)
    np.testing.assert_array_equal(
        first["token_embedder"]["embedding"],
        MODEL.init(jax.random.key(0))["token_embedder"]["embedding"],
    )
    assert run(run_dir=run_dir, student=str(start), **SMALL) == summary
    assert manifest(run_dir, "train")["settings"]["loss"]["rest"] == "drop"
    with pytest.raises(UserError, match="train with seed=1 where the run has 0"):
        run(run_dir=run_dir, student=str(start), seed=1, **SMALL)


WITHOUT = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(["tensorflow", "seqio", "torch", "transformers", "t5x"]))
run_dir, start = map(Path, sys.argv[1:])
from distill.interop.export import export
from distill.models import weights
from distill.training.train import run
assert run(run_dir=run_dir, student=str(start), steps=1, save_every=1, batch_size=4)["steps"] == 1
model, params, vocabulary = weights.load(start)
export(run_dir / "export", model, params, vocabulary.path, card="# A card")
"""


def test_training_and_exporting_need_neither_seqio_nor_tensorflow_nor_torch(run_dir, start):
    command = [sys.executable, "-c", WITHOUT, str(run_dir), str(start)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert checkpoints.steps(run_dir / "checkpoints") == [0, 1]
    assert (run_dir / "export" / "model.safetensors").is_file()


def test_missing_dataset_and_missing_start_are_refused(tmp_path, run_dir, start):
    with pytest.raises(UserError, match="stage dataset complete"):
        run(run_dir=tmp_path / "none", student=str(start), **SMALL)
    with pytest.raises(UserError, match="the directory of a start at nowhere, got no such path"):
        run(run_dir=run_dir, student="nowhere", **SMALL)


def test_dataset_of_another_vocabulary_is_refused(tmp_path, start):
    examples = rows(4)
    examples[2].decoder_target_top_ids[0, 0] = 32_000
    fill(tmp_path, examples)
    with pytest.raises(UserError, match="below the student's 1104 rows, got 32000"):
        run(run_dir=tmp_path, student=str(start), **SMALL)
    assert not (tmp_path / "checkpoints").exists()


def pretrain(name, directory, start=""):
    """Run a gin file as it ships, a second one makes everything small."""
    module = "decoder" if "teacher" in name else "t5"
    small = directory / "small.gin"
    directory.mkdir(exist_ok=True)
    small.write_text(
        "from __gin__ import dynamic_registration\n"
        f"from distill.models import {module}\n"
        "from distill.training import pretraining\n"
        f"STEPS = 4\nOUT_DIR = '{directory / 'model'}'\n{start}\n"
        "pretraining.run.save_every = 2\n" + "".join(f"{line}\n" for line in SMALLER[name])
    )
    arguments = ["--gin_file", f"runs/{name}.gin", "--gin_file", str(small), "--json"]
    return subprocess.run(
        [*COMMAND, *arguments, "--run_dir", str(directory / "run")],
        cwd=directory,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


COMMAND = (sys.executable, "-m", "distill", "pretrain")
SHAPE = [f"t5.T5Config.{name}" for name in ("embed_dim = 16", "num_encoder_layers = 1")]
SHAPE += ["t5.T5Config.num_decoder_layers = 1"]
SMALLER = {
    "builtin_teacher": [
        "decoder.DecoderConfig.embed_dim = 16",
        "decoder.DecoderConfig.num_layers = 1",
        "pretraining.LanguageModelBatches.batch_size = 2",
    ],
    "builtin_student_raw": [*SHAPE, "pretraining.SpanCorruptionBatches.batch_size = 2"],
    "builtin_student_instructed": [*SHAPE, "pretraining.InstructionBatches.batch_size = 2"],
}


@pytest.mark.slow
def test_training_by_the_file_of_flan_t5_xl_runs_small_on_a_host_of_eight(run_dir, start):
    required = {"STUDENT": str(start), "VOCABULARY": STUDENT, "TEACHER": "none"}
    given = [f"--gin.{name}='{value}'" for name, value in required.items()]
    small = ("STEPS=2", "train.run.workers=0", "train.run.tensorboard=False")
    small += ("FUSED_ATTENTION=True",)
    command = [sys.executable, "-m", "distill", "train", "--gin_file=runs/gsm8k_flan_t5_xl.gin"]
    command += [*given, *(f"--gin.{binding}" for binding in small), f"--run_dir={run_dir}"]
    done = subprocess.run(
        [*command, "--json"],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "8 x cpu (data 1, fsdp 8, tensor 1), 1 processes" in done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    settings = manifest(run_dir, "train")["settings"]
    chosen = {"dtype": "bfloat16", "fused_attention": True, "remat": True}
    assert settings["model_settings"] == chosen
    assert settings["loss"]["type"] == "Chunked" and settings["loss"]["positions"] == 128


def test_unknown_model_setting_and_bad_numbers_are_refused(run_dir, start):
    with pytest.raises(UserError, match=r"model_settings of .*dtype.*, got dtyp; correct"):
        run(run_dir=run_dir, student=str(start), model_settings={"dtyp": "bfloat16"}, **SMALL)
    with pytest.raises(UserError, match="batch_size >= 1, got 8 examples, 0"):
        run(run_dir=run_dir, student=str(start), **{**SMALL, "batch_size": 0})
    assert not (run_dir / "checkpoints").exists()
    assert not (run_dir / "manifests" / "train.json").exists()  # a corrected command begins


@pytest.mark.slow
def test_gin_file_of_the_teacher_runs_small(tmp_path):
    done = pretrain("builtin_teacher", tmp_path / "teacher")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 4
    model, params, _ = weights.load(tmp_path / "teacher" / "model")
    assert model.config.vocab_size == 1280 and model.config.embed_dim == 16
    trained = checkpoints.load_params(tmp_path / "teacher" / "run" / "checkpoints", 4)
    jax.tree.map(np.testing.assert_array_equal, params, trained)


@pytest.mark.slow
def test_gin_files_of_the_student_starts_run_small_one_after_the_other(tmp_path):
    done = pretrain("builtin_student_raw", tmp_path / "raw")
    assert done.returncode == 0, done.stderr
    after = tmp_path / "instructed"
    start = f"START = '{tmp_path / 'raw' / 'model'}'"
    done = pretrain("builtin_student_instructed", after, start)
    assert done.returncode == 0, done.stderr
    raw, tuned = (weights.load(tmp_path / name / "model")[1] for name in ("raw", "instructed"))
    first = checkpoints.load_params(after / "run" / "checkpoints", 2)
    assert not np.array_equal(
        raw["token_embedder"]["embedding"], tuned["token_embedder"]["embedding"]
    )
    assert jax.tree.structure(first) == jax.tree.structure(dict(tuned))
