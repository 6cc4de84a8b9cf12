"""jsharp: functional few-shot meta-learning in JAX, sharpness-aware at either loop.

Both loops are optax: the links in the two chains decide which algorithm it is.

    maml(loss_fn, optax.sgd(a), optax.adam(b), num_inner_steps=5)
    sharp_maml(..., inner_rho=5e-4, outer_rho=5e-4)       # SAM at both levels
    optax.chain(jsharp.sam(0.05), optax.adamw(1e-3))      # SAM in any optax chain

`import jsharp` is enough to use any public module: `jsharp.models.Conv4`,
`jsharp.data.characters`. It imports a module, and JAX with it, when one of its names
is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jsharp._version import __version__ as __version__

_MODULES = (
  "algorithms",
  "analysis",
  "core",
  "data",
  "evaluation",
  "learners",
  "losses",
  "models",
  "nn",
  "normalization",
  "perturbations",
  "precision",
  "training",
  "tree",
  "types",
)

# The module that each name is imported from.
_MODULE_OF = {
  "anil": "jsharp.algorithms",
  "annealed_step_weights": "jsharp.algorithms",
  "black_box": "jsharp.algorithms",
  "boil": "jsharp.algorithms",
  "cavia": "jsharp.algorithms",
  "fomaml": "jsharp.algorithms",
  "imaml": "jsharp.algorithms",
  "maml": "jsharp.algorithms",
  "maml_plus_plus": "jsharp.algorithms",
  "meta_sgd": "jsharp.algorithms",
  "protonet": "jsharp.algorithms",
  "reptile": "jsharp.algorithms",
  "ridge": "jsharp.algorithms",
  "sharp_maml": "jsharp.algorithms",
  "after_adaptation": "jsharp.core",
  "Execution": "jsharp.core",
  "inner_loop": "jsharp.core",
  "on_query": "jsharp.core",
  "learned_rates": "jsharp.core",
  "learned_step_rates": "jsharp.core",
  "over_tasks": "jsharp.core",
  "stop_gradient": "jsharp.core",
  "evaluate": "jsharp.evaluation",
  "mean_and_ci95": "jsharp.evaluation",
  "build": "jsharp.learners",
  "load": "jsharp.learners",
  "save": "jsharp.learners",
  "asam": "jsharp.perturbations",
  "friendly_sam": "jsharp.perturbations",
  "functional_sam": "jsharp.perturbations",
  "gsam": "jsharp.perturbations",
  "late_sam": "jsharp.perturbations",
  "le_sam": "jsharp.perturbations",
  "looksam": "jsharp.perturbations",
  "momentum_sam": "jsharp.perturbations",
  "sam": "jsharp.perturbations",
  "sam_ascent": "jsharp.perturbations",
  "sam_every": "jsharp.perturbations",
  "sharpen": "jsharp.perturbations",
  "sharpness_aware": "jsharp.perturbations",
  "vasso": "jsharp.perturbations",
  "wsam": "jsharp.perturbations",
  "train": "jsharp.training",
  "Batch": "jsharp.types",
  "MetaAlgorithm": "jsharp.types",
  "MetaState": "jsharp.types",
  "Task": "jsharp.types",
}

__all__ = sorted([*_MODULES, *_MODULE_OF])

if TYPE_CHECKING:  # The same names for type checkers and editors.
  from jsharp import algorithms as algorithms
  from jsharp import analysis as analysis
  from jsharp import core as core
  from jsharp import data as data
  from jsharp import evaluation as evaluation
  from jsharp import learners as learners
  from jsharp import losses as losses
  from jsharp import models as models
  from jsharp import nn as nn
  from jsharp import normalization as normalization
  from jsharp import perturbations as perturbations
  from jsharp import precision as precision
  from jsharp import training as training
  from jsharp import tree as tree
  from jsharp import types as types
  from jsharp.algorithms import annealed_step_weights as annealed_step_weights
  from jsharp.algorithms.anil import anil as anil
  from jsharp.algorithms.black_box import black_box as black_box
  from jsharp.algorithms.boil import boil as boil
  from jsharp.algorithms.cavia import cavia as cavia
  from jsharp.algorithms.fomaml import fomaml as fomaml
  from jsharp.algorithms.imaml import imaml as imaml
  from jsharp.algorithms.maml import maml as maml
  from jsharp.algorithms.maml_plus_plus import maml_plus_plus as maml_plus_plus
  from jsharp.algorithms.meta_sgd import meta_sgd as meta_sgd
  from jsharp.algorithms.protonet import protonet as protonet
  from jsharp.algorithms.reptile import reptile as reptile
  from jsharp.algorithms.ridge import ridge as ridge
  from jsharp.algorithms.sharp_maml import sharp_maml as sharp_maml
  from jsharp.core import Execution as Execution
  from jsharp.core import after_adaptation as after_adaptation
  from jsharp.core import inner_loop as inner_loop
  from jsharp.core import learned_rates as learned_rates
  from jsharp.core import learned_step_rates as learned_step_rates
  from jsharp.core import on_query as on_query
  from jsharp.core import over_tasks as over_tasks
  from jsharp.core import stop_gradient as stop_gradient
  from jsharp.evaluation import evaluate as evaluate
  from jsharp.evaluation import mean_and_ci95 as mean_and_ci95
  from jsharp.learners import build as build
  from jsharp.learners import load as load
  from jsharp.learners import save as save
  from jsharp.perturbations import functional_sam as functional_sam
  from jsharp.perturbations import late_sam as late_sam
  from jsharp.perturbations import sam_ascent as sam_ascent
  from jsharp.perturbations import sam_every as sam_every
  from jsharp.perturbations import sharpen as sharpen
  from jsharp.perturbations import sharpness_aware as sharpness_aware
  from jsharp.perturbations.asam import asam as asam
  from jsharp.perturbations.friendly_sam import friendly_sam as friendly_sam
  from jsharp.perturbations.gsam import gsam as gsam
  from jsharp.perturbations.le_sam import le_sam as le_sam
  from jsharp.perturbations.looksam import looksam as looksam
  from jsharp.perturbations.momentum_sam import momentum_sam as momentum_sam
  from jsharp.perturbations.sam import sam as sam
  from jsharp.perturbations.vasso import vasso as vasso
  from jsharp.perturbations.wsam import wsam as wsam
  from jsharp.training import train as train
  from jsharp.types import Batch as Batch
  from jsharp.types import MetaAlgorithm as MetaAlgorithm
  from jsharp.types import MetaState as MetaState
  from jsharp.types import Task as Task

else:

  def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name in _MODULES:
      return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULE_OF:
      value = getattr(importlib.import_module(_MODULE_OF[name]), name)
      globals()[name] = value  # Python now finds it without this function.
      return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

  def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
