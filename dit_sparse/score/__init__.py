"""Stage 2: a score for each pair of a query block and a key block."""
