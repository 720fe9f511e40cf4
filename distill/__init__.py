"""A knowledge-distillation pipeline for small reasoning models."""
