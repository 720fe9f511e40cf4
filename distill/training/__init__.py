"""Floor 3: losses, the trainer, evaluation and checkpoint selection."""
