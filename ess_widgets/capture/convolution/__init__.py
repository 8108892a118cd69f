"""Convolutions along the sequence, by the calls that a model makes."""
