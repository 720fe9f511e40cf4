r"""Training speed and peak memory, beside T5ForConditionalGeneration in PyTorch.

    python benchmarks/training.py [--pairs 7] [--steps 3]
    python benchmarks/training.py --device accelerator --dtype bfloat16 --compile \
        --shape xl --sides "ours remat" "peer dense remat" "peer hard remat"

The shape is one of T5 v1.1 (small by default), with dropout and AdamW on every side; in bfloat16
parameters and moments stay float32. Each side is a process of its own.

    ours        the step that this project's trainer compiles, sparse KL on the top-5 in chunks
    peer dense  the KL of Fu et al.'s code: a target of [batch, length, vocab] for each batch
    peer hard   likelihood of the tokens, no teacher
    … remat     the same, and layers keep their inputs alone for the backward pass
    ours fused  attention in one kernel, where this is a TPU

On CPU the sides take turns of a few steps, so that whatever else the machine does falls on all of
them. On a machine that others use too, compare CPU seconds on one core each (`--cores 1`): there no
side waits for its own threads. An accelerator holds one side at a time, so there each takes its
turns, and is gone before the next begins; a side that fails, such as for memory, is told with its
reason, and the others go on.

A ratio is the median over turns of a side's seconds to those of the first of `--sides` in the same
turn. Memory on CPU is the largest resident set (ru_maxrss) less that after importing, compiling
included; on an accelerator the most bytes that its allocator had in use. The share of the peak is
the step's model FLOPs, rematerialisation not counted, over what the maker says of the device. Needs
the extra `hf`.
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
from typing import Any, NamedTuple

from distill.core.errors import UserError

SIDES = ("ours remat", "ours", "peer dense", "peer hard")
FUSED_SIDES = ("ours fused", "ours fused remat")
# Too little memory, no such device, nothing compiled: the other sides go on.
FAILURES = (RuntimeError, AssertionError, MemoryError, UserError)
REMAT_SIDES = ("peer dense remat", "peer hard remat")
VOCAB, KV, K = 32_128, 64, 5
RATE, CLIP, DECAY, DROPOUT = 5e-4, 5.0, 0.01, 0.1

Step = Callable[[], float]


class Shape(NamedTuple):
    """What differs between the sizes of T5 v1.1."""

    embed: int
    heads: int
    mlp: int
    layers: int


SHAPES = {
    "small": Shape(512, 6, 1024, 8),
    "base": Shape(768, 12, 2048, 12),
    "large": Shape(1024, 16, 2816, 24),
    "xl": Shape(2048, 32, 5120, 24),
}


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


def ours(options: argparse.Namespace, *, remat: bool, fused: bool) -> Iterator[Step | None]:
    """Yield nothing after importing, then a call that takes one step and returns its loss."""
    import jax
    import numpy as np

    from distill.models import partitioning
    from distill.models.t5 import T5Model
    from distill.training import placement
    from distill.training.losses import Chunked, DistributionMatching
    from distill.training.optimizers import AdamW, Constant
    from distill.training.step import compiled

    yield None
    config = our_config(options, remat=remat, fused=fused)
    model, optimizer = T5Model(config), AdamW(Constant(RATE), weight_decay=DECAY, clip=CLIP)
    if options.device == "accelerator" and jax.default_backend() == "cpu":
        raise RuntimeError("JAX finds no accelerator")
    params, arrays, key = model.init(jax.random.key(0)), batch(options), jax.random.key(0)
    mesh = partitioning.mesh()
    layout = placement.state_layout(model, params, optimizer, mesh)
    rows = placement.batch_layout(arrays, mesh)
    advance = compiled(model, Chunked(DistributionMatching()), optimizer, 1, layout)
    placement.require_room(advance, layout, placement.stacked(rows, 1), key)
    state = placement.initial_state(params, layout, optimizer)
    del params

    def step() -> float:
        nonlocal state
        stack = placement.put({name: array[None] for name, array in arrays.items()}, rows)
        state, figures = advance(state, stack, key)
        return float(np.asarray(figures.nats / figures.weight)[0])

    yield step


def our_config(options: argparse.Namespace, *, remat: bool = False, fused: bool = False) -> Any:
    """Return the shape as ours."""
    from distill.models.t5 import T5Config

    shape = SHAPES[options.shape]
    layers = options.layers or shape.layers
    return T5Config(
        *(VOCAB, shape.embed, shape.heads, KV, shape.mlp, layers, layers),
        dropout_rate=DROPOUT,
        dtype=options.dtype,
        remat=remat,
        fused_attention=fused,
    )


def peer(options: argparse.Namespace, *, dense: bool, remat: bool) -> Iterator[Step | None]:
    """Yield as `ours` does."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(options.cores)
    torch.set_float32_matmul_precision("high")  # what bfloat16 leaves in float32
    device = "cuda" if options.device == "accelerator" else "cpu"
    yield None
    shape = SHAPES[options.shape]
    config = T5Config(
        vocab_size=VOCAB,
        d_model=shape.embed,
        d_kv=KV,
        d_ff=shape.mlp,
        num_layers=options.layers or shape.layers,
        num_heads=shape.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=DROPOUT,
        use_cache=False,
    )
    with torch.device(device):
        model = T5ForConditionalGeneration(config).train()
    model.lm_head.weight.data.mul_(shape.embed**-0.5)  # logits of order 1, as ours start
    if remat:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    arrays = {name: torch.from_numpy(array).to(device) for name, array in batch(options).items()}
    loss = dense_kl if dense else hard_nll
    bf16 = torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def forward() -> Any:
        logits = model(
            input_ids=arrays["encoder_input_tokens"],
            attention_mask=arrays["encoder_segment_ids"],
            decoder_input_ids=arrays["decoder_input_tokens"],
            decoder_attention_mask=arrays["decoder_segment_ids"],
        ).logits
        return loss(torch, logits.float(), arrays)

    forward = torch.compile(forward) if options.compile else forward

    def step() -> float:
        optimizer.zero_grad()
        with bf16:
            nats = forward()
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


def work(options: argparse.Namespace) -> None:
    """Take as many steps as each line of standard input says, and answer with a line of JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    ours_side = options.side.startswith("ours")
    remat = options.side.endswith("remat")
    if ours_side:
        made = ours(options, remat=remat, fused="fused" in options.side)
    else:
        made = peer(options, dense="dense" in options.side, remat=remat)
    next(made)
    imported = resident()
    try:
        step = next(made)
        for line in sys.stdin:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            losses = [step() for _ in range(int(line))]
            found: dict[str, Any] = {"seconds": time.perf_counter() - begin, "loss": losses[-1]}
            found["cpu_seconds"] = time.process_time() - begin_cpu
            print(json.dumps(found | {"imported": imported, **used(options, imported)}), flush=True)
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        print(json.dumps({"failed": reason}), flush=True)


def resident() -> int:
    """Return this process's largest resident set so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def used(options: argparse.Namespace, imported: int) -> dict[str, Any]:
    """Return which device it is and the most bytes that were in use."""
    if options.device == "cpu":
        return {"device": "cpu", "peak": resident() - imported}
    if options.side.startswith("ours"):
        import jax

        device = jax.devices()[0]
        most = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
        return {"device": device.device_kind, "peak": most}
    import torch

    return {"device": torch.cuda.get_device_name(), "peak": torch.cuda.max_memory_allocated()}


# --- Taking turns ------------------------------------------------------------------------------

Turn = dict[str, Any]


@contextlib.contextmanager
def worker(side: str, options: argparse.Namespace) -> Iterator[Callable[[int], Turn]]:
    """Start a side and give a call that has it take steps."""
    names = ("shape", "dtype", "device", "batch", "source", "target", "layers", "cores")
    command = [
        sys.executable,
        "-W",
        "ignore::FutureWarning",
        __file__,
        "--side",
        side,
        *["--compile"] * options.compile,
    ]
    command += [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    cpu = options.device == "cpu"
    variables = {"JAX_PLATFORMS": "cpu"} if cpu else {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as child:

        def steps(count: int) -> Turn:
            with contextlib.suppress(BrokenPipeError):
                print(count, file=child.stdin, flush=True)
            answer = child.stdout.readline()
            return json.loads(answer) if answer else {"failed": "it ended without a word"}

        yield steps
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def measure(options: argparse.Namespace) -> dict[str, list[Turn]]:
    """Return what each side answered in each turn, after a turn that warms up.

    A side that failed has one answer, with the reason.
    """
    if options.device == "accelerator":
        return {side: alone(side, options) for side in options.sides}
    turns: dict[str, list[Turn]] = {side: [] for side in options.sides}
    with contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(worker(side, options)) for side in options.sides}
        warm = {side: steps(2) for side, steps in sides.items()}
        for _ in range(options.pairs):
            for side, steps in sides.items():
                turns[side].append(warm[side] if "failed" in warm[side] else steps(options.steps))
    return {side: failed(own) or own for side, own in turns.items()}


def alone(side: str, options: argparse.Namespace) -> list[Turn]:
    """Return the answers of a side that has the device for itself."""
    with worker(side, options) as steps:
        print(f"{side}: warming up", file=sys.stderr, flush=True)
        answers = [steps(2)]
        while "failed" not in answers[-1] and len(answers) <= options.pairs:
            answers.append(steps(options.steps))
    print(f"{side}: {answers[-1]}", file=sys.stderr, flush=True)
    return failed(answers) or answers[1:]


def failed(answers: list[Turn]) -> list[Turn]:
    """Return the first answer that tells of a failure, alone, or nothing."""
    return [answer for answer in answers if "failed" in answer][:1]


def summary(turns: dict[str, list[Turn]], options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second, peak bytes, the ratios to the first side, and who failed how."""
    mine = turns[options.sides[0]]
    found = {}
    for side, own in turns.items():
        if failed(own):
            found[side] = own[0]
            continue
        seconds = statistics.median(turn["seconds"] for turn in own) / options.steps
        found[side] = {
            "device": own[-1]["device"],
            "tokens_per_second": options.batch * (options.source + options.target) / seconds,
            "share_of_peak": share_of_peak(own[-1]["device"], seconds, options),
            "cpu_seconds_per_step": statistics.median(turn["cpu_seconds"] for turn in own)
            / options.steps,
            "peak_bytes": own[-1]["peak"],
            "imported_bytes": own[-1]["imported"],
        }
        if not failed(mine):
            found[side] |= {
                "speed": ratio(mine, own, "seconds"),
                "cpu": ratio(mine, own, "cpu_seconds"),
                "memory_ratio": mine[-1]["peak"] / own[-1]["peak"],
            }
    return found


def share_of_peak(device: str, seconds: float, options: argparse.Namespace) -> float | None:
    """Return a step's model FLOPs over what the device could do meanwhile, None if not known."""
    from distill.models import accelerators, flops

    peak = accelerators.peak_flops(device)
    row = flops.training_flops(our_config(options), options.source, options.target)
    return peak and options.batch * row / seconds / peak


def ratio(mine: list[Turn], theirs: list[Turn], name: str) -> tuple[float, float, float]:
    """Return the median, the least and the largest of theirs to mine, turn by turn."""
    ratios = [other[name] / own[name] for own, other in zip(mine, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| side | tokens/s | share of peak | time to first | CPU s a step | to first | peak, GB "
        "| first of it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, row in found.items():
        told = [row["failed"], *[""] * 6] if "failed" in row else cells(row)
        lines.append(f"| {side} | {' | '.join(told)} |")
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> list[str]:
    """Return what the table says of a side that did not fail."""
    share, ratios = row["share_of_peak"], [row.get(name) for name in ("speed", "cpu")]
    speed, cpu = ("{:.2f} [{:.2f}, {:.2f}]".format(*each) if each else "" for each in ratios)
    return [
        f"{row['tokens_per_second']:.0f}",
        f"{100 * share:.1f} %" if share else "",
        speed,
        f"{row['cpu_seconds_per_step']:.1f}",
        cpu,
        f"{row['peak_bytes'] / 1e9:.2f}",
        f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of T5 v1.1, %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "accelerator"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="the peer by torch.compile")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--source", type=int, default=128)
    parser.add_argument("--target", type=int, default=128)
    parser.add_argument("--layers", type=int, default=0, help="of each tower, 0 for the shape's")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="that a side may use")
    sides = (*SIDES, *FUSED_SIDES, *REMAT_SIDES)
    parser.add_argument("--sides", nargs="+", choices=sides, default=SIDES, help="all to the first")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options)
        return
    found = summary(measure(options), options)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
