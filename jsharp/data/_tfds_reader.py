"""Opens what tensorflow-datasets has prepared, without TensorFlow."""

import os
import pathlib
from collections.abc import Collection
from typing import Any

from jsharp.data import _feature_names


def opened(
  name: str,
  data_dir: str | os.PathLike,
  *,
  formats: Collection[str] = ("array_record", "parquet"),
) -> Any:
  """The reader of a prepared dataset in one of the formats.

  Raises:
    FileNotFoundError: if there is none of that name.
    ValueError: if it has another format, or features of a foreign class.
  """
  import tensorflow_datasets as tfds

  root = pathlib.Path(data_dir).expanduser()
  _feature_names.check(root, name)
  try:
    builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
  except tfds.core.DatasetNotFoundError as error:
    there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    raise FileNotFoundError(
      f"data_dir={root} has no prepared dataset {name} (found: "
      f"{', '.join(there[:10]) or 'nothing'}). Prepare it with tensorflow-datasets, "
      "file_format='array_record'; --dataset=characters needs no data."
    ) from error
  found = builder.info.file_format.value
  if found not in formats:
    readers = "has no random access" if found == "parquet" else "only TensorFlow reads"
    raise ValueError(
      f"{name} in {root} is written as {found}, which {readers}. Prepare it again with "
      "file_format='array_record'."
    )
  return builder


def check_features(name: str, features: Any, image: str, label: str) -> None:
  """Checks that records have an image and a class label of these names.

  Raises:
    ValueError: if they have not; the message lists the features.
  """
  import tensorflow_datasets as tfds

  kinds = ((image, tfds.features.Image), (label, tfds.features.ClassLabel))
  for feature, kind in kinds:
    if feature not in features or not isinstance(features[feature], kind):
      raise ValueError(
        f"{name} has no {kind.__name__} feature {feature!r}; its features are "
        f"{', '.join(f'{key} ({type(features[key]).__name__})' for key in features)}. "
        "Pass image= and label=."
      )


def encoded_source(builder: Any, split: str, image: str) -> Any:
  """The records of a split by number, with encoded images."""
  import tensorflow_datasets as tfds

  return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
