"""Timings against one singular value decomposition per position, in one run on one machine."""
