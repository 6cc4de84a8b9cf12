"""Sharpness-aware minimisation as optax links, ascents and a loss transformation.

Links such as `sam`, `asam` and `gsam` go in front of any optax optimizer. Ascents such
as `sam_ascent` turn a gradient into a perturbation; `sharpen` applies one to a loss.
"""

from typing import TYPE_CHECKING

from jsharp._exports import exported
from jsharp.perturbations._options import SharpGroups as SharpGroups
from jsharp.perturbations._options import SharpLink as SharpLink
from jsharp.perturbations._options import SharpOptimizer as SharpOptimizer
from jsharp.perturbations.asam import asam as asam
from jsharp.perturbations.ascent import sam_ascent as sam_ascent
from jsharp.perturbations.ascent import scale_to_ball as scale_to_ball
from jsharp.perturbations.combine import interpolate as interpolate
from jsharp.perturbations.combine import oppose as oppose
from jsharp.perturbations.combine import renormalize as renormalize
from jsharp.perturbations.directions import follow_running_mean as follow_running_mean
from jsharp.perturbations.directions import leave_running_mean as leave_running_mean
from jsharp.perturbations.directions import pmean as pmean
from jsharp.perturbations.directions import repeat as repeat
from jsharp.perturbations.friendly_sam import friendly_sam as friendly_sam
from jsharp.perturbations.geometry import conjugate as conjugate
from jsharp.perturbations.geometry import restrict as restrict
from jsharp.perturbations.gsam import gsam as gsam
from jsharp.perturbations.lazy import late_sam as late_sam
from jsharp.perturbations.lazy import sam_every as sam_every
from jsharp.perturbations.le_sam import le_sam as le_sam
from jsharp.perturbations.link import sharpness_aware as sharpness_aware
from jsharp.perturbations.looksam import looksam as looksam
from jsharp.perturbations.loss import functional_sam as functional_sam
from jsharp.perturbations.loss import sharpen as sharpen
from jsharp.perturbations.momentum_sam import centre as centre
from jsharp.perturbations.momentum_sam import momentum_sam as momentum_sam
from jsharp.perturbations.sam import sam as sam
from jsharp.perturbations.vasso import vasso as vasso
from jsharp.perturbations.wsam import wsam as wsam

if not TYPE_CHECKING:  # They read the imports themselves.
  __all__ = exported(globals())
