import collections
import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.targets import features

K = 2
SPECS = {
    "inputs": ([], tf.int32),
    "targets": ([], tf.int32),
    "target_top_ids": ([K], tf.int32),
    "target_top_probs": ([K], tf.float32),
}
# The docstring's two examples.
EXAMPLES = [
    {
        "inputs": [7, 8, 5, 1],
        "targets": [3, 9, 1],
        "target_top_ids": [[3, 6], [9, 0], [1, 0]],
        "target_top_probs": [[0.7, 0.2], [1, 0], [1, 0]],
    },
    {
        "inputs": [8, 4, 9, 3, 1],
        "targets": [4, 1],
        "target_top_ids": [[5, 4], [1, 0]],
        "target_top_probs": [[0.6, 0.3], [1, 0]],
    },
]


def dataset(examples):
    """A dataset as a task gives it, each feature of a length of its own."""
    ragged = {}
    for name, (inner, dtype) in SPECS.items():
        flat = [np.array(e[name], dtype.as_numpy_dtype).reshape(-1, *inner) for e in examples]
        lengths = [len(values) for values in flat]
        ragged[name] = tf.RaggedTensor.from_row_lengths(np.concatenate(flat), lengths)
    return tf.data.Dataset.from_tensor_slices(ragged)


def convert(examples, source_length, target_length, **options):
    converter = features.DistillationFeatureConverter(**options)
    lengths = features.lengths_of(source_length, target_length)
    return list(converter(dataset(examples), lengths).as_numpy_iterator())


def unpacked(rows):
    """The examples that rows hold, by their segments."""
    for row in rows:
        for segment in range(1, row["encoder_segment_ids"].max(initial=0) + 1):
            source = row["encoder_segment_ids"] == segment
            target = row["decoder_segment_ids"] == segment
            yield {
                "inputs": row["encoder_input_tokens"][source],
                "targets": row["decoder_target_tokens"][target],
                "target_top_ids": row["decoder_target_top_ids"][target],
                "target_top_probs": row["decoder_target_top_probs"][target],
            }


def counted(examples):
    """Examples as a multiset, down to the last bit."""
    return collections.Counter(
        tuple(np.array(e[n], dtype.as_numpy_dtype).tobytes() for n, (_, dtype) in SPECS.items())
        for e in examples
    )


@st.composite
def example(draw, longest):
    """Zeros stand among the candidates, as where a position has fewer than k."""
    ids = st.integers(1, 4)
    candidates = st.lists(st.integers(0, 4), min_size=K, max_size=K)
    probs = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=K, max_size=K)
    length = draw(st.integers(1, longest[1]))

    def many(of):
        return draw(st.lists(of, min_size=length, max_size=length))

    return {
        "inputs": draw(st.lists(ids, min_size=1, max_size=longest[0])),
        "targets": many(ids),
        "target_top_ids": many(candidates),
        "target_top_probs": many(probs),
    }


@st.composite
def packing(draw):
    lengths = draw(st.sampled_from([(6, 4), (3, 9)]))
    return lengths, draw(st.lists(example(lengths), min_size=1, max_size=12))


@functools.cache
def compiled(source_length, target_length):
    """The packer of one window; a converter would be traced anew for every example."""
    lengths = features.lengths_of(source_length, target_length)
    signature = {
        name: tf.RaggedTensorSpec([None, None, *inner], dtype, ragged_rank=1)
        for name, (inner, dtype) in SPECS.items()
    }
    pack = functools.partial(features.pack_window, lengths=lengths)
    convert_one = features.DistillationFeatureConverter()._convert_example

    def rows(examples):
        return tf.map_fn(convert_one, pack(examples), fn_output_signature=spec)

    dtypes = {
        name: s.dtype for name, s in features.DistillationFeatureConverter.MODEL_FEATURES.items()
    } | features.DistillationFeatureConverter.PACKING_FEATURE_DTYPES
    spec = {name: tf.TensorSpec(None, dtype) for name, dtype in dtypes.items()}
    return tf.function(rows, input_signature=[signature])


def pack(examples, lengths):
    window = next(iter(dataset(examples).ragged_batch(len(examples))))
    packed = {name: value.numpy() for name, value in compiled(*lengths)(window).items()}
    count = len(packed["encoder_positions"])
    return [{name: column[i] for name, column in packed.items()} for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(packing())
def test_unpacking_gives_back_every_example_once(case):
    lengths, examples = case
    assert counted(unpacked(pack(examples, lengths))) == counted(examples)


@settings(deadline=None, max_examples=60)
@given(packing())
def test_segments_positions_inputs_and_weights_obey_their_definition(case):
    lengths, examples = case
    for row in pack(examples, lengths):
        for tower, tokens in (("encoder", "input_tokens"), ("decoder", "target_tokens")):
            ids, positions = row[f"{tower}_segment_ids"], row[f"{tower}_positions"]
            filled = np.count_nonzero(ids)
            assert (ids[:filled] > 0).all() and not ids[filled:].any()
            assert set(np.diff(ids[:filled])) <= {0, 1} and ids[0] == 1
            for segment in set(ids[:filled]):
                places = positions[ids == segment]
                np.testing.assert_array_equal(places, np.arange(len(places)))
            assert not positions[filled:].any()
            assert not row[f"{tower}_{tokens}"][filled:].any()
        assert row["encoder_segment_ids"].max() == row["decoder_segment_ids"].max()
        ids, targets = row["decoder_segment_ids"], row["decoder_target_tokens"]
        shifted = [
            targets[t - 1] if t and ids[t] and ids[t] == ids[t - 1] else 0 for t in range(len(ids))
        ]
        filled = ids > 0
        np.testing.assert_array_equal(
            row["decoder_input_tokens"][filled], np.array(shifted)[filled]
        )
        np.testing.assert_array_equal(row["decoder_loss_weights"], filled)
        assert not row["decoder_target_top_ids"][~filled].any()
        assert not row["decoder_target_top_probs"][~filled].any()


@settings(deadline=None, max_examples=60)
@given(packing())
def test_an_example_goes_to_the_first_row_with_room_in_both_towers(case):
    lengths, examples = case
    rooms, naive = [], []
    for one in examples:
        size = np.array([len(one["inputs"]), len(one["targets"])])
        row = next((i for i, room in enumerate(rooms) if (room >= size).all()), len(rooms))
        if row == len(rooms):
            rooms.append(np.array(lengths))
            naive.append([])
        rooms[row] -= size
        naive[row].append(one)
    packed = [list(unpacked([row])) for row in pack(examples, lengths)]
    assert [[counted([e]) for e in row] for row in packed] == [
        [counted([e]) for e in row] for row in naive
    ]


def test_two_examples_pack_as_the_docstring_draws_them():
    (row,) = convert(EXAMPLES, 10, 7)
    expected = {
        "encoder_input_tokens": [7, 8, 5, 1, 8, 4, 9, 3, 1, 0],
        "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
        "encoder_positions": [0, 1, 2, 3, 0, 1, 2, 3, 4, 0],
        "decoder_target_tokens": [3, 9, 1, 4, 1, 0, 0],
        "decoder_input_tokens": [0, 3, 9, 0, 4, 0, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0, 0],
        "decoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
        "decoder_positions": [0, 1, 2, 0, 1, 0, 0],
        "decoder_target_top_ids": [[3, 6], [9, 0], [1, 0], [5, 4], [1, 0], [0, 0], [0, 0]],
        "decoder_target_top_probs": [
            [0.7, 0.2],
            [1, 0],
            [1, 0],
            [0.6, 0.3],
            [1, 0],
            [0, 0],
            [0, 0],
        ],
    }
    assert row.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(row[name], np.array(values, row[name].dtype), name)


def test_examples_that_share_no_row_open_another_and_windows_lose_none():
    rows = convert(EXAMPLES * 3, 8, 7, window=4)
    assert counted(unpacked(rows)) == counted(EXAMPLES * 3)
    assert len(rows) == 5


def test_without_packing_we_add_the_candidates_to_what_seqio_makes():
    ours = convert(EXAMPLES, 10, 7, pack=False)
    lengths = {"inputs": 10, "targets": 7}
    theirs = seqio.EncDecFeatureConverter(pack=False)(dataset(EXAMPLES), lengths)
    for mine, row, one in zip(ours, theirs.as_numpy_iterator(), EXAMPLES, strict=True):
        for name, values in row.items():
            np.testing.assert_array_equal(mine[name], values, name)
        filled = len(one["targets"])
        np.testing.assert_array_equal(
            mine["decoder_target_top_ids"][:filled], one["target_top_ids"]
        )
        assert not mine["decoder_target_top_ids"][filled:].any()
        assert mine["decoder_target_top_probs"].shape == (7, K)


def test_rows_have_static_shapes_as_t5x_needs_them():
    converter = features.DistillationFeatureConverter(pack=True, use_custom_packing_ops=False)
    rows = converter(dataset(EXAMPLES), features.lengths_of(10, 7)).batch(2, drop_remainder=True)
    shapes = {name: tuple(spec.shape) for name, spec in rows.element_spec.items()}
    assert shapes["decoder_target_top_ids"] == shapes["decoder_target_top_probs"] == (2, 7, K)
    assert shapes["encoder_positions"] == (2, 10) and shapes["decoder_positions"] == (2, 7)


@pytest.mark.parametrize("check", [True, False])
def test_a_longer_example_is_refused_and_never_cut(check):
    match = "length not less than or equal to" if check else "no longer than a row"
    for lengths in ((4, 7), (10, 2)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=match):
            convert(EXAMPLES, *lengths, apply_length_check=check)


def blocks_of(examples, seed):
    """The examples as one block, in an order of the seed."""
    picked = [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]
    block = {
        name: np.concatenate([np.array(e[name], dtype.as_numpy_dtype) for e in picked])
        for name, (_, dtype) in SPECS.items()
    }
    yield block | {
        "input_lengths": np.array([len(e["inputs"]) for e in picked], np.int32),
        "target_lengths": np.array([len(e["targets"]) for e in picked], np.int32),
    }


def task(name, examples):
    return features.task(
        name,
        name,
        functools.partial(blocks_of, examples),
        size=len(examples),
        k=K,
        vocabulary=seqio.PassThroughVocabulary(10, eos_id=1),
    )


def test_a_task_serves_seqio_get_dataset_and_drops_what_is_too_long():
    rows = list(
        seqio.get_dataset(
            task("two", EXAMPLES),
            features.lengths_of(4, 7),
            features.DistillationFeatureConverter(),
            shuffle=True,
            seed=3,
        ).as_numpy_iterator()
    )
    assert counted(unpacked(rows)) == counted(EXAMPLES[:1])
    assert "two" not in seqio.TaskRegistry.names()


def test_a_mixture_gives_each_format_as_often_as_its_rate_and_counts_what_it_drops():
    tasks = [(task("one", EXAMPLES[:1] * 4), 3), (task("two", EXAMPLES[1:] * 4), 8)]
    mixture = seqio.Mixture("both", tasks, sample_fn=features.as_rated)
    tally = features.Tally(["one", "two"], features.lengths_of(9, 7))
    rows = [vars(row) for row in features.packed(mixture, tally, seed=0)]
    assert counted(unpacked(rows)) == counted(EXAMPLES[:1] * 3 + EXAMPLES[1:] * 8)
    assert tally.counts()["kept"] == {"one": 3, "two": 8}

    tally = features.Tally(["one", "two"], features.lengths_of(4, 7))
    rows = [vars(row) for row in features.packed(mixture, tally, seed=0)]
    assert counted(unpacked(rows)) == counted(EXAMPLES[:1] * 3)
    assert tally.counts() == {
        "kept": {"one": 3, "two": 0},
        "source too long": {"one": 0, "two": 8},
        "target too long": {"one": 0, "two": 0},
    }


def test_seqio_s_own_sampling_honours_the_rates_within_its_error():
    tasks = [(task("one", EXAMPLES[:1]), 1), (task("two", EXAMPLES[1:]), 3)]
    drawn = seqio.Mixture("both", tasks).get_dataset(None, seed=1, passthrough_features=["format"])
    names = [e["format"].decode() for e in drawn.take(2000).as_numpy_iterator()]
    # Four standard deviations of a binomial of 2,000 draws.
    assert abs(names.count("two") - 1500) < 4 * np.sqrt(2000 * 0.75 * 0.25)
