"""Meta-learning algorithms: one file, one constructor, one paper."""

from jsharp.algorithms.fomaml import fomaml
from jsharp.algorithms.maml import maml
from jsharp.algorithms.sharp_maml import sharp_maml

__all__ = ["fomaml", "maml", "sharp_maml"]
