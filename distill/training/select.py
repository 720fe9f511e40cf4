"""The choice of a checkpoint by accuracy on held-out sets; it reads no reported split."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.records import Accuracy, Prediction
from distill.core.store import Shards, Stage, describe, write_json
from distill.training import choice
from distill.training.evaluate import tally

logger = logging.getLogger(__name__)

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("reports/selection.json",)

HELD_OUT, IN_DISTRIBUTION = "selection", "validation"

Accuracies = Mapping[str, Accuracy]
Table = Mapping[int, Accuracies]
Rule = Callable[[Accuracies], Fraction]


def mean(accuracies: Accuracies) -> Fraction:
    """Return the plain mean over sets, whatever their sizes: the paper's rule.

    Example:
        >>> mean({"asdiv": Accuracy(1, 2), "svamp": Accuracy(1, 4)})
        Fraction(3, 8)

    Source: Fu et al. 2023, section 4; the paper takes the sets' own test data, we take a half of
    each set that no figure is reported on.
    """
    return sum(map(_share, accuracies.values()), Fraction()) / len(accuracies)


def worst(accuracies: Accuracies) -> Fraction:
    """Return the accuracy of the worst set.

    Example:
        >>> worst({"asdiv": Accuracy(1, 2), "svamp": Accuracy(1, 4)})
        Fraction(1, 4)
    """
    return min(map(_share, accuracies.values()))


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The mean over sets with a weight for each.

    Attributes:
        weights: a weight of at least 0 for every set; their sum is above 0.

    Example:
        >>> Weighted({"asdiv": 3, "svamp": 1})({"asdiv": Accuracy(1, 2), "svamp": Accuracy(1, 4)})
        Fraction(7, 16)
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()):
            raise ValueError(f"expected weights >= 0 that are not all 0, got {dict(self.weights)}")

    def __call__(self, accuracies: Accuracies) -> Fraction:
        """Return the weighted mean."""
        if self.weights.keys() != accuracies.keys():
            raise UserError(
                f"a weight for each of {', '.join(sorted(accuracies))}",
                f"weights for {', '.join(sorted(self.weights))}",
                "name every held-out set once in select.Weighted.weights",
            )
        exact = {name: Fraction(weight) for name, weight in self.weights.items()}
        total = sum((exact[name] * _share(value) for name, value in accuracies.items()), Fraction())
        return total / sum(exact.values())


def select(accuracies: Table, rule: Rule = mean) -> int:
    """Return the step that the rule puts highest; of equals, the earliest.

    Scores are exact fractions, so the order of the sets cannot break a tie.

    Args:
        accuracies: of every step, the same sets at each.
        rule: makes one number of the sets' accuracies, higher is better.

    Raises:
        ValueError: there is no step, or the steps have different sets or none.

    Example:
        >>> select({0: {"svamp": Accuracy(1, 4)}, 50: {"svamp": Accuracy(3, 4)}})
        50
    """
    sets = {frozenset(of_step) for of_step in accuracies.values()}
    if len(sets) != 1 or not all(sets):
        raise ValueError(f"expected the same sets at every step, got {sorted(map(sorted, sets))}")
    return min(accuracies, key=lambda step: (-rule(accuracies[step]), step))


def _share(accuracy: Accuracy) -> Fraction:
    return Fraction(accuracy.correct, accuracy.n)


def tables(run_dir: Path) -> tuple[Table, Table]:
    """Return accuracy by step and set on the selection halves and on the validation sets.

    Raises:
        UserError: a prediction is on another split.
    """
    by_split: dict[str, list[Prediction]] = {HELD_OUT: [], IN_DISTRIBUTION: []}
    for prediction in Shards(run_dir / "predictions", Prediction):
        if prediction.split not in by_split:
            raise UserError(
                f"predictions on {' and '.join(by_split)} splits in {run_dir / 'predictions'}",
                f"{prediction.problem_id} of split {prediction.split}",
                "select a checkpoint on nothing that is reported",
            )
        by_split[prediction.split].append(prediction)
    return tally(by_split[HELD_OUT]), tally(by_split[IN_DISTRIBUTION])


def _selection(held_out: Table, validation: Table, rule: Rule) -> dict[str, Any]:
    """Return the fields of a selection; those that cannot be computed are absent."""
    if not held_out:
        raise UserError(
            "predictions on held-out sets", "none", "add problems with a selection half"
        )
    chosen = {"chosen_step": select(held_out, rule), "rule": describe(rule)}
    if validation:
        chosen["validation_step"] = select(validation)
    alternatives = {other.__name__: select(held_out, other) for other in (mean, worst)}
    steps = [
        {"step": step, "score": float(rule(held_out[step])), **_sets(held_out, validation, step)}
        for step in sorted(held_out)
    ]
    return {**chosen, "alternatives": alternatives, "steps": steps}


def _with_general(selection: dict[str, Any], general: Table) -> dict[str, Any]:
    """Add the sets of general ability, which choose nothing, to every step of a selection."""
    steps = [{**entry, "general": _counts(general[entry["step"]])} for entry in selection["steps"]]
    return {**selection, "steps": steps}


def _counts(of_step: Accuracies) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in sorted(of_step.items())}


def _sets(held_out: Table, validation: Table, step: int) -> dict[str, Any]:
    pairs = ((HELD_OUT, held_out), (IN_DISTRIBUTION, validation))
    return {split: _counts(table[step]) for split, table in pairs if step in table}


def selection(
    run_dir: Path,
    rule: Rule,
    *,
    sets: Sequence[str] | None = None,
    validation_sets: Sequence[str] | None = None,
    general: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `reports/selection.json` holds; arguments and errors are those of `run`."""
    held_out, validation = tables(run_dir)
    chosen_by = _only(_without(held_out, general), sets)
    beside = _only(_without(validation, general), validation_sets)
    chosen = _selection(chosen_by, beside, rule)
    if not general:
        return chosen
    both = {s: {**held_out.get(s, {}), **validation.get(s, {})} for s in held_out}
    return _with_general(chosen, _only(both, general))


def rule_of(described: object) -> Rule | None:
    """Return the rule that a manifest describes, None if it is not of this module."""
    if isinstance(described, Mapping) and described.get("type") == Weighted.__name__:
        return Weighted(described["weights"])
    return {describe(rule): rule for rule in (mean, worst)}.get(str(described))


def run(
    *,
    run_dir: Path,
    rule: Rule = mean,
    sets: Sequence[str] | None = None,
    validation_sets: Sequence[str] | None = None,
    general: Sequence[str] = (),
) -> dict[str, Any]:
    """Choose the checkpoint by the held-out sets and write `reports/selection.json`.

    Args:
        run_dir: the run.
        rule: `mean`, `worst` or `Weighted`.
        sets: the held-out sets that count; all if None.
        validation_sets: the in-distribution sets, by whose mean the other choice is made; all
            if None.
        general: sets of general ability, of either kind: they do not affect the choice and are
            reported beside each step's score, to show the price of specialising.

    Returns:
        `chosen_step`, and `validation_step` if there is a validation set.

    Raises:
        UserError: evaluate is not complete, its predictions are on other splits, a set is unknown
            or both general and chosen by, there is no held-out set, or the rule's weights are of
            other sets.
    """
    settings = {"rule": rule, "sets": sets, "validation_sets": validation_sets}
    settings |= {"general": general} if general else {}
    with Stage.open(
        run_dir, "select", settings=settings, inputs=("evaluate",), outputs=OUTPUTS
    ) as stage:
        if not stage.complete:
            chosen = selection(
                run_dir, rule, sets=sets, validation_sets=validation_sets, general=general
            )
            write_json(choice.path_of(run_dir), chosen)
            stage.finish(**{name: chosen[name] for name in choice.STEPS if name in chosen})
        return stage.summary


def _without(table: Table, general: Sequence[str]) -> Table:
    """Leave out the sets of general ability, and steps that have no other set."""
    left = {
        step: {name: value for name, value in of_step.items() if name not in general}
        for step, of_step in table.items()
    }
    return {step: of_step for step, of_step in left.items() if of_step}


def _only(table: Table, sets: Sequence[str] | None) -> Table:
    """Keep the sets that count; all where `sets` is None."""
    known = {name for of_step in table.values() for name in of_step}
    unknown = sorted(set(sets or ()) - known)
    if unknown:
        raise UserError(
            f"a set of {', '.join(sorted(known)) or 'those evaluated, which are none'}",
            unknown[0],
            "correct the name in select.run, or evaluate on that set",
        )
    return {
        step: {name: value for name, value in of_step.items() if sets is None or name in sets}
        for step, of_step in table.items()
    }
