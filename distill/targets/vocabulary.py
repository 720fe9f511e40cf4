"""The student's vocabulary as a stage takes it: a path or a loaded tokenizer."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokalign
from distill.core import paths
from distill.core.errors import UserError
from distill.core.store import read_json
from distill.core.vocabulary_digest import VocabularyRecord, require_same

VOCABULARY = "vocabulary"
_PROBE = "She sold 1,234.5 clips,\n  half (\u00bd) of them \ufb01ne: {x} = 48/2."


class Vocabulary(tokalign.Tokenizer, Protocol):
    """A tokalign tokenizer that encodes whole texts, as all three of them do."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of `text`, without an EOS."""
        ...


def load(vocabulary: Vocabulary | str | Path) -> Vocabulary:
    """Return the student's tokenizer.

    Args:
        vocabulary: a tokalign tokenizer, or the path of a SentencePiece model, which may be one of
            those that ship as `data/...`.

    Raises:
        UserError: there is no such file, or it holds no SentencePiece model.
    """
    if not isinstance(vocabulary, str | Path):
        return vocabulary
    path = paths.find(vocabulary, "a SentencePiece model")
    try:
        return tokalign.SentencePieceTokenizer(path)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise UserError(
            f"a SentencePiece model at {path}", "another file", "give the student's vocabulary"
        ) from error


def describe(tokenizer: Vocabulary) -> dict[str, Any]:
    """Return what identifies the tokenizer, as JSON and without its path.

    A run that has moved, or that names the file by another path, is then still the same run.

    Returns:
        `type`, `vocab_size` with sentinels, `eos_id`; `sha256` of the bytes of every token and of
        the tokens of a probe of digits, whitespace and folded characters; and, if the tokenizer has
        a `digest` as those of tokalign do, `vocabulary`: the SHA-256 of the whole content, scores,
        types and normaliser included.
    """
    digest = hashlib.sha256(repr(list(tokenizer.encode(_PROBE))).encode())
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        digest.update(len(token).to_bytes(4, "little") + token)
    content = getattr(tokenizer, "digest", None)
    return {
        "type": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "sha256": digest.hexdigest(),
        **({} if content is None else {VOCABULARY: content}),
    }


def setting(run_dir: Path, stage: str, tokenizer: Vocabulary) -> dict[str, Any]:
    """Return the description as the stage's setting `vocabulary`.

    It lacks the content's digest where an earlier start of the stage recorded none, so that runs of
    earlier versions resume.

    Args:
        run_dir: the run.
        stage: whose setting it is.
        tokenizer: to be described.
    """
    described = describe(tokenizer)
    path = Path(run_dir) / "manifests" / f"{stage}.json"
    earlier = read_json(path)["settings"].get("vocabulary") if path.is_file() else None
    if isinstance(earlier, dict) and VOCABULARY not in earlier:
        described.pop(VOCABULARY, None)
    return described


def require_described(
    described: Mapping[str, Any], tokenizer: Vocabulary, *, expected: str, got: str, do: str
) -> None:
    """Refuse a tokenizer whose vocabulary is not the one that a manifest describes.

    Content is compared if both are of one type and have its digest; otherwise the bytes of all
    tokens and the tokens of the probe, which manifests of every version have.

    Args:
        described: of a manifest; empty if it describes none, which a warning reports.
        tokenizer: to be compared with it.
        expected: the holder of the vocabulary `described`, for the message.
        got: the holder of the tokenizer, for the message.
        do: what the user can do.

    Raises:
        UserError: they differ.
    """
    mine = describe(tokenizer)
    alike = described.get("type") == mine["type"] and VOCABULARY in described and VOCABULARY in mine
    key = VOCABULARY if alike else "sha256"
    one = VocabularyRecord(expected, described.get(key), described.get("vocab_size"))
    require_same(one, VocabularyRecord(got, mine[key], mine["vocab_size"]), do)
