"""Synthetic tasks that ask for a known amount of memory."""
