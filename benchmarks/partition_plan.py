r"""Plan how a published T5 shape lies on a mesh, and whether a training step fits a TPU slice.

    python benchmarks/partition_plan.py
    python benchmarks/partition_plan.py --shapes t5_1_1_xl --mesh 2 8 1 --lower --rows 16
    python benchmarks/partition_plan.py --shapes t5_1_1_xl --mesh 1 16 1 --topology v5e:4x4 \
        --rows 64 --microbatches 4

Nothing of a model is allocated: its shapes are evaluated and placed by the trainer's own rules, and
with --lower a training step in bfloat16 is traced and lowered for as many virtual CPU devices.
Activations are not counted then.

With --topology the step is compiled by XLA's own TPU compiler, for chips that need not be there
(as of `distill plan`: v4:2x2x2, v5e:4x4, …); its account of a chip's memory
holds everything, and what does not fit is refused by it. Needs the extra `tpu`, and minutes.

    python benchmarks/partition_plan.py --shapes t5_1_1_xl --mesh 1 1 1 --topology h100:1 \
        --rows 32 --lengths 512 256

GPUs that need not be there either: h100:1, or h100:8 of one host. Needs `jax[cuda12]`.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence

SHAPES = ("t5_1_1_base", "t5_1_1_large", "t5_1_1_xl", "t5_1_1_xxl")
# Of axes data, fsdp, tensor: one device, a host, slices of 16, 32 and 64.
MESHES = ((1, 1, 1), (1, 8, 1), (1, 16, 1), (2, 16, 1), (1, 16, 4))
HEADER = """\
| shape | parameters | devices | data x fsdp x tensor | GB of parameters | of AdamW's moments |
|---|---|---|---|---|---|"""
FITTED_HEADER = """\
| shape | remat | fused | slice | data x fsdp x tensor | rows, parts | GB kept | besides | time |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print a table in Markdown."""
    options = _parser().parse_args()
    meshes = [tuple(mesh) for mesh in options.mesh or MESHES]
    # JAX reads both when it is imported.
    devices = max(math.prod(mesh) for mesh in meshes)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(FITTED_HEADER if options.topology else HEADER)
    for name in options.shapes:
        for line in rows(name, meshes, options):
            print(line, flush=True)


def rows(name: str, meshes: Sequence[Sequence[int]], options: argparse.Namespace) -> Iterator[str]:
    """Yield the line of a shape on each mesh, and that a step was lowered where that is asked."""
    import jax

    from distill import config
    from distill.models import accelerators, partitioning
    from distill.models.t5 import T5Model

    config.load([f"models/{name}.gin"], [])
    shape = config.configured("distill.models.t5", "T5Config")
    remat = "xl" in name if options.remat is None else options.remat  # as runs/gsm8k_flan_t5_*.gin
    model = T5Model(shape(dtype="bfloat16", remat=remat, fused_attention=options.fused))
    params = jax.eval_shape(model.init, jax.random.key(0))
    for axes in meshes:
        if options.topology:
            mesh = partitioning.mesh(*axes, devices=accelerators.absent(options.topology))
            yield _fitted(name, model, params, mesh, options)
        else:
            mesh = partitioning.mesh(*axes, devices=jax.devices()[: math.prod(axes)])
            yield from _planned(name, model, params, mesh, options)


def _planned(name, model, params, mesh, options) -> Iterator[str]:
    import jax

    from distill.training import placement

    layout = placement.state_layout(model, params, optimizer(), mesh)
    if options.lower:
        start = time.perf_counter()
        lowered(model, layout, mesh, options)
        seconds = time.perf_counter() - start
        yield f"lowered {name} on {mesh.devices.shape} in {seconds:.0f} s"
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    sizes = [placement.bytes_per_device(part) / 1e9 for part in (layout.params, layout.optimizer)]
    cells = [name, f"{count:,}", mesh.size, _axes(mesh), *(f"{size:.2f}" for size in sizes)]
    yield f"| {' | '.join(map(str, cells))} |"


def _fitted(name, model, params, mesh, options) -> str:
    """Compile one step for the slice; tell what it holds, or why it does not fit."""
    import jax

    from distill.training import placement

    layout = placement.state_layout(model, params, optimizer(), mesh)
    step = lowered(model, layout, mesh, options)
    start = time.perf_counter()
    try:
        found = step.compile().memory_analysis()
        besides = found.temp_size_in_bytes + found.generated_code_size_in_bytes
        sizes = [f"{size / 1e9:.2f}" for size in (found.argument_size_in_bytes, besides)]
    except jax.errors.JaxRuntimeError as error:
        sizes = ["does not fit", str(error).partition("\n")[0]]
    batch = f"{options.rows}, {options.microbatches}"
    chosen = ("yes" if each else "no" for each in (model.config.remat, options.fused))
    told = [name, *chosen, options.topology, _axes(mesh), batch]
    return f"| {' | '.join([*told, *sizes, f'{time.perf_counter() - start:.0f} s'])} |"


def _axes(mesh) -> str:
    return " x ".join(map(str, mesh.devices.shape))


def optimizer():
    """Return the run files' optimizer."""
    from distill.training.optimizers import AdamW, Constant

    return AdamW(schedule=Constant(5e-4, warmup=10), weight_decay=0.01, clip=5.0)


def lowered(model, layout, mesh, options):
    """Trace and lower one step of the trainer."""
    import jax
    import numpy as np

    from distill.training import placement
    from distill.training.losses import Chunked, DistributionMatching
    from distill.training.step import compiled

    source, target = (np.zeros((options.rows, length), np.int32) for length in options.lengths)
    top = np.zeros((options.rows, options.lengths[1], 5))
    batch = {f"encoder_{name}": source for name in ("input_tokens", "segment_ids", "positions")}
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    batch |= {f"decoder_{name}": target for name in names}
    batch |= {"decoder_loss_weights": target.astype(np.float32)}
    batch |= {"decoder_target_top_ids": top.astype(np.int32)}
    batch |= {"decoder_target_top_probs": top.astype(np.float32)}
    rows = placement.batch_layout(batch, mesh, options.microbatches)
    loss = Chunked(DistributionMatching(), 128)
    step = compiled(model, loss, optimizer(), options.microbatches, layout)
    key = jax.eval_shape(jax.random.key, 0)
    return step.lower(layout, placement.stacked(rows, 1), key)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="gin files of models/")
    parser.add_argument(
        "--mesh", nargs=3, type=int, action="append", metavar=("DATA", "FSDP", "TENSOR")
    )
    parser.add_argument("--lower", action="store_true", help="trace and lower a step as well")
    parser.add_argument(
        "--topology", help="of TPUs, such as v5e:4x4, or h100:1; the meshes are over its chips"
    )
    parser.add_argument("--rows", type=int, default=16, help="of a batch, %(default)s")
    parser.add_argument("--microbatches", type=int, default=1, help="%(default)s")
    parser.add_argument(
        "--remat", action=argparse.BooleanOptionalAction, help="for XL and larger by default"
    )
    parser.add_argument("--fused", action="store_true", help="attention in one kernel")
    parser.add_argument(
        "--lengths", nargs=2, type=int, default=(1024, 256), help="source and target, %(default)s"
    )
    return parser


if __name__ == "__main__":
    main()
