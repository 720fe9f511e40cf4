"""Verdicts: graders of answers and programs, algebra in a process of its own, the sandbox."""
