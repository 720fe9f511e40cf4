"""Packed training rows from aligned traces, mixed over the four formats; light until it runs."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import UserError
from distill.core.progress import progress
from distill.core.records import PackedExample
from distill.core.store import Shards, Stage, manifest
from distill.corpus import prompts
from distill.corpus import student as students
from distill.corpus.examples import Examples, blocks, examples, read_corpus
from distill.corpus.student import Student

SHARD_ROWS = 2048
EQUAL_RATIOS = dict.fromkeys(prompts.FORMATS, 1.0)


def plan(
    sizes: Mapping[str, int], ratios: Mapping[str, float], passes: int
) -> tuple[int, dict[str, int]]:
    """Return how many examples to draw, and how many passes each format then needs.

    The format with the largest ratio (of several, the largest one) is seen `passes` times, the
    others in proportion; so a format of small ratio does not blow the dataset up.

    Example:
        >>> plan({"cot": 100, "answer": 25}, {"cot": 3, "answer": 1}, passes=1)
        (133, {'cot': 1, 'answer': 2})
    """
    shares = {name: ratio / sum(ratios.values()) for name, ratio in ratios.items()}
    leader = max(shares, key=lambda name: (shares[name], sizes[name]))
    count = round(passes * sizes[leader] / shares[leader])
    needed = {name: -(-count * share // sizes[name]) for name, share in shares.items()}
    return count, {name: max(1, int(n)) for name, n in needed.items()}


def dataset(
    forms: Iterable[Examples],
    ratios: Mapping[str, float],
    tokenizer: Student,
    *,
    source_length: int,
    target_length: int,
    k: int,
    seed: int,
    passes: int,
) -> tuple[Iterator[PackedExample], Any]:
    """Return the packed rows of a mixture, and the tally that is whole after the last of them."""
    import seqio

    from distill.corpus import features

    features.leave_accelerators_alone()
    forms = list(forms)
    count, epochs = plan({form.name: form.size for form in forms}, ratios, passes)
    vocabulary = seqio.PassThroughVocabulary(tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    make = functools.partial(blocks, encode=tokenizer.encode, eos_id=tokenizer.eos_id)
    tasks = []
    for form in forms:
        source = functools.partial(make, form, passes=epochs[form.name])
        size = form.size * epochs[form.name]
        task = features.task(form.name, source, size=size, k=k, vocabulary=vocabulary)
        tasks.append((task, ratios[form.name]))
    lengths = features.lengths_of(source_length, target_length)
    tally = features.Tally([form.name for form in forms], lengths)
    mixed = seqio.Mixture("formats", tasks)
    return features.packed(mixed, tally, lengths=lengths, count=count, seed=seed), tally


def _write(rows: Iterable[PackedExample], shards: Shards[PackedExample]) -> dict[str, Any]:
    """Append the rows and return their number, their target tokens and the fill of the towers."""
    written, source, target, places = 0, 0, 0, [0, 0]
    rows = iter(progress(rows, name="dataset", unit="rows"))
    while chunk := list(itertools.islice(rows, SHARD_ROWS)):
        written += shards.append(chunk)
        for row in chunk:
            source += np.count_nonzero(row.encoder_segment_ids)
            target += np.count_nonzero(row.decoder_segment_ids)
        places[0] += sum(len(row.encoder_segment_ids) for row in chunk)
        places[1] += sum(len(row.decoder_segment_ids) for row in chunk)
    return {
        "rows": written,
        "target_tokens": int(target),
        "source_fill": {"sum": int(source), "count": places[0]},
        "target_fill": {"sum": int(target), "count": places[1]},
    }


def run(
    *,
    run_dir: Path,
    student: Student | str | Path,
    ratios: Mapping[str, float] = EQUAL_RATIOS,
    source_length: int = 1024,
    target_length: int = 256,
    k: int = 5,
    seed: int = 0,
    passes: int = 1,
    demonstrations: int = 4,
    split: str = "train",
) -> dict[str, Any]:
    """Fill RUN_DIR/dataset with packed rows of the mixed formats; from scratch if it was stopped.

    Args:
        run_dir: the run directory; its stage `align` is complete.
        student: the tokenizer that `align` was given.
        ratios: share of each format among the examples, up to a factor; one left out has none.
        source_length: tokens of the encoder's rows.
        target_length: tokens of the decoder's rows.
        k: candidates a position, as `align` kept them.
        seed: of orders, demonstrations and draws.
        passes: how often the format of the largest ratio is seen whole; others in proportion.
        demonstrations: examples in an in-context prompt.
        split: of the problems that were harvested.

    Raises:
        UserError: `align` is not complete or had another student or k, a ratio is of no format or
            negative, there are too few problems to demonstrate with, or nothing fits the lengths.
    """
    run_dir, tokenizer = Path(run_dir), students.load(student)
    ratios = _positive(ratios)
    options = {"source_length": source_length, "target_length": target_length, "k": k}
    options |= {"seed": seed, "passes": passes}
    settings = {"student": students.describe(tokenizer), "ratios": ratios, **options}
    settings |= {"demonstrations": demonstrations, "split": split}
    with Stage.open(run_dir, "dataset", settings=settings, inputs=["problems", "align"]) as stage:
        if stage.complete:
            return stage.summary
        _refuse_other_student(run_dir, stage.settings["student"])
        shards = Shards(run_dir / "dataset", PackedExample)
        shards.remove()
        corpus = read_corpus(run_dir, split, k)
        forms = examples(corpus, tokenizer, k=k, shots=demonstrations, used=ratios)
        rows, tally = dataset(forms, ratios, tokenizer, **options)
        summary = _write(rows, shards)
        if not summary["rows"]:
            raise UserError(
                f"examples of at most {source_length} and {target_length} tokens",
                "none",
                "give larger lengths",
            )
        stage.finish(**tally.counts(), **summary)
        return stage.summary


def _positive(ratios: Mapping[str, float]) -> dict[str, float]:
    """Return the ratios of the formats that are used, in their order, after checking them."""
    unknown = sorted(ratios.keys() - EQUAL_RATIOS.keys())
    if unknown:
        raise UserError(f"ratios of {', '.join(EQUAL_RATIOS)}", unknown[0], "correct the name")
    if min(ratios.values(), default=0) < 0 or not sum(ratios.values()) > 0:
        raise UserError("ratios of at least 0, one above", str(dict(ratios)), "raise one")
    return {name: float(ratios[name]) for name in EQUAL_RATIOS if ratios.get(name)}


def _refuse_other_student(run_dir: Path, student: Any) -> None:
    aligned = manifest(run_dir, "align")["settings"]["student"]
    if aligned != student:
        raise UserError(
            f"the student of stage align, {aligned}", str(student), "give both stages the same"
        )
