import jax
import pytest

from distill.models import accelerators


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),  # v5e; its name begins like v5p's
        ("TPU v5", 459e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peak_is_that_of_the_longest_name_that_fits_and_absent_where_unknown(kind, peak):
    assert accelerators.peak_flops(kind) == peak


class Accelerator:
    def memory_stats(self):
        return {"bytes_limit": 16_000, "bytes_in_use": 5}


def test_memory_is_what_the_device_says():
    assert accelerators.memory_bytes(Accelerator()) == 16_000


@pytest.mark.parametrize("limit, expected", [("4096\n", 4096), ("max\n", None), (None, None)])
def test_memory_of_a_cpu_is_the_hosts_or_what_its_control_group_may_have(tmp_path, limit, expected):
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    found = accelerators.memory_bytes(jax.devices("cpu")[0], cgroup_limit=file)
    assert found == expected if expected is not None else found > 1e8
