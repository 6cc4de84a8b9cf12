"""Meta-learning algorithms as bundles of pure functions.

Each constructor, such as `maml`, `protonet` or `sharp_maml`, implements one paper and
returns a `jsharp.MetaAlgorithm`. The classes, such as `MAML`, hold the same algorithm's
options for programs and saved learners.
"""

from typing import TYPE_CHECKING

from jsharp._exports import exported
from jsharp.algorithms._adapted_head import WithHead as WithHead
from jsharp.algorithms._adapted_head import predict_with_head as predict_with_head
from jsharp.algorithms._embedding import WithOwn as WithOwn
from jsharp.algorithms._options import Algorithm as Algorithm
from jsharp.algorithms._options import InnerLoop as InnerLoop
from jsharp.algorithms._options import Made as Made
from jsharp.algorithms._options import NormOptions as NormOptions
from jsharp.algorithms._options import OuterLoop as OuterLoop
from jsharp.algorithms._options import Phases as Phases
from jsharp.algorithms._options import Problem as Problem
from jsharp.algorithms._options import SecondOrderOptions as SecondOrderOptions
from jsharp.algorithms._options import Sharpness as Sharpness
from jsharp.algorithms._options import constant_cost as constant_cost
from jsharp.algorithms._options import gradient_based as gradient_based
from jsharp.algorithms._per_step import (
  batch_loss_with_statistics as batch_loss_with_statistics,
)
from jsharp.algorithms._phases import annealed_step_weights as annealed_step_weights
from jsharp.algorithms.anil import anil as anil
from jsharp.algorithms.baseline import WithClassifier as WithClassifier
from jsharp.algorithms.baseline import baseline as baseline
from jsharp.algorithms.baseline import predict_by_classifier as predict_by_classifier
from jsharp.algorithms.black_box import InContext as InContext
from jsharp.algorithms.black_box import black_box as black_box
from jsharp.algorithms.black_box import predict_in_context as predict_in_context
from jsharp.algorithms.boil import boil as boil
from jsharp.algorithms.cavia import Contextual as Contextual
from jsharp.algorithms.cavia import cavia as cavia
from jsharp.algorithms.fomaml import fomaml as fomaml
from jsharp.algorithms.imaml import imaml as imaml
from jsharp.algorithms.imaml import implicit_adaptation as implicit_adaptation
from jsharp.algorithms.maml import maml as maml
from jsharp.algorithms.maml_plus_plus import PlusPlusParams as PlusPlusParams
from jsharp.algorithms.maml_plus_plus import maml_plus_plus as maml_plus_plus
from jsharp.algorithms.meta_baseline import meta_baseline as meta_baseline
from jsharp.algorithms.meta_baseline import predict_by_cosine as predict_by_cosine
from jsharp.algorithms.meta_sgd import WithRates as WithRates
from jsharp.algorithms.meta_sgd import meta_sgd as meta_sgd
from jsharp.algorithms.proto_maml import proto_maml as proto_maml
from jsharp.algorithms.protonet import WithPrototypes as WithPrototypes
from jsharp.algorithms.protonet import (
  predict_with_prototypes as predict_with_prototypes,
)
from jsharp.algorithms.protonet import protonet as protonet
from jsharp.algorithms.reptile import WithInnerState as WithInnerState
from jsharp.algorithms.reptile import reptile as reptile
from jsharp.algorithms.ridge import FittedRidge as FittedRidge
from jsharp.algorithms.ridge import WithRidge as WithRidge
from jsharp.algorithms.ridge import predict_with_ridge as predict_with_ridge
from jsharp.algorithms.ridge import ridge as ridge
from jsharp.algorithms.sharp_maml import sharp_maml as sharp_maml
from jsharp.algorithms.simpleshot import predict_by_centroid as predict_by_centroid
from jsharp.algorithms.simpleshot import simpleshot as simpleshot
from jsharp.algorithms.supervised import supervised as supervised
from jsharp.algorithms.unicorn_maml import unicorn_maml as unicorn_maml

if not TYPE_CHECKING:  # They read the imports themselves.
  __all__ = exported(globals())
