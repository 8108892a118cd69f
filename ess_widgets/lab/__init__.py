"""The kernel's side of the JupyterLab panel that lists the models in the kernel.

>>> from ess_widgets.lab import opened
>>> opened("nothing")
Traceback (most recent call last):
KeyError: 'the panel has no explorer of `nothing` open: press Explore beside it first.'
"""

from ess_widgets.lab.shown import opened

__all__ = ["opened"]
