"""An exported student in transformers, in another process, against the checkpoint it came from.

    python benchmarks/export_parity.py RUN_DIR [--problems 100] [--json]

Asks built-in problems of a random mixture of families. Compares the prompts' ids, the greedy
answers, and the float32 logits at each of their steps. Needs the extra `hf`; under a minute on two
CPU cores. Exits with 1 where an answer differs, or a logit does by more than float32 explains.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

MAX_NEW_TOKENS = 96
# Of the largest logit: float32 programs that sum some 10,000 terms in other orders differ by about
# 4 sqrt(n) u, with u = 2**-24 (Higham and Mary 2019, SIAM J. Sci. Comput. 41:A2815).
TOLERANCE = 4 * 10_000**0.5 * 2**-24
BATCH = 25


def prompts_of(n: int, seed: int = 0) -> list[str]:
    """Return zero-shot prompts of n problems, family, split and format drawn at random."""
    from distill.problems.builtin import arithmetic
    from distill.text import prompts

    choice = random.Random(seed)
    families = (*arithmetic.FAMILIES, arithmetic.SINGLE_STEP, *arithmetic.GENERAL)
    formats = ("zero_shot_cot", "zero_shot_answer")
    found = []
    for number in range(n):
        family = choice.choice(families)
        problem = arithmetic.problem(family, arithmetic.splits(family)[-1], number)
        found.append(prompts.FORMATS[choice.choice(formats)].encoder_input(problem))
    return found


def in_transformers(directory: Path, asked: Sequence[str], folder: Path) -> list[dict]:
    """Ask the exported directory in another process.

    Args:
        directory: of `distill export`.
        asked: prompts.
        folder: receives the files that the processes exchange.

    Returns:
        A batch each: `input_ids` [batch, source], `ids` [batch, length] from the start token,
        `logits` [batch, length, vocab], and `texts`.

    Raises:
        subprocess.CalledProcessError: the other process failed.
    """
    (folder / "asked.json").write_text(json.dumps(list(asked)))
    command = [sys.executable, str(Path(__file__).resolve())]
    command += ["--child", str(directory), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    texts = json.loads((folder / "texts.json").read_text())
    found = []
    for number, of_batch in enumerate(texts):
        with np.load(folder / f"{number}.npz") as arrays:
            found.append({**arrays, "texts": of_batch})
    return found


def child(directory: Path, folder: Path) -> None:
    """Answer as a user of the exported directory does; runs without this project."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory)
    model.train(False)
    asked = json.loads((folder / "asked.json").read_text())
    texts = []
    for number, first in enumerate(range(0, len(asked), BATCH)):
        batch = tokenizer(asked[first : first + BATCH], return_tensors="pt", padding=True)
        with torch.no_grad():
            ids = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS)
            logits = model(**batch, decoder_input_ids=ids).logits
        arrays = {"input_ids": batch.input_ids, "ids": ids, "logits": logits}
        np.savez(folder / f"{number}.npz", **{name: x.numpy() for name, x in arrays.items()})
        texts.append(tokenizer.batch_decode(ids, skip_special_tokens=True))
    (folder / "texts.json").write_text(json.dumps(texts))
    imported = [name for name in sys.modules if name.partition(".")[0] in ("distill", "jax")]
    if imported:
        raise ImportError(f"expected neither distill nor jax in this process, got {imported}")


def compare(directory: Path, generator, asked: Sequence[str], folder: Path) -> dict[str, float]:
    """Count what agrees between an exported directory and the model it came from.

    Args:
        directory: of `distill export`.
        generator: a LocalGenerator of the same parameters.
        asked: prompts.
        folder: for the files that the processes exchange.

    Returns:
        `prompts`, and of them `same_ids` and `same_answers`; `positions`, the decoder steps whose
        logits were compared, and `largest_difference` of a logit as a share of the largest logit.
    """
    from distill.core.ports import Request, Sampling

    batches = in_transformers(directory, asked, folder)
    sampling = Sampling(0.0, MAX_NEW_TOKENS, top_logprobs=0)
    answers = dict(generator.generate([Request(text) for text in asked], sampling))
    theirs = [text for batch in batches for text in batch["texts"]]
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    ours = [[*generator.tokenizer.encode(text), generator.tokenizer.eos_id] for text in asked]
    pairs = zip(rows, ours, strict=True)
    differences = np.concatenate([_differences(generator, batch) for batch in batches])
    largest = max(float(np.abs(batch["logits"]).max()) for batch in batches)
    return {
        "prompts": len(asked),
        "same_ids": sum(row == [*wanted, *[0] * (len(row) - len(wanted))] for row, wanted in pairs),
        "same_answers": sum(answers[i].text == text for i, text in enumerate(theirs)),
        "positions": len(differences),
        "largest_difference": float(differences.max()) / largest,
    }


def _differences(generator, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the largest difference of a logit at each decoder step up to the end."""
    import jax

    ids = batch["ids"]
    towers = {"encoder_input_tokens": batch["input_ids"], "decoder_input_tokens": ids}
    logits = jax.jit(generator.network.logits)(generator.params, towers)
    written = np.cumsum(ids == generator.tokenizer.eos_id, axis=1) == 0
    return np.abs(np.asarray(logits) - batch["logits"]).max(axis=2)[written]


def of_run(run_dir: Path, n: int) -> dict[str, float]:
    """Compare RUN_DIR/export with the checkpoint that was chosen."""
    from distill.core.store import read_json
    from distill.training.evaluate import students

    step = read_json(run_dir / "reports" / "selection.json")["chosen_step"]
    generator = students(run_dir, n)(step)
    with tempfile.TemporaryDirectory() as folder:
        return compare(run_dir / "export", generator, prompts_of(n), Path(folder))


def main() -> int:
    """Compare and print; 1 where the two disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = of_run(options.run_dir, options.problems)
    lines = [f"{name:20}{value:10.6g}" for name, value in found.items()]
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines))
    same = found["same_ids"] == found["same_answers"] == found["prompts"]
    return 0 if same and found["largest_difference"] <= TOLERANCE else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main())
