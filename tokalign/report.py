"""Counts of projected positions, as numbers, terminal text and HTML."""

import dataclasses
import html
from collections.abc import Iterable, Sequence

import numpy as np

from tokalign.positions import Kind
from tokalign.project import Projection
from tokalign.teacher import TeacherTrace
from tokalign.tokenizers import Tokenizer

_COLOURS = {  # terminal code, page colour
    Kind.ONE_TO_ONE: (32, "#cdeccd"),
    Kind.MERGED: (36, "#cfe8f3"),
    Kind.SPLIT: (34, "#d6dcf5"),
    Kind.INSIDE: (35, "#ecd6f0"),
    Kind.ONE_HOT: (31, "#f5d0cc"),
}


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Positions by kind with the mass that was lost, sums over positions; the EOS is left out.

    Attributes:
        kinds: [5] positions of each Kind.
        beyond: mass beyond the teacher's top k.
        unspelled: mass that the student cannot spell.
    """

    kinds: tuple[int, ...] = (0,) * len(Kind)
    beyond: float = 0.0
    unspelled: float = 0.0

    @property
    def count(self) -> int:
        """All positions."""
        return sum(self.kinds)

    @property
    def covered(self) -> int:
        """Positions with a distribution."""
        return self.count - self.kinds[Kind.ONE_HOT]

    def __add__(self, other: "Coverage") -> "Coverage":
        kinds = tuple(a + b for a, b in zip(self.kinds, other.kinds, strict=True))
        return Coverage(kinds, self.beyond + other.beyond, self.unspelled + other.unspelled)

    def shares(self) -> dict[str, float]:
        """Return shares of the positions by name: covered, each kind, and the two losses."""
        count = max(self.count, 1)
        return {
            "covered": self.covered / count,
            **{kind.name.lower(): self.kinds[kind] / count for kind in Kind},
            "lost_beyond_top_k": self.beyond / count,
            "lost_unspelled": self.unspelled / count,
        }


def coverage(projections: Iterable[Projection], student: Tokenizer) -> tuple[Coverage, Coverage]:
    """Count positions by kind: all, and those whose token holds a digit.

    Args:
        projections: of some traces.
        student: the student's vocabulary.

    Returns:
        (all positions, positions with digits).
    """
    digits: dict[int, bool] = {}
    found = [Coverage(), Coverage()]
    for projection in projections:
        ids = projection.ids[:-1].tolist()
        for token in ids:
            if token not in digits:
                digits[token] = any(byte in b"0123456789" for byte in student.token_bytes(token))
        chosen = np.ones(len(ids), bool), np.array([digits[token] for token in ids], bool)
        for n, mask in enumerate(chosen):
            kinds = np.bincount(projection.kind[:-1][mask], minlength=len(Kind))
            lost = projection.lost[:-1][mask].sum(axis=0, dtype=np.float64)
            found[n] += Coverage(tuple(kinds.tolist()), float(lost[0]), float(lost[1]))
    return found[0], found[1]


def coverage_text(everywhere: Coverage, digits: Coverage) -> str:
    """Return the two counts as a small table, in percent of positions."""
    lines = [f"{'':20}{'all':>10}{'digits':>10}"]
    lines.append(f"{'positions':20}{everywhere.count:>10,}{digits.count:>10,}")
    columns = everywhere.shares(), digits.shares()
    lines += [
        f"{name.replace('_', ' '):20}" + "".join(f"{100 * c[name]:>9.1f}%" for c in columns)
        for name in columns[0]
    ]
    return "\n".join(lines)


def _shown(token: bytes) -> str:
    """Return a token with its whitespace made visible."""
    text = token.decode(errors="replace")
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _name(student: Tokenizer, token_id: int) -> str:
    return "EOS" if token_id == student.eos_id else _shown(student.token_bytes(token_id))


def alignment_text(trace: TeacherTrace, projection: Projection, student: Tokenizer) -> str:
    """Return both rows of tokens in the colours of their kinds, then a line a position."""
    teacher = "│".join(_shown(token) for token in trace.tokens)
    row, lines = [], []
    for t, token in enumerate(projection.ids.tolist()):
        kind = Kind(projection.kind[t])
        shown = f"\033[{_COLOURS[kind][0]}m{_name(student, token)}\033[0m"
        row.append(shown)
        best = " ".join(
            f"{_name(student, i)} {p:.2f}"
            for i, p in zip(projection.top_ids[t].tolist(), projection.top_probs[t], strict=True)
            if p > 0
        )
        lost = projection.lost[t]
        pad = " " * max(0, 16 - len(_name(student, token)))
        lines.append(
            f"{shown}{pad} {kind.name.lower():11} {best}  lost {lost[0]:.2f} + {lost[1]:.2f}"
        )
    return "\n".join([f"teacher  {teacher}", f"student  {'│'.join(row)}", "", *lines])


def alignment_page(trace: TeacherTrace, projection: Projection, student: Tokenizer) -> str:
    """Return an HTML page: both rows of tokens, the flow of mass, the top-k as a heat map."""
    return _PAGE.format(
        legend=" ".join(
            f'<span style="background:{page}">{kind.name.lower().replace("_", " ")}</span>'
            for kind, (_, page) in _COLOURS.items()
        ),
        flow=_flow(trace, projection, student),
        heat=_heat(projection, student),
    )


_PAGE = """<!doctype html><meta charset="utf-8"><title>Alignment</title>
<style>body{{font:14px sans-serif;margin:2em}}span{{padding:1px 4px;border-radius:3px}}
td,th{{padding:2px 6px;text-align:left;white-space:nowrap}}table{{border-collapse:collapse}}
text{{font:12px monospace}}div{{overflow-x:auto}}</style>
<h1>Alignment</h1><p>{legend}</p><h2>Flow of probability</h2><div>{flow}</div>
<h2>Candidates</h2><div><table><tr><th>token<th>kind<th>candidates, likeliest first<th>beyond
top k<th>not spelled</tr>{heat}</table></div>
"""


def _flow(trace: TeacherTrace, projection: Projection, student: Tokenizer) -> str:
    """Draw the teacher's tokens above the student's, joined where they cover the same bytes."""
    starts = np.cumsum([0, *map(len, trace.tokens)]).tolist()
    begin = [0, *projection.byte_ends.tolist()]
    names = [html.escape(_name(student, i)) for i in projection.ids.tolist()]
    width, parts = 11, []
    for t, token in enumerate(trace.tokens):
        shown = html.escape(_shown(token))
        parts.append(f'<text x="{width * starts[t] + 4}" y="20">{shown}</text>')
    for j in range(len(projection.ids) - 1):
        x, end = width * begin[j], width * begin[j + 1]
        colour = _COLOURS[Kind(projection.kind[j])][1]
        own = projection.top_probs[j][projection.top_ids[j] == projection.ids[j]].sum()
        parts.append(
            f'<rect x="{x}" y="84" width="{max(end - x - 2, 2)}" height="22" fill="{colour}"/>'
            f'<text x="{x + 4}" y="100">{names[j]}</text>'
        )
        for t in range(len(trace.tokens)):
            low, high = max(starts[t], begin[j]), min(starts[t + 1], begin[j + 1])
            if low < high:
                a = width * (starts[t] + starts[t + 1]) / 2
                parts.append(
                    f'<line x1="{a}" y1="26" x2="{(x + end) / 2}" y2="82" stroke="#556" '
                    f'stroke-width="{0.5 + 4 * own:.2f}" stroke-opacity="0.6"/>'
                )
    return f'<svg width="{width * starts[-1] + 20}" height="112">{"".join(parts)}</svg>'


def _heat(projection: Projection, student: Tokenizer) -> str:
    rows = []
    for t, token in enumerate(projection.ids.tolist()):
        kind = Kind(projection.kind[t])
        cells = "".join(
            f'<td style="background:rgba(214,96,40,{p:.3f})">'
            f"{html.escape(_name(student, i))} {p:.3f}"
            for i, p in zip(
                projection.top_ids[t].tolist(), projection.top_probs[t].tolist(), strict=True
            )
            if p > 0
        )
        beyond, unspelled = projection.lost[t].tolist()
        rows.append(
            f'<tr><td style="background:{_COLOURS[kind][1]}">{html.escape(_name(student, token))}'
            f"<td>{kind.name.lower().replace('_', ' ')}<td><table><tr>{cells}</table>"
            f"<td>{beyond:.3f}<td>{unspelled:.3f}"
        )
    return "".join(rows)


def traces_text(
    traces: Sequence[TeacherTrace], projections: Sequence[Projection], student: Tokenizer
) -> str:
    """Return the quality figures of some traces as text."""
    tokens = sum(len(trace.tokens) for trace in traces)
    everywhere, digits = coverage(projections, student)
    return f"{len(traces)} traces, {tokens} teacher tokens\n{coverage_text(everywhere, digits)}"
