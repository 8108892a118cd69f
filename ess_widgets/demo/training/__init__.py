"""Scripts that made the weights in this package: ``python -m ess_widgets.demo.training.<name>``."""
