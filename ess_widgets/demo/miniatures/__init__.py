"""Small sequence models in plain PyTorch: one mixer from each family, in the same frame."""

from ess_widgets.demo.miniatures.mixers import MIXERS
from ess_widgets.demo.miniatures.model import Miniature

__all__ = ["MIXERS", "Miniature"]
