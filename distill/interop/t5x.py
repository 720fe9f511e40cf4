"""T5X trains our student with our loss, optimizer and examples.

T5X is on no package index; this module alone imports it, from its repository
(github.com/google-research/t5x). The files of `gin_configs/t5x` bind what is here for
`python -m t5x.train`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import seqio
from flax import linen as nn
from jaxtyping import Array, Float, PyTree
from t5x.losses import (  # pyright: ignore[reportMissingImports]
    get_loss_normalizing_factor_and_weights,
)
from t5x.models import EncoderDecoderModel  # pyright: ignore[reportMissingImports]
from t5x.optimizers import OptaxWrapper  # pyright: ignore[reportMissingImports]

from distill.targets import dataset
from distill.targets import vocabulary as vocabularies
from distill.targets.examples import of_run
from distill.targets.features import DistillationFeatureConverter, leave_accelerators_alone
from distill.training.losses import DistributionMatching, Loss
from distill.training.optimizers import Optimizer

PAPER_LOSS = DistributionMatching()  # Fu et al. 2023
SEGMENTS = "_segment_ids"


class DistillationModel(EncoderDecoderModel):
    """T5X's encoder-decoder with one of our losses on the teacher's sparse targets.

    Batches are those of `DistillationFeatureConverter`. `loss_normalizing_factor` is T5X's:
    "NUM_REAL_TARGET_TOKENS" gives the mean over tokens that our trainer descends, None the sum.

    Args:
        module: T5X's network.
        input_vocabulary: the student's.
        output_vocabulary: the same.
        optimizer_def: `optimizer()`, or one of T5X.
        loss: of `distill.training.losses`.
        loss_normalizing_factor: what the sum of nats is divided by.
        decoding: T5X's other arguments, which change how it predicts.
    """

    FEATURE_CONVERTER_CLS = DistillationFeatureConverter

    def __init__(
        self,
        module: nn.Module,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer_def: Any,
        *,
        loss: Loss = PAPER_LOSS,
        loss_normalizing_factor: Any = "NUM_REAL_TARGET_TOKENS",
        **decoding: Any,
    ) -> None:
        self._loss = loss
        super().__init__(
            module=module,
            input_vocabulary=input_vocabulary,
            output_vocabulary=output_vocabulary,
            optimizer_def=optimizer_def,
            loss_normalizing_factor=loss_normalizing_factor,
            **decoding,
        )

    def loss_fn(
        self, params: PyTree, batch: Mapping[str, Array], dropout_rng: jax.Array | None
    ) -> tuple[Float[Array, ""], Mapping[str, Any]]:
        """Return the loss that T5X differentiates, and its metrics; without a key nothing drops."""
        logits = self._compute_logits(params, batch, dropout_rng)
        factor, weights = get_loss_normalizing_factor_and_weights(
            self._loss_normalizing_factor, batch
        )
        nats, _ = self._loss(logits, {**batch, "decoder_loss_weights": weights})
        loss = nats if factor is None else nats / factor
        segments = {
            name.removesuffix(SEGMENTS): ids
            for name, ids in batch.items()
            if name.endswith(SEGMENTS)
        }
        metrics = self._compute_metrics(
            logits=logits,
            targets=batch["decoder_target_tokens"],
            mask=weights,
            loss=loss,
            segment_ids=segments,
        )
        return loss, metrics


def optimizer(*, optimizer: Optimizer) -> Any:
    """Return one of our optimizers as T5X takes it; its schedule applies, T5X's does not."""
    return OptaxWrapper(optimizer.transformation())


def vocabulary(*, vocabulary: str | Path) -> seqio.Vocabulary:
    """Return the student's vocabulary as seqio describes the examples of `mixture`."""
    tokenizer = vocabularies.load(vocabulary)
    return seqio.PassThroughVocabulary(tokenizer.vocab_size, eos_id=tokenizer.eos_id)


def mixture(
    *,
    run_dir: str | Path,
    vocabulary: str | Path,
    ratios: Mapping[str, float] = dataset.EQUAL_RATIOS,
    k: int = 5,
    demonstrations: int = 4,
    split: str = "train",
    name: str = dataset.REGISTERED,
) -> str:
    """Register the mixture of the formats that T5X draws from a run's aligned traces.

    Args:
        run_dir: the run; its stage `align` is complete.
        vocabulary: the one that `align` was given.
        ratios: share of each format among the examples, up to a factor.
        k: candidates a position, as `align` kept them.
        demonstrations: examples in an in-context prompt.
        split: of the problems that were harvested.
        name: that seqio has no mixture of yet.

    Returns:
        The name, for `utils.DatasetConfig.mixture_or_task_name`.

    Raises:
        UserError: there are no aligned traces, they are of another k or another vocabulary, or too
            few to demonstrate with.
        ValueError: seqio has a mixture of this name.
    """
    leave_accelerators_alone()
    tokenizer = vocabularies.load(vocabulary)
    dataset.require_aligned(Path(run_dir), tokenizer, k)
    forms = of_run(
        Path(run_dir), tokenizer, k=k, demonstrations=demonstrations, split=split, used=ratios
    )
    counts = dataset.shares({form.name: form.size for form in forms}, ratios)
    seqio.MixtureRegistry.add_provider(
        name, dataset.mixture(forms, counts, tokenizer, k=k, name=name)
    )
    return name
