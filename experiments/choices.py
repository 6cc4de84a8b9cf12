"""What the values of the flags stand for: data, networks, loops."""

import functools
import pathlib
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments import classification_flags, method_options, optimizers
from experiments.method_flags import WITHOUT_INNER_GRADIENT
from jsharp import data, losses, models
from jsharp.training.processes import is_first

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
_MLP = (256, 128, 64, 64)


def load_datasets(
  settings: SimpleNamespace, name: str, data_dir: str | None
) -> dict[str, data.Dataset]:
  """Loads the splits `train`, `val` and `test` of one dataset.

  Args:
    settings: the values of the flags.
    name: as for `--dataset`.
    data_dir: as for `--data_dir`.

  Raises:
    ValueError: if the data need a directory and none was given.
  """
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
  directory = pathlib.Path(data_dir or "").expanduser()
  if name == "omniglot":
    rotations = ("train", "val", "test") if settings.rotate_test else ("train", "val")
    return data.omniglot.load(
      directory, split=settings.omniglot_split, rotations=rotations, **size
    )
  if name == "miniimagenet":
    return data.miniimagenet.load(directory)
  return data.image_folder.load(directory, **{"size": 84, **size})


def load_splits(settings: SimpleNamespace) -> dict[str, data.Dataset]:
  """The splits of a run: those of its dataset, `test` perhaps of another one.

  Raises:
    ValueError: if the images of the two datasets differ in shape, or as
      `load_datasets` does.
  """
  splits = load_datasets(settings, settings.dataset, settings.data_dir)
  if settings.test_dataset is None:
    return splits
  test_data_dir = settings.test_data_dir or settings.data_dir
  other = load_datasets(settings, settings.test_dataset, test_data_dir)["test"]
  shape = splits["train"].image_shape
  if other.image_shape != shape:
    raise ValueError(
      f"the images of --test_dataset={settings.test_dataset} are {other.image_shape}, "
      f"those of --dataset={settings.dataset} {shape}; a model takes one shape: where "
      "only height and width differ pass --image_size, where the channels differ the "
      "two cannot be combined"
    )
  return {**splits, "test": other}


def placed(splits: dict[str, data.Dataset], images: str) -> dict[str, data.Dataset]:
  """The splits of a run with their images on the device or in host memory.

  Args:
    splits: as loaded, on the host.
    images: as for `--images`.

  Raises:
    ValueError: if the images are to stay on the host and JAX has no CPU platform,
      which fetches them.
  """
  if images == "auto":
    device = jax.local_devices()[0]
    total = sum(split.images.nbytes for split in splits.values())
    limit = (device.memory_stats() or {}).get("bytes_limit")
    fits = device.platform == "cpu" or limit is None or total <= limit / 2
    images = "device" if fits else "host"
    if not fits:
      _say(
        f"images: {total:,} bytes stay in host memory, more than half of the device's "
        f"{limit:,} (--images=device puts them there)"
      )
  if images == "device":
    return {name: split.on_device() for name, split in splits.items()}
  try:
    jax.local_devices(backend="cpu")
  except RuntimeError as error:
    config: Any = jax.config  # jax 0.10 does not declare its attributes.
    raise ValueError(
      "images in host memory are fetched by JAX's CPU platform, and JAX_PLATFORMS="
      f"{config.jax_platforms} leaves it out; add cpu at its end, or pass "
      "--images=device"
    ) from error
  return {name: split.on_host() for name, split in splits.items()}


@functools.cache
def _say(line: str) -> None:
  """Prints a line once, however often a run is built for its memory budget."""
  if is_first():
    print(line, flush=True)


def networks(
  settings: SimpleNamespace, image_shape: tuple[int, ...], num_outputs: int
) -> method_options.Networks:
  """The networks of the image experiments."""
  is_mlp = settings.model == "mlp"
  stride = 2 if settings.model == "conv4_strided" else 1
  conv = {"num_filters": settings.num_filters, "stride": stride}

  def plain(outputs: int | None) -> nn.Module:
    if is_mlp:
      features = _MLP if outputs is None else (*_MLP, outputs)
      return models.MLP(features=features, normalize=True)
    return models.Conv4(num_outputs=outputs, **conv)

  def context(size: int) -> nn.Module:
    if is_mlp:
      features = (*_MLP, num_outputs)
      return models.ContextMLP(features=features, normalize=True, context_size=size)
    return models.ContextConv4(num_outputs=num_outputs, context_size=size, **conv)

  return method_options.Networks(
    plain=plain,
    context=context,
    head=f"dense_{len(_MLP)}" if is_mlp else "head",
    inputs=jnp.zeros((1, *image_shape), jnp.float32),
    targets=jnp.zeros(1, jnp.int32),
    num_outputs=num_outputs,
    criterion=losses.cross_entropy,
    has_norm=True,
  )


def loop(settings: SimpleNamespace) -> dict[str, Any]:
  """The parts of a run that say how long it trains and what decides."""
  return {
    "loop": {
      "num_steps": settings.num_steps,
      "num_tasks": settings.num_tasks * num_seeds(settings),
      "eval_every": settings.eval_every,
      "keep_top": settings.ensemble if settings.ensemble > 1 else 0,
      "keep_path": settings.keep_path,
      "num_devices": settings.num_devices,
    },
    "chosen_by": f"validation on {settings.val_tasks} tasks",
  }


def _inner_loop(settings: SimpleNamespace) -> dict[str, Any]:
  if settings.algorithm in WITHOUT_INNER_GRADIENT:
    return {}
  learns_all = settings.algorithm == "meta_sgd"
  return {
    "optimizer": settings.inner_optimizer,
    "inner_lr": None if learns_all else settings.inner_lr,
    "num_inner_steps": settings.num_inner_steps,
    "num_eval_inner_steps": settings.num_eval_inner_steps,
  }


def num_seeds(settings: SimpleNamespace) -> int:
  """How many seeds are trained side by side."""
  return getattr(settings, "num_seeds", 1)


def protocol(settings: SimpleNamespace) -> dict[str, Any]:
  """The part of the protocol that every experiment shares."""
  return {
    "algorithm": {"name": settings.algorithm, **method_options.relevant(settings)},
    "inner loop": _inner_loop(settings),
    "outer loop": {
      "optimizer": settings.outer_optimizer,
      "outer_lr": settings.outer_lr,
      "schedule": optimizers.schedule(settings),
      "num_tasks": settings.num_tasks,
      "clip_meta_gradient": settings.clip_meta_gradient,
    },
    "precision": settings.precision,
    "seeds": {
      "seed": settings.seed,
      "to": settings.seed + num_seeds(settings) - 1
      if num_seeds(settings) > 1
      else None,
      "eval_seed": settings.eval_seed,
    },
  }
