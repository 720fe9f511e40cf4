"""A teacher's top-k carried to distributions over a student's tokens; no model, no loss."""

import dataclasses
import enum
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tokalign.align import next_cut
from tokalign.continuations import Continuations, Expander, expander_of
from tokalign.segmentation import spelled_mask
from tokalign.spelling import (
    DISAGREES,
    EXHAUSTED,
    INSIDE,
    NOTHING,
    START,
    Context,
    Speller,
    speller_of,
)
from tokalign.teacher import FlatTrace, TeacherToken, TeacherTrace
from tokalign.tokenizers import Tokenizer, segment_bytes

RULES = ("marginal", "paper")
RESTS = ("drop", "renormalise", "other")
_GROUP_TOKENS = 8192  # teacher tokens projected at once
_CUT = np.array([True])
_ONE = 0x3F800000  # float32 1; the bits of smaller ones are smaller numbers
_LEAST_REST = 1e-3  # below this share the rest says too little of what follows a blank


class Kind(enum.IntEnum):
    """How a student position lies to the teacher's tokens, blanks aside.

    ONE_HOT is every position without a distribution: the student's own token is its target.
    """

    ONE_TO_ONE = 0
    MERGED = 1  # several teacher tokens spell the student's
    SPLIT = 2  # begins where a teacher token begins and ends within one
    INSIDE = 3  # begins within a teacher token
    ONE_HOT = 4


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
    cross_blanks: bool = True,
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
        cross_blanks: whether mass passes over blanks that the student drops.
        k: candidates kept a position, the widest row by default; mass cut off counts as beyond
            the top k.
        continuations: how the teacher's candidates go on, fitted for the student; without them a
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
            cross_blanks=cross_blanks,
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
    cross_blanks: bool = True,
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
        cross_blanks: as for `project`.
        k: as for `project`.
        continuations: as for `project`.
        processes: over how many processes to spread; 1 stays in this one. They are spawned and do
            not run the calling script again, unless the student is of a class of that script's.

    Yields:
        The projection of each trace.

    Raises:
        ValueError: an unknown option, or a trace that TeacherTrace refuses.
    """
    options = _Options(student, rule, rest, cross_blanks, k, continuations)
    groups = _groups(traces)
    found = map(options.project, groups) if processes <= 1 else _spread(groups, options, processes)
    return itertools.chain.from_iterable(found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Options:
    """What `project` was asked for, but for the traces."""

    student: Tokenizer
    rule: str
    rest: str
    cross_blanks: bool
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
        teacher = _Candidates(traces, speller)
        places = _Places(traces, teacher, self.student)
        if not self.cross_blanks:
            places.usable &= ~places.crosses(self.student)
        masses = _Masses(places, self.student.unk_id)
        if self.rule == "paper":
            _paper(teacher, places, masses, speller)
        else:
            expand = self.continuations and expander_of(
                self.continuations, speller, cross_blanks=self.cross_blanks
            )
            cross = self.cross_blanks
            _marginal(teacher, places, masses, speller, expand, cross_blanks=cross)
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


class _Candidates:
    """The teacher tokens of some traces with their candidates, flat; each trace ends in an end.

    The end is a token of one virtual byte whose only candidate is b"", so that the EOS of the
    student is a position like the others.
    """

    def __init__(self, traces: Sequence[TeacherTrace], speller: Speller) -> None:
        numbers = speller.numbers
        strings: list[bytes] = []
        own: list[bytes] = []
        nats, own_nats, ends = [], [], []
        for trace in traces:
            ends.append(np.asarray(trace.top_ends) + len(strings))
            strings.extend(trace.top_tokens)
            ends.append([len(strings)])
            own.extend(trace.tokens)
            own.append(b"")
            nats.append(trace.top_logprobs)
            own_nats.append(trace.logprobs)
            own_nats.append([0.0 if math.isnan(trace.end_logprob) else trace.end_logprob])
        counts = np.diff(np.concatenate(ends).astype(np.int64), prepend=0)
        string = np.fromiter(map(numbers.__getitem__, strings), np.int64, len(strings))
        self.own = np.fromiter(map(numbers.__getitem__, own), np.int64, len(own))
        speller.close()
        self.before = np.append(numbers[b""], self.own[:-1])  # after an end stands a start
        self.own_bytes = own
        token = np.repeat(np.arange(len(own)), counts)
        mass = np.exp(np.minimum(np.concatenate(nats).astype(np.float64), 0))
        is_own = string == self.own[token]
        # The token itself need not be among its candidates.
        missing = np.flatnonzero(np.bincount(token[is_own], minlength=len(own)) == 0)
        own_mass = np.exp(np.minimum(np.concatenate(own_nats).astype(np.float64), 0))
        at = np.cumsum(counts)[missing]
        self.token = np.insert(token, at, missing)
        self.string = np.insert(string, at, self.own[missing])
        self.is_own = np.insert(is_own, at, True)
        mass = np.insert(mass, at, own_mass[missing])
        total = np.bincount(self.token, mass, len(own))
        self.mass = mass / np.maximum(total, 1)[self.token]
        self.beyond = np.maximum(1 - total, 0)
        self.own_mass = np.bincount(self.token, self.mass * self.is_own, len(own))
        self.counts = np.bincount(self.token, minlength=len(own))
        self.firsts = np.cumsum(self.counts) - self.counts

    def of(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each candidate of each of `tokens`, the place in `tokens` and its number."""
        counts = self.counts[tokens]
        place = np.repeat(np.arange(len(tokens)), counts)
        ends = np.cumsum(counts)
        number = np.arange(len(place)) + np.repeat(self.firsts[tokens] - ends + counts, counts)
        return place, number


class _Places:
    """The student positions of some traces against the teacher's tokens; bytes counted over all.

    Attributes:
        ids: [P] the student's tokens, each trace's EOS last.
        start, end: [P] bytes; the EOS covers the virtual byte of the end.
        token: [P] teacher token that holds the start.
        last: [P] teacher token with which the student token is spelled in full.
        usable: [P] whether the start is a place in the text and not beyond what is known.
        kind: [P] Kind.
        partner: [P] teacher token of a one-to-one position, otherwise -1.
    """

    def __init__(
        self, traces: Sequence[TeacherTrace], teacher: _Candidates, student: Tokenizer
    ) -> None:
        segmentations = segment_bytes(student, [b"".join(trace.tokens) for trace in traces])
        sizes = np.array([len(s) + 1 for s in segmentations])
        spans = np.array([len(s.text) + 1 for s in segmentations])
        self.ends_at = np.cumsum(sizes)
        base = np.repeat(np.cumsum(spans) - spans, sizes)
        self.text = b"\0".join([*(s.text for s in segmentations), b""])
        eos = np.array([student.eos_id], np.int32)
        self.ids = np.concatenate([x for s in segmentations for x in (s.ids, eos)])
        end = np.concatenate([x for s in segmentations for x in (s.byte_ends, [len(s.text) + 1])])
        self.local_ends = np.minimum(end, np.repeat(spans - 1, sizes)).astype(np.int32)
        self.end = end + base
        self.opens = np.append(0, self.ends_at[:-1])
        self.start = np.append(0, self.end[:-1])
        self.start[self.opens] = base[self.opens]
        self.is_opening = np.zeros(len(self.ids), bool)
        self.is_opening[self.opens] = True
        cuts = np.concatenate([x for s in segmentations for x in (s.cuts, _CUT)])
        settled = self.end if cuts.all() else next_cut(self.end, cuts)
        self.usable = np.append(True, cuts[:-1])
        self.usable[self.opens] = True
        lengths = np.fromiter(map(len, teacher.own_bytes), np.int64, len(teacher.own_bytes))
        ends = np.cumsum(np.maximum(lengths, 1))
        starts = ends - np.maximum(lengths, 1)
        self.token_start, self.token_end = starts, ends
        self.token = np.searchsorted(starts, self.start, side="right") - 1
        self.last = np.maximum(np.searchsorted(ends, settled), self.token)
        self.is_end = np.zeros(len(self.ids), bool)
        self.is_end[self.ends_at - 1] = True
        unknown = np.array([math.isnan(trace.end_logprob) for trace in traces])
        self.usable[self.ends_at[unknown] - 1] = False
        self._classify(cuts)

    def _classify(self, cuts: np.ndarray) -> None:
        """Compare where tokens begin and end on both sides, by bytes that are no blanks."""
        spelled = spelled_mask(self.text)
        self.passed = passed = np.append(0, np.cumsum(spelled))
        token_passed = passed[self.token_end]
        spelling = np.flatnonzero(token_passed > passed[self.token_start])
        at = np.full(passed[-1] + 1, -1)
        at[token_passed[spelling]] = spelling
        ended = at >= 0
        gone = np.cumsum(ended)
        start, end = passed[self.start], passed[self.end]
        clean = np.append(True, cuts[:-1])
        begins = (ended[start] | (start == 0)) & clean
        ends = ended[end] & cuts
        blank = start == end
        opens = np.searchsorted(self.token_start, self.end[blank])
        ends[blank] = self.token_start[opens] == self.end[blank]
        count = np.where(blank, 1, gone[end] - gone[start])
        self.kind = np.where(
            begins,
            np.where(ends, np.where(count == 1, Kind.ONE_TO_ONE, Kind.MERGED), Kind.SPLIT),
            Kind.INSIDE,
        ).astype(np.uint8)
        self.kind[self.is_end] = Kind.ONE_TO_ONE
        paired = (self.kind == Kind.ONE_TO_ONE) & ~blank
        self.partner = np.where(paired, at[end], -1)

    def inside(self, p: int, first: int, before: bytes) -> Context:
        """Return the context of position p within the teacher token that begins at `first`.

        Where a student token begins there too, a candidate agrees if its own cuts begin with the
        tokens since; otherwise if its bytes begin with those consumed.
        """
        origin = p
        while self.start[origin] > first and not self.is_opening[origin]:
            origin -= 1
        if self.start[origin] != first:
            return INSIDE, before
        kind = START if self.is_opening[origin] else INSIDE
        return kind, before, tuple(self.ids[origin:p].tolist())

    def crosses(self, student: Tokenizer) -> np.ndarray:
        """Return [P] whether the student drops blanks, or changes them, before the token."""
        found = np.zeros(len(self.ids), bool)
        for p in np.flatnonzero(~self.is_end).tolist():
            covered = self.text[self.start[p] : self.end[p]]
            token = student.token_bytes(int(self.ids[p])) or covered
            blanks = [x[: len(x) - len(x.lstrip())] for x in (covered, token)]
            found[p] = blanks[0] != blanks[1]
        found[self.opens] = False
        return found


class _Masses:
    """Mass gathered for each position: on its own token, on others, and lost."""

    def __init__(self, places: _Places, unk_id: int | None) -> None:
        self.ids, self.unk_id = places.ids, -1 if unk_id is None else unk_id
        self.own = np.zeros(len(places.ids))
        self.lost = np.zeros((len(places.ids), 2))
        self.passed_on = np.zeros(len(places.ids))
        self._terms: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def lose(self, column: int, place: np.ndarray, mass: np.ndarray) -> None:
        """Count mass as beyond the top k (0) or not spellable (1)."""
        self.lost[:, column] += np.bincount(place, mass, len(self.ids))

    def pass_on(self, place: np.ndarray, mass: np.ndarray) -> None:
        """Count mass that is shared out in the proportions of all the rest."""
        self.passed_on += np.bincount(place, mass, len(self.ids))

    def give(self, place: np.ndarray, token: np.ndarray, mass: np.ndarray) -> None:
        """Give mass to student tokens; what has a mark for a token, or <unk>, is lost."""
        own = token == self.ids[place]
        self.own += np.bincount(place[own], mass[own], len(self.ids))
        lost = ~own & ((token < 0) | (token == self.unk_id))
        self.lose(1, place[lost], mass[lost])
        kept = ~own & ~lost
        self._terms.append((place[kept], token[kept], mass[kept]))

    def one_hot(self, place: np.ndarray) -> None:
        """Put all on the position's own token."""
        self.own[place] = 1

    def rows(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (place, token, mass), each token once a place, by place and falling mass."""
        rest = 1 - self.passed_on
        alone = rest < _LEAST_REST
        self.lost[alone, 1] += self.passed_on[alone]
        scale = np.where(alone, 1, 1 / np.where(alone, 1, rest))
        self.lost *= scale[:, None]
        own = np.flatnonzero(self.own > 0)
        terms = [*self._terms, (own, self.ids[own], self.own[own])]
        place, token, mass = (np.concatenate(column) for column in zip(*terms, strict=True))
        mass *= scale[place]
        key = place * vocab_size + token
        order = _stable_order(key, len(self.ids) * vocab_size)
        key, mass = key[order], mass[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        if not len(first):
            return place, token, mass
        mass = np.add.reduceat(mass, first)
        place, token = np.divmod(key[first], vocab_size)
        falling = _ONE - np.minimum(mass, 1).astype(np.float32).view(np.int32).astype(np.int64)
        order = _stable_order((place << _ONE.bit_length()) + falling, len(self.ids) << 30)
        return place[order], token[order], mass[order]


def _stable_order(key: np.ndarray, above: int) -> np.ndarray:
    """Return the stable order of int64 keys from 0 to below `above`.

    Sorting numbers is several times faster than sorting places by numbers, so the place goes into
    the low bits where there is room.
    """
    bits = len(key).bit_length()
    if above.bit_length() + bits > 63:
        return np.argsort(key, kind="stable")
    return np.sort((key << bits) + np.arange(len(key))) & ((1 << bits) - 1)


def _marginal(
    teacher: _Candidates,
    places: _Places,
    masses: _Masses,
    speller: Speller,
    expand: Expander | None,
    *,
    cross_blanks: bool,
) -> None:
    """Sum the candidates by the student token that they begin with, along the realised path."""
    masses.one_hot(np.flatnonzero(~places.usable))
    places.kind[~places.usable] = Kind.ONE_HOT
    active = np.flatnonzero(places.usable)
    token = places.token[active]
    weight = np.ones(len(active))
    consumed = places.start[active] > places.token_start[token]
    opening = places.is_opening[active]
    plain = ~consumed & ~opening
    while len(active):
        context = np.full(len(active), -1)
        numbers = speller.numbers
        for n in np.flatnonzero(~plain).tolist():
            p, first = int(active[n]), int(places.token_start[token[n]])
            before = places.text[min(first, places.start[p]) : max(first, places.start[p])]
            if opening[n]:
                context[n] = numbers[START, before]
            elif consumed[n]:
                context[n] = numbers[places.inside(p, first, before)]
            else:
                context[n] = numbers[before]
        speller.close()
        place, number = teacher.of(token)
        found = _first_tokens(speller, context[place], teacher.string[number])
        mass = teacher.mass[number]
        if expand is not None:
            string = np.where(teacher.is_own[number], -1, teacher.string[number])
            row, found, part = expand(context[place], teacher.before[token[place]], string, found)
            place, number, mass = place[row], number[row], mass[row] * part
        agrees = (found != DISAGREES) | teacher.is_own[number]
        share = np.bincount(place, mass * agrees, len(active))
        share /= np.maximum(1 - teacher.beyond[token], 1e-300)
        nothing = consumed & (share <= 0)
        masses.lose(0, active[nothing], (weight * (1 - teacher.beyond[token]))[nothing])
        agreeing = consumed & ~nothing
        scale = np.where(agreeing, weight / np.where(agreeing, share, 1), weight)
        scale[nothing] = 0
        mass = mass * scale[place]
        exhausted = found == EXHAUSTED
        others = agrees & ~teacher.is_own[number]
        if cross_blanks:
            # What follows a blank that the student drops is taken to be what follows otherwise.
            blank = places.passed[places.token_end[token]] == places.passed[places.start[active]]
            blank &= places.last[active] > token
            dropped = (found == NOTHING) & ~speller.is_space[teacher.string[number]]
            dropped = others & (dropped | (exhausted & blank[place]))
            masses.pass_on(active[place[dropped]], mass[dropped])
            others &= ~dropped
        masses.lose(0, active[place[others & exhausted]], mass[others & exhausted])
        others &= ~exhausted
        masses.give(active[place[others]], found[others], mass[others])
        masses.lose(0, active, weight * teacher.beyond[token])
        weight = scale * teacher.own_mass[token]
        done = token >= places.last[active]
        _look_ahead(teacher, places, masses, speller, expand, active[done], weight[done])
        active, token, weight = active[~done], token[~done] + 1, weight[~done]
        opening = opening[~done]
        consumed = plain = np.zeros(len(active), bool)


def _first_tokens(speller: Speller, context: np.ndarray, string: np.ndarray) -> np.ndarray:
    """Return the student's first token of each string after its context, -1 being none."""
    found = speller.first[string]
    behind = np.flatnonzero(context >= 0)
    keys = (context[behind] << 32) + string[behind]
    found[behind] = np.fromiter(map(speller.after.__getitem__, keys.tolist()), np.int32, len(keys))
    return found


def _look_ahead(
    teacher: _Candidates,
    places: _Places,
    masses: _Masses,
    speller: Speller,
    expand: Expander | None,
    active: np.ndarray,
    weight: np.ndarray,
) -> None:
    """Share the realised mass out among what the next candidates would make of the token.

    `12` goes on as `1200` with some mass, and the student cuts that otherwise. Where no other
    token comes of it the mass stays with the student's own.
    """
    last, start = places.last[active], places.start[active]
    whole = start == places.token_start[last]
    opening = places.is_opening[active]
    prefix = teacher.own[last]
    numbers = speller.numbers
    for n in np.flatnonzero((~whole | opening) & ~places.is_end[active]).tolist():
        before = places.text[start[n] : places.token_end[last[n]]]
        prefix[n] = numbers[START, before] if opening[n] else numbers[before]
    speller.close()
    settled = (speller.first[prefix] == places.ids[active]) & ~speller.blank_ended[prefix]
    following = np.minimum(last + 1, len(teacher.own) - 1)
    counted = ~places.is_end[active]
    place, number = teacher.of(following[counted])
    place = np.flatnonzero(counted)[place]
    string = teacher.string[number]
    moves = ~teacher.is_own[number] & ~(settled[place] & speller.blank_led[string])
    place, number, string = place[moves], number[moves], string[moves]
    found = _first_tokens(speller, prefix[place], string)
    mass = teacher.mass[number] * weight[place]
    if expand is not None:
        before = teacher.before[following[place]]
        row, found, part = expand(prefix[place], before, string, found)
        place, mass = place[row], mass[row] * part
    moves = (found >= 0) & (found != masses.unk_id) & (found != places.ids[active[place]])
    place, found, mass = place[moves], found[moves], mass[moves]
    masses.give(active[place], found, mass)
    kept = weight - np.bincount(place, mass, len(active))
    masses.own += np.bincount(active, kept, len(masses.own))


def _paper(teacher: _Candidates, places: _Places, masses: _Masses, speller: Speller) -> None:
    """Pass the candidates that are one student token on, where the pair is one to one."""
    paired = (places.partner >= 0) & places.usable & ~places.is_end
    masses.one_hot(np.flatnonzero(~paired))
    places.kind[~paired] = Kind.ONE_HOT
    active = np.flatnonzero(paired)
    token = places.partner[active]
    place, number = teacher.of(token)
    string = teacher.string[number]
    marked = np.array(
        [
            speller.student.token_bytes(i)[:1] == b" " and not own[:1].isspace()
            for i, own in zip(
                places.ids[active].tolist(), (teacher.own_bytes[t] for t in token), strict=True
            )
        ],
        bool,
    )
    for n in np.flatnonzero(marked[place]).tolist():
        candidate = speller.strings[string[n]]
        if candidate:
            string[n] = speller.numbers[b" " + candidate]  # type: ignore[operator]
    speller.close()
    # A pair is one of equal spelling, so the token itself is the student's.
    own = teacher.is_own[number]
    single = np.where(own, places.ids[active[place]], speller.single[string])
    masses.give(active[place], single, teacher.mass[number])
    masses.lose(0, active, teacher.beyond[token])


def _pack(places: _Places, masses: _Masses, *, rest: str, k: int | None) -> list[Projection]:
    """Cut what was gathered into one projection a trace."""
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
