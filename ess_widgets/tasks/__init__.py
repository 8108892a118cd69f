"""Synthetic tasks that ask for a known amount of memory, as torch datasets."""

from ess_widgets.tasks.base import IGNORE, Task, accuracy, loss
from ess_widgets.tasks.compression import Compression, Compressor
from ess_widgets.tasks.recall import MQAR
from ess_widgets.tasks.selective_copying import SelectiveCopying

__all__ = ["IGNORE", "MQAR", "Compression", "Compressor", "SelectiveCopying", "Task", "accuracy", "loss"]
