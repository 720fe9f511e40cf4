"""Alignment of tokens and distributions between two tokenizers."""

from tokalign.align import align, align_batch
from tokalign.alignment import Alignment
from tokalign.apis import from_completions, from_openai_chat, from_pieces
from tokalign.continuations import Continuations
from tokalign.positions import Kind
from tokalign.project import Projection, project, project_batch
from tokalign.segmentation import Segmentation
from tokalign.teacher import TeacherToken, TeacherTrace
from tokalign.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)

__all__ = [
    "Alignment",
    "Continuations",
    "HuggingFaceTokenizer",
    "Kind",
    "Projection",
    "Segmentation",
    "SentencePieceTokenizer",
    "TeacherToken",
    "TeacherTrace",
    "TiktokenTokenizer",
    "Tokenizer",
    "align",
    "align_batch",
    "from_completions",
    "from_openai_chat",
    "from_pieces",
    "project",
    "project_batch",
]
