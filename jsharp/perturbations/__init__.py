"""Sharpness-aware minimisation as optax links, ascents and a loss transformation."""

from jsharp.perturbations._options import SharpLink, SharpOptimizer
from jsharp.perturbations.asam import asam
from jsharp.perturbations.ascent import sam_ascent, scale_to_ball
from jsharp.perturbations.combine import interpolate, oppose, renormalize
from jsharp.perturbations.directions import (
  follow_running_mean,
  leave_running_mean,
  pmean,
  repeat,
)
from jsharp.perturbations.friendly_sam import friendly_sam
from jsharp.perturbations.geometry import conjugate, restrict
from jsharp.perturbations.gsam import gsam
from jsharp.perturbations.lazy import late_sam, sam_every
from jsharp.perturbations.le_sam import le_sam
from jsharp.perturbations.link import sharpness_aware
from jsharp.perturbations.looksam import looksam
from jsharp.perturbations.loss import functional_sam, sharpen
from jsharp.perturbations.momentum_sam import centre, momentum_sam
from jsharp.perturbations.sam import sam
from jsharp.perturbations.vasso import vasso
from jsharp.perturbations.wsam import wsam

__all__ = [
  "SharpLink",
  "SharpOptimizer",
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
