"""Operators of anything causal, by its derivative at the current input."""
