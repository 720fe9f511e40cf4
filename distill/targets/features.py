"""The seqio side: tasks, their mixture, and the feature converter that packs it."""

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from distill.core.records import PackedExample

Tensors = Mapping[str, tf.Tensor]
# From a seed to blocks of concatenated examples, as the docstring of `task` draws them.
Blocks = Callable[[int], Iterator[Mapping[str, np.ndarray]]]

SPLIT = "train"
# Rows that leave TensorFlow together.
_ROWS = 256


# --- Packing -----------------------------------------------------------------------------------


class DistillationFeatureConverter(seqio.EncDecFeatureConverter):
    """seqio's encoder-decoder features with the teacher's k candidates of every target token.

    Two examples

    ```
    [{"inputs": [7, 8, 5, 1],            "targets": [3, 9, 1],
      "target_top_ids": [[3, 6], [9, 0], [1, 0]], "target_top_probs": [[.7, .2], [1, 0], [1, 0]]},
     {"inputs": [8, 4, 9, 3, 1],         "targets": [4, 1],
      "target_top_ids": [[5, 4], [1, 0]],         "target_top_probs": [[.6, .3], [1, 0]]}]
    ```

    and lengths of 10 for the inputs and 7 for the three others give

    ```
    [{     "encoder_input_tokens": [7, 8, 5, 1, 8, 4, 9, 3, 1, 0],
            "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
              "encoder_positions": [0, 1, 2, 3, 0, 1, 2, 3, 4, 0],
          "decoder_target_tokens": [3, 9, 1, 4, 1, 0, 0],
           "decoder_input_tokens": [0, 3, 9, 0, 4, 0, 0],
           "decoder_loss_weights": [1, 1, 1, 1, 1, 0, 0],
            "decoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
              "decoder_positions": [0, 1, 2, 0, 1, 0, 0],
         "decoder_target_top_ids": [[3, 6], [9, 0], [1, 0], [5, 4], [1, 0], [0, 0], [0, 0]],
       "decoder_target_top_probs": [[.7, .2], [1, 0], [1, 0], [.6, .3], [1, 0], [0, 0], [0, 0]]}]
    ```

    An example goes to the first row of its window that has room in both towers, so rows fill better
    than by seqio's packer, which keeps one row open. That packer cannot be used on the candidates,
    not even column by column: it takes the non-zero entries for the sequence, and a column holds
    a zero wherever a position has fewer candidates.

    T5X constructs it as it does seqio's (`feature_converter_cls` of its models); then
    `task_feature_lengths` needs all four features.

    Args:
        pack: whether a row holds several examples; if not, it is one example, padded.
        use_custom_packing_ops: ignored; T5X passes it.
        apply_length_check: whether too long an example is refused before it reaches the packer.
        bos_id: the decoder's input before the first token.
        window: examples that are packed together; only memory and the fill of rows depend on it.

    Raises:
        tf.errors.InvalidArgumentError: an example is longer than its tower, on iteration.
    """

    TASK_FEATURES = types.MappingProxyType(
        {
            **seqio.EncDecFeatureConverter.TASK_FEATURES,
            "target_top_ids": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=2),
            "target_top_probs": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=2),
        }
    )
    MODEL_FEATURES = types.MappingProxyType(
        {
            **seqio.EncDecFeatureConverter.MODEL_FEATURES,
            "decoder_target_top_ids": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=2),
            "decoder_target_top_probs": seqio.FeatureConverter.FeatureSpec(
                dtype=tf.float32, rank=2
            ),
        }
    )

    def __init__(
        self,
        pack: bool = True,
        use_custom_packing_ops: bool = False,
        *,
        apply_length_check: bool = True,
        bos_id: int = 0,
        window: int = 1024,
    ) -> None:
        del use_custom_packing_ops
        super().__init__(
            pack=pack,
            use_custom_packing_ops=True,  # seqio then admits features of rank 2
            apply_length_check=apply_length_check,
            bos_id=bos_id,
        )
        self._window = window

    def _pack_or_pad(
        self, ds: tf.data.Dataset, packed_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        ds = ds.map(lambda example: {name: example[name] for name in packed_lengths})
        if not self.pack:
            return seqio.utils.trim_and_pad_dataset(ds, packed_lengths)
        pack = functools.partial(pack_window, lengths=packed_lengths)
        ds = ds.ragged_batch(self._window).map(pack, num_parallel_calls=tf.data.AUTOTUNE)
        return ds.unbatch()

    def _convert_example(self, features: Tensors) -> Tensors:
        return {
            **super()._convert_example(features),
            "decoder_target_top_ids": features["target_top_ids"],
            "decoder_target_top_probs": features["target_top_probs"],
        }

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return the length of each model feature; candidates are as long as targets."""
        return {
            **super().get_model_feature_lengths(task_feature_lengths),
            "decoder_target_top_ids": task_feature_lengths["target_top_ids"],
            "decoder_target_top_probs": task_feature_lengths["target_top_probs"],
        }


def pack_window(examples: Mapping[str, tf.RaggedTensor], lengths: Mapping[str, int]) -> Tensors:
    """Pack examples into as few rows as first fit needs, in the order in which they come.

    Args:
        examples: [example, (length), ...] of each feature.
        lengths: of a row, for each feature.

    Returns:
        [row, length, ...] of each feature, and [row, length] `*_segment_ids`, from 1, and
        `*_positions` of those that are vectors.
    """
    sizes = tf.stack([examples[name].row_lengths() for name in lengths], axis=1)
    capacities = tf.constant(list(lengths.values()), tf.int64)
    rows = _first_fit(sizes, capacities)
    order = tf.argsort(rows, stable=True)
    rows = tf.gather(rows, order)
    segments = 1 + tf.range(tf.size(rows)) - tf.searchsorted(rows, rows)
    packed = {}
    for (name, length), size in zip(lengths.items(), tf.unstack(sizes, axis=1), strict=True):
        size = tf.gather(size, order)
        in_rows = functools.partial(
            _in_rows, rows=tf.repeat(rows, size), count=rows[-1] + 1, length=length
        )
        packed[name] = in_rows(tf.gather(examples[name], order).flat_values)
        if examples[name].shape.rank == 2:
            packed[f"{name}_segment_ids"] = in_rows(tf.repeat(segments, size))
            packed[f"{name}_positions"] = in_rows(
                tf.ragged.range(tf.cast(size, tf.int32)).flat_values
            )
    return packed


def _first_fit(sizes: tf.Tensor, capacities: tf.Tensor) -> tf.Tensor:
    """Return int32 [example]: the first row with room for the [example, feature] sizes."""
    tf.debugging.assert_less_equal(
        sizes, capacities, f"expected examples no longer than a row of {capacities}"
    )
    count = tf.shape(sizes)[0]

    def place(i: tf.Tensor, room: tf.Tensor, rows: tf.TensorArray) -> tuple:
        row = tf.argmax(tf.reduce_all(room >= sizes[i], axis=1), output_type=tf.int32)
        return i + 1, tf.tensor_scatter_nd_sub(room, [[row]], [sizes[i]]), rows.write(i, row)

    room = tf.zeros_like(sizes) + capacities
    *_, rows = tf.while_loop(
        lambda i, *_: i < count, place, (0, room, tf.TensorArray(tf.int32, count))
    )
    return rows.stack()


def _in_rows(values: tf.Tensor, rows: tf.Tensor, count: tf.Tensor, length: int) -> tf.Tensor:
    """Return [count, length, ...]: each value in its row, rows filled up with zeros."""
    ragged = tf.RaggedTensor.from_value_rowids(  # pyright: ignore[reportAttributeAccessIssue]
        values, tf.cast(rows, tf.int64), tf.cast(count, tf.int64)
    )
    return ragged.to_tensor(shape=[None, length, *values.shape[1:]])


# --- Tasks -------------------------------------------------------------------------------------


def lengths_of(source_length: int, target_length: int) -> dict[str, int]:
    """Return the length of each task feature in a row, as seqio and T5X take it."""
    targets = dict.fromkeys(("targets", "target_top_ids", "target_top_probs"), target_length)
    return {"inputs": source_length, **targets}


def output_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.utils.Feature]:
    """Return the features of our tasks; their examples end in EOS already."""
    plain = functools.partial(seqio.Feature, vocabulary=vocabulary, add_eos=False)
    return {
        "inputs": plain(),
        "targets": plain(),
        "target_top_ids": plain(rank=2),
        "target_top_probs": seqio.ContinuousFeature(dtype=tf.float32, rank=2),
    }


def task(
    name: str, form: str, blocks: Blocks, *, size: int, k: int, vocabulary: seqio.Vocabulary
) -> seqio.Task:
    """Return an unregistered task of one format; too long an example is dropped, never cut.

    A block holds examples end to end; here two, with k = 2:

    ```
    inputs            [7, 8, 5, 1, 8, 4, 9, 3, 1]      input_lengths   [4, 5]
    targets           [3, 9, 1, 4, 1]                  target_lengths  [3, 2]
    target_top_ids    [[3, 6], [9, 0], [1, 0], [5, 4], [1, 0]]
    target_top_probs  [[.7, .2], [1, 0], [1, 0], [.6, .3], [1, 0]]
    ```

    What comes before the placeholder can be cached by `seqio_cache_tasks` once the task is
    registered (`dataset.register`); the source then runs once, on one worker.

    Args:
        name: letters, digits and underscores, unique in a mixture.
        form: the format's name; each example carries it as `format`.
        blocks: the source: from a seed to the blocks of one epoch, in an order of that seed.
        size: number of examples in an epoch.
        k: candidates of a position.
        vocabulary: the student's.
    """
    signature = {
        "inputs": tf.TensorSpec([None], tf.int32),
        "input_lengths": tf.TensorSpec([None], tf.int32),
        "targets": tf.TensorSpec([None], tf.int32),
        "target_lengths": tf.TensorSpec([None], tf.int32),
        "target_top_ids": tf.TensorSpec([None, k], tf.int32),
        "target_top_probs": tf.TensorSpec([None, k], tf.float32),
    }

    def source(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files
        of_seed = functools.partial(blocks, seed or 0)
        ds = tf.data.Dataset.from_generator(of_seed, output_signature=signature)
        return ds.map(functools.partial(_examples, form)).unbatch()

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(source, [SPLIT], {SPLIT: size}),
        preprocessors=[seqio.CacheDatasetPlaceholder(), drop_longer],
        output_features=output_features(vocabulary),
    )


def _examples(form: str, block: Tensors) -> dict[str, Any]:
    def cut(feature: str, lengths: tf.Tensor) -> Any:
        ragged = tf.RaggedTensor.from_row_lengths  # pyright: ignore[reportAttributeAccessIssue]
        return ragged(block[feature], lengths)

    targets = ("targets", "target_top_ids", "target_top_probs")
    return {
        "inputs": cut("inputs", block["input_lengths"]),
        **{feature: cut(feature, block["target_lengths"]) for feature in targets},
        "format": tf.fill(tf.shape(block["input_lengths"]), form),
    }


def drop_longer(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
    """Drop the examples that are longer than their tower; a seqio preprocessor.

    Without lengths it drops none; a `Tally` can drop and count them.
    """
    if not sequence_length:
        return dataset
    return dataset.filter(lambda example: ~tf.reduce_any(_too_long(example, sequence_length)))


def _too_long(example: Tensors, lengths: Mapping[str, int]) -> tf.Tensor:
    """Return bool [2]: whether the inputs, whether the targets exceed their length."""
    return tf.stack([tf.size(example[name]) > lengths[name] for name in ("inputs", "targets")])


# --- Mixture -----------------------------------------------------------------------------------


def leave_accelerators_alone() -> None:
    """Keep TensorFlow off the GPUs, whose memory it would take whole from JAX."""
    tf.config.set_visible_devices([], "GPU")


class Tally:
    """A filter that drops examples too long for their tower and counts all, by format.

    Args:
        formats: the names that examples carry as `format`.
        lengths: of a row, for each task feature.
    """

    KEPT, LONG_SOURCE, LONG_TARGET = "kept", "source too long", "target too long"

    def __init__(self, formats: Sequence[str], lengths: Mapping[str, int]) -> None:
        self._formats, self.lengths = list(formats), lengths
        self._counts = tf.Variable(tf.zeros([len(formats), 3], tf.int64))

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the examples that fit; an element counts when it is iterated over."""
        return dataset.filter(self._fits)

    def _fits(self, example: Tensors) -> tf.Tensor:
        wrong = _too_long(example, self.lengths)
        outcome = tf.where(wrong[0], 1, tf.where(wrong[1], 2, 0))
        row = tf.argmax(tf.equal(example["format"], self._formats), output_type=tf.int32)
        self._counts.scatter_nd_add([[row, outcome]], tf.constant([1], tf.int64))
        return tf.equal(outcome, 0)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {outcome: {format: number of examples}}."""
        columns = self._counts.numpy().T.tolist()
        return {
            outcome: dict(zip(self._formats, column, strict=True))
            for outcome, column in zip(
                (self.KEPT, self.LONG_SOURCE, self.LONG_TARGET), columns, strict=True
            )
        }


def as_rated(
    datasets: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int | None
) -> tf.data.Dataset:
    """Take from each dataset as many examples as its rate, in a random order; for seqio.Mixture.

    seqio samples instead, which gives these counts only on average.
    """
    counts = np.array(rates).astype(np.int64)
    choices = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    return tf.data.Dataset.choose_from_datasets(
        datasets, tf.data.Dataset.from_tensor_slices(choices), stop_on_empty_dataset=True
    )


def packed(mixture: seqio.Mixture, tally: Tally, *, seed: int) -> Iterator[PackedExample]:
    """Yield the examples of a finite mixture that fit, packed.

    Args:
        mixture: of tasks of `task`, with `as_rated` as its `sample_fn`.
        tally: drops and counts the examples that do not fit.
        seed: of the orders and the demonstrations; the rows depend on nothing else.
    """
    # The sources shuffle whole epochs, which a shuffle buffer of seqio's could not.
    examples = mixture.get_dataset(
        None,
        split=SPLIT,
        shuffle=False,
        seed=seed,
        passthrough_features=["format"],
        try_in_mem_cache=False,
    )
    rows = DistillationFeatureConverter()(tally(examples), tally.lengths)
    for batch in rows.batch(_ROWS).as_numpy_iterator():
        batch["decoder_loss_weights"] = batch["decoder_loss_weights"].astype(np.float32)
        for row in range(len(batch["encoder_positions"])):
            yield PackedExample(**{name: column[row] for name, column in batch.items()})
