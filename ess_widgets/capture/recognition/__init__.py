"""Functions recognised by their names and modules by their attributes."""
