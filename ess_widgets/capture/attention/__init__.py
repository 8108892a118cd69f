"""Attention, by the calls that a model makes: from scores to the product with the values, and what follows."""
