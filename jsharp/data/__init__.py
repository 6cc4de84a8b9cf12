"""Datasets and the tasks drawn from them.

`Dataset` and the sampling functions are here. Each source of data has its own module,
such as `jsharp.data.characters` with its function `load`, imported when first used.
"""

import importlib
from types import ModuleType

from jsharp.data._options import ImageSource, LabelledSource
from jsharp.data.dataset import Dataset
from jsharp.data.episodes import (
  TaskIndices,
  check_task_shape,
  draw_distinct,
  sample_indices,
  sample_many,
  sample_task,
  sample_tasks,
  task_key,
)
from jsharp.data.host import HostImages
from jsharp.data.preparation import Preparation, Splits, load_splits

_SOURCES = (
  "characters",
  "cifar",
  "cifar_fs",
  "cub",
  "fc100",
  "image_folder",
  "imagenet",
  "labelled_images",
  "miniimagenet",
  "omniglot",
  "sinusoid",
  "streams",
  "tfds_source",
  "tieredimagenet",
)

__all__ = [
  "Dataset",
  "HostImages",
  "ImageSource",
  "LabelledSource",
  "Preparation",
  "Splits",
  "TaskIndices",
  "check_task_shape",
  "draw_distinct",
  "load_splits",
  "sample_indices",
  "sample_many",
  "sample_task",
  "sample_tasks",
  "task_key",
]


def __getattr__(name: str) -> ModuleType:
  if name in _SOURCES:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*__all__, *_SOURCES])
