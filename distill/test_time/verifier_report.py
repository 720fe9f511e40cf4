"""The report on a verifier: the calibration of its scores, and the accuracy of its votes.

Both are measured on the validation split's solutions, by which nothing was trained or chosen.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.ports import Scorer, Solution
from distill.core.records import Trace, Verdict
from distill.core.statistics import Bootstrap
from distill.core.store import atomic_path, manifest, write_json
from distill.grading.check import GRADERS, Grader
from distill.test_time import calibration, rollouts, vote
from distill.test_time.calibration import Scored
from distill.test_time.rollouts import ANSWERED, Labelled
from distill.text import steps

# Steps' scores -> the solution's. With soft labels the last is best (the paper, appendix E).
REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: float(values[-1]),
    "min": lambda values: float(min(values)),
    "product": lambda values: float(math.prod(values)),
}

Key = tuple[str, str]


def score(solutions: Sequence[tuple[Trace, Verdict]], scorer: Scorer) -> dict[Key, np.ndarray]:
    """Return the scores of the steps of each different solution, by (problem_id, text)."""
    texts = {(t.problem_id, t.text): Solution(t.prompt, steps.split(t.text)) for t, _ in solutions}
    keys = list(texts)
    found = scorer.score([texts[key] for key in keys])
    return {keys[index]: scores.values for index, scores in found}


def calibrations(
    solutions: Sequence[tuple[Trace, Verdict]],
    examples: Sequence[Labelled],
    scores: Mapping[Key, np.ndarray],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Return the calibration of scores against outcomes.

    Args:
        solutions: their last score against whether they are right; those without an answer, and
            those that are too long for the scorer, are left out.
        examples: the scores of their steps but the last against the labels.
        scores: of all of them.
        bootstrap: over questions.

    Returns:
        JSON by `solutions` and `beginnings`; the latter are absent where no example has two steps.
    """
    ends = [
        (scores[t.problem_id, t.text][-1], float(v.outcome == "right"), 1, t.problem_id)
        for t, v in solutions
        if v.outcome in ANSWERED and len(scores[t.problem_id, t.text])
    ]
    begins = [
        (value, label, example.count, example.problem_id)
        for example in examples
        if len(scores[_key(example)])
        for value, label in zip(scores[_key(example)][:-1], example.labels[:-1], strict=True)
    ]
    found = {"solutions": ends, "beginnings": begins}
    return {
        name: calibration.calibration(_columns_of(rows), bootstrap)
        for name, rows in found.items()
        if rows
    }


def _key(example: Labelled) -> Key:
    return example.problem_id, "".join(example.solution.steps)


def _columns_of(rows: Sequence[tuple[float, float, int, str]]) -> Scored:
    values, labels, counts, ids = (np.array(column) for column in zip(*rows, strict=True))
    return Scored(values.astype(float), labels, counts, ids)


def ballots(
    solutions: Sequence[tuple[Trace, Verdict]],
    scores: Mapping[Key, np.ndarray],
    grader: Grader,
    reduction: str = "last",
) -> list[vote.Samples]:
    """Return the votes on each problem, its samples in order.

    Args:
        solutions: all samples of each problem; one without an answer has no vote.
        scores: of their steps.
        grader: whose key votes count together by.
        reduction: of REDUCTIONS.
    """
    by_problem: dict[str, list[tuple[Trace, Verdict]]] = {}
    for trace, verdict in sorted(solutions, key=lambda pair: pair[0].sample):
        by_problem.setdefault(trace.problem_id, []).append((trace, verdict))
    return [
        vote.Samples(
            tuple(None if v.answer is None else grader.key(v.answer) for _, v in samples),
            tuple(v.outcome == "right" for _, v in samples),
            tuple(_reduced(scores[t.problem_id, t.text], reduction) for t, _ in samples),
        )
        for samples in by_problem.values()
    ]


def _reduced(values: np.ndarray, reduction: str) -> float:
    return REDUCTIONS[reduction](values.tolist()) if len(values) else 0.0


def gain(samples: Sequence[vote.Samples], bootstrap: Bootstrap) -> dict[str, float]:
    """Return how much more often weighted votes of all samples are right than majority ones.

    Returns:
        `value`, `low` and `high`, paired by question.
    """
    random = np.random.default_rng(bootstrap.seed)
    differences = [vote.weighted(s, len(s), random)[0] - vote.majority(s, len(s)) for s in samples]
    return bootstrap.means(np.array(differences)[:, None])[0]


def report(run_dir: Path, scorer: Scorer, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return a verifier's calibration and votes on the validation split; {} without roll-outs.

    Args:
        run_dir: a run whose stage `rollouts` is complete.
        scorer: the verifier.
        bootstrap: over questions.

    Returns:
        JSON: `calibration` of whole solutions and of their beginnings, `votes` as of
        `vote.summarise` with the last step's score, `weighted_by_reduction` of the other
        reductions, and `weighted_less_majority`.

    Raises:
        UserError: the stage is not complete.
    """
    solutions = rollouts.solutions(run_dir, "validation")
    if not solutions:
        return {}
    grader = GRADERS[manifest(run_dir, "rollouts")["settings"]["grader"]]
    scores = score(solutions, scorer)
    examples = rollouts.examples(run_dir, "validation", whole=True)
    by_reduction = {name: ballots(solutions, scores, grader, name) for name in REDUCTIONS}
    votes = {n: vote.summarise(samples, seed=bootstrap.seed) for n, samples in by_reduction.items()}
    return {
        "calibration": calibrations(solutions, examples, scores, bootstrap),
        "votes": votes.pop("last"),
        "weighted_by_reduction": {
            n: each["estimates"]["weighted"][-1] for n, each in votes.items()
        },
        "weighted_less_majority": gain(by_reduction["last"], bootstrap),
    }


# --- The files ---------------------------------------------------------------------------------


def headline(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that a stage reports, none where there is no report."""
    if not report:
        return {}
    of_solutions = report["calibration"]["solutions"]
    found = {name: of_solutions[name]["value"] for name in ("brier", "auc") if name in of_solutions}
    last = {name: rows[-1] for name, rows in report["votes"]["estimates"].items()}
    first = report["votes"]["estimates"]["pass"][0]
    votes = {f"{name}@{last[name]['k']}": last[name]["value"] for name in ("majority", "weighted")}
    return {**found, "pass@1": first["value"], **votes}


def write(directory: Path, name: str, report: Mapping[str, Any]) -> None:
    """Write DIRECTORY/NAME.json, NAME.md and, where there is a calibration, NAME.png."""
    write_json(directory / f"{name}.json", report)
    if "calibration" not in report:
        return
    with atomic_path(directory / f"{name}.md") as path:
        path.write_text("\n".join(markdown(report)) + "\n", encoding="utf-8")
    tables = {n: found["reliability"] for n, found in report["calibration"].items()}
    with atomic_path(directory / f"{name}.png") as path:
        figure = calibration.picture(tables)
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the tables: calibration, then votes by number of samples.

    Args:
        report: as of `report`.
    """
    yield "| scored | n | right | Brier | of the share alone | AUC |"
    yield "|---|---|---|---|---|---|"
    for name, found in report["calibration"].items():
        figures = [f"{found['n']:.0f}", _percent(found["right"])]
        figures += [_digits(found.get("brier")), f"{found['brier_of_share']:.4f}"]
        yield f"| {name} | {' | '.join([*figures, _digits(found.get('auc'))])} |"
    votes = report["votes"]["estimates"]
    yield f"\n| samples | {' | '.join(votes)} |"
    yield f"|---|{'---|' * len(votes)}"
    for row in zip(*votes.values(), strict=True):
        yield f"| {row[0]['k']} | {' | '.join(map(_share, row))} |"
    yield ""
    for name, found in report["weighted_by_reduction"].items():
        yield f"weighted@{found['k']} by {name} of the steps: {_share(found)}"
    found = report["weighted_less_majority"]
    ends = ", ".join(f"{100 * found[end]:+.1f}" for end in ("low", "high"))
    yield f"weighted less majority, paired by question: {100 * found['value']:+.1f} [{ends}] points"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(found: Mapping[str, float]) -> str:
    return f"{_percent(found['value'])} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _digits(found: Mapping[str, float] | None) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]" if found else "absent"
