"""What the maker of an accelerator says of it, and what memory there is; it measures nothing.

Devices that are not here may be described to XLA, so that it compiles for them (`absent`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from distill.core.errors import UserError

# Dense bfloat16 FLOPs per second of one device, by the start of JAX's `device_kind`; the longest
# that fits counts. TPUs: cloud.google.com/tpu/docs, "Peak compute per chip (bf16)" of v4, v5e, v5p
# and v6e. GPUs: NVIDIA's data sheets of A100, H100 and H200, half of the figure "with sparsity".
PEAK_FLOPS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
# Bytes of one device, by the same names and sources; what XLA may use of them is a little less.
MEMORY_BYTES: Mapping[str, int] = {
    "TPU v4": 32 << 30,
    "TPU v5 lite": 16 << 30,
    "TPU v5p": 95 << 30,
    "TPU v5": 95 << 30,
    "TPU v6 lite": 32 << 30,
    "NVIDIA H100": 84_929_347_584,
}
TPUS = {"v4": "megacore", "v5e": "default", "v5p": "megacore", "v6e": "default"}
# An H100 SXM as XLA describes it, xla/tools/hlo_opt/gpu_specs/h100_sxm.txtpb.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
"""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bfloat16 FLOPs per second of a device, None where it is not known.

    Args:
        device_kind: as `jax.Device.device_kind`.

    Example:
        >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
        (197000000000000.0, None)
    """
    return _of_kind(PEAK_FLOPS, device_kind)


def _of_kind(table: Mapping[str, Any], device_kind: str) -> Any:
    fitting = [name for name in table if device_kind.startswith(name)]
    return table[max(fitting, key=len)] if fitting else None


def absent(name: str) -> list[Any]:
    """Return devices that need not be there; XLA compiles for them and can run nothing.

    Args:
        name: v4, v5e, v5p or v6e with a slice's shape in chips, as v5e:4x4 or v4:2x2x4; or h100
            with a number of GPUs of one host, as h100:8; or cpu with the number of virtual devices
            that this process has, as cpu:8.

    Raises:
        UserError: they are not known, or the compiler for them is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and shape == str(jax.device_count("cpu")):
        return jax.devices("cpu")
    if kind not in TPUS and (kind != "h100" or not shape.isdecimal()):
        known = f"devices such as v5e:4x4, of {', '.join(TPUS)}, or h100:8, or cpu:8"
        raise UserError(known, name, "correct it")
    try:
        if kind == "h100":
            description = {"target_config": H100, "topology": f"1x1x{shape}"}
            return topologies.get_topology_desc(platform="cuda", **description).devices
        # JAX sees the two cores of a v4 or v5p chip as one device; a single chip has a host alone.
        description: dict[str, Any] = {"chip_config_name": TPUS[kind]}
        if set(shape.split("x")) == {"1"}:
            description["chips_per_host_bounds"] = (1, 1, 1)
        return topologies.get_topology_desc(name, "tpu", **description).devices
    except (RuntimeError, ValueError) as error:
        extra = "jax[cuda12]" if kind == "h100" else "jax[tpu]"
        reason = str(error).partition("\n")[0]
        advice = f"correct the shape, or pip install '{extra}'"
        raise UserError(f"XLA's compiler for {name}", reason, advice) from error


def memory_bytes(device: Any, *, cgroup_limit: Path = CGROUP_LIMIT) -> int:
    """Return the bytes that a program may use on a device.

    Virtual CPU devices share the host's memory, or what its control group may have of it.

    Args:
        device: one of this process, as in `jax.local_devices()`, or one of `absent`.
        cgroup_limit: the file with the bytes that the process's control group may have.
    """
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # it is not there to be asked
        return _of_kind(MEMORY_BYTES, device.device_kind)
    if limit:
        return limit
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowance = cgroup_limit.read_text().strip() if cgroup_limit.is_file() else "max"
    allowed = min(memory, int(allowance)) if allowance.isdecimal() else memory
    return allowed // jax.local_device_count()
