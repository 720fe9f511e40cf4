"""Chains of thought from generators: harvest, merge, and a calculator beside any generator."""
