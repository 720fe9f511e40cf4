import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.vocabulary_digest import VocabularyRecord, require_same

DIGESTS = st.sampled_from([None, "a" * 64, "b" * 64])
TOKENS = st.sampled_from([None, 10, 20])


@given(DIGESTS, TOKENS, DIGESTS, TOKENS)
def test_known_digests_decide_and_sizes_where_one_is_unknown(one, size, other, its_size):
    known = None not in (one, other)
    differ = one != other if known else None not in (size, its_size) and size != its_size
    pair = (
        VocabularyRecord("the dataset", one, size),
        VocabularyRecord("the student", other, its_size),
    )
    if not differ:
        require_same(*pair, "align again")
        return
    with pytest.raises(UserError, match=r"of the dataset \(.*of the student \(.*; align again"):
        require_same(*pair, "align again")


def test_what_is_unknown_is_said(caplog):
    caplog.set_level(logging.WARNING)
    require_same(
        VocabularyRecord("the dataset", None, 10), VocabularyRecord("the student", "a" * 64, 10), ""
    )
    assert "compared by size alone" in caplog.text and "SHA-256 unknown" in caplog.text
    caplog.clear()
    require_same(
        VocabularyRecord("the dataset", "a" * 64), VocabularyRecord("the student", "a" * 64), ""
    )
    assert not caplog.text
