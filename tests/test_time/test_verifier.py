"""Verifiers: scores against a naive twin, training on planted labels, calibration by hand."""

import dataclasses
import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import ELEMENTARY, assert_close, depth, near, scale_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from planted import Planted

from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Scorer, Solution
from distill.core.statistics import Bootstrap
from distill.core.store import manifest, read_json
from distill.grading.check import GRADERS
from distill.models import scoring, weights
from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.reader import Given, Reader, surprises
from distill.models.saved import open_vocabulary
from distill.models.scoring import LocalScorer, ScoringModel, Verifier
from distill.models.t5 import T5Config, T5Model
from distill.test_time import calibration, verifier, verifier_report
from distill.test_time.calibration import Scored
from distill.test_time.rollouts import Labelled
from distill.training.metrics import read_lines
from distill.training.optimizers import AdamW, Constant
from distill.training.train import METRICS, Course, fit

from test_rollouts import ran, solution  # isort: skip

VOCABULARY = paths.shipped("data/vocabularies/student.model")
TOKENIZER = open_vocabulary(VOCABULARY)
ENCODER_DECODER = T5Model(T5Config(1104, 16, 2, 8, 24, 1, 1, dropout_rate=0.0))
DECODER = DecoderModel(DecoderConfig(1104, 16, 2, 8, 24, 1))
READER = Reader(width=8, depth=1, heads=2)
READERS = {"head": None, "reader": READER, "states": dataclasses.replace(READER, prompt=False)}
F4 = "float32"
STEPS = ("5 + 7 = 12.", " 12 / 3 = 4.", " So 4 it is.", " The answer is 4")


@functools.cache
def params_of(network, reader=None):
    """Random parameters, the head's among them."""
    params = ScoringModel(network, reader).with_head(network.init(jax.random.key(0)))
    kernel = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return {**params, "head": {**params["head"], "kernel": kernel, "bias": jnp.ones(1)}}


def alike(network, found, expected):
    """Chances are a sigmoid, of slope 1/4, of odds of up to ten from a head and a reader."""
    terms = depth(network.config, 128) + depth(DECODER.config, 128)
    assert_close(found, expected, terms=terms, scale=10 / 4)


def scorer(network=ENCODER_DECODER, reader=None, **how):
    model, params = ScoringModel(network, reader), params_of(network, reader)
    return LocalScorer(model, params, TOKENIZER, **how)


def scores(of, solutions):
    found = dict(of.score(solutions))
    assert found.keys() == set(range(len(solutions)))
    return [found[n] for n in range(len(solutions))]


def asked(number, count=4):
    return Solution(f"Q: What is {number} and {number + 1}?", STEPS[:count])


# --- Scores ------------------------------------------------------------------------------------


def test_scorers_are_scorers():
    assert isinstance(scorer(), Scorer) and isinstance(Verifier("nowhere"), Scorer)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("network", [ENCODER_DECODER, DECODER], ids=["t5", "decoder"])
def test_the_scores_of_a_beginning_are_those_of_the_whole_at_its_steps(network, reader):
    of = scorer(network, reader)
    (whole,) = scores(of, [asked(1)])
    assert len(whole.values) == len(STEPS) and len(set(whole.values.tolist())) == len(STEPS)
    for count in range(1, len(STEPS)):
        (begun,) = scores(of, [asked(1, count)])
        alike(network, begun.values, whole.values[:count])


@pytest.mark.parametrize("network", [ENCODER_DECODER, DECODER], ids=["t5", "decoder"])
def test_a_score_is_the_sigmoid_of_the_state_that_has_read_the_step(network):
    of = scorer(network)
    (found,) = scores(of, [asked(3)])
    prompt = network.prompt(TOKENIZER.encode(asked(3).prompt), TOKENIZER.eos_id)
    row, size = jnp.array([prompt]), jnp.array([len(prompt)])
    read = [int(network.first_tokens(row, size)[0]), *TOKENIZER.encode("".join(STEPS))]
    batch = network.continuation(row, size, jnp.array([read]))
    states = jax.jit(network.hidden)(of.params["network"], batch)[0, -len(read) :]
    ends = np.cumsum([len(TOKENIZER.encode(step)) for step in STEPS])
    odds = states[ends] @ of.params["head"]["kernel"][:, 0] + 1
    alike(network, found.values, jax.nn.sigmoid(odds))
    assert found.tokens == len(prompt) + len(read)


def test_a_reader_is_told_how_likely_the_network_found_each_token():
    batch = verifier.columns([example(0)], ScoringModel(ENCODER_DECODER), TOKENIZER, "process")
    params, tokens = params_of(ENCODER_DECODER)["network"], batch["solution_tokens"]
    read = ENCODER_DECODER.continuation(batch["prompt_tokens"], batch["prompt_lengths"], tokens)
    project = functools.partial(ENCODER_DECODER.project, params)
    states = ENCODER_DECODER.hidden(params, read)
    found = np.asarray(surprises(project, states, tokens))
    nats = np.asarray(jax.nn.log_softmax(ENCODER_DECODER.logits(params, read)), float)
    for place in range(1, tokens.shape[1]):
        before = nats[0, place - 1]
        naive = before[tokens[0, place]], before.max(), -(np.exp(before) * before).sum()
        terms = depth(ENCODER_DECODER.config, 96, vocabulary=True)
        assert_close(found[0, place], naive, terms=terms, scale=scale_of(nats))
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("network", [ENCODER_DECODER, DECODER], ids=["t5", "decoder"])
def test_padding_changes_no_score(network, reader):
    of = scorer(network, reader)
    rows = [scoring.solution_row(network, TOKENIZER, asked(n)) for n in (1, 20)]
    found = [
        scoring.chances(of.network, of.params, scoring.solution_arrays(network, rows, *shape))
        for shape in ((2, 48, 64), (3, 80, 96))
    ]
    for number, row in enumerate(rows):
        one, other = (np.asarray(chances)[number, row.ends] for chances in found)
        alike(network, one, other)


def test_a_reader_sees_what_was_asked_where_the_states_do_not_tell():
    """Of a prompt that the network does not see, the score changes with the reader's own eyes."""

    def read(reader, question):
        given = Given(
            question=jnp.full((1, 4, 8), question).at[0, :, ::2].set(0),
            lengths=jnp.array([3]),
            words=jnp.ones((1, 5, 8)),
            states=jnp.ones((1, 5, 8)),
            nats=jnp.zeros((1, 5, 3)),
        )
        return np.asarray(reader.read(reader.init(jax.random.key(0), 8), given))

    assert np.abs(read(READER, 1.0) - read(READER, -1.0)).max() > 1e-3
    blind = READERS["states"]
    assert np.array_equal(read(blind, 1.0), read(blind, -1.0))


def test_with_a_reader_nothing_of_the_network_learns():
    model, params = ScoringModel(ENCODER_DECODER, READER), params_of(ENCODER_DECODER, READER)
    batch = verifier.columns([example(0)], model, TOKENIZER, "process")
    loss = verifier.SoftBinary()
    gradient = jax.grad(lambda p: loss(model.logits(p, batch), batch)[0])(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["network"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["head"]))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(0, 4))
def test_scores_do_not_depend_on_neighbours(numbers, count):
    of = scorer(batch_size=4)
    alone = {n: scores(of, [asked(n, count)])[0] for n in set(numbers)}
    for number, found in zip(numbers, scores(of, [asked(n, count) for n in numbers]), strict=True):
        assert np.array_equal(found.values, alone[number].values)
        assert found.tokens == alone[number].tokens


@dataclasses.dataclass(frozen=True)
class Counting(T5Model):
    """A network that counts the rows of its forward passes when they run."""

    def hidden(self, params, batch, *, dropout_key=None):
        rows = jnp.sum(jnp.any(batch["encoder_input_tokens"] > 0, axis=1))
        jax.debug.callback(lambda count: PASSES.append(int(count)), rows)
        return super().hidden(params, batch, dropout_key=dropout_key)


PASSES = []


def test_scoring_costs_one_forward_pass_a_solution():
    PASSES.clear()
    scores(scorer(Counting(ENCODER_DECODER.config), batch_size=2), [asked(n) for n in range(5)])
    jax.effects_barrier()
    assert sorted(PASSES) == [1, 2, 2]


def test_a_solution_that_is_too_long_gets_no_score_and_changes_no_other(caplog):
    long = Solution("Q: How many?", ("4 and 4. " * 200,))
    found = scores(scorer(longest=100), [asked(1), long])
    np.testing.assert_allclose(found[0].values, scores(scorer(), [asked(1)])[0].values, atol=1e-6)
    assert len(found[1].values) == found[1].tokens == 0
    assert "solution 1 to 'Q: How many?' gets no score" in caplog.text


def test_examples_that_are_too_long_are_left_out_by_name(caplog):
    some = [Labelled(name, asked(1), (1.0,) * len(asked(1).steps)) for name in ("a", "b")]
    some.append(Labelled("long", Solution("Q: How many?", ("4 and 4. " * 200,)), (1.0,)))
    network = ENCODER_DECODER
    kept = verifier.readable(some, network, TOKENIZER, longest=200)
    assert [each.problem_id for each in kept] == ["a", "b"]
    assert "a solution of long is left out" in caplog.text
    with pytest.raises(UserError, match="solutions of at most 3 tokens, got"):
        verifier.readable(some, network, TOKENIZER, longest=3)


@pytest.mark.parametrize("reader", [None, READER], ids=["head", "reader"])
def test_a_verifier_comes_back_from_its_directory(tmp_path, reader):
    of = scorer(reader=reader)
    vocabulary = weights.Vocabulary(VOCABULARY, 100)
    scoring.save(tmp_path / "verifier", of.network, of.params, vocabulary, {"kind": "process"})
    back = Verifier(str(tmp_path / "verifier"), batch_size=3)
    assert back.model == "verifier"
    for one, other in zip(scores(of, [asked(1)]), scores(back, [asked(1)]), strict=True):
        alike(ENCODER_DECODER, one.values, other.values)
    shape = {"reader": dataclasses.asdict(reader)} if reader else {}
    assert read_json(tmp_path / "verifier" / "scorer.json") == {"kind": "process", **shape}


def test_damaged_verifiers_are_refused(tmp_path):
    of = scorer()
    vocabulary = weights.Vocabulary(VOCABULARY, 100)
    narrow = {**of.params, "head": {"kernel": jnp.zeros((8, 1)), "bias": jnp.zeros(1)}}
    scoring.save(tmp_path, of.network, narrow, vocabulary, {})
    with pytest.raises(UserError, match="a head of width 16"):
        scoring.load(tmp_path)
    (tmp_path / scoring.SCORER).write_text('{"reader": {"width": 9}}')
    with pytest.raises(UserError, match="the shape of a reader in"):
        scoring.load(tmp_path)
    (tmp_path / scoring.SCORER).write_text('{"reader": {"width": 8}}')
    with pytest.raises(UserError, match=r"a head of width 8 .*, got bias \(1,\), kernel"):
        scoring.load(tmp_path)
    (tmp_path / scoring.SCORER).unlink()
    (tmp_path / scoring.HEAD).write_bytes(b"short")
    with pytest.raises(UserError, match="whole safetensors"):
        scoring.load(tmp_path)
    (tmp_path / scoring.HEAD).unlink()
    with pytest.raises(UserError, match="a head in"):
        scoring.load(tmp_path)


# --- Training ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (2, 5), elements=st.floats(-20, 20, width=32)),
    arrays.arrays(np.float32, (2, 5), elements=st.floats(0, 1, width=32)),
    arrays.arrays(np.float32, (2, 5), elements=st.floats(0, 3, width=32)),
)
def test_the_loss_is_the_cross_entropy_of_the_label(odds, labels, counts):
    batch = {"score_labels": labels, "score_weights": counts}
    nats, weight = verifier.SoftBinary()(odds[..., None], batch)
    chance = 1 / (1 + np.exp(-odds.astype(float)))
    with np.errstate(divide="ignore", invalid="ignore"):
        naive = -labels * np.log(chance) - (1 - labels) * np.log1p(-chance)
    # Ten terms, each of the magnitude of its odds or of log 2.
    scale = float(((np.abs(odds) + 1) * counts).sum())
    terms = 10 + 2 * ELEMENTARY
    assert float(nats) == near(float((naive * counts).sum()), terms=terms, dtype=F4, scale=scale)
    assert float(weight) == near(float(counts.sum(dtype=float)), terms=10, dtype=F4)


def example(number, labels=(0.5, 0.25, 1.0), count=2):
    steps = (*STEPS[: len(labels) - 1], STEPS[-1])
    return Labelled(f"made/train/{number}", Solution("Q: How many?", steps), labels, count)


@pytest.mark.parametrize(("kind", "counted"), [("process", 3), ("outcome", 1)])
def test_labels_stand_at_the_last_token_of_each_step(kind, counted):
    model = ScoringModel(ENCODER_DECODER)
    found = verifier.columns([example(0)], model, TOKENIZER, kind)
    ends = np.cumsum([len(TOKENIZER.encode(s)) for s in example(0).solution.steps])[-counted:]
    assert np.flatnonzero(found["score_weights"][0]).tolist() == ends.tolist()
    assert found["score_weights"][0, ends].tolist() == [2.0] * counted
    assert found["score_labels"][0, ends].tolist() == [0.5, 0.25, 1.0][-counted:]
    assert found["solution_tokens"].shape == found["score_labels"].shape


def test_a_step_that_was_not_rolled_out_counts_nothing():
    model, known = ScoringModel(ENCODER_DECODER), example(0, (0.5, 0.25, 1.0))
    partly = verifier.columns([example(0, (0.5, math.nan, 1.0))], model, TOKENIZER, "process")
    whole = verifier.columns([known], model, TOKENIZER, "process")
    ends = np.flatnonzero(whole["score_weights"][0])
    assert partly["score_weights"][0, ends].tolist() == [2.0, 0.0, 2.0]
    assert partly["score_labels"][0, ends].tolist() == [0.5, 0.0, 1.0]


@given(st.integers(2, 40), st.floats(0, 0.9), st.integers(0, 9))
def test_whole_questions_are_held_out(questions, share, seed):
    examples = [example(n % questions) for n in range(3 * questions)]
    kept, out = verifier.hold_out(examples, share, seed)
    ids = [{e.problem_id for e in some} for some in (kept, out)]
    assert not ids[0] & ids[1] and len(kept) + len(out) == len(examples)
    assert len(ids[1]) == max(round(share * questions), 1)
    assert verifier.hold_out(examples[::-1], share, seed)[1] == out[::-1]


def rows(lengths, right):
    """Columns whose row n holds token n + 1 as often as its lengths say, right padding after it."""
    sources, targets = np.array(lengths).T
    numbers = np.arange(1, len(lengths) + 1)[:, None]
    prompt, solution = (
        np.where(np.arange(100) < some[:, None], numbers, 0) for some in (sources, targets)
    )
    last = np.arange(100) == targets[:, None] - 1
    return {
        **{"prompt_tokens": prompt, "prompt_lengths": sources, "solution_tokens": solution},
        "solution_segment_ids": (solution > 0).astype(np.int32),
        "score_labels": (last & np.array(right)[:, None]).astype(np.float32),
        "score_weights": last.astype(np.float32),
    }


MANY_ROWS = st.lists(
    st.tuples(st.integers(1, 100), st.integers(1, 100), st.booleans()), min_size=1, max_size=9
)


def numbers_of(batch):
    return batch["prompt_tokens"][:, 0] - 1


@given(MANY_ROWS, st.integers(1, 3), st.integers(1, 2))
def test_every_row_comes_as_often_as_any_other(given, batch_size, windows):
    batches = verifier.ByLength(
        rows([row[:2] for row in given], [row[2] for row in given]), batch_size
    )
    seen = [numbers_of(batches.batch(step)) for step in range(windows * verifier.WINDOW)]
    counts = np.bincount(np.concatenate(seen), minlength=len(given))
    assert counts.sum() == windows * verifier.WINDOW * batch_size and np.ptp(counts) <= 1


@given(MANY_ROWS, st.integers(1, 3), st.integers(0, 200))
def test_a_batch_is_the_rows_without_the_columns_that_are_padding_in_all(given, size, step):
    columns = rows([row[:2] for row in given], [row[2] for row in given])
    batch = verifier.ByLength(columns, size, seed=5).batch(step)
    again = verifier.ByLength(columns, size, seed=5).batch(step)
    chosen = numbers_of(batch)
    for name, array in batch.items():
        whole = columns[name][chosen]
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(
            array, whole[:, : array.shape[1]] if whole.ndim > 1 else whole
        )
        if whole.ndim > 1:
            assert not whole[:, array.shape[1] :].any()
    for name in ("prompt_tokens", "solution_tokens"):
        longest = (columns[name][chosen] > 0).sum(1).max()
        assert 0 <= batch[name].shape[1] - longest < verifier.COLUMNS_OF or longest > 96


def test_the_first_batch_is_the_widest_of_its_window():
    lengths = [(10 + n % 80, 10 + n % 80) for n in range(3 * verifier.WINDOW)]
    batches = verifier.ByLength(rows(lengths, [True] * len(lengths)), 3)
    widths = [batches.batch(step)["solution_tokens"].shape[1] for step in range(verifier.WINDOW)]
    assert widths[0] == max(widths) and len(set(widths)) == 3
    assert sum(widths) < 0.75 * verifier.WINDOW * max(widths)


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from([None, 0.5, 1.0, 2.2]))
def test_right_solutions_come_more_seldom_and_weigh_as_much_in_all(right, wrong, most):
    columns = rows([(3, 5)] * (right + wrong), [True] * right + [False] * wrong)
    taken, epochs = right, verifier.WINDOW
    if most and wrong:
        taken = min(math.ceil(most * wrong), right)
    batches = verifier.ByLength(columns, taken + wrong, right_per_wrong=most)  # a window of epochs
    given = [batches.batch(step) for step in range(epochs)]
    numbers = np.concatenate([numbers_of(batch) for batch in given])
    weights = np.concatenate([batch["score_weights"].sum(1) for batch in given])
    assert (np.bincount(numbers, minlength=right + wrong)[right:] == epochs).all()
    assert (weights[numbers >= right] == 1).all()
    assert (numbers < right).sum() == epochs * taken
    assert weights[numbers < right].sum() == near(epochs * right, terms=len(weights) * 5, dtype=F4)


def test_mistakes_come_throughout_an_epoch():
    columns = rows([(3, 5)] * 400, [True] * 300 + [False] * 100)
    batches = verifier.ByLength(columns, 50, right_per_wrong=1.0)
    wrong = [(numbers_of(batches.batch(step)) >= 300).sum() for step in range(verifier.WINDOW)]
    assert min(wrong) > 12 and max(wrong) < 38  # of a mean of 25


class Padded:
    """Other batches, their rows as wide as can be."""

    def __init__(self, batches):
        self.batches = batches

    def batch(self, step):
        return {
            name: np.pad(array, ((0, 0), (0, 128 - array.shape[1]))) if array.ndim > 1 else array
            for name, array in self.batches.batch(step).items()
        }


def test_columns_of_padding_change_nothing_that_is_learnt(tmp_path):
    model = ScoringModel(ENCODER_DECODER, READER)
    lengths = [(10 + n, 5 + n % 80) for n in range(80)]
    right = [n % 3 > 0 for n in range(80)]
    batches = verifier.ByLength(rows(lengths, right), 2, right_per_wrong=1.0)
    assert len({batches.batch(step)["solution_tokens"].shape for step in range(12)}) > 1
    for name, some in {"cut": batches, "padded": Padded(batches)}.items():
        fit(
            model,
            params_of(ENCODER_DECODER, READER),
            some,
            verifier.SoftBinary(),
            directory=tmp_path / name,
            optimizer=AdamW(Constant(1e-3), weight_decay=0.0),
            course=Course(12, 12),
            tensorboard=False,
        )
    cut, padded = (read_lines(tmp_path / name / METRICS) for name in ("cut", "padded"))
    for one, other in zip(cut, padded, strict=True):
        # The head multiplies states by numbers of size 1, and steps add up.
        terms = 12 * 2 * depth(ENCODER_DECODER.config, 128)
        assert one["loss"] == near(other["loss"], terms=terms, dtype=F4, scale=1)


def test_the_held_out_loss_is_that_of_all_rows_at_once():
    of = scorer()
    columns = verifier.columns([example(n) for n in range(150)], of.network, TOKENIZER, "process")
    found = verifier.mean_loss(of.network, of.params, columns)
    nats, weight = verifier.SoftBinary()(jax.jit(of.network.logits)(of.params, columns), columns)
    assert found == near(float(nats / weight), terms=600, dtype=F4)


def test_the_first_of_the_best_checkpoints_is_taken():
    assert verifier.best_step({0: 0.7, 20: 0.3, 10: 0.3}) == 10


# --- Calibration -------------------------------------------------------------------------------

SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0])


@given(st.lists(st.tuples(SHARES, st.booleans(), st.integers(1, 3)), min_size=1, max_size=9))
def test_brier_and_auc_are_those_of_enumeration(rows):
    values, labels, counts = (np.array(column, float) for column in zip(*rows, strict=True))
    each = [(v, y) for v, y, count in rows for _ in range(count)]
    assert calibration.brier(values, labels, counts) == near(
        np.mean([(v - y) ** 2 for v, y in each]), terms=60, scale=1
    )
    pairs = [(r > w) + (r == w) / 2 for r, y in each if y for w, z in each if not z]
    found = calibration.auc(values, labels, counts)
    assert found == near(np.mean(pairs), terms=400) if pairs else np.isnan(found)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=6))
def test_a_soft_label_is_its_share_of_right_ones(rows):
    values, labels = (np.array(column) for column in zip(*rows, strict=True))
    parts = np.concatenate([labels, 1 - labels])
    hard = np.concatenate([values, values]), np.repeat([1.0, 0.0], len(rows)), parts
    assert calibration.brier(values, labels, np.ones(len(rows))) == near(
        calibration.brier(*hard), terms=40, scale=1
    )
    if 0 < labels.sum() < len(rows):
        assert calibration.auc(values, labels, np.ones(len(rows))) == near(
            calibration.auc(*hard), terms=100
        )


def made(values, labels, counts=None):
    n = len(values)
    weights = np.ones(n) if counts is None else np.array(counts, float)
    return Scored(np.array(values, float), np.array(labels, float), weights, np.arange(n))


def test_reliability_by_hand():
    rows = calibration.reliability(made([0.05, 0.0, 0.5, 1.0], [0, 0.5, 1, 1], [1, 3, 1, 1]))
    assert rows[0] == near(
        {"low": 0, "high": 0.1, "n": 4, "score": 0.0125, "right": 0.375}, terms=8
    )
    assert [row["low"] for row in rows] == [0.0, 0.5, 0.9]


def test_the_interval_of_the_brier_score_is_that_of_a_mean_over_questions():
    random = np.random.default_rng(0)
    values = random.random(400)
    labels = (random.random(400) < values).astype(float)
    found = calibration.calibration(made(values, labels))
    squares = (values - labels) ** 2
    half = 1.96 * squares.std() / 20
    assert found["brier"]["value"] == near(squares.mean(), terms=400)
    assert found["brier"]["high"] - found["brier"]["low"] == pytest.approx(2 * half, rel=0.15)
    assert found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"]
    assert found["brier"]["value"] < found["brier_of_share"]


def test_where_all_are_right_there_is_no_auc():
    assert "auc" not in calibration.calibration(made([0.2, 0.9], [1, 1]))


def test_scores_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected values in 0 to 1"):
        made([1.5], [1])


# --- Votes -------------------------------------------------------------------------------------


def test_ballots_and_their_gain_by_hand():
    texts = ["So 9. The answer is 9", "So 9. The answer is 9.0", "So 8. The answer is 8", "No"]
    outcomes = ["wrong", "wrong", "right", "unparsed"]
    solutions = [solution(*pair, n) for n, pair in enumerate(zip(texts, outcomes, strict=True))]
    answers = ["9", "9.0", "8", None]
    solutions = [
        (trace, dataclasses.replace(verdict, answer=answer))
        for (trace, verdict), answer in zip(solutions, answers, strict=True)
    ]
    planted = Planted({"So 9.": 0.5, "So 8.": 0.5, " The answer is 8": 0.9})
    found = verifier_report.score(solutions[::-1], planted)
    (ballot,) = verifier_report.ballots(solutions[::-1], found, GRADERS["default"])
    assert ballot.keys == ("9", "9", "8", None) and ballot.right == (False, False, True, False)
    assert ballot.scores == near((0.1, 0.1, 0.9, 0.1), dtype=F4)
    (least,) = verifier_report.ballots(solutions, found, GRADERS["default"], "product")
    assert least.scores == near((0.05, 0.05, 0.45, 0.1), terms=4, dtype=F4)
    assert verifier_report.gain([ballot], Bootstrap(10))["value"] == 1.0


def test_reductions_by_hand():
    values = [0.5, 0.25, 0.8]
    found = {name: reduce(values) for name, reduce in verifier_report.REDUCTIONS.items()}
    assert found == near({"last": 0.8, "min": 0.25, "product": 0.1}, terms=4)


# --- The stage ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolled_out(tmp_path_factory):
    """A run with roll-outs of a planted tree, and a student directory beside it."""
    root = tmp_path_factory.mktemp("verifier")
    ran(root / "run")
    params = ENCODER_DECODER.init(jax.random.key(0))
    weights.save(root / "student", ENCODER_DECODER, params, VOCABULARY)
    return root


def trained(root, kind, **how):
    optimizer = AdamW(Constant(3e-2), weight_decay=0.0, b2=0.95)
    settings = {"steps": 30, "save_every": 10, "batch_size": 16, "optimizer": optimizer, **how}
    student = str(root / "student")
    return verifier.run(run_dir=root / "run", student=student, kind=kind, **settings)


def test_a_process_verifier_learns_the_values_of_planted_steps(rolled_out):
    summary = trained(rolled_out, "process")
    assert summary["auc"] > 0.7 and summary["loss_last"] < summary["loss_first"]
    report = read_json(rolled_out / "run" / "reports" / "verifier-process.json")
    assert summary["step"] == int(min(report["losses"], key=report["losses"].get))
    assert report["held_out"]["questions"] == 4 and report["train"]["questions"] == 36
    assert report["calibration"].keys() == {"solutions", "beginnings"}
    assert report["votes"]["problems"] == 40 and not report["votes"]["absent"]
    of = Verifier(str(rolled_out / "run" / "verifier" / "process" / "model"))
    good, bad = (Solution("Q: What is twice 2 + 2?", (f"2 + 2 = {n}.",)) for n in (4, 5))
    good, bad = scores(of, [good, bad])
    assert good.values[0] > bad.values[0]
    for kind in ("md", "png"):
        assert (rolled_out / "run" / "reports" / f"verifier-process.{kind}").stat().st_size > 500
    assert trained(rolled_out, "process") == summary  # complete: nothing is done again


def test_a_verifier_with_a_reader_learns_and_leaves_the_student_as_it_is(rolled_out):
    summary = trained(rolled_out, "outcome", reader=READER, steps=30, save_every=30)
    assert summary["loss_last"] < summary["loss_first"]
    directory = rolled_out / "run" / "verifier" / "outcome"
    of, (_, start, _) = scoring.load(directory / "model"), weights.load(rolled_out / "student")
    assert of.network.reader == READER
    jax.tree.map(np.testing.assert_array_equal, of.params["network"], start)
    shutil.rmtree(directory)
    (rolled_out / "run" / "manifests" / "verifier-outcome.json").unlink()


def test_an_outcome_verifier_is_another_stage_of_the_same_run(rolled_out):
    summary = trained(rolled_out, "outcome", steps=4, save_every=2)
    assert summary["steps"] == 4
    assert manifest(rolled_out / "run", "verifier-outcome")["inputs"].keys() == {"rollouts"}


def test_verifiers_refuse(tmp_path, rolled_out):
    with pytest.raises(UserError, match="a kind of process, outcome"):
        trained(rolled_out, "odd")
    with pytest.raises(UserError, match="no weight decay beside a reader"):
        trained(rolled_out, "outcome", reader=READER, optimizer=AdamW(Constant(1.0), 0.1))
    with pytest.raises(UserError, match="right_per_wrong above 0"):
        trained(rolled_out, "outcome", right_per_wrong=0.0)
    with pytest.raises(ValueError, match="twice the heads to divide the width"):
        Reader(width=6, heads=2)
    with pytest.raises(UserError, match="stage rollouts complete"):
        verifier.run(run_dir=tmp_path, student="x", steps=1, save_every=1)
    with pytest.raises(UserError, match="solutions of two questions"):
        verifier.hold_out([example(0)], 0.1, 0)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        scorer(batch_size=0)
