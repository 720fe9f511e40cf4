"""What the student learns from: traces aligned to its vocabulary, examples, packed datasets."""
