"""Vocabularies loaded from disk: each cuts a text and spells its continuation. No model."""

from tokalign.tokenizers.huggingface import HuggingFaceTokenizer
from tokalign.tokenizers.pieces import byte_alphabet, piece_bytes
from tokalign.tokenizers.protocol import Tokenizer, segment_bytes
from tokalign.tokenizers.sentencepieces import SentencePieceTokenizer
from tokalign.tokenizers.tiktokens import GPT_PATTERN, TiktokenTokenizer

__all__ = [
    "GPT_PATTERN",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "byte_alphabet",
    "piece_bytes",
    "segment_bytes",
]
