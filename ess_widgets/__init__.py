"""See what a sequence model remembers."""
