"""What the maker of an accelerator says of it, and what memory there is; it measures nothing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

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
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bfloat16 FLOPs per second of a device, None where it is not known.

    Args:
        device_kind: as `jax.Device.device_kind`.

    Example:
        >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
        (197000000000000.0, None)
    """
    fitting = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def memory_bytes(device: Any) -> int:
    """Return the bytes that a program may use on a device.

    Virtual CPU devices share the host's memory, or what its control group may have of it.

    Args:
        device: one of this process, as in `jax.local_devices()`.
    """
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    given = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    allowed = min(memory, int(given)) if given.isdecimal() else memory
    return allowed // jax.local_device_count()
