"""Meta-learning algorithms: one file, one constructor, one paper."""

from jsharp.algorithms._options import (
  Algorithm,
  Made,
  OuterLoop,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
)
from jsharp.algorithms._per_step import batch_loss_with_statistics
from jsharp.algorithms._phases import annealed_step_weights
from jsharp.algorithms.anil import anil
from jsharp.algorithms.black_box import InContext, black_box, predict_in_context
from jsharp.algorithms.boil import boil
from jsharp.algorithms.cavia import Contextual, cavia
from jsharp.algorithms.fomaml import fomaml
from jsharp.algorithms.imaml import imaml, implicit_adaptation
from jsharp.algorithms.maml import maml
from jsharp.algorithms.maml_plus_plus import PlusPlusParams, maml_plus_plus
from jsharp.algorithms.meta_sgd import WithRates, meta_sgd
from jsharp.algorithms.protonet import WithPrototypes, predict_with_prototypes, protonet
from jsharp.algorithms.reptile import WithInnerState, reptile
from jsharp.algorithms.ridge import FittedRidge, WithRidge, predict_with_ridge, ridge
from jsharp.algorithms.sharp_maml import sharp_maml

__all__ = [
  "Algorithm",
  "Contextual",
  "FittedRidge",
  "InContext",
  "Made",
  "OuterLoop",
  "Phases",
  "PlusPlusParams",
  "Problem",
  "SecondOrderOptions",
  "Sharpness",
  "WithInnerState",
  "WithPrototypes",
  "WithRates",
  "WithRidge",
  "anil",
  "annealed_step_weights",
  "batch_loss_with_statistics",
  "black_box",
  "boil",
  "cavia",
  "fomaml",
  "imaml",
  "implicit_adaptation",
  "maml",
  "maml_plus_plus",
  "meta_sgd",
  "predict_in_context",
  "predict_with_prototypes",
  "predict_with_ridge",
  "protonet",
  "reptile",
  "ridge",
  "sharp_maml",
]
