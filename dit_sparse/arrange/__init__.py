"""Stage 1: how the tokens are ordered and cut into blocks."""
