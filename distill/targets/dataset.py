"""Packed training rows from aligned traces, mixed over the four formats.

seqio and TensorFlow are imported when a function needs them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.core.errors import UserError
from distill.core.progress import progress
from distill.core.records import PackedExample
from distill.core.store import Shards, Stage, manifest
from distill.targets import unknowns
from distill.targets import vocabulary as vocabularies
from distill.targets.examples import Corpus, Examples, blocks, examples, of_run, read_corpus
from distill.targets.vocabulary import Vocabulary
from distill.text import prompts

if TYPE_CHECKING:
    import seqio

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("dataset",)
SHARD_ROWS = 1024
EQUAL_RATIOS = dict.fromkeys(prompts.FORMATS, 1.0)
# The name of the registered mixture and the prefix of its tasks, by which caches are found.
REGISTERED = "distillation"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The tokens of a row, by tower.

    Attributes:
        source: of the encoder.
        target: of the decoder.
    """

    source: int
    target: int


def shares(
    sizes: Mapping[str, int], ratios: Mapping[str, float], passes: int = 1
) -> dict[str, int]:
    """Return how many examples of each format to draw.

    The format with the largest ratio (of several, the largest one) is seen whole `passes` times,
    the others in proportion, so a small ratio does not inflate the dataset.

    Example:
        >>> shares({"cot": 100, "answer": 25}, {"cot": 3, "answer": 1})
        {'cot': 100, 'answer': 33}
    """
    leader = max(ratios, key=lambda name: (ratios[name], sizes[name]))
    most = passes * sizes[leader]
    return {name: max(1, round(most * ratio / ratios[leader])) for name, ratio in ratios.items()}


def tasks(
    forms: Iterable[Examples],
    passes: Mapping[str, int],
    tokenizer: Vocabulary,
    *,
    k: int,
    name: str,
) -> "list[seqio.Task]":
    """Return a seqio task of each format, unregistered.

    Args:
        forms: the examples.
        passes: by format, how often an epoch repeats its examples.
        tokenizer: the student's.
        k: candidates a position.
        name: prefix of the tasks' names.
    """
    import seqio

    from distill.targets import features

    vocabulary = seqio.PassThroughVocabulary(tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    blocks_of = functools.partial(blocks, encode=tokenizer.encode, eos_id=tokenizer.eos_id)
    return [
        features.task(
            f"{name}_{form.name}",
            form.name,
            functools.partial(blocks_of, form, passes=passes[form.name]),
            size=passes[form.name] * form.size,
            k=k,
            vocabulary=vocabulary,
        )
        for form in forms
    ]


def mixture(
    forms: Sequence[Examples],
    counts: Mapping[str, int],
    tokenizer: Vocabulary,
    *,
    k: int,
    name: str = "formats",
    exact: bool = False,
) -> "seqio.Mixture":
    """Return a seqio mixture of the formats, unregistered, which T5X can draw from as well.

    Args:
        forms: the examples.
        counts: of each format, how many of its examples are mixed in; they are its rates.
        tokenizer: the student's.
        k: candidates a position.
        name: of the mixture, and prefix of its tasks' names.
        exact: whether it ends after exactly these counts, or samples by them without end.
    """
    import seqio

    from distill.targets import features

    passes = {form.name: -(-counts[form.name] // form.size) for form in forms}
    by_format = tasks(forms, passes, tokenizer, k=k, name=name)
    rated = [(task, counts[form.name]) for task, form in zip(by_format, forms, strict=True)]
    if exact:
        return seqio.Mixture(name, rated, sample_fn=features.as_rated)
    return seqio.Mixture(name, rated)


def register(
    *,
    run_dir: Path,
    vocabulary: Vocabulary | str | Path,
    demonstrations: int = 4,
    split: str = "train",
    name: str = REGISTERED,
) -> list[str]:
    """Register a task of each format of a run, for tools that find tasks by name.

    Args:
        run_dir: the run directory; its stage `align` is complete.
        vocabulary: the one that `align` was given.
        demonstrations: examples in an in-context prompt.
        split: of the problems that were harvested.
        name: prefix of the tasks' names.

    Returns:
        The names.

    Raises:
        UserError: `align` is not complete or had another vocabulary, there are traces of another
            split, or too few problems to demonstrate with.
        ValueError: seqio has a task of one of the names.
    """
    import seqio

    from distill.targets import features

    features.leave_accelerators_alone()
    tokenizer, k = vocabularies.load(vocabulary), manifest(run_dir, "align")["settings"]["k"]
    require_aligned(run_dir, tokenizer, k)
    forms = of_run(
        run_dir, tokenizer, k=k, demonstrations=demonstrations, split=split, used=prompts.FORMATS
    )
    registered = tasks(forms, dict.fromkeys(prompts.FORMATS, 1), tokenizer, k=k, name=name)
    for task in registered:
        seqio.TaskRegistry.add_provider(task.name, task)
    return [task.name for task in registered]


def _write(
    rows: Iterable[PackedExample], shards: Shards[PackedExample], shard_rows: int
) -> dict[str, Any]:
    """Append the rows and return their number, their target tokens and the fill of the towers."""
    written, filled, places = 0, np.zeros(2, np.int64), np.zeros(2, np.int64)
    rows = iter(progress(rows, name="dataset", unit="rows"))
    while chunk := list(itertools.islice(rows, shard_rows)):
        written += shards.append(chunk)
        for row in chunk:
            towers = (row.encoder_segment_ids, row.decoder_segment_ids)
            filled += [np.count_nonzero(segments) for segments in towers]
            places += [len(segments) for segments in towers]
    source, target = (
        {"sum": int(n), "count": int(of)} for n, of in zip(filled, places, strict=True)
    )
    return {
        "rows": written,
        "target_tokens": target["sum"],
        "source_fill": source,
        "target_fill": target,
    }


def run(
    *,
    run_dir: Path,
    vocabulary: Vocabulary | str | Path,
    ratios: Mapping[str, float] = EQUAL_RATIOS,
    source_length: int = 1024,
    target_length: int = 256,
    k: int = 5,
    seed: int = 0,
    passes: int = 1,
    demonstrations: int = 4,
    split: str = "train",
    max_unk_share: float = unknowns.MAX_SHARE,
    shard_rows: int = SHARD_ROWS,
) -> dict[str, Any]:
    """Fill RUN_DIR/dataset with packed rows of the mixed formats; a stopped start begins again.

    Args:
        run_dir: the run directory; its stage `align` is complete.
        vocabulary: the one that `align` was given.
        ratios: share of each format among the examples, up to a factor; 0 for formats not named.
        source_length: tokens of the encoder's rows.
        target_length: tokens of the decoder's rows.
        k: candidates a position, as `align` kept them.
        seed: of orders, demonstrations and draws.
        passes: how often the format of the largest ratio is repeated; others in proportion.
        demonstrations: examples in an in-context prompt.
        split: of the problems that were harvested.
        max_unk_share: most `<unk>` among the student's tokens of the questions, of the chains and
            of the answers; above 0.01 there is a warning.
        shard_rows: rows of a shard.

    Raises:
        UserError: `align` is not complete or had another vocabulary or k, a ratio is of no format
            or negative, there are too few problems for the demonstrations, nothing fits the
            lengths, or too many tokens of the texts are `<unk>`.
    """
    run_dir, tokenizer = Path(run_dir), vocabularies.load(vocabulary)
    unknowns.require_bound(max_unk_share)
    counts = {
        "source_length": source_length,
        "target_length": target_length,
        "k": k,
        "passes": passes,
        "demonstrations": demonstrations,
    }
    ratios = _positive(ratios)
    _require_positive({**counts, "shard_rows": shard_rows})
    described = vocabularies.setting(run_dir, "dataset", tokenizer)
    settings = {"vocabulary": described, "ratios": ratios, **counts}
    settings |= {"seed": seed, "split": split}
    # Before the stage opens, for that pins the run to these settings.
    require_aligned(run_dir, tokenizer, k)
    with Stage.open(
        run_dir, "dataset", settings=settings, inputs=["problems", "align"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        shards = Shards(run_dir / "dataset", PackedExample)
        corpus = read_corpus(run_dir, split, k)
        unknown = unknowns.require(_unknown(corpus, tokenizer), max_unk_share, "dataset")
        shards.remove()
        forms = examples(corpus, tokenizer, k=k, demonstrations=demonstrations, used=ratios)
        sizes = shares({form.name: form.size for form in forms}, ratios, passes)
        mixed = mixture(forms, sizes, tokenizer, k=k, exact=True)
        lengths = Lengths(source_length, target_length)
        summary = _fill(shards, mixed, list(ratios), lengths, seed=seed, shard_rows=shard_rows)
        stage.finish(**summary, **unknown)
        return stage.summary


def _unknown(corpus: Corpus, tokenizer: Vocabulary) -> dict[str, unknowns.Unknown]:
    """Count the `<unk>` among the tokens of the corpus."""
    problems = corpus.problems.values()
    return {
        "questions": unknowns.count((problem.question for problem in problems), tokenizer),
        "chains": unknowns.count(corpus.texts, tokenizer),
        "answers": unknowns.count((problem.answer for problem in problems), tokenizer),
    }


def _fill(
    shards: Shards[PackedExample],
    mixed: "seqio.Mixture",
    names: Sequence[str],
    lengths: Lengths,
    *,
    seed: int,
    shard_rows: int,
) -> dict[str, Any]:
    """Draw the mixture, drop long examples, write the packed rows and return the summary."""
    from distill.targets import features

    features.leave_accelerators_alone()
    tally = features.Tally(names, features.lengths_of(lengths.source, lengths.target))
    written = _write(features.packed(mixed, tally, seed=seed), shards, shard_rows)
    dropped = tally.counts()
    kept = dropped.pop(tally.KEPT)
    if not written["rows"]:
        raise UserError(
            f"examples of at most {lengths.source} and {lengths.target} tokens",
            "none",
            "give larger lengths",
        )
    total = sum(kept.values())
    read = total + sum(sum(by_format.values()) for by_format in dropped.values())
    return {"read": read, "kept": total, "examples": kept, "dropped": dropped, **written}


def _require_positive(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} of at least 1", str(count), "give a larger one")


def _positive(ratios: Mapping[str, float]) -> dict[str, float]:
    """Return the ratios of the formats that are used, in their order, after checking them."""
    unknown = sorted(ratios.keys() - EQUAL_RATIOS.keys())
    if unknown:
        raise UserError(f"ratios of {', '.join(EQUAL_RATIOS)}", unknown[0], "correct the name")
    if min(ratios.values(), default=0) < 0 or not sum(ratios.values()) > 0:
        raise UserError("ratios of at least 0, one above", str(dict(ratios)), "raise one")
    return {name: float(ratios[name]) for name in EQUAL_RATIOS if ratios.get(name)}


def require_aligned(run_dir: Path, tokenizer: Vocabulary, k: int) -> None:
    """Refuse a vocabulary or a number of candidates other than those of the stage `align`.

    Raises:
        UserError: they differ, or `align` is not complete.
    """
    aligned = manifest(run_dir, "align")
    settings, do = aligned["settings"], "give both stages the same"
    described = settings.get("vocabulary")
    if not isinstance(described, dict):
        raise UserError(
            f"the vocabulary in the manifest of stage align in {run_dir}",
            f"none from version {aligned.get('version', 'unknown')}",
            "use another --run_dir",
        )
    names = {"expected": "stage align", "got": "this stage"}
    vocabularies.require_described(described, tokenizer, **names, do=do)
    size = described.get("vocab_size", tokenizer.vocab_size)
    for name, expected, given in (
        ("tokens of the vocabulary", size, tokenizer.vocab_size),
        ("k", settings["k"], k),
    ):
        if expected != given:
            raise UserError(f"the {name} of stage align, {expected}", str(given), do)
