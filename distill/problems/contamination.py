"""Find training questions that an evaluation set holds too, whole, but for numbers, or in part.

    kind      a training question counts as contaminated where, of some evaluation question, it has
    exact     the same words; case, punctuation and whitespace do not count
    numbers   the same words but for the numbers
    overlap   13 words in a row (Brown et al. 2020, appendix C), but for runs that more than ten
              evaluation questions share, which are phrases
    similar   half or more of both's runs of 5 words, numbers apart: a Jaccard index of 0.5

The first kind that applies is reported. Evaluation questions are in inverted indices, so a training
question costs a look-up for each of its words, whatever the size of the sets; no sketch is drawn
(as MinHash would, Lee et al. 2022) since the runs of an evaluation set fit in memory.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from distill.core.errors import UserError
from distill.core.records import Problem

KINDS = ("exact", "numbers", "overlap", "similar")
TRAINED = "train"
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*")


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a training question shares with an evaluation question, and what became of it.

    Attributes:
        problem_id: the training problem.
        other_id: the evaluation problem; of several the first, or the one that is most alike.
        kind: one of KINDS.
        similarity: the Jaccard index of both's runs of words, numbers apart.
        dropped: whether the training problem was left out.
        reason: one short sentence.
    """

    problem_id: str
    other_id: str
    kind: str
    similarity: float
    dropped: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Contamination:
    """What counts as contaminated, and which kinds of it are left out of training.

    Attributes:
        overlap_words: length in words of a run that counts as copied.
        phrase: a run that occurs in more evaluation questions than this is ignored.
        run_words: length of the runs that similarity is counted on.
        similarity: least Jaccard index of a near duplicate, above 0.
        drop: kinds that are left out; the others are recorded and stay.
    """

    overlap_words: int = 13
    phrase: int = 10
    run_words: int = 5
    similarity: float = 0.5
    drop: Sequence[str] = KINDS

    def __post_init__(self) -> None:
        least = min(self.overlap_words, self.phrase, self.run_words)
        if least < 1 or not 0 < self.similarity <= 1:
            raise UserError(
                "overlap_words, phrase, run_words of at least 1 and 0 < similarity <= 1",
                f"{self.overlap_words}, {self.phrase}, {self.run_words} and {self.similarity}",
                "correct contamination.Contamination",
            )
        if unknown := set(self.drop) - set(KINDS):
            raise UserError(f"kinds of {', '.join(KINDS)}", f"{min(unknown)}", "name some of them")


class Index:
    """Evaluation questions, to look training questions up in.

    Args:
        problems: what is evaluated.
        rules: what counts.

    Example:
        >>> held_out = Problem("svamp/report/1", "svamp", "report", "Tom has 3 red pens.", "3")
        >>> index = Index([held_out], Contamination())
        >>> trained = dataclasses.replace(held_out, problem_id="t/1", question="tom has 9 red pens")
        >>> index.find(trained).reason
        'the words of svamp/report/1 but for numbers'
    """

    def __init__(self, problems: Iterable[Problem], rules: Contamination) -> None:
        self.rules = rules
        self._ids: list[str] = []
        self._sizes: list[int] = []
        self._whole: dict[str, dict[tuple[str, ...], int]] = {"exact": {}, "numbers": {}}
        self._copied: dict[int, int] = {}
        self._holders: Counter[int] = Counter()
        self._runs: defaultdict[int, list[int]] = defaultdict(list)
        for problem in problems:
            self._add(problem)

    def _add(self, problem: Problem) -> None:
        place, words = len(self._ids), _words(problem.question)
        masked = _masked(words)
        runs = _hashes(masked, self.rules.run_words)
        self._ids.append(problem.problem_id)
        self._sizes.append(len(runs))
        self._whole["exact"].setdefault(words, place)
        self._whole["numbers"].setdefault(masked, place)
        copied = _hashes(words, self.rules.overlap_words)
        self._copied.update((run, place) for run in copied if run not in self._copied)
        self._holders.update(copied)
        for run in runs:
            self._runs[run].append(place)

    def find(self, problem: Problem) -> Overlap | None:
        """Return what a training problem shares with an evaluation problem, None if too little."""
        words = _words(problem.question)
        masked = _masked(words)
        for kind, key in (("exact", words), ("numbers", masked)):
            if (place := self._whole[kind].get(key)) is not None:
                return self._overlap(problem, kind, place, 1.0)
        if (place := self._part(words)) is not None:
            return self._overlap(problem, "overlap", place, self._similarity(masked, place))
        near, similarity = self._nearest(masked)
        if near is not None and similarity >= self.rules.similarity:
            return self._overlap(problem, "similar", near, similarity)
        return None

    def _part(self, words: tuple[str, ...]) -> int | None:
        """Return the first evaluation question with a run of these words that is no phrase."""
        runs = _hashes(words, self.rules.overlap_words)
        rare = (run for run in runs if 0 < self._holders[run] <= self.rules.phrase)
        return min((self._copied[run] for run in rare), default=None)

    def _nearest(self, masked: tuple[str, ...]) -> tuple[int | None, float]:
        """Return the evaluation question with the highest Jaccard index, the first of equals."""
        runs = _hashes(masked, self.rules.run_words)
        shared = Counter(place for run in runs for place in self._runs.get(run, ()))
        scores = (
            (count / (len(runs) + self._sizes[place] - count), -place)
            for place, count in shared.items()
        )
        score, place = max(scores, default=(0.0, 1))
        return (-place if shared else None), score

    def _similarity(self, masked: tuple[str, ...], place: int) -> float:
        runs = _hashes(masked, self.rules.run_words)
        shared = sum(place in self._runs.get(run, ()) for run in runs)
        return shared / (len(runs) + self._sizes[place] - shared)

    def _overlap(self, problem: Problem, kind: str, place: int, similarity: float) -> Overlap:
        other, dropped = self._ids[place], kind in self.rules.drop
        reason = {
            "exact": f"the words of {other}",
            "numbers": f"the words of {other} but for numbers",
            "overlap": f"{self.rules.overlap_words} words in a row of {other}",
            "similar": f"{similarity:.2f} like {other}, numbers apart",
        }[kind]
        return Overlap(problem.problem_id, other, kind, similarity, dropped, reason)


def clean(problems: Iterable[Problem], index: Index, overlaps: list[Overlap]) -> Iterator[Problem]:
    """Pass on what is not to be dropped, and note every overlap of a training problem.

    Args:
        problems: any; those of other splits than train pass.
        index: what they are looked up in.
        overlaps: list to which overlaps are appended.
    """
    for problem in problems:
        overlap = index.find(problem) if problem.split == TRAINED else None
        if overlap is not None:
            overlaps.append(overlap)
        if overlap is None or not overlap.dropped:
            yield problem


def count(overlaps: Iterable[Overlap]) -> dict[str, object]:
    """Count overlaps by kind, and by kind and evaluation set; `dropped` are those left out.

    Example:
        >>> count([Overlap("t/1", "svamp/report/1", "exact", 1.0, True, "")])["by_set"]
        {'svamp/report': {'exact': 1}}
    """
    kinds: Counter[str] = Counter()
    by_set: dict[str, Counter[str]] = {}
    dropped = 0
    for overlap in overlaps:
        kinds[overlap.kind] += 1
        dropped += overlap.dropped
        name = "/".join(overlap.other_id.split("/")[:2])
        by_set.setdefault(name, Counter())[overlap.kind] += 1
    return {
        "dropped": dropped,
        **{kind: kinds[kind] for kind in KINDS},
        "by_set": {name: dict(sorted(counts.items())) for name, counts in sorted(by_set.items())},
    }


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _masked(words: Iterable[str]) -> tuple[str, ...]:
    return tuple("0" if word[0].isdigit() else word for word in words)


def _hashes(words: Sequence[str], n: int) -> set[int]:
    """Return the hashes of all runs of n words; of fewer words, of the whole."""
    last = max(len(words) - n, 0)
    return {hash(tuple(words[start : start + n])) for start in range(last + 1)} if words else set()
