"""Carry a teacher's top-k to distributions over a student's tokens. No model and no loss."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tokalign.continuations import Continuations, expander_of
from tokalign.positions import Candidates, Masses, Places
from tokalign.rules import give_marginal, give_paper
from tokalign.spelling import (
    speller_of,
)
from tokalign.teacher import FlatTrace, TeacherToken, TeacherTrace
from tokalign.tokenizers import Tokenizer

RULES = ("marginal", "paper")
RESTS = ("drop", "renormalise", "other")
_GROUP_TOKENS = 8192  # teacher tokens projected at once


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """A text in the student's tokens with the teacher's distribution at each.

    Attributes:
        ids: int32 [T] the student's tokens of the text, EOS last.
        top_ids: int32 [T, K] candidates, the likeliest first, 0 beyond the last.
        top_probs: float32 [T, K] their probabilities, 0 beyond the last.
        kind: uint8 [T] Kind of each position.
        lost: float32 [T, 2] mass beyond the teacher's top k, mass the student cannot spell.
        byte_ends: int32 [T] where each token ends in the text.
        other_probs: float32 [T] mass of one extra outcome beside the candidates: with
            rest="other" all that was lost, otherwise 0.
    """

    ids: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray
    kind: np.ndarray
    lost: np.ndarray
    byte_ends: np.ndarray
    other_probs: np.ndarray


def project(
    trace: FlatTrace | Sequence[TeacherToken],
    student: Tokenizer,
    *,
    rule: str = "marginal",
    rest: str = "drop",
    cross_whitespace: bool = True,
    k: int | None = None,
    continuations: Continuations | None = None,
) -> Projection:
    """Carry a teacher's top-k to the student's tokens of the same text.

    Args:
        trace: the teacher's tokens.
        student: the student's vocabulary.
        rule: "marginal" or "paper".
        rest: what becomes of lost mass: "drop" leaves it out, "renormalise" scales each row to 1,
            "other" gives it to one extra outcome.
        cross_whitespace: whether mass passes over whitespace that the student drops.
        k: candidates kept a position, the widest row by default; mass cut off counts as beyond
            the top k.
        continuations: how the teacher's candidates continue, fitted for the student; without them a
            candidate is read as if it ended there.

    Returns:
        The projection; at each position the candidates and the lost mass sum to 1.

    Raises:
        ValueError: an unknown option, or a trace that TeacherTrace refuses.
    """
    return next(
        project_batch(
            [trace],
            student,
            rule=rule,
            rest=rest,
            cross_whitespace=cross_whitespace,
            k=k,
            continuations=continuations,
        )
    )


def project_batch(
    traces: Iterable[FlatTrace | Sequence[TeacherToken]],
    student: Tokenizer,
    *,
    rule: str = "marginal",
    rest: str = "drop",
    cross_whitespace: bool = True,
    k: int | None = None,
    continuations: Continuations | None = None,
    processes: int = 1,
) -> Iterator[Projection]:
    """Project many traces, in order, several times faster than one by one.

    Args:
        traces: the teacher's tokens of each, as a list of TeacherToken or flat.
        student: the student's vocabulary.
        rule: as for `project`.
        rest: as for `project`.
        cross_whitespace: as for `project`.
        k: as for `project`.
        continuations: as for `project`.
        processes: over how many processes to spread; 1 stays in this one. They are spawned and do
            not run the calling script again, unless the student is of a class of that script's.

    Yields:
        The projection of each trace.

    Raises:
        ValueError: an unknown option, or a trace that TeacherTrace refuses.
    """
    options = _Options(student, rule, rest, cross_whitespace, k, continuations)
    groups = _groups(traces)
    found = map(options.project, groups) if processes <= 1 else _spread(groups, options, processes)
    return itertools.chain.from_iterable(found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Options:
    """What `project` was asked for, but for the traces."""

    student: Tokenizer
    rule: str
    rest: str
    cross_whitespace: bool
    k: int | None
    continuations: Continuations | None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"expected a rule of {RULES}, got {self.rule!r}")
        if self.rest not in RESTS:
            raise ValueError(f"expected a rest of {RESTS}, got {self.rest!r}")
        if self.k is not None and self.k < 1:
            raise ValueError(f"expected a k of at least 1, got {self.k}")
        if self.rule == "paper" and self.continuations is not None:
            raise ValueError("expected continuations with the rule marginal alone, got paper's")

    def project(self, traces: Sequence[TeacherTrace]) -> list[Projection]:
        """Project a few traces at once."""
        speller = speller_of(self.student)
        if speller.full:
            speller.clear()
        teacher = Candidates(traces, speller)
        places = Places(traces, teacher, self.student)
        if not self.cross_whitespace:
            places.usable &= ~places.crosses(self.student)
        masses = Masses(places, self.student.unk_id)
        if self.rule == "paper":
            give_paper(teacher, places, masses, speller)
        else:
            expand = self.continuations and expander_of(
                self.continuations, speller, cross_whitespace=self.cross_whitespace
            )
            cross = self.cross_whitespace
            give_marginal(teacher, places, masses, speller, expand, cross_whitespace=cross)
        return _pack(places, masses, rest=self.rest, k=self.k)


_kept: list[_Options] = []  # of a worker process, which is sent them once


def _keep(options: _Options) -> None:
    _kept.append(options)


def _project_kept(traces: Sequence[TeacherTrace]) -> list[Projection]:
    return _kept[0].project(traces)


def _spread(
    groups: Iterable[Sequence[TeacherTrace]], options: _Options, processes: int
) -> Iterator[list[Projection]]:
    """Project groups over processes, in order."""
    # A fifth of the time that the import would take.
    from concurrent import futures

    from tokalign import spawning

    with spawning.pool(processes, _keep, (options,)) as pool:
        # A window of groups in flight, so that a long stream is not read ahead as a whole.
        waiting: list[futures.Future[list[Projection]]] = []
        for group in groups:
            waiting.append(pool.submit(_project_kept, group))
            if len(waiting) > 4 * processes:
                yield waiting.pop(0).result()
        for result in waiting:
            yield result.result()


def _groups(
    traces: Iterable[FlatTrace | Sequence[TeacherToken]],
) -> Iterator[list[TeacherTrace]]:
    """Yield traces by a few thousand tokens."""
    group: list[TeacherTrace] = []
    tokens = 0
    for trace in traces:
        group.append(TeacherTrace.of(trace))
        tokens += len(group[-1].tokens)
        if tokens > _GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _pack(places: Places, masses: Masses, *, rest: str, k: int | None) -> list[Projection]:
    """Cut the gathered mass into one projection for each trace."""
    count = len(places.ids)
    place, token, mass = masses.rows(int(max(places.ids.max(), 1 << 20)) + 1)
    sizes = np.bincount(place, minlength=count)
    rank = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    firsts = places.opens
    widths = np.maximum(np.maximum.reduceat(sizes, firsts), 1) if k is None else None
    width = int(widths.max()) if widths is not None else int(k or 1)
    cut = rank >= width
    masses.lose(0, place[cut], mass[cut])
    place, rank, token, mass = (x[~cut] for x in (place, rank, token, mass))
    top_ids = np.zeros((count, width), np.int32)
    top_probs = np.zeros((count, width), np.float32)
    top_ids[place, rank] = token
    top_probs[place, rank] = mass
    lost = masses.lost.astype(np.float32)
    other = lost.sum(axis=1) if rest == "other" else np.zeros(count, np.float32)
    if rest == "renormalise":
        total = top_probs.sum(axis=1)
        empty = total == 0
        top_ids[empty, 0], top_probs[empty, 0], total[empty] = places.ids[empty], 1, 1
        top_probs /= total[:, None]
    found = []
    for n, (a, b) in enumerate(itertools.pairwise([*firsts.tolist(), count])):
        columns = width if widths is None else int(widths[n])
        found.append(
            Projection(
                ids=places.ids[a:b],
                top_ids=top_ids[a:b, :columns],
                top_probs=top_probs[a:b, :columns],
                kind=places.kind[a:b],
                lost=lost[a:b],
                byte_ends=places.local_ends[a:b],
                other_probs=other[a:b],
            )
        )
    return found
