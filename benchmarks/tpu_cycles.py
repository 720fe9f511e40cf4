r"""How long XLA's TPU compiler expects a training step to take on a chip that need not be there.

    python benchmarks/tpu_cycles.py --shape t5_1_1_base
    python benchmarks/tpu_cycles.py --shape t5_1_1_xl --layers 3 --remat --fused

A step in bfloat16 is compiled for one v5e chip. The compiler writes the cycles that it expects
beside each instruction; of a kernel it writes the schedule, whose length times the kernel's blocks
are its cycles. The cycles that the step's model FLOPs take at the chip's peak, over the sum, are
the share of the peak that the compiler expects. Nothing is run: memory that is waited for, and
what chips tell each other, are not in it.

XL's state is larger than the chip, so it is compiled with fewer layers; logits and the update of
the embeddings then weigh more than they do. Needs the extra `tpu`, and a few minutes.
"""

import argparse
import collections
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOPOLOGY, FLOPS_PER_CYCLE = "v5e:1x1", 4 * 128 * 128 * 2  # four units of 128 x 128
KERNEL = re.compile(
    r"%attention_(forward|backward)[.\d]* = .* operand_layout_constraints=(.*?)\}\}"
)
HEAD_DIM = 64
PARTS = (
    ("attention: scores to values", r"attention\.attend/(?!query|out|dropout)"),
    ("attention: projections", r"/(query|out)/|keys_values"),
    ("dropout", "dropout"),
    ("feed-forward", "/mlp/"),
    ("norms", "layer_norm|_norm/"),
    ("loss and logits", "while/body|project"),
)


def main() -> None:
    """Print a table in Markdown."""
    options = _parser().parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.kernel:
        compile_kernel(*options.kernel)
        return
    text, ideal, besides = compiled(options)
    cycles = parts(text)
    cycles["attention: kernels"] = kernels(text)
    total = sum(cycles.values())
    print(f"| part | share of {total / 1e6:.0f} million cycles |\n|---|---|")
    for part, own in cycles.most_common():
        if own:
            print(f"| {part} | {100 * own / total:.1f} % |")
    print(
        f"\nShare of the peak: {100 * ideal / total:.1f} %; working memory {besides / 1e9:.2f} GB."
    )


def compiled(options: argparse.Namespace) -> tuple[str, float, int]:
    """Return the program's text, the cycles of its model FLOPs at the peak, its working memory."""
    import dataclasses

    import jax
    import partition_plan

    from distill import config
    from distill.models import flops, partitioning
    from distill.models.t5 import T5Model
    from distill.training import placement

    config.load([f"models/{options.shape}.gin"], [])
    shape = config.configured("distill.models.t5", "T5Config")
    own = shape(dtype="bfloat16", remat=options.remat, fused_attention=options.fused)
    if options.layers:
        layers = {"num_encoder_layers": options.layers, "num_decoder_layers": options.layers}
        own = dataclasses.replace(own, **layers)
    model = T5Model(own)
    params = jax.eval_shape(model.init, jax.random.key(0))
    mesh = partitioning.mesh(devices=chip())
    layout = placement.state_layout(model, params, partition_plan.optimizer(), mesh)
    program = partition_plan.lowered(model, layout, mesh, options).compile()
    needed = options.rows * flops.training_flops(own, *options.lengths)
    memory = program.memory_analysis().temp_size_in_bytes
    return program.as_text(), needed / FLOPS_PER_CYCLE, memory


def parts(text: str) -> collections.Counter[str]:
    """Return the parts of the step with the cycles that stand beside their instructions."""
    found: collections.Counter[str] = collections.Counter()
    for line, times in executed(text):
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        if cycles:
            found[part(line)] += times * int(cycles[1])
    return found


def part(line: str) -> str:
    """Return which part of the step an instruction belongs to, by where it was traced."""
    named = re.search(r'op_name="([^"]*)"', line)
    origin = named[1] if named else ""
    if origin.startswith("jit(call)/") and origin.count("/") <= 2:
        return "optimizer"
    return next((name for name, pattern in PARTS if re.search(pattern, origin)), "other")


def executed(text: str) -> Iterator[tuple[str, int]]:
    """Yield the instructions of the entry and of its loops, and how often each is executed."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start:
            name = start[2]
            entry = name if start[1] else entry
        elif line.startswith("  "):
            bodies.setdefault(name, []).append(line)

    def walk(name: str, times: int) -> Iterator[tuple[str, int]]:
        for line in bodies[name]:
            body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if body:
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                yield from walk(body[1], times * (int(count[1]) if count else 1))
            else:
                yield line, times

    yield from walk(entry, 1)


def kernels(text: str) -> int:
    """Return the cycles of all calls of kernels: each one's blocks times its schedule's length."""
    calls: collections.Counter[tuple[str, ...]] = collections.Counter()
    for line, times in executed(text):
        call = KERNEL.search(line)
        if call:
            kind, operands = call.groups()
            queries, keys = re.findall(r"bf16\[([\d,]+)\]", operands)[:2]
            source, biased = keys.split(",")[1], str(int("f32[" in operands))
            calls[kind, *queries.split(","), source, biased] += times
    return sum(times * schedule(call) for call, times in calls.items())


def schedule(call: tuple[str, ...]) -> int:
    """Return the cycles of one call, by the schedule that the compiler writes of it alone."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        done = subprocess.run(  # the flags are read when the compiler is loaded
            [sys.executable, __file__, "--kernel", *call],
            env={**os.environ, "LIBTPU_INIT_ARGS": flags, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
        pattern = f"*attention_{call[0]}*-schedule-analysis_final_bundles.txt"
        (path,) = Path(folder).glob(pattern)
        (bundles,) = re.findall(r"total scheduled bundles:\s+(\d+)", path.read_text())
    return int(done.stdout) * int(bundles)


def compile_kernel(kind: str, *sizes: str) -> None:
    """Compile one kernel alone, and print how many blocks it has."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from distill.models import attention

    batch, length, width, source, biased = map(int, sizes)
    place = NamedSharding(Mesh(np.array(chip()), ("chip",)), PartitionSpec())

    def array(*shape: int, dtype: str = "bfloat16"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    queries, keys = array(batch, length, width), array(batch, source, width)
    heads = width // HEAD_DIM
    rest = (
        array(1, heads, length, source, dtype="float32") if biased else None,
        array(batch, 1, length, source, dtype="bool"),
    )
    rows = (queries, keys, keys, *[queries] * (kind == "backward"))
    call = attention.forward if kind == "forward" else attention.backward
    jax.jit(lambda *given: call(HEAD_DIM, None, *given)).lower(*rows, *rest).compile()
    print(math.prod(attention.Blocks.of(queries, keys, HEAD_DIM).grid))


def chip():
    """Return the chip, which need not be there, in a list."""
    from distill.models import accelerators

    return accelerators.absent(TOPOLOGY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="t5_1_1_base", help="gin file of models/, %(default)s")
    parser.add_argument("--layers", type=int, default=0, help="of each tower, 0 for the shape's")
    parser.add_argument("--remat", action="store_true", help="layers keep their inputs alone")
    parser.add_argument("--fused", action="store_true", help="attention in one kernel")
    parser.add_argument("--rows", type=int, default=32, help="of a batch, %(default)s")
    parser.add_argument("--microbatches", type=int, default=1, help="%(default)s")
    parser.add_argument("--kernel", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument(
        "--lengths", nargs=2, type=int, default=(512, 256), help="source and target, %(default)s"
    )
    return parser


if __name__ == "__main__":
    main()
