"""Floor 2: the T5 family, the decoder-only teacher and sampling; JAX begins here."""
