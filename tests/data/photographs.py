"""Photographs of a few classes and several sizes, in the layouts that ImageNet has."""

import contextlib
import io
import multiprocessing
import os
import pathlib
import signal
import tarfile
import time

import numpy as np
import tensorflow_datasets as tfds
from jax._src import xla_bridge
from PIL import Image

from jsharp.data import imagenet

CLASSES = ("n00000001", "n00000002", "n00000003")


def jpeg(draw: np.random.RandomState, hue: int) -> bytes:
  """An image of some size between 20 and 60 pixels, mostly of one of three hues."""
  height, width = draw.randint(20, 61, 2)
  pixels = draw.randint(0, 80, (height, width, 3))
  pixels[..., hue % 3] += 150
  buffer = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def contents(
  classes=CLASSES, num_train=(5, 4, 6), num_val=2
) -> dict[str, dict[str, dict[str, bytes]]]:
  """Encoded images by split, class and file name; those of val are not in order."""
  draw = np.random.RandomState(0)
  train = {
    name: {f"{name}_{i * 7}.JPEG": jpeg(draw, hue) for i in range(count)}
    for hue, (name, count) in enumerate(zip(classes, num_train, strict=True))
  }
  val: dict[str, dict[str, bytes]] = {name: {} for name in classes}
  for i in range(num_val * len(classes)):
    hue = i % len(classes)
    val[classes[hue]][f"ILSVRC2012_val_{i + 1:08d}.JPEG"] = jpeg(draw, hue)
  return {"train": train, "val": val}


def write_folders(root: pathlib.Path, images) -> None:
  for split, by_class in images.items():
    for name, files in by_class.items():
      folder = root / split / name
      folder.mkdir(parents=True)
      for file, content in files.items():
        (folder / file).write_bytes(content)


def tar(members: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def write_tars(root: pathlib.Path, images) -> None:
  """Classes and images in the reverse of their order, as archives may have them."""
  classes = reversed(images["train"].items())
  inner = {f"{name}.tar": tar(dict(reversed(files.items()))) for name, files in classes}
  (root / imagenet.TRAIN_TAR).write_bytes(tar(inner))
  flat = {
    file: (name, content)
    for name, files in images["val"].items()
    for file, content in files.items()
  }
  val = {file: content for file, (_, content) in reversed(flat.items())}
  (root / imagenet.VAL_TAR).write_bytes(tar(val))
  labels = [flat[file][0] for file in sorted(flat)]
  (root / imagenet.VAL_LABELS).write_text("\n".join(labels) + "\n")


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """With the features of tensorflow-datasets' own; `images` is what it holds."""

  VERSION = tfds.core.Version("5.1.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "label": tfds.features.ClassLabel(names=sorted(self.images["train"])),
      "file_name": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(self.images["train"]),
      "validation": self._generate_examples(self.images["val"]),
    }

  def _generate_examples(self, by_class):
    for name, files in by_class.items():
      for file, content in files.items():
        record = {"image": io.BytesIO(content), "label": name, "file_name": file}
        yield file, record


def write_records(root: pathlib.Path, images) -> None:
  tfds.disable_progress_bar()
  Imagenet2012.images = images
  builder = Imagenet2012(data_dir=root, file_format="array_record")
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_dir=root / "downloads")


LAYOUTS = {"folders": write_folders, "tars": write_tars, "records": write_records}


class InWorkers:
  """Images that are only read by worker processes without a JAX backend.

  The process that reads `fatal` ends at once.
  """

  def __init__(self, images, fatal):
    self._images = images
    self._fatal = fatal

  def __len__(self):
    return len(self._images)

  def __getitem__(self, index):
    if multiprocessing.parent_process() is None:
      raise ValueError("read outside of a worker")
    if xla_bridge._backends or os.environ["JAX_PLATFORMS"] != "cpu":
      raise ValueError("a worker has a backend, or may have an accelerator")
    if index == self._fatal:
      time.sleep(1.0)  # What was read before is delivered meanwhile.
      os.kill(os.getpid(), signal.SIGKILL)
    return self._images[index]
