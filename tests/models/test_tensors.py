import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.numpy import save

from distill.core.errors import UserError
from distill.models import tensors
from distill.models.tensors import Tensor

named = st.dictionaries(
    st.text("abc/.é", min_size=1),
    st.sampled_from([np.float32, np.float16, np.float64]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=4))
    ),
    max_size=4,
)


def read(path):
    return {name: tensor.read() for name, tensor in tensors.read(path).items()}


@settings(max_examples=60)
@given(written=named)
def test_a_file_is_byte_for_byte_the_librarys_and_reads_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors.write(path, {name: Tensor.of(array) for name, array in written.items()})
    assert path.read_bytes() == save(written)
    found = read(path)
    assert found.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(found[name], array)


def test_bfloat16_and_metadata_are_as_the_library_reads_them(tmp_path):
    path, array = tmp_path / "x.safetensors", np.arange(6).astype(ml_dtypes.bfloat16)
    tensors.write(path, {"a": Tensor.of(array.reshape(2, 3))}, {"format": "pt"})
    with safe_open(path, framework="flax") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("a"), array.reshape(2, 3))
    np.testing.assert_array_equal(read(path)["a"], array.reshape(2, 3))


def test_a_tensor_is_read_when_it_is_asked_for_and_not_before():
    reads = []

    def once():
        reads.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    tensor = Tensor((2, 3), np.dtype(np.float32), once)
    changed = tensor.transposed().cast("bfloat16").resized(0, 5).resized(1, 1)
    assert changed.shape == (5, 1) and changed.dtype == ml_dtypes.bfloat16 and not reads
    assert changed.nbytes == 10
    np.testing.assert_array_equal(changed.read()[:, 0], [0, 1, 2, 0, 0])
    assert len(reads) == 1


@pytest.mark.parametrize("rows", [3, 5, 9])
def test_rows_added_are_the_paddings_and_cutting_takes_them_off(rows):
    table = Tensor.of(np.arange(10.0).reshape(5, 2))
    there = table.resized(0, rows)
    back = there.resized(0, min(rows, 5)).read()
    np.testing.assert_array_equal(back, table.read()[: min(rows, 5)])
    np.testing.assert_array_equal(there.read()[5:], np.broadcast_to([0, 1], (max(0, rows - 5), 2)))


def damaged(header, body=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"whole safetensors in .* got no header"),
        (b"\xff" * 40, "got no header"),
        (damaged(b"[1]"), "got no header"),
        (damaged(b"\xff\xfe"), "got no header"),
        (damaged({"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}}), "got a as .*I8"),
        (damaged({"a": 5}), "got a as 5; convert it"),
        (damaged({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), "a of 8 bytes"),
        (
            damaged({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 7),
            r"got 7\d bytes where its header says 7\d",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused_before_any_array_is_read(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        tensors.read(tmp_path / "x.safetensors")


def test_a_missing_file_and_one_cut_while_it_is_read_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"a file .*x.safetensors, got none"):
        tensors.read(path)
    tensors.write(path, {"a": Tensor.of(np.zeros(4))})
    found = tensors.read(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="a file that was cut while it was read"):
        found.read()
