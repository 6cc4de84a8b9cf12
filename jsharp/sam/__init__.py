"""Sharpness-aware minimisation as optax links."""

from jsharp.sam.ascent import conjugate, sam_ascent, scale_to_ball
from jsharp.sam.link import sam, sharpness_aware

__all__ = ["conjugate", "sam", "sam_ascent", "scale_to_ball", "sharpness_aware"]
