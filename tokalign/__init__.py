"""Alignment of tokens and distributions between two tokenizers."""

from tokalign.align import Alignment, align
from tokalign.project import Kind, Projection, project, project_batch
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
    "project",
    "project_batch",
]
