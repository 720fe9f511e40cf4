"""Find a text's final answer and decide whether two answers are equal; never runs model text."""
