"""Prompts, completions, answers and steps as text."""
