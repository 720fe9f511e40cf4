"""Compile a training step for accelerators and report whether it fits; needs no accelerator.

The flags are those of `distill train`. The command reads the gin files and the shapes of the
initial weights and writes nothing. The compiler for TPUs comes with `pip install 'jax[tpu]'`, the
compiler for GPUs with `jax[cuda12]`; compiling a large model takes minutes.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Compile one step for the devices and print the memory that each device needs.

    Raises:
        UserError: the step does not fit, the devices are unknown, or a setting is invalid.
    """
    options, rest = _parser().parse_known_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads these when it is imported
    kind, _, count = options.on.partition(":")
    if kind == "cpu" and count.isdecimal():
        flag = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    from distill import config
    from distill.core import terminal

    modules = ["distill.targets.dataset", "distill.training.train"]
    config.load(options.gin_file, config.overrides(rest), options.gin_search_paths, modules)
    lengths, training = (config.bound(module, "run") for module in modules)
    figures = plan(options.on, options.run_dir, lengths, training)
    terminal.show(json.dumps(figures) if options.json else _summary(figures))
    return 0


def plan(
    on: str, run_dir: Path, lengths: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the memory of a step on each device and the least time that it takes.

    Args:
        on: the devices, as `accelerators.absent` takes them.
        run_dir: the run, whose initial weights are used if `training` names none.
        lengths: arguments of `dataset.run`: source_length, target_length, k.
        training: arguments of `train.run`.

    Returns:
        `devices`, `kind`, `mesh`, `batch_size`, `microbatches`, `bytes_kept` (state and batch),
        `bytes_besides` (temporaries), `bytes_limit`, `seconds_at_peak` of a step (None if the
        devices' peak is unknown) and `seconds_compiling`.

    Raises:
        UserError: the step does not fit, or it cannot be partitioned over the devices.
    """
    import jax

    from distill.models import accelerators
    from distill.training import placement, train
    from distill.training.step import compiled

    parts, rules, optimizer = (training[each] for each in ("microbatches", "rules", "optimizer"))
    settings = training["model_settings"] or {}
    model, params = train.start_of(run_dir, training["student"], settings)
    devices = accelerators.absent(on)
    mesh = training["mesh"](devices=devices)
    layout = placement.state_layout(model, params, optimizer, mesh, rules)
    rows = placement.batch_layout(padding_batch(lengths, training["batch_size"]), mesh, parts)
    advance = compiled(model, training["loss"], optimizer, parts, layout, rules)
    stack = placement.stacked(rows, training["steps_per_call"])
    key, start = jax.eval_shape(jax.random.key, 0), time.perf_counter()
    kept, besides, limit = placement.require_room(advance, layout, stack, key, devices[0])
    return {
        "devices": mesh.size,
        "kind": devices[0].device_kind,
        "mesh": dict(mesh.shape),
        "batch_size": training["batch_size"],
        "microbatches": parts,
        "bytes_kept": kept,
        "bytes_besides": besides,
        "bytes_limit": limit,
        "seconds_at_peak": train.seconds_at_peak(model, rows, mesh),
        "seconds_compiling": round(time.perf_counter() - start, 1),
    }


def padding_batch(lengths: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return a batch of padding with the shapes and dtypes of stage `dataset`.

    Args:
        lengths: source_length, target_length and k.
        size: rows of the batch.

    Returns:
        The arrays of `PackedExample` by field, each with `size` rows.
    """
    import dataclasses

    import numpy as np

    from distill.core.records import PackedExample

    def shape(name: str) -> tuple[int, ...]:
        length = lengths["source_length" if name.startswith("encoder") else "target_length"]
        return (size, length, lengths["k"]) if "_top_" in name else (size, length)

    def dtype(name: str) -> type[np.generic]:
        return np.float32 if name.endswith(("_weights", "_probs")) else np.int32

    names = [field.name for field in dataclasses.fields(PackedExample)]
    return {name: np.broadcast_to(dtype(name)(0), shape(name)) for name in names}


def _summary(figures: Mapping[str, Any]) -> str:
    axes = ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    kept, besides, limit = (figures[f"bytes_{each}"] / 1e9 for each in ("kept", "besides", "limit"))
    batch = f"{figures['batch_size']} rows in {figures['microbatches']} microbatches"
    lines = [
        f"{figures['devices']} x {figures['kind']} ({axes}), {batch}: a step fits",
        f"a device holds {kept:.3g} GB of state and batch and {besides:.3g} GB of temporaries, "
        f"its limit is {limit:.3g} GB",
    ]
    if figures["seconds_at_peak"]:
        lines += [f"at the devices' peak a step would take {figures['seconds_at_peak']:.2g} s"]
    return "\n".join(
        [*lines, f"compiled in {figures['seconds_compiling']:.0f} s, nothing was executed"]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--gin.NAME=VALUE as in `distill train`",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--on", required=True, help="v5e:4x4, v4:2x2x4, v5p:…, v6e:…, h100:8, cpu:8"
    )
    parser.add_argument("--gin_file", action="append", default=[], help="a gin file; repeatable")
    parser.add_argument(
        "--gin_search_paths", action="append", default=[], help="directory of gin files; repeatable"
    )
    parser.add_argument("--run_dir", type=Path, default=Path("runs/quickstart"), help="%(default)s")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser
