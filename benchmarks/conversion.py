"""Peak memory of converting weights, by the size of the checkpoint and of its largest tensor.

    python benchmarks/conversion.py [--layers 1 8] [--folder DIR]

Writes synthetic checkpoints of FlanT5-large's widths with more and more layers, and one with twice
the rows, as Hugging Face and T5X keep them. Converts each to ours and back, each in a process of
its own, and prints that process's peak resident memory. The peak of published shapes is what a
process holds before it reads anything and the largest of those ratios times the largest tensor.
Needs four times the largest checkpoint on the disk and removes what it wrote; some minutes.
"""

import argparse
import dataclasses
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from distill.core.paths import shipped
from distill.interop import export
from distill.models import hugging_face, t5x_checkpoint, weights
from distill.models.t5 import T5Config, T5Model
from distill.models.tensors import Tensor, Tensors

LARGE = T5Config(32_128, 1024, 16, 64, 2816, 24, 24)
# vocabulary rows and widths of the largest published ones
PUBLISHED = {
    "T5 v1.1 XXL, FlanT5 XXL": T5Config(32_128, 4096, 64, 64, 10_240, 24, 24),
    "mT5 XXL": T5Config(250_112, 4096, 64, 64, 10_240, 24, 24),
    "T5 v1.0 11B": T5Config(
        32_128, 1024, 128, 128, 65_536, 24, 24, ("relu",), logits_via_embedding=True
    ),
}
VOCABULARY = weights.Vocabulary(shipped("data/vocabularies/student.model"), 100)
CONVERSIONS: Mapping[str, Callable[[Path, Path], None]] = {
    "nothing": lambda source, out: None,
    "hugging_face to ours": lambda source, out: to_ours(out, *hugging_face.read(source)),
    "ours to hugging_face": lambda source, out: export.write(out, *opened(source), card=""),
    "ours to t5x": lambda source, out: t5x_checkpoint.write(out, opened(source)[1], step=0),
    "t5x to ours": lambda source, out: to_ours(out, *t5x_checkpoint.read(str(source))),
}


def to_ours(out: Path, model: T5Model, tensors: Tensors) -> None:
    """Write a student."""
    weights.write(out, model, tensors, VOCABULARY, dtype="float32")


def opened(source: Path) -> tuple[T5Model, Tensors, weights.Vocabulary]:
    """Open a student."""
    model, tensors, vocabulary = weights.read(source)
    if not isinstance(model, T5Model):
        raise TypeError(f"expected a T5 in {source}, got {model}")
    return model, tensors, vocabulary


def synthetic(config: T5Config) -> dict[str, Tensor]:
    """Return random tensors, each drawn when it is read."""

    def tensor(shape: tuple[int, ...]) -> Tensor:
        def draw() -> np.ndarray:
            return np.random.default_rng(0).random(shape, dtype=np.float32)

        return Tensor(shape, np.dtype(np.float32), draw)

    return {name: tensor(shape) for name, shape in weights.shapes(T5Model(config)).items()}


def largest(config: T5Config) -> int:
    """Return the bytes of the largest tensor in float32."""
    return 4 * max(math.prod(shape) for shape in weights.shapes(T5Model(config)).values())


def converted(conversion: str, source: Path, out: Path) -> int:
    """Convert in another process; return its peak resident memory in bytes."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", conversion]
    done = subprocess.run(
        [*command, str(source), str(out)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def peak_bytes() -> int:
    """Return this process's peak resident memory; getrusage's is at least the parent's (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measure(config: T5Config, folder: Path) -> dict[str, float]:
    """Return the bytes of the weights, of the largest tensor, and of each conversion's peak."""
    theirs, ours, t5x = folder / "theirs", folder / "ours", folder / "checkpoint_0"
    export.write(theirs, T5Model(config), synthetic(config), VOCABULARY, card="")
    figures = {
        "weights": (theirs / "model.safetensors").stat().st_size,
        "largest tensor": largest(config),
        "nothing": converted("nothing", theirs, ours),
        "hugging_face to ours": converted("hugging_face to ours", theirs, ours),
        "ours to hugging_face": converted("ours to hugging_face", ours, folder / "theirs_again"),
        "ours to t5x": converted("ours to t5x", ours, t5x),
        "t5x to ours": converted("t5x to ours", t5x, folder / "ours_again"),
    }
    return figures


def share(figures: Mapping[str, float]) -> float:
    """Return how many times its largest tensor the greediest conversion holds."""
    peak = max(figures[name] for name in CONVERSIONS)
    return (peak - figures["nothing"]) / figures["largest tensor"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 8], help="of each tower")
    parser.add_argument("--folder", type=Path, help="where the checkpoints lie meanwhile")
    options = parser.parse_args()
    shapes = [
        dataclasses.replace(LARGE, num_encoder_layers=n, num_decoder_layers=n)
        for n in options.layers
    ]
    shapes.append(dataclasses.replace(shapes[0], vocab_size=2 * LARGE.vocab_size))
    print(" | ".join(("weights", "largest tensor", *CONVERSIONS)), "(MB)", flush=True)
    found = []
    for config in shapes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found.append(measure(config, Path(folder)))
        print(" | ".join(f"{value / 1e6:,.0f}" for value in found[-1].values()), flush=True)
    times = max(share(figures) for figures in found)
    idle = max(figures["nothing"] for figures in found)
    expected = {name: idle + times * largest(config) for name, config in PUBLISHED.items()}
    print(f"at most {times:.2f} times the largest tensor beside {idle / 1e6:,.0f} MB")
    for name, peak in expected.items():
        print(f"{name}: {peak / 1e9:.1f} GB expected")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        CONVERSIONS[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
        print(peak_bytes())
    else:
        main()
