"""The commands of `dit-sparse`, one file each, and what they share."""
