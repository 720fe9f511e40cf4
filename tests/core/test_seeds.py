import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core import seeds

names = st.lists(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8), max_size=4
)


@given(names, names, st.integers(1, 64))
def test_a_number_depends_on_the_names_alone_and_fits_its_bits(one, other, bits):
    assert 0 <= seeds.from_names(*one, bits=bits) < 2**bits
    assert seeds.from_names(*one) == seeds.from_names(*one)
    if one != other and one and other:
        assert seeds.from_names(*one, bits=64) != seeds.from_names(*other, bits=64)


@given(names, st.integers(1, 64))
def test_fewer_bits_are_the_first_of_more(names, bits):
    assert seeds.from_names(*names, bits=bits) == seeds.from_names(*names, bits=64) >> (64 - bits)


@given(st.sets(st.text(max_size=5)), st.text(max_size=5), st.integers(0, 9))
def test_another_name_does_not_change_the_order_of_the_others(some, extra, seed):
    order = seeds.shuffled(some, seed)
    longer = seeds.shuffled(some | {extra}, seed)
    assert sorted(order) == sorted(some)
    assert [name for name in longer if name in some] == order


def test_the_seeds_of_runs_on_disk_stay_what_they_were():
    digest = hashlib.sha256(b"7\0gsm8k/train/0\0003").digest()
    assert seeds.from_names(7, "gsm8k/train/0", 3) == int.from_bytes(digest[:4], "big") >> 1
    assert seeds.from_names(7, "gsm8k/train/0", 3) == 1_151_109_930


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 64 bits, got 65"):
        seeds.from_names("a", bits=65)
