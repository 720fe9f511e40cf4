"""Training speed and peak memory on CPU, beside T5ForConditionalGeneration in PyTorch.

    python benchmarks/training.py [--pairs 7] [--steps 3]

The shape is T5 v1.1 small, fp32, dropout and AdamW on every side. Each side is a process of its
own; they take turns of a few steps, so that whatever else the machine does falls on all of them.
On a machine that others use too, compare CPU seconds on one core each (`--cores 1`): there no side
waits for its own threads.

    ours        the step that this project's trainer compiles, sparse KL on the top-5 in chunks
    ours remat  the same, and layers keep their inputs alone for the backward pass
    peer dense  the KL of Fu et al.'s code: a target of [batch, length, vocab] for each batch
    peer hard   likelihood of the tokens, no teacher

A ratio is the median over turns of a side's seconds to those of the first of `--sides` in the same
turn. Memory is the
largest resident set (ru_maxrss) less that after importing, compiling included. Needs the extra
`hf`.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

SIDES = ("ours remat", "ours", "peer dense", "peer hard")
VOCAB, EMBED, HEADS, KV, MLP = 32_128, 512, 6, 64, 1024
K = 5
RATE, CLIP, DECAY, DROPOUT = 5e-4, 5.0, 0.01, 0.1

Step = Callable[[], float]


# --- The work, the same for each side ----------------------------------------------------------


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """Return full rows of tokens and a teacher's top-5 with most of its mass."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows, length = options.batch, options.target
    ids = rng.permuted(np.tile(np.arange(2, VOCAB, dtype=np.int32), (rows, 1)), axis=1)
    top_ids = ids[:, : length * K].reshape(rows, length, K)
    probs = np.sort(rng.dirichlet(np.full(K + 1, 0.3), (rows, length)), -1)[..., :0:-1]
    targets = np.ascontiguousarray(top_ids[..., 0])
    return {
        "encoder_input_tokens": rng.integers(2, VOCAB, (rows, options.source), np.int32),
        "encoder_segment_ids": np.ones((rows, options.source), np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_segment_ids": np.ones((rows, length), np.int32),
        "decoder_target_tokens": targets,
        "decoder_target_top_ids": top_ids,
        "decoder_target_top_probs": probs.astype(np.float32),
        "decoder_loss_weights": np.ones((rows, length), np.float32),
    }


def ours(options: argparse.Namespace, *, remat: bool) -> Iterator[Step | None]:
    """Yield nothing after importing, then a call that takes one step and returns its loss."""
    import jax
    import numpy as np

    from distill.models import partitioning
    from distill.models.t5 import T5Config, T5Model
    from distill.training import placement
    from distill.training.losses import Chunked, DistributionMatching
    from distill.training.optimizers import AdamW, Constant
    from distill.training.step import compiled

    yield None
    layers = options.layers
    shape = T5Config(
        VOCAB, EMBED, HEADS, KV, MLP, layers, layers, dropout_rate=DROPOUT, remat=remat
    )
    model, optimizer = T5Model(shape), AdamW(Constant(RATE), weight_decay=DECAY, clip=CLIP)
    params, arrays, key = model.init(jax.random.key(0)), batch(options), jax.random.key(0)
    mesh = partitioning.mesh()
    layout = placement.state_layout(model, params, optimizer, mesh)
    rows = placement.batch_layout(arrays, mesh)
    advance = compiled(model, Chunked(DistributionMatching()), optimizer, 1, layout)
    placement.require_room(advance, layout, placement.stacked(rows, 1), key)
    state = placement.begin(params, layout, optimizer)
    del params

    def step() -> float:
        nonlocal state
        stack = placement.put({name: array[None] for name, array in arrays.items()}, rows)
        state, figures = advance(state, stack, key)
        return float(np.asarray(figures.nats / figures.weight)[0])

    yield step


def peer(options: argparse.Namespace, *, dense: bool) -> Iterator[Step | None]:
    """Yield as `ours` does."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(options.cores)
    yield None
    config = T5Config(
        vocab_size=VOCAB,
        d_model=EMBED,
        d_kv=KV,
        d_ff=MLP,
        num_layers=options.layers,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=DROPOUT,
        use_cache=False,
    )
    model = T5ForConditionalGeneration(config).train()
    model.lm_head.weight.data.mul_(EMBED**-0.5)  # logits of order 1, as ours start
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    arrays = {name: torch.from_numpy(array) for name, array in batch(options).items()}
    loss = dense_kl if dense else hard_nll

    def step() -> float:
        optimizer.zero_grad()
        logits = model(
            input_ids=arrays["encoder_input_tokens"],
            attention_mask=arrays["encoder_segment_ids"],
            decoder_input_ids=arrays["decoder_input_tokens"],
            decoder_attention_mask=arrays["decoder_segment_ids"],
        ).logits
        nats = loss(torch, logits, arrays)
        nats.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return nats.item()

    yield step


def dense_kl(torch: Any, logits: Any, arrays: dict[str, Any]) -> Any:
    """Return the mean KL as Fu et al. write it; their loop that fills the target is a scatter."""
    target = torch.zeros_like(logits)
    target.scatter_(-1, arrays["decoder_target_top_ids"].long(), arrays["decoder_target_top_probs"])
    probs, tiny = torch.softmax(logits, dim=-1), 1e-10
    nats = (target * torch.log(target / (probs + tiny) + tiny)).sum(-1)
    weights = arrays["decoder_loss_weights"]
    return (nats * weights).sum() / weights.sum()


def hard_nll(torch: Any, logits: Any, arrays: dict[str, Any]) -> Any:
    """Return the mean negative log-likelihood of the tokens."""
    targets = arrays["decoder_target_tokens"].long()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


# --- A side, in its process --------------------------------------------------------------------


def peak() -> int:
    """Return this process's largest resident set so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(options: argparse.Namespace) -> None:
    """Take as many steps as each line of standard input says, and answer with a line of JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.side.startswith("ours"):
        made = ours(options, remat="remat" in options.side)
    else:
        made = peer(options, dense="dense" in options.side)
    next(made)
    imported = peak()
    step = next(made)
    for line in sys.stdin:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        losses = [step() for _ in range(int(line))]
        found = {"seconds": time.perf_counter() - begin, "loss": losses[-1]}
        found["cpu_seconds"] = time.process_time() - begin_cpu
        print(json.dumps(found | {"peak": peak() - imported, "imported": imported}), flush=True)


# --- Taking turns ------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(side: str, options: argparse.Namespace) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Start a side and give a call that has it take steps."""
    names = ("batch", "source", "target", "layers", "cores")
    command = [sys.executable, __file__, "--side", side]
    command += [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def steps(count: int) -> dict[str, Any]:
            print(count, file=child.stdin, flush=True)
            return json.loads(child.stdout.readline())

        yield steps
        child.stdin.close()


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return what each side answered in each turn, after a turn that warms up."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    with contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(worker(side, options)) for side in options.sides}
        for steps in sides.values():
            steps(2)
        for _ in range(options.pairs):
            for side, steps in sides.items():
                turns[side].append(steps(options.steps))
    return turns


def summary(turns: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second, peak bytes and the ratios to the first side."""
    mine = turns[options.sides[0]]
    tokens = options.batch * (options.source + options.target) * options.steps
    found = {}
    for side, own in turns.items():
        found[side] = {
            "tokens_per_second": tokens / statistics.median(turn["seconds"] for turn in own),
            "speed": ratio(mine, own, "seconds"),
            "cpu_seconds_per_step": statistics.median(turn["cpu_seconds"] for turn in own)
            / options.steps,
            "cpu": ratio(mine, own, "cpu_seconds"),
            "peak_bytes": own[-1]["peak"],
            "imported_bytes": own[-1]["imported"],
            "memory_ratio": mine[-1]["peak"] / own[-1]["peak"],
        }
    return found


def ratio(
    mine: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str
) -> tuple[float, float, float]:
    """Return the median, the least and the largest of theirs to mine, turn by turn."""
    ratios = [other[name] / own[name] for own, other in zip(mine, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| side | tokens/s | time to first | CPU s a step | to first | peak, GB | first of it |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, row in found.items():
        speed, cpu = ("{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in ("speed", "cpu"))
        lines.append(
            f"| {side} | {row['tokens_per_second']:.0f} | {speed} "
            f"| {row['cpu_seconds_per_step']:.1f} | {cpu} "
            f"| {row['peak_bytes'] / 1e9:.2f} | {row['memory_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--source", type=int, default=128)
    parser.add_argument("--target", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8, help="of each tower")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="that a side may use")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="all to the first")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options)
        return
    found = summary(measure(options), options)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
