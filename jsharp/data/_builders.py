"""Builders for tensorflow-datasets that do not need TensorFlow.

One record holds one class: its name and its images as raw uint8. So a prepared dataset
is read at the speed of the disk, without decoding images. The builder's metadata lists
every class with its number of images and their SHA-256, in the order of the records;
any difference is reported as damage. Import this module only where it is used, since it
imports tensorflow-datasets.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Container, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jsharp._files import short_digest
from jsharp.data import _prepared

_DIGEST = "sha256"


def file_format() -> str:
  """The record format that this machine can write without TensorFlow.

  array_record is available on Linux only, parquet everywhere.
  """
  return "array_record" if importlib.util.find_spec("array_record") else "parquet"


def digest(images: np.ndarray) -> str:
  """The SHA-256 of an array's shape and contents, in hexadecimal."""
  header = str(images.shape).encode()
  return hashlib.sha256(header + np.ascontiguousarray(images).data).hexdigest()


def text(value: Any) -> str:
  """Converts a string of tensorflow-datasets, which may be bytes."""
  return value.decode() if isinstance(value, bytes) else str(value)


class _ClassRecords:
  """The part of a builder that writes one record per class.

  Attributes:
    read: called once, while preparing, for the class arrays of every split.
  """

  VERSION = tfds.core.Version("1.0.0")
  CITATION = ""
  HOMEPAGE = ""
  read: Callable[[], dict[str, _prepared.ClassArrays]]
  info: tfds.core.DatasetInfo

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
      features=features.FeaturesDict(
        {
          "name": features.Text(),
          "images": features.Tensor(
            shape=(None, None, None, None), dtype=np.uint8, encoding="bytes"
          ),
        }
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # Nothing is downloaded, and its extractor needs TensorFlow.
    splits = self.read()
    listed = {
      split: [
        {"name": name, "shape": list(images.shape), "sha256": digest(images)}
        for name, images in classes.items()
      ]
      for split, classes in splits.items()
    }
    self.info.metadata.update({**listed, _DIGEST: short_digest(listed)})
    return {
      split: self._generate_examples(classes) for split, classes in splits.items()
    }

  def _generate_examples(
    self, classes: _prepared.ClassArrays
  ) -> Iterator[tuple[int, dict]]:
    for index, name in enumerate(list(classes)):
      # Popped, so that pixels and records do not both fill the memory.
      yield index, {"name": name, "images": classes.pop(name)}


class JsharpOmniglot(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """Omniglot, all 1623 characters, ink 255 on background 0."""

  HOMEPAGE = "https://github.com/brendenlake/omniglot"
  CITATION = (
    "Lake, Salakhutdinov and Tenenbaum (2015). Human-level concept learning through "
    "probabilistic program induction. Science 350, 1332-1338."
  )


class JsharpMiniImagenet(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """mini-ImageNet, 64 / 16 / 20 classes of 600 images."""

  HOMEPAGE = "https://github.com/twitter-research/meta-learning-lstm"
  CITATION = (
    "Vinyals et al. (2016). Matching networks for one shot learning. NeurIPS; split "
    "of Ravi and Larochelle (2017). Optimization as a model for few-shot learning. "
    "ICLR."
  )


class JsharpCifarFs(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """CIFAR-FS, 64 / 16 / 20 classes of CIFAR-100 of 600 images."""

  HOMEPAGE = "https://github.com/bertinetto/r2d2"
  CITATION = (
    "Bertinetto, Henriques, Torr and Vedaldi (2019). Meta-learning with "
    "differentiable closed-form solvers. ICLR; images of Krizhevsky (2009). Learning "
    "multiple layers of features from tiny images."
  )


class JsharpFc100(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """FC100, 60 / 20 / 20 classes of CIFAR-100 of 600 images."""

  HOMEPAGE = "https://github.com/ElementAI/TADAM"
  CITATION = (
    "Oreshkin, Rodriguez and Lacoste (2018). TADAM: Task dependent adaptive metric for "
    "improved few-shot learning. NeurIPS; images of Krizhevsky (2009). Learning "
    "multiple layers of features from tiny images."
  )


class JsharpTieredImagenet(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """tieredImageNet, 351 / 97 / 160 classes of about 1300 images."""

  HOMEPAGE = "https://github.com/renmengye/few-shot-ssl-public"
  CITATION = (
    "Ren et al. (2018). Meta-learning for semi-supervised few-shot classification. "
    "ICLR."
  )


class JsharpCub(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """CUB-200-2011, 100 / 50 / 50 species of 41 to 60 images."""

  HOMEPAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011"
  CITATION = (
    "Wah, Branson, Welinder, Perona and Belongie (2011). The Caltech-UCSD "
    "Birds-200-2011 dataset. Technical report CNS-TR-2011-001; split of Chen et al. "
    "(2019). A closer look at few-shot classification. ICLR."
  )


class JsharpImageFolder(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """Images in folders split/class with other classes in each split, or in class/."""


class JsharpLabelledImages(_ClassRecords, tfds.core.GeneratorBasedBuilder):
  """Images in folders split/class, the same classes in every split."""


def open_prepared(
  builder: tfds.core.DatasetBuilder, parts: Container[str] | None = None
) -> dict[str, _prepared.Classes]:
  """The classes of every split of a builder that has been prepared, verified.

  Args:
    builder: the builder that prepared them.
    parts: the splits to open if they exist; None for all.

  Raises:
    ValueError: if the records differ from the metadata.
  """
  metadata = dict(builder.info.metadata or {})
  expected = metadata.pop(_DIGEST, None)
  if not metadata:
    raise ValueError("metadata.json lists no classes")
  # Copies of earlier versions have only the digests of the images.
  if expected is not None and expected != short_digest(metadata):
    raise ValueError("metadata.json does not match its SHA-256")
  sources = builder.as_data_source()
  opened = {}
  for split, entries in metadata.items():
    if parts is not None and split not in parts:
      continue
    if len(sources[split]) != len(entries):
      raise ValueError(f"{split} has {len(sources[split])} records of {len(entries)}")
    counts = np.array([entry["shape"][0] for entry in entries], np.int32)
    # Filled class by class: allocating memory for each record takes twice the time.
    images = np.empty((counts.sum(), *entries[0]["shape"][1:]), np.uint8)
    end = 0
    for index, entry in enumerate(entries):
      example = sources[split][index]
      record, name = example["images"], entry["name"]
      if digest(record) != entry["sha256"]:
        raise ValueError(f"class {name} of {split} does not match its SHA-256")
      if text(example["name"]) != name:
        raise ValueError(f"class {name} of {split} is called {example['name']!r}")
      start, end = end, end + len(record)
      images[start:end] = record
    names = tuple(entry["name"] for entry in entries)
    opened[split] = _prepared.Classes(names, counts, images)
  return opened
