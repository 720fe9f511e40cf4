"""A teacher's tokens with their log-probabilities, as values; `apis` reads them from answers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

UNSPELLABLE = b"\xff"  # never valid in UTF-8: stands for bytes that the API does not report
_ROUNDING = 1e-3  # nats above zero, or mass above one, that a source's rounding may leave


class TeacherToken(NamedTuple):
    """One token of a generator with its candidates.

    Attributes:
        text: its bytes; each 0xff among them stands for bytes that the source does not report.
        logprob: its nats, NaN where unknown.
        top: (bytes, nats) of the candidates at its place, the token itself among them or not. The
            candidate b"" is the end of the text.

    Example:
        >>> TeacherToken(b" she", -1.35, top=((b" Nat", -0.51), (b" she", -1.35))).text
        b' she'
    """

    text: bytes
    logprob: float = math.nan
    top: tuple[tuple[bytes, float], ...] = ()


class FlatTrace(Protocol):
    """Any record with the fields of a TeacherTrace."""

    @property
    def tokens(self) -> Sequence[bytes]:
        """[T] bytes of each token."""
        ...

    @property
    def logprobs(self) -> np.ndarray:
        """[T] nats of each token."""
        ...

    @property
    def top_tokens(self) -> Sequence[bytes]:
        """[C] bytes of all candidates."""
        ...

    @property
    def top_logprobs(self) -> np.ndarray:
        """[C] their nats."""
        ...

    @property
    def top_ends(self) -> np.ndarray:
        """[T] where each token's candidates end."""
        ...

    @property
    def end_logprob(self) -> float:
        """Nats of ending after the last token, NaN where unknown."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherTrace:
    """One text of a teacher, flat: the candidates of token t are `top_ends[t - 1] : top_ends[t]`.

    Attributes:
        tokens: [T] bytes of each token; joined, the bytes of the text.
        logprobs: [T] nats of each token.
        top_tokens: [C] bytes of all candidates; b"" is the end of the text.
        top_logprobs: [C] their nats.
        top_ends: [T] where each token's candidates end.
        end_logprob: nats of ending after the last token, NaN where the source does not report it.

    Raises:
        ValueError: lengths that do not fit, an empty token, log-probabilities that are NaN or
            positive, candidates that repeat or have more than all the mass.
    """

    tokens: Sequence[bytes]
    logprobs: np.ndarray
    top_tokens: Sequence[bytes]
    top_logprobs: np.ndarray
    top_ends: np.ndarray
    end_logprob: float = float("nan")

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.logprobs) == len(self.top_ends):
            raise ValueError(
                f"expected as many tokens as log-probabilities and ends, got {len(self.tokens)}, "
                f"{len(self.logprobs)} and {len(self.top_ends)}"
            )
        ends = np.asarray(self.top_ends)
        last = int(ends[-1]) if len(ends) else 0
        if not last == len(self.top_tokens) == len(self.top_logprobs):
            raise ValueError(
                f"expected {last} candidates, got {len(self.top_tokens)} tokens and "
                f"{len(self.top_logprobs)} log-probabilities"
            )
        if len(ends) and (ends[0] < 0 or (ends[1:] < ends[:-1]).any()):
            raise ValueError(f"expected candidate ends that do not decrease, got {ends}")
        if not all(self.tokens):
            raise ValueError(
                f"expected tokens of at least one byte, got an empty one at "
                f"{list(map(bool, self.tokens)).index(False)}; give the end of the text as "
                "end_logprob"
            )
        for name in ("logprobs", "top_logprobs"):
            self._check_logprobs(name)
        if self.end_logprob > _ROUNDING:
            raise ValueError(f"expected end_logprob of at most 0, got {self.end_logprob}")

    def _check_logprobs(self, name: str) -> None:
        values = np.asarray(getattr(self, name), np.float64)
        bad = ~(values <= _ROUNDING)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"expected log-probabilities of at most 0, got {values[at]} in {name}[{at}]; "
                "give nats, and leave out what the source does not report"
            )

    @classmethod
    def from_tokens(
        cls, tokens: Sequence[TeacherToken], *, end_logprob: float = float("nan")
    ) -> "TeacherTrace":
        """Flatten a list of TeacherToken."""
        return cls(
            tokens=tuple(t.text for t in tokens),
            logprobs=np.array([t.logprob for t in tokens], np.float64),
            top_tokens=tuple(c for t in tokens for c, _ in t.top),
            top_logprobs=np.array([p for t in tokens for _, p in t.top], np.float64),
            top_ends=np.cumsum([len(t.top) for t in tokens], dtype=np.int64),
            end_logprob=end_logprob,
        )

    @classmethod
    def of(cls, trace: "FlatTrace | Sequence[TeacherToken]") -> "TeacherTrace":
        """Take a list of TeacherToken, or any record with the fields of a TeacherTrace."""
        if isinstance(trace, cls):
            return trace
        if isinstance(trace, Sequence):
            return cls.from_tokens(trace)
        return cls(
            trace.tokens,
            trace.logprobs,
            trace.top_tokens,
            trace.top_logprobs,
            trace.top_ends,
            trace.end_logprob,
        )

    @property
    def text(self) -> bytes:
        """The bytes of the text."""
        return b"".join(self.tokens)
