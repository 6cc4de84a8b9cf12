"""What the values of the flags stand for: data, models, algorithms."""

import pathlib
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import optax

from experiments import classification_flags
from jsharp import data, models
from jsharp.algorithms import fomaml, maml, sharp_maml
from jsharp.types import LossFn, MetaAlgorithm

NO_DATA = {
  "omniglot": "download images_background.zip and images_evaluation.zip from "
  "https://github.com/brendenlake/omniglot/tree/master/python, put them in one "
  "directory and pass it as --data_dir",
  "miniimagenet": "put mini-ImageNet in one directory and pass it as --data_dir: the "
  "three CSV files of Ravi and Larochelle beside images/, or folders or archives "
  "train, val, test with a folder per class, or the pickle caches",
  "image_folder": "pass the directory that holds train/, val/ and test/, each with a "
  "folder of images per class, as --data_dir",
}


def load_datasets(settings: SimpleNamespace) -> dict[str, data.Dataset]:
  """Loads the splits `train`, `val` and `test` of the chosen data.

  Raises:
    ValueError: if the data need a directory and none was given.
  """
  name, data_dir = settings.dataset, settings.data_dir
  if name in NO_DATA and data_dir is None:
    raise ValueError(
      f"--dataset={name} needs files: {NO_DATA[name]}. Or pass --dataset=characters, "
      "drawn by jsharp itself, which needs nothing"
    )
  size = {} if settings.image_size is None else {"size": settings.image_size}
  if name == "characters":
    return data.characters.load(**size)
  if classification_flags.is_tfds(name):
    return data.tfds_source.load(name.removeprefix("tfds:"), data_dir)
  directory = pathlib.Path(data_dir).expanduser()
  if name == "omniglot":
    rotations = ("train", "val", "test") if settings.rotate_test else ("train", "val")
    return data.omniglot.load(
      directory, split=settings.omniglot_split, rotations=rotations, **size
    )
  if name == "miniimagenet":
    return data.miniimagenet.load(directory)
  return data.image_folder.load(directory, **{"size": 84, **size})


def make_model(settings: SimpleNamespace) -> nn.Module:
  """The network, with one output per class of a task."""
  if settings.model == "mlp":
    return models.MLP(features=(256, 128, 64, 64, settings.way), normalize=True)
  stride = 2 if settings.model == "conv4_strided" else 1
  return models.Conv4(
    num_outputs=settings.way, num_filters=settings.num_filters, stride=stride
  )


def sharpness(settings: SimpleNamespace) -> dict[str, Any]:
  """The choices of Sharp-MAML that apply to the algorithm; empty for the others."""
  inner = settings.algorithm in ("sharp_maml_low", "sharp_maml_both")
  outer = settings.algorithm in ("sharp_maml_up", "sharp_maml_both")
  if not inner and not outer:
    return {}
  sharp_adaptation = settings.sharp_adaptation
  return {
    "inner_rho": settings.inner_rho if inner else None,
    "outer_rho": settings.outer_rho if outer else None,
    "p": settings.p,
    "adaptive": settings.adaptive,
    "differentiate_perturbation": settings.differentiate_perturbation,
    "reuse_perturbation": settings.reuse_perturbation,
    "sharp_adaptation": not outer if sharp_adaptation is None else sharp_adaptation,
  }


def make_algorithm(
  settings: SimpleNamespace, loss_fn: LossFn, **options: Any
) -> MetaAlgorithm:
  """The algorithm with SGD inside and Adam outside.

  Args:
    settings: the values of the flags.
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.
    **options: `num_eval_inner_steps`, `eval_query_loss_fn`, `adapted_mask` in place
      of their defaults.
  """
  constructor = {"maml": maml, "fomaml": fomaml}.get(settings.algorithm, sharp_maml)
  outer_optimizer = optax.adam(settings.outer_lr)
  if settings.clip_meta_gradient is not None:
    clip = optax.clip(settings.clip_meta_gradient)
    outer_optimizer = optax.chain(clip, outer_optimizer)
  options = {"num_eval_inner_steps": settings.num_eval_inner_steps, **options}
  return constructor(
    loss_fn,
    optax.sgd(settings.inner_lr),
    outer_optimizer,
    num_inner_steps=settings.num_inner_steps,
    task_chunk=settings.task_chunk,
    **sharpness(settings),
    **options,
  )


def loop(settings: SimpleNamespace) -> dict[str, Any]:
  """The parts of a run that say how long it trains and what decides."""
  names = ("num_steps", "num_tasks", "eval_every")
  return {
    "loop": {name: getattr(settings, name) for name in names},
    "chosen_by": f"validation on {settings.val_tasks} tasks",
  }


def protocol(settings: SimpleNamespace) -> dict[str, Any]:
  """The part of the protocol that every experiment shares."""
  return {
    "algorithm": {"name": settings.algorithm, **sharpness(settings)},
    "inner loop": {
      "optimizer": "sgd",
      "inner_lr": settings.inner_lr,
      "num_inner_steps": settings.num_inner_steps,
      "num_eval_inner_steps": settings.num_eval_inner_steps,
    },
    "outer loop": {
      "optimizer": "adam",
      "outer_lr": settings.outer_lr,
      "num_tasks": settings.num_tasks,
      "clip_meta_gradient": settings.clip_meta_gradient,
    },
    "seeds": {"seed": settings.seed, "eval_seed": settings.eval_seed},
  }
