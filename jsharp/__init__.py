"""jsharp: functional few-shot meta-learning in JAX, sharpness-aware in either loop.

Both loops are optax chains: the links in the two chains determine the algorithm.

    maml(loss_fn, optax.sgd(a), optax.adam(b), num_inner_steps=5)
    sharp_maml(..., inner_rho=5e-4, outer_rho=5e-4)       # SAM at both levels
    optax.chain(jsharp.sam(0.05), optax.adamw(1e-3))      # SAM in any optax chain

`import jsharp` gives access to every public module, such as `jsharp.models.Conv4` and
`jsharp.data.characters`. Modules, and JAX with them, are imported when one of their
names is first used.
"""

from jsharp import _early as _early  # Before slow imports.

# isort: split
import functools
import importlib
import pathlib
from typing import TYPE_CHECKING, Any

from jsharp._version import __version__ as __version__

_MODULES = (
  "algorithms",
  "analysis",
  "control",
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

# A constructor is defined in the file of the same name, in one of these packages.
_CONSTRUCTORS = ("algorithms", "perturbations")

# The module that each other name is imported from.
_MODULE_OF = {
  "annealed_step_weights": "jsharp.algorithms",
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
  "models_available": "jsharp.learners",
  "save": "jsharp.learners",
  "functional_sam": "jsharp.perturbations",
  "late_sam": "jsharp.perturbations",
  "sam_ascent": "jsharp.perturbations",
  "sam_every": "jsharp.perturbations",
  "sharpen": "jsharp.perturbations",
  "sharpness_aware": "jsharp.perturbations",
  "train": "jsharp.training",
  "Batch": "jsharp.types",
  "MetaAlgorithm": "jsharp.types",
  "MetaState": "jsharp.types",
  "Task": "jsharp.types",
}

if TYPE_CHECKING:  # The same names, for type checkers and editors.
  from jsharp import algorithms as algorithms
  from jsharp import analysis as analysis
  from jsharp import control as control
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
  from jsharp.algorithms import *
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
  from jsharp.learners import models_available as models_available
  from jsharp.learners import save as save
  from jsharp.perturbations import *
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
    if name == "__all__":
      return sorted([*_MODULES, *_MODULE_OF, *_constructors()])
    if name in _MODULES:
      return importlib.import_module(f"{__name__}.{name}")
    origin = _MODULE_OF.get(name) or _constructors().get(name)
    if origin is None:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(origin), name)
    globals()[name] = value  # From now on Python finds it without this function.
    return value

  def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])

  @functools.cache
  def _constructors() -> dict[str, str]:
    """The module of each constructor, by the constructor's name."""
    found = {}
    for package in _CONSTRUCTORS:
      for path in (pathlib.Path(__file__).parent / package).glob("[!_]*.py"):
        if f"\ndef {path.stem}(" in path.read_text():
          found[path.stem] = f"{__name__}.{package}.{path.stem}"
    return found
