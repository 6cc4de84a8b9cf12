"""Sharpness-aware minimisation as optax links, ascents and a loss transformation."""

from jsharp.sam.ascent import sam_ascent, scale_to_ball
from jsharp.sam.combine import interpolate, oppose, renormalize
from jsharp.sam.directions import (
  follow_running_mean,
  leave_running_mean,
  pmean,
  repeat,
)
from jsharp.sam.geometry import conjugate, restrict
from jsharp.sam.lazy import late_sam, looksam, sam_every
from jsharp.sam.link import sharpness_aware
from jsharp.sam.loss import functional_sam, sharpen
from jsharp.sam.shifted import centre, momentum_sam
from jsharp.sam.variants import (
  asam,
  friendly_sam,
  gsam,
  le_sam,
  sam,
  vasso,
  wsam,
)

__all__ = [
  "asam",
  "centre",
  "conjugate",
  "follow_running_mean",
  "friendly_sam",
  "functional_sam",
  "gsam",
  "interpolate",
  "late_sam",
  "le_sam",
  "leave_running_mean",
  "looksam",
  "momentum_sam",
  "oppose",
  "pmean",
  "renormalize",
  "repeat",
  "restrict",
  "sam",
  "sam_ascent",
  "sam_every",
  "scale_to_ball",
  "sharpen",
  "sharpness_aware",
  "vasso",
  "wsam",
]
