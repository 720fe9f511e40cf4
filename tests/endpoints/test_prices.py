import datetime
import json

import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Usage
from distill.endpoints.prices import SHIPPED, price_of
from distill.endpoints.spending import Price, SpendingLog, Spent, spent_in, usage_of

COUNTS = st.integers(0, 10**9)
SPENT = st.builds(Spent, COUNTS, COUNTS, COUNTS, COUNTS, st.none() | st.integers(0, 10**6))


@given(SPENT, SPENT, SPENT)
def test_what_is_spent_adds_up_in_any_order(a, b, c):
    assert (a + b) + c == a + (b + c) and a + b == b + a and a + Spent() == a
    assert (a + b).tokens == a.tokens + b.tokens


def test_a_price_by_hand_and_its_snapshot():
    price = price_of("gpt-4o-mini")
    assert price.cost(2_000_000, 500_000) == near(2 * 0.15 + 0.3, terms=4)
    assert price_of("gpt-4o-mini-2024-07-18") == price
    assert price_of("no-such-model") is None


def test_every_shipped_price_tells_its_source_and_day():
    for model in json.loads(paths.shipped(SHIPPED).read_text()):
        price = price_of(model)
        assert price.model == model and price.source.startswith("https://")
        assert datetime.date.fromisoformat(price.date) and 0 < price.prompt <= price.completion


def test_the_users_table_comes_first(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"gpt-4o-mini": {"dollars_per_million": [1, 2], "source": "our contract"}}')
    assert price_of("gpt-4o-mini", str(path)) == Price("gpt-4o-mini", 1.0, 2.0, "our contract")
    assert price_of("gpt-4o", str(path)) == price_of("gpt-4o")


@pytest.mark.parametrize(
    "row", ["3", "[1, 2]", '{"dollars_per_million": [1]}', '{"dollars_per_million": [-1, 2]}']
)
def test_a_table_of_another_form_is_refused(tmp_path, row):
    path = tmp_path / "prices.json"
    path.write_text(f'{{"m": {row}}}')
    with pytest.raises(UserError, match="correct the price table"):
        price_of("m", str(path))
    path.write_text("[]")
    with pytest.raises(UserError, match="got list; correct the price table"):
        price_of("m", str(path))


def test_starts_write_files_of_their_own_and_none_for_nothing(tmp_path):
    price = Price("m", 1.0, 2.0)
    for prompt, written in ((10, 20), (None, None)):
        log = SpendingLog(tmp_path, "harvest", price)
        log.write()
        log.add(Usage(prompt, written))
        log.write()
        log.write()
    assert len(list(tmp_path.iterdir())) == 2
    assert spent_in(tmp_path) == Spent(2, 1, 10, 20, near(5e-5, terms=8))
    unpriced = SpendingLog(tmp_path, "harvest", None)
    unpriced.add(Usage(1, 1))
    unpriced.write()
    assert spent_in(tmp_path).dollars is None


@given(st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), st.none() | COUNTS))
def test_usage_is_read_where_it_is_reported(counts):
    usage = usage_of({"usage": counts})
    assert usage == Usage(counts.get("prompt_tokens"), counts.get("completion_tokens"))
    absent = None in (usage.prompt_tokens, usage.completion_tokens)
    spent = Spent().plus(usage, Price("m", 1.0, 2.0))
    assert (spent.completions, spent.untold) == (1, int(absent))
    assert spent.tokens == sum(count or 0 for count in counts.values())


@pytest.mark.parametrize("answer", [{}, {"usage": None}, {"usage": 3}, {"usage": {"total": 4}}])
def test_usage_that_is_not_reported_is_absent(answer):
    assert usage_of(answer) == Usage(None, None)
