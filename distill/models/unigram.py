"""A T5's vocabulary as SentencePiece's model and as the tokenizers library's document.

Both directions are here, each with a check on texts that no test would think of first. What the
other side cannot express is refused by name, not written as something near to it.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core import files
from distill.core.errors import UserError
from distill.models import charsmap

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SENTINELS = 100
SENTINEL = re.compile(r"▁?<extra_id_\d+>")  # mT5's stand among its pieces, behind a space
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
IDS = {"pad": 0, "EOS": 1, "unknown": 2}
FIRST = ("<pad>", "</s>", "<unk>")  # with the ids 0, 1 and 2
MODEL_BYTES = 64 << 20  # bytes of a SentencePiece model; an mT5's has 4 MB
CHECKED = 1000  # texts
# sentencepiece_model.proto: TrainerSpec.ModelType, SentencePiece.Type
UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_PIECE = 1, 2, 3, 4, 5, 6
KINDS = {1: "unigram", 2: "BPE", 3: "words", 4: "characters"}
RULES = ("", "identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")


def sentinels(extra_ids: int) -> list[str]:
    """Return the names of sentinels that follow the pieces, the first the last."""
    return [f"<extra_id_{number}>" for number in reversed(range(extra_ids))]


def processor(content: bytes, source: Path | str) -> "SentencePieceProcessor":
    """Return SentencePiece's reader of a serialised model with T5's special tokens.

    Raises:
        UserError: it is no model, or pad, EOS and unknown are not 0, 1 and 2.
    """
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(
            f"a SentencePiece model in {source}", "none", "name another file"
        ) from error
    ids = (model.pad_id(), model.eos_id(), model.unk_id())
    if ids != tuple(IDS.values()):
        raise UserError(
            f"pad 0, EOS 1 and unknown 2, as T5 has, in {source}", f"{ids}", "use a T5 vocabulary"
        )
    return model


# --- From SentencePiece to tokenizers ----------------------------------------------------------


def tokenizer_json(path: Path, extra_ids: int = SENTINELS) -> dict[str, Any]:
    """Return the tokenizers library's document of a T5 SentencePiece model.

    What SentencePiece does, step by step: characters by its own map, whitespace at the ends dropped
    and runs of it made one, a `▁` for each and before the text, the likeliest pieces, then EOS. The
    ids are compared with SentencePiece's on 1,000 generated texts. One difference is T5's own in
    transformers: where a text spells a special token, such as `</s>`, the library reads the token.

    Args:
        path: a unigram model with pad 0, EOS 1 and unknown 2.
        extra_ids: sentinels after its pieces.

    Raises:
        UserError: there is no such file, it is another kind of model, or the library reads a text
            otherwise.
    """
    if not path.is_file():
        raise UserError("a SentencePiece model", f"no file {path}", "give its path")
    content = files.read_bytes(path, limit=MODEL_BYTES)
    model, message = processor(content, path), _proto(content, path)
    _refuse_options(message, path)
    document = _document(message, extra_ids, path)
    _require_same_ids(document, model, unusual_texts(_alphabet(message), CHECKED), path)
    return document


def proto() -> Any:
    """Return an empty message of SentencePiece's ModelProto."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]


def _proto(content: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    message = proto()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise UserError(f"a SentencePiece model in {path}", "none", "use one") from error
    return message


def _refuse_options(model: Any, path: Path) -> None:
    """Refuse what the library's Unigram model does not do as SentencePiece does."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    user = [p.piece for p in model.pieces if p.type == USER_DEFINED]
    unused = [p.piece for p in model.pieces if p.type == UNUSED]
    own = [piece for piece in user if not SENTINEL.fullmatch(piece)]
    kind = KINDS.get(trainer.model_type, str(trainer.model_type))
    reasons = {
        f"a model of {kind}": trainer.model_type != UNIGRAM,
        f"user-defined symbols, such as {own[:1]!r:.50}": bool(own),
        f"unused pieces, such as {unused[:1]!r:.50}": bool(unused),
        "extra whitespace kept (remove_extra_whitespaces false)": (
            not normalizer.remove_extra_whitespaces
        ),
        "no whitespace before the text (add_dummy_prefix false)": not normalizer.add_dummy_prefix,
        "whitespace as a suffix of words": trainer.treat_whitespace_as_suffix,
        "whitespace that is not escaped": not normalizer.escape_whitespaces,
        f"normalisation rules of its own, {normalizer.name!r:.50}": normalizer.name not in RULES,
        "rules that change what is decoded": bool(model.denormalizer_spec.precompiled_charsmap),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(
                f"a unigram vocabulary with T5's options in {path}",
                reason,
                "train with a vocabulary like T5's to export it",
            )


def _document(model: Any, extra_ids: int, path: Path) -> dict[str, Any]:
    vocabulary = [[p.piece, p.score] for p in model.pieces]
    vocabulary += [[text, 0.0] for text in sentinels(extra_ids)]
    special = {i for i, p in enumerate(model.pieces) if p.type in (CONTROL, UNKNOWN)}
    special |= {i for i, (text, _) in enumerate(vocabulary) if SENTINEL.fullmatch(text)}
    in_bytes = bool(model.trainer_spec.byte_fallback)
    compiled = model.normalizer_spec.precompiled_charsmap
    try:
        mapping = charsmap.steps(compiled, _alphabet(model))
        spaced = "▁" in charsmap.rules(compiled)
    except (ValueError, IndexError) as error:
        raise UserError(f"a map of characters in {path}", str(error), "restore it") from error
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, vocabulary[i][0]) for i in sorted(special)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*mapping, *_WHITESPACE, *(() if spaced else _PREFIX)],
        },
        "pre_tokenizer": _METASPACE if spaced else None,
        "post_processor": _ending_in_eos(),
        "decoder": (
            {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, _METASPACE]}
            if in_bytes
            else _METASPACE
        ),
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": in_bytes},
    }


def _alphabet(model: Any) -> frozenset[str]:
    pieces = (p.piece for p in model.pieces if p.type in (NORMAL, USER_DEFINED))
    return frozenset("".join(pieces)) | {" "}


def _added_token(token_id: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": True, **flags}


_WHITESPACE = (
    {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
)
# Metaspace writes no `▁` before a text that begins with one, which only some maps replace, and
# SentencePiece drops it at the end as it drops whitespace.
_PREFIX = (
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": r"▁+\z"}, "content": ""},
)
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}


def _ending_in_eos() -> dict[str, Any]:
    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [sequence("A"), end],
        "pair": [sequence("A"), end, sequence("B"), end],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }


# --- The check ---------------------------------------------------------------------------------


def _require_same_ids(
    document: Mapping[str, Any],
    model: "SentencePieceProcessor",
    texts: Iterator[str],
    path: Path,
) -> None:
    """Refuse a document whose ids of a text, EOS last, are not SentencePiece's."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(document))
    special = [token["content"] for token in document["added_tokens"]]
    special += [text for text, _ in document["model"]["vocab"] if BYTE.fullmatch(text)]
    spelt = re.compile("|".join(map(re.escape, special)))
    for text in texts:
        if spelt.search(text) or spelt.search(model.normalize(text).replace("▁", "")):
            continue
        got, wanted = tokenizer.encode(text).ids, [*model.encode(text), IDS["EOS"]]
        # Pieces in another order have the same likelihood, and sums in float32 choose among them.
        if got != wanted and sorted(got) != sorted(wanted):
            raise UserError(
                f"the same ids of every text from SentencePiece and tokenizers for {path}",
                f"others of {text!a:.200}",
                "use a vocabulary with T5's options",
            )


def unusual_texts(alphabet: frozenset[str], n: int) -> Iterator[str]:
    """Yield n texts that differ between readers sooner than others, always the same.

    They mix words and characters of the vocabulary with controls, whitespace of all kinds,
    compositions, marks, emoji with joiners, text from right to left, and long repetitions.
    """
    draw = random.Random(0)
    known = sorted(alphabet)
    pools: list[Sequence[str]] = [
        known,
        ["Tom", "has", "12", "apples,", "$5.50", "x = {1}", "\\frac{1}{2}", "<a>", "y/3"],
        [*" \t\n\r\v\f\x85\xa0▁", *map(chr, range(0x2000, 0x2010)), *"\u1680\u2028\u3000\ufeff"],
        [chr(code) for code in range(0xA0)],
        [chr(code) for code in range(0x300, 0x370)],
        [*"\ufb01\u00bd\u2460\u338f\u210c\u212b\uff71\uff9e\u2026\u2122\u017f\u1e9b\u0323"],
        ["e\u0301", "a\u0328\u0301", "u\u0308\u0304", "\u304b\u3099", *"\uac01\u1100\u1161\u11a8"],
        [*"\U0001f600\U0001f468\u200d\U0001f3ff\ufe0f\U0001f3f3\U0001f1e9\u05e9\u0645\u0651\u202e"],
        [chr(code) for code in range(0xA0, 0x3000, 7)],
        [chr(code) for code in range(0x3001, 0x30000, 997) if not 0xD800 <= code < 0xE000],
    ]
    yield from ("", " ", "▁", *(character * 200 for character in known[:20]))
    for _ in range(n - min(20, len(known)) - 3):
        chosen = draw.choices(pools, k=draw.randrange(1, 4))
        parts = [draw.choice(draw.choice(chosen)) for _ in range(draw.randrange(1, 25))]
        repeats = draw.choice([1, 1, 1, 1, 9])
        yield draw.choice(["", "", " ", "  "]).join(parts) * repeats
