"""The share of `<unk>` among the tokens of texts, and the characters that it stands for."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from distill.core.errors import UserError
from distill.targets.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

MAX_SHARE = 0.1  # of a stage's questions, chains or answers, by default
WARNED_SHARE = 0.01
_NAMED = 8  # characters that a sentence names
_REPORTED = 20  # and that a summary holds


@dataclasses.dataclass(frozen=True)
class Unknown:
    """The unknown tokens of some texts, as a pair until the last moment.

    Attributes:
        tokens: number of `<unk>`.
        count: number of all tokens.
        characters: how often `<unk>` stands for each.
    """

    tokens: int
    count: int
    characters: Counter[str]

    @property
    def share(self) -> float:
        """`tokens` of `count`; 0 if there are no tokens."""
        return self.tokens / self.count if self.count else 0.0

    def __str__(self) -> str:
        named = ", ".join(f"{c!r} {n:,}" for c, n in self.characters.most_common(_NAMED))
        return f"{100 * self.share:.1f} % of {self.count:,}, most often for {named}"


def count(texts: Iterable[str], tokenizer: Vocabulary) -> Unknown:
    """Count the unknown tokens of texts, and the characters that they stand for.

    A vocabulary that falls back to bytes has none. A run of characters that cannot be spelt is one
    token in SentencePiece, so the share of characters is larger than that of tokens.

    Args:
        texts: to be encoded.
        tokenizer: the student's.
    """
    unk, tokens, total = tokenizer.unk_id, 0, 0
    characters: Counter[str] = Counter()
    for text in texts:
        ids = tokenizer.encode(text)
        total += len(ids)
        unknown = 0 if unk is None else list(ids).count(unk)
        if unknown:
            tokens += unknown
            characters.update(_unspelt(text, tokenizer))
    return Unknown(tokens, total, characters)


def _unspelt(text: str, tokenizer: Vocabulary) -> str:
    """Return the characters of a text that its unknown tokens cover."""
    cut = tokenizer.segment(text)
    ends = cut.byte_ends.tolist()
    starts = [0, *ends[:-1]]
    covered = (
        cut.text[start:end].decode(errors="ignore")
        for token, start, end in zip(cut.ids.tolist(), starts, ends, strict=True)
        if token == tokenizer.unk_id
    )
    return "".join("".join(covered).split())


def require(unknowns: Mapping[str, Unknown], most: float, stage: str) -> dict[str, Any]:
    """Refuse texts of which too much is unknown; warn of more than WARNED_SHARE.

    Args:
        unknowns: by kind of text.
        most: largest share of tokens, from 0 to 1.
        stage: for the log.

    Returns:
        For a summary: `unk`, a pair of sum and count for each kind, and `unspelt`, how often each
        of the most frequent characters is unknown, if any is.

    Raises:
        UserError: a share is above `most`.
    """
    for kind, unknown in unknowns.items():
        if unknown.share > most:
            raise UserError(
                f"at most {100 * most:g} % of the tokens of {kind} to be <unk>",
                str(unknown),
                "train a student whose vocabulary spells them, or raise max_unk_share",
            )
        if unknown.share > WARNED_SHARE:
            logger.warning("%s: <unk> among the tokens of %s: %s", stage, kind, unknown)
    characters = sum((unknown.characters for unknown in unknowns.values()), Counter[str]())
    pairs = {kind: {"sum": u.tokens, "count": u.count} for kind, u in unknowns.items()}
    named = dict(characters.most_common(_REPORTED))
    return {"unk": pairs, **({"unspelt": named} if named else {})}


def require_bound(most: float) -> None:
    """Refuse a bound that is not a share.

    Raises:
        UserError: it is below 0, above 1 or not a number.
    """
    if not 0 <= most <= 1:
        raise UserError("max_unk_share from 0 to 1", str(most), "give a share, such as 0.1")
