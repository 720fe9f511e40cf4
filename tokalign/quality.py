"""Measure how near projections come to the exact student distribution of a known teacher."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tokalign.continuations import Continuations
from tokalign.positions import Kind
from tokalign.project import Projection, project_batch
from tokalign.simulate import KnownTeacher
from tokalign.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Distance:
    """Total variation distance to the exact distribution, summed over positions.

    Attributes:
        total: sum of the distances, each from 0 to 1.
        count: positions.
    """

    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """The mean distance; NaN where there is no position."""
        return self.total / self.count if self.count else float("nan")


def total_variation(exact: Mapping[int, float], projected: Mapping[int, float]) -> float:
    """Return half the sum of differences; mass that `projected` lacks to 1 counts as wrong.

    Args:
        exact: token to probability, summing to 1.
        projected: token to probability, summing to at most 1.

    Example:
        >>> total_variation({1: 0.5, 2: 0.5}, {1: 0.5, 3: 0.25})
        0.5
    """
    tokens = exact.keys() | projected.keys()
    apart = sum(abs(exact.get(t, 0.0) - projected.get(t, 0.0)) for t in tokens)
    return (apart + max(0.0, 1 - sum(projected.values()))) / 2


def distances(
    teacher: KnownTeacher,
    student: Tokenizer,
    texts: Sequence[str],
    *,
    rule: str,
    k: int = 5,
    cross_whitespace: bool = True,
    continuations: Continuations | None = None,
) -> dict[str, Distance]:
    """Measure a rule on texts of a known teacher, by the kind that `marginal` gives a position.

    Args:
        teacher: the language.
        student: the student's vocabulary.
        texts: some of its texts.
        rule: as for `project`.
        k: candidates a token that the rule sees.
        cross_whitespace: as for `project`.
        continuations: as for `project`.

    Returns:
        Distance by name of Kind, the end of the text as "END", and "ALL".
    """
    traces = [teacher.trace(text, k=k) for text in texts]
    exact = teacher.student_masses(student)
    found = {kind.name: Distance() for kind in Kind} | {"END": Distance(), "ALL": Distance()}
    kinds = project_batch(traces, student)
    options = {"rule": rule, "cross_whitespace": cross_whitespace, "continuations": continuations}
    measured = project_batch(traces, student, **options)
    for by_kind, projection in zip(kinds, measured, strict=True):
        ids = projection.ids.tolist()
        for t in range(len(ids)):
            after = exact[tuple(ids[:t])]
            total = sum(after.values())
            apart = total_variation({i: p / total for i, p in after.items()}, row(projection, t))
            end = t == len(ids) - 1
            for name in ("END" if end else Kind(by_kind.kind[t]).name, "ALL"):
                found[name] = Distance(found[name].total + apart, found[name].count + 1)
    return found


def row(projection: Projection, t: int) -> dict[int, float]:
    """Return the candidates of position t with their probabilities."""
    pairs = zip(projection.top_ids[t].tolist(), projection.top_probs[t].tolist(), strict=True)
    return {token: p for token, p in pairs if p > 0}


def quality(
    teacher: KnownTeacher, student: Tokenizer, *, texts: int = 300, seed: int = 0, k: int = 5
) -> dict[str, dict[str, Distance]]:
    """Measure both rules on texts drawn from a known teacher, with and without their options.

    Continuations are fitted on as many other draws.

    Args:
        teacher: the language.
        student: the student's vocabulary.
        texts: how many to draw.
        seed: of the draw.
        k: candidates a token.

    Returns:
        Name of the rule to what `distances` gives.
    """
    generator = np.random.default_rng(seed)
    names, weights = list(teacher.texts), np.array(list(teacher.texts.values()))
    drawn, others = (
        [names[i] for i in generator.choice(len(names), size=texts, p=weights)] for _ in range(2)
    )
    fitted = Continuations.fit((teacher.trace(text, k=k) for text in others), student)
    return {
        name: distances(
            teacher, student, drawn, rule=rule, k=k, cross_whitespace=cross, continuations=after
        )
        for name, rule, cross, after in (
            ("paper", "paper", True, None),
            ("marginal", "marginal", True, None),
            ("marginal, with continuations", "marginal", True, fitted),
            ("paper, whitespace not crossed", "paper", False, None),
            ("marginal, whitespace not crossed", "marginal", False, None),
        )
    }
