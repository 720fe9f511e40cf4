"""Alignment of tokens and distributions between two tokenizers."""
