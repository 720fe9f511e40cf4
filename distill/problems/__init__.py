"""Questions with answers: readers of benchmarks and of one's own files, and contamination."""
