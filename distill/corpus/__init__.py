"""Floor 1: from problems to training batches."""
