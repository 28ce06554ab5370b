"""Stage 4: the attention output from the plan."""
