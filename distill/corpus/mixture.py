"""Blocks of examples as seqio tasks and a mixture of them; not what the examples say."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from distill.core.records import PackedExample
from distill.corpus.features import DistillationFeatureConverter, Tensors

# From a seed to blocks of examples laid end to end, as the docstring of `task` draws them.
Blocks = Callable[[int], Iterator[Mapping[str, np.ndarray]]]

SPLIT = "train"
# Rows that leave TensorFlow together.
_ROWS = 256


def leave_accelerators_alone() -> None:
    """Keep TensorFlow off the GPUs, whose memory it would take whole from JAX."""
    tf.config.set_visible_devices([], "GPU")


def lengths_of(source_length: int, target_length: int) -> dict[str, int]:
    """Return the length of each task feature in a row, as seqio and T5X want it."""
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
    name: str, blocks: Blocks, *, size: int, k: int, vocabulary: seqio.Vocabulary
) -> seqio.Task:
    """Make a task of one format, of no registry; too long an example is dropped, never cut.

    A block holds examples end to end; here two, with k = 2:

    ```
    inputs            [7, 8, 5, 1, 8, 4, 9, 3, 1]      input_lengths   [4, 5]
    targets           [3, 9, 1, 4, 1]                  target_lengths  [3, 2]
    target_top_ids    [[3, 6], [9, 0], [1, 0], [5, 4], [1, 0]]
    target_top_probs  [[.7, .2], [1, 0], [1, 0], [.6, .3], [1, 0]]
    ```

    What comes before the placeholder can be cached by `seqio_cache_tasks` once the task is
    registered (`seqio.TaskRegistry.add_provider`); the source then runs once, on one worker.

    Args:
        name: letters, digits and underscores; each example carries it as `format`.
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
        made = functools.partial(blocks, seed or 0)
        ds = tf.data.Dataset.from_generator(made, output_signature=signature)
        return ds.map(functools.partial(_examples, name)).unbatch()

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(source, [SPLIT], {SPLIT: size}),
        preprocessors=[seqio.CacheDatasetPlaceholder(), drop_longer],
        output_features=output_features(vocabulary),
    )


def _examples(name: str, block: Tensors) -> dict[str, Any]:
    def cut(feature: str, lengths: tf.Tensor) -> Any:
        ragged = tf.RaggedTensor.from_row_lengths  # pyright: ignore[reportAttributeAccessIssue]
        return ragged(block[feature], lengths)

    targets = ("targets", "target_top_ids", "target_top_probs")
    return {
        "inputs": cut("inputs", block["input_lengths"]),
        **{feature: cut(feature, block["target_lengths"]) for feature in targets},
        "format": tf.fill(tf.shape(block["input_lengths"]), name),
    }


def drop_longer(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
    """Drop the examples that are longer than their tower; a seqio preprocessor.

    Without lengths it passes all on, and a `Tally` can drop and count them.
    """
    if not sequence_length:
        return dataset
    return dataset.filter(lambda example: ~tf.reduce_any(_too_long(example, sequence_length)))


def _too_long(example: Tensors, lengths: Mapping[str, int]) -> tf.Tensor:
    """Return bool [2]: whether the inputs, whether the targets exceed their length."""
    return tf.stack([tf.size(example[name]) > lengths[name] for name in ("inputs", "targets")])


class Tally:
    """A filter that drops examples too long for their tower and counts what it saw, by format.

    Args:
        formats: the names that examples carry as `format`.
        lengths: of a row, for each task feature.
    """

    KEPT, LONG_SOURCE, LONG_TARGET = "kept", "source too long", "target too long"

    def __init__(self, formats: Sequence[str], lengths: Mapping[str, int]) -> None:
        self._formats, self._lengths = list(formats), lengths
        self._counts = tf.Variable(tf.zeros([len(formats), 3], tf.int64))

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the examples that fit; an element counts when it is iterated over."""
        return dataset.filter(self._fits)

    def _fits(self, example: Tensors) -> tf.Tensor:
        wrong = _too_long(example, self._lengths)
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


def packed(
    mixture: seqio.Mixture, tally: Tally, *, lengths: Mapping[str, int], count: int, seed: int
) -> Iterator[PackedExample]:
    """Draw `count` examples of the mixture and yield those that fit, packed.

    Args:
        mixture: of tasks that `task` made.
        tally: drops and counts what does not fit.
        lengths: of a row, for each task feature.
        count: number of examples to draw; a task is repeated where it has fewer.
        seed: of the orders and the draws; the rows depend on nothing else.
    """
    # The sources shuffle whole epochs themselves, which a buffer of seqio's could not.
    drawn = mixture.get_dataset(
        None,
        split=SPLIT,
        shuffle=False,
        seed=seed,
        passthrough_features=["format"],
        try_in_mem_cache=False,
    )
    converter = DistillationFeatureConverter()
    rows = converter(tally(drawn.take(count)), lengths)
    for batch in rows.batch(_ROWS).as_numpy_iterator():
        batch["decoder_loss_weights"] = batch["decoder_loss_weights"].astype(np.float32)
        for row in range(len(batch["encoder_positions"])):
            yield PackedExample(**{name: column[row] for name, column in batch.items()})
