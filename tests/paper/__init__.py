"""What the paper reports, in miniature: `python -m tests.paper.<name>`."""
