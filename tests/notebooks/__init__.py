"""The lessons, run from top to bottom."""
