"""Tokens per second of generation, beside transformers' `generate` in PyTorch on the same CPU.

    python benchmarks/generation.py [greedy] [sampling] [--pairs 5] [--json]

Both sides have the same weights in float32 and the same threads, and take turns in one process, so
that whatever else the machine does falls on both; the first turn of each, which compiles, does not
count. A ratio is the median over turns of ours to the peer's right after it. Needs the extra `hf`.

    greedy    T5 v1.1 small with 32,128 rows, random weights, 16 rows, 128 tokens read, 128 written:
              ids in, ids out; both must write the same
    sampling  the built-in student, 64 samples of each question at temperature 1: texts in, texts
              out; tokens are those drawn, ends included
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORK = ("greedy", "sampling")
STUDENT = "data/models/student_instructed"
MAX_NEW_TOKENS = 96

Turn = Callable[[int], tuple[int, Any]]  # number of the turn -> tokens written, what was written


def peer_of(model: Any, params: Any) -> Any:
    """Return transformers' model with our weights."""
    import torch
    import transformers

    from distill.models import hugging_face
    from distill.models.layers import by_path
    from distill.models.tensors import Tensor

    ours = {name: Tensor.of(array) for name, array in by_path(params).items()}
    theirs = hugging_face.renamed(ours, model.config)
    config = transformers.T5Config(**hugging_face.config_document(model.config))
    peer = transformers.T5ForConditionalGeneration(config)
    state = {name: torch.tensor(np.array(tensor.read())) for name, tensor in theirs.items()}
    if not model.config.logits_via_embedding:  # transformers ties the head until one is loaded
        peer.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"])
    peer.load_state_dict(state, strict=False)
    return peer.train(False)


def greedy(options: argparse.Namespace) -> tuple[Turn, Turn]:
    """Return our turn and the peer's at greedy decoding of random weights."""
    import jax
    import torch

    from distill.models import decoding, stopping
    from distill.models.t5 import T5Config, T5Model

    model = T5Model(T5Config(32_128, 512, 6, 64, 1024, 8, 8, dropout_rate=0.0))
    params = model.init(jax.random.key(0))
    peer, batch = peer_of(model, params), options.batch
    rows = np.random.default_rng(0).integers(2, 32_100, (batch, options.source), np.int32)
    prompts = decoding.Prompts(
        rows,
        np.full(batch, options.source, np.int32),
        np.arange(batch),
        np.zeros((batch, 0), np.int32),
        np.zeros(batch, np.int32),
        np.full(batch, stopping.INSIDE, np.int32),
    )
    every = np.ones(32_128, bool)
    table = np.full((8, 32_128), stopping.INSIDE, np.int32)  # no end, as for the peer
    vocabulary = decoding.Vocabulary(every, every, every, table, np.array(1, np.int32))
    seeds, drawn = np.zeros((batch, 2), np.uint32), decoding.greedy(batch)

    def ours(_: int) -> tuple[int, Any]:
        written = decoding.decode(
            model, params, prompts, seeds, drawn, vocabulary, options.target, k=1
        )
        return int(written.counts.sum()), written.ids[: options.target].T.tolist()

    def theirs(_: int) -> tuple[int, Any]:
        with torch.no_grad():
            ids = peer.generate(
                input_ids=torch.tensor(rows).long(),
                attention_mask=torch.ones(rows.shape, dtype=torch.long),
                max_new_tokens=options.target,
                do_sample=False,
                eos_token_id=None,
            )[:, 1:]
        return ids.numel(), ids.tolist()

    return ours, theirs


def sampling(options: argparse.Namespace) -> tuple[Turn, Turn]:
    """Return our turn and the peer's at 64 samples of each question of the built-in world."""
    import torch
    import transformers

    from distill.core import paths
    from distill.core.ports import Request, Sampling
    from distill.interop import export
    from distill.models.saved import SavedModel
    from distill.problems.builtin import arithmetic
    from distill.text import prompts

    path = paths.find(STUDENT, "the student")
    generator = SavedModel(str(path), batch_size=options.rows).generator
    peer = peer_of(generator.network, generator.params)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        _exported(export, generator, path, Path(options.folder))
    )
    problems = [arithmetic.problem("gsm", "train", n) for n in range(options.questions)]
    asked = [prompts.FORMATS["zero_shot_cot"].encoder_input(problem) for problem in problems]
    how = Sampling(1.0, MAX_NEW_TOKENS, top_logprobs=0)

    def ours(turn: int) -> tuple[int, Any]:
        requests = [
            Request(text, seed=turn << 32 | n << 16 | sample)
            for n, text in enumerate(asked)
            for sample in range(options.samples)
        ]
        found = dict(generator.generate(requests, how))
        written = [found[n].text for n in range(len(requests))]
        return sum(made.completion_tokens or 0 for made in found.values()), written

    def theirs(turn: int) -> tuple[int, Any]:
        torch.manual_seed(turn)
        drawn, written, together = 0, [], max(options.rows // options.samples, 1)
        for first in range(0, len(asked), together):
            batch = tokenizer(asked[first : first + together], return_tensors="pt", padding=True)
            with torch.no_grad():
                ids = peer.generate(
                    **batch,
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=options.samples,
                )[:, 1:]
            drawn += int(((ids == 1).cumsum(1) - (ids == 1).long() == 0).sum())
            written += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return drawn, written

    return ours, theirs


def _exported(export: Any, generator: Any, path: Path, folder: Path) -> Path:
    vocabulary = next(path.glob("*.model"))
    directory = folder / "student"
    export.export(directory, generator.network, generator.params, vocabulary, card="# A student\n")
    return directory


def timed(turn: Turn, number: int) -> tuple[float, Any]:
    """Return tokens per second of one turn, and what it wrote."""
    start = time.perf_counter()
    tokens, written = turn(number)
    return tokens / (time.perf_counter() - start), written


def measure(ours: Turn, theirs: Turn, pairs: int) -> dict[str, float]:
    """Let both sides take turns.

    Returns:
        Medians over the turns: `ours` and `theirs` in tokens per second, and `ratio` of them; and
        `same`, the share of the first turn's rows that both wrote, which is chance where they draw.
    """
    first, second = ours(0)[1], theirs(0)[1]
    turns = [(timed(ours, n)[0], timed(theirs, n)[0]) for n in range(1, pairs + 1)]
    return {
        "ours": statistics.median(mine for mine, _ in turns),
        "theirs": statistics.median(other for _, other in turns),
        "ratio": statistics.median(mine / other for mine, other in turns),
        "same": float(np.mean([a == b for a, b in zip(first, second, strict=True)])),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", choices=[[], *WORK], help="all by default")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="rows, greedy")
    parser.add_argument("--source", type=int, default=128, help="tokens read, greedy")
    parser.add_argument("--target", type=int, default=128, help="tokens written, greedy")
    parser.add_argument("--questions", type=int, default=8, help="sampling")
    parser.add_argument("--samples", type=int, default=64, help="of each question")
    parser.add_argument("--rows", type=int, default=128, help="that run together, sampling")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as options.folder:
        sides = {name: globals()[name](options) for name in options.work or WORK}
        found = {name: measure(*side, options.pairs) for name, side in sides.items()}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, figures in found.items():
            shown = "  ".join(f"{word} {figure:,.2f}" for word, figure in figures.items())
            print(f"{name:9} {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
