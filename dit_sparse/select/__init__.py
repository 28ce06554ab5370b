"""Stage 3: which block pairs are computed exactly."""
