"""How mass reaches the student's tokens: by marginalisation, or by the rule of Fu et al. 2023."""

import numpy as np

from tokalign.continuations import Expander
from tokalign.positions import Candidates, Kind, Masses, Places
from tokalign.spelling import (
    DISAGREES,
    EXHAUSTED,
    NOTHING,
    START,
    Speller,
)


def give_marginal(
    teacher: Candidates,
    places: Places,
    masses: Masses,
    speller: Speller,
    expand: Expander | None,
    *,
    cross_whitespace: bool,
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
        if cross_whitespace:
            # What follows whitespace that the student drops is taken to be what follows otherwise.
            space = places.passed[places.token_end[token]] == places.passed[places.start[active]]
            space &= places.last[active] > token
            dropped = (found == NOTHING) & ~speller.is_space[teacher.string[number]]
            dropped = others & (dropped | (exhausted & space[place]))
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
    teacher: Candidates,
    places: Places,
    masses: Masses,
    speller: Speller,
    expand: Expander | None,
    active: np.ndarray,
    weight: np.ndarray,
) -> None:
    """Divide the drawn token's mass among the tokens that the next candidates would lead to.

    `12` continues as `1200` with some mass, and the student cuts that otherwise. Where no other
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
    settled = (speller.first[prefix] == places.ids[active]) & ~speller.ends_with_space[prefix]
    following = np.minimum(last + 1, len(teacher.own) - 1)
    counted = ~places.is_end[active]
    place, number = teacher.of(following[counted])
    place = np.flatnonzero(counted)[place]
    string = teacher.string[number]
    moves = ~teacher.is_own[number] & ~(settled[place] & speller.starts_with_space[string])
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


def give_paper(teacher: Candidates, places: Places, masses: Masses, speller: Speller) -> None:
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
