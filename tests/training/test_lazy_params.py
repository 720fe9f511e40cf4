import jax
import numpy as np
import pytest

from distill.core.errors import UserError
from distill.training.checkpoints import Checkpoints, load_params
from distill.training.lazy_params import open_params

PARAMS = {"encoder": {"wo": {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4)}}}


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, jax.tree.map(jax.numpy.asarray, PARAMS), {"count": np.zeros(())})
    return tmp_path


def test_opened_parameters_are_the_loaded_ones(saved):
    opened = open_params(saved, 5)
    (tensor,) = opened.values()
    assert list(opened) == ["encoder/wo/kernel"] and tensor.shape == (3, 4)
    np.testing.assert_array_equal(tensor.read(), load_params(saved, 5)["encoder"]["wo"]["kernel"])


def test_a_missing_or_damaged_step_is_refused(saved):
    with pytest.raises(UserError, match="none of step 6; use one of"):
        open_params(saved, 6)
    (tensor,) = open_params(saved, 5).values()
    for file in (saved / "params" / "5").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint 5 in .* got a damaged one"):
        tensor.read()
