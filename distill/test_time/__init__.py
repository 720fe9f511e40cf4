"""Floor 4: compute at test time."""
