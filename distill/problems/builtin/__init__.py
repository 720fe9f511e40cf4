"""The built-in world: the questions, chains and vocabularies that ship."""
