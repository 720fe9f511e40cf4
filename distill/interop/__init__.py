"""Weights in and out: Hugging Face directories and T5X."""
