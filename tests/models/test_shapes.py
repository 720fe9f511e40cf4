"""The shapes under gin_configs/models against the published parameter counts."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the released weights as transformers counts them; the papers round them (Raffel et al. 2020,
# section 3.5; Xue et al. 2021, table 1; Chung et al. 2022, table 2).
PUBLISHED = {
    "t5_1_0_small": 60_506_624,
    "t5_1_0_base": 222_903_552,
    "t5_1_0_large": 737_668_096,
    "t5_1_0_xl": 2_851_598_336,
    "t5_1_0_xxl": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
}
COUNTS = """
import json, math, sys
import gin
from distill import config
from distill.models import weights
counts = {}
for name in sys.argv[1:]:
    gin.clear_config()
    config.load([f"models/{name}.gin"], ["SHAPE = @t5.T5Model()"])
    model = gin.query_parameter("SHAPE/macro.value").scoped_configurable_fn()
    counts[name] = sum(math.prod(shape) for shape in weights.shapes(model).values())
print(json.dumps(counts))
"""


def test_every_published_shape_has_the_parameters_of_the_published_weights():
    found = subprocess.run(
        [sys.executable, "-c", COUNTS, *PUBLISHED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == PUBLISHED
