"""The projection position by position, as the rules read; the twin of the fast one."""

import math

import numpy as np

from tokalign.align import align_segmentations, next_cut
from tokalign.segmentation import spelled_mask
from tokalign.tokenizers import segment_bytes

NOTHING, UNSPELLABLE, DISAGREES, EXHAUSTED = "nothing", "unspellable", "disagrees", "exhausted"


class NaiveProjection:
    def __init__(self, trace, student, *, cross_whitespace=True):
        self.trace, self.student, self.cross_whitespace = trace, student, cross_whitespace
        self.text = trace.text
        found = segment_bytes(student, [self.text])[0]
        self.starts = np.cumsum([0, *map(len, trace.tokens)]).tolist()
        self.ends = [*found.byte_ends.tolist(), len(self.text)]
        self.settled = [*next_cut(found.byte_ends, found.cuts).tolist(), len(self.text)]
        self.ids = [*found.ids.tolist(), student.eos_id]
        self.clean = [True, *found.cuts.tolist()]
        self.passed = np.append(0, np.cumsum(spelled_mask(self.text)))
        pairs = align_segmentations(np.array(self.starts[1:], np.int64), found).pairs
        self.partner = {int(j): int(i) for i, j in pairs}
        self.candidates = [self._candidates(i) for i in range(len(trace.tokens))]

    def _candidates(self, i):
        trace = self.trace
        first = int(trace.top_ends[i - 1]) if i else 0
        found = {}
        for c in range(first, int(trace.top_ends[i])):
            token = trace.top_tokens[c]
            found[token] = found.get(token, 0.0) + math.exp(min(0.0, trace.top_logprobs[c]))
        found.setdefault(trace.tokens[i], math.exp(min(0.0, trace.logprobs[i])))
        total = sum(found.values())
        return {token: p / max(total, 1) for token, p in found.items()}, max(0.0, 1 - total)

    def start(self, j):
        return self.ends[j - 1] if j else 0

    def crosses(self, j):
        covered = self.text[self.start(j) : self.ends[j]]
        token = self.student.token_bytes(self.ids[j]) or covered
        whitespace = [x[: len(x) - len(x.lstrip())] for x in (covered, token)]
        return j > 0 and whitespace[0] != whitespace[1]

    def spell(self, text, j, *, ended=False):
        ids = self.student.spell(text, start=j == 0) if text else []
        if ids is None:
            return UNSPELLABLE
        if len(ids):
            return int(ids[0])
        return self.student.eos_id if ended else NOTHING

    def give(self, row, j, token, mass):
        if not isinstance(token, int) or (token == self.student.unk_id and token != self.ids[j]):
            row["unspelled"] += mass
        else:
            row["probs"][token] = row["probs"].get(token, 0.0) + mass

    def row(self):
        return {"probs": {}, "beyond": 0.0, "unspelled": 0.0, "passed": 0.0, "one_hot": False}

    def one_hot(self, j):
        return self.row() | {"probs": {self.ids[j]: 1.0}, "one_hot": True}

    def paper(self, j):
        i = self.partner.get(j)
        if i is None or (not self.cross_whitespace and self.crosses(j)):
            return self.one_hot(j)
        found, beyond = self.candidates[i]
        own = self.trace.tokens[i]
        marked = self.student.token_bytes(self.ids[j])[:1] == b" " and not own[:1].isspace()
        row = self.row() | {"beyond": beyond}
        for candidate, p in found.items():
            text = b" " + candidate if marked else candidate
            ids = self.student.spell(text) if candidate else [self.student.eos_id]
            one = ids is not None and len(ids) == 1
            if candidate == own:
                one, ids = True, [self.ids[j]]
            self.give(row, j, int(ids[0]) if one else UNSPELLABLE, p)
        return row

    def inside(self, j, i, candidate, consumed):
        """What a candidate says at position j, `consumed` bytes into its place."""
        if not consumed:
            return self.spell(candidate, j, ended=not candidate)
        origin = j
        while origin and self.start(origin) > self.starts[i]:
            origin -= 1
        if self.start(origin) == self.starts[i]:
            path = self.ids[origin:j]
            ids = list(self.student.spell(candidate, start=origin == 0) or []) if candidate else []
            if ids[: len(path)] != path:
                return DISAGREES
            return int(ids[len(path)]) if len(ids) > len(path) else EXHAUSTED
        if not candidate.startswith(consumed):
            return DISAGREES
        return self.spell(candidate[len(consumed) :], j) if candidate != consumed else EXHAUSTED

    def marginal(self, j):
        last, length = j == len(self.ids) - 1, len(self.candidates)
        if last and math.isnan(self.trace.end_logprob):
            return self.one_hot(j)
        if not self.clean[j] or (not last and not self.cross_whitespace and self.crosses(j)):
            return self.one_hot(j)
        start = self.start(j)
        i = int(np.searchsorted(self.starts, start, side="right")) - 1
        consumed = self.text[self.starts[i] : start] if i < length else b""
        row, weight, spelled = self.row(), 1.0, b""
        while i < length:
            found, beyond = self.candidates[i]
            own = self.trace.tokens[i]
            says = {
                c: self.inside(j, i, c, consumed)
                if not spelled
                else self.spell(spelled + c, j, ended=not c)
                for c in found
            }
            agreeing = {c for c in found if says[c] != DISAGREES or c == own}
            share = sum(found[c] for c in agreeing) / (1 - beyond) if consumed else 1.0
            only_blank = (
                self.settled[j] > self.starts[i + 1]
                and self.passed[self.starts[i + 1]] == self.passed[start]
            )
            for c in agreeing - {own}:
                mass = weight * found[c] / share
                dropped = says[c] == NOTHING and c != b" "
                if self.cross_whitespace and (dropped or (says[c] == EXHAUSTED and only_blank)):
                    row["passed"] += mass
                elif says[c] == EXHAUSTED:
                    row["beyond"] += mass
                else:
                    self.give(row, j, says[c], mass)
            row["beyond"] += weight * beyond
            weight *= found[own] / share
            spelled += own[len(consumed) :]
            consumed, i = b"", i + 1
            if not last and self.starts[i] >= self.settled[j]:
                self.look_ahead(row, j, weight, spelled, i)
                return self.shared_out(row)
        end = math.exp(min(0.0, self.trace.end_logprob))
        row["beyond"] += weight * (1 - end)
        self.give(row, j, self.ids[j], weight * end)
        return self.shared_out(row)

    def look_ahead(self, row, j, weight, spelled, i):
        kept = weight
        for candidate, p in self.candidates[i][0].items() if i < len(self.candidates) else ():
            if candidate == self.trace.tokens[i]:
                continue
            token = self.spell(spelled + candidate, j, ended=not candidate)
            if isinstance(token, int) and token not in (self.ids[j], self.student.unk_id):
                self.give(row, j, token, weight * p)
                kept -= weight * p
        self.give(row, j, self.ids[j], kept)

    def shared_out(self, row):
        rest = 1 - row["passed"]
        if rest < 1e-3:
            row["unspelled"] += row["passed"]
            return row
        row["probs"] = {token: p / rest for token, p in row["probs"].items()}
        row["beyond"] /= rest
        row["unspelled"] /= rest
        return row
