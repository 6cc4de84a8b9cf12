"""Small files in the layouts that people have, written by the tests themselves."""

import io
import pathlib
import pickle
import struct
import tarfile
import tempfile
import unittest
import zipfile
from collections.abc import Mapping
from typing import ClassVar
from unittest import mock

import numpy as np
from PIL import Image

from jsharp.data import splits

SIZE = 8
COMPOSITION = splits.Composition(
  classes={
    "train": ("n00000001", "n00000002"),
    "val": ("n00000003",),
    "test": ("n00000004",),
  },
  images_per_class=3,
  image_size=SIZE,
)
"""mini-ImageNet's form with four classes."""

HTML = b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>"


def temporary_dir(test: unittest.TestCase) -> pathlib.Path:
  """A new directory that is removed after the test."""
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return pathlib.Path(folder.name)


def images(seed: int, count: int = 3, channels: int = 3, size: int = SIZE):
  """Random uint8 `[count, size, size, channels]`."""
  generator = np.random.RandomState(seed)
  return generator.randint(0, 256, (count, size, size, channels)).astype(np.uint8)


def png(image: np.ndarray, format: str = "PNG") -> bytes:
  buffer = io.BytesIO()
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(pixels).save(buffer, format)
  return buffer.getvalue()


def ghostscript(test: unittest.TestCase, folder: pathlib.Path) -> pathlib.Path:
  """Makes Pillow take a script for Ghostscript, which writes the file returned."""
  from PIL import EpsImagePlugin

  script, marker = folder / "gs", folder / "started"
  script.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
  script.chmod(0o755)
  test.enterContext(mock.patch.object(EpsImagePlugin, "gs_binary", str(script)))
  return marker


def class_arrays() -> dict[str, dict[str, np.ndarray]]:
  """split -> class -> images of `COMPOSITION`."""
  return {
    split: {name: images(int(name[1:])) for name in names}
    for split, names in COMPOSITION.classes.items()
  }


def image_files(path: str = "{split}/{name}/{file}") -> dict[str, bytes]:
  """The images of `COMPOSITION` as PNG files under names made from `path`."""
  return {
    path.format(split=split, name=name, file=file_name(name, index)): png(image)
    for split, classes in class_arrays().items()
    for name, array in classes.items()
    for index, image in enumerate(array)
  }


def file_name(name: str, index: int) -> str:
  return f"{name}{index:08d}.png"


def csv_files() -> dict[str, bytes]:
  return {
    f"{split}.csv": "\n".join(
      [
        "filename,label",
        *(f"{file_name(name, i)},{name}" for name in names for i in range(3)),
      ]
    ).encode()
    for split, names in COMPOSITION.classes.items()
  }


def write_files(root: pathlib.Path, files: Mapping[str, bytes]) -> None:
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_archive(path: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Writes a zip or tar, as the name says."""
  if path.suffix == ".zip":
    with zipfile.ZipFile(path, "w") as archive:
      for name, data in files.items():
        archive.writestr(name, data)
    return
  mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}
  with tarfile.open(path, mode[path.suffix]) as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))


def cache_contents() -> dict[str, dict]:
  """File name -> content of the family with `image_data` and `class_dict`."""
  contents = {}
  for split, classes in class_arrays().items():
    names = list(classes)
    contents[f"mini-imagenet-cache-{split}.pkl"] = {
      "image_data": np.concatenate([classes[name] for name in names]),
      "class_dict": {
        name: list(range(3 * i, 3 * i + 3)) for i, name in enumerate(names)
      },
    }
  return contents


def category_contents() -> dict[str, dict]:
  """File name -> content of the family with `data` and `labels`."""
  contents = {}
  first = 0
  for split, classes in class_arrays().items():
    phase = "train_phase_train" if split == "train" else split
    names = list(classes)
    contents[f"miniImageNet_category_split_{phase}.pickle"] = {
      "data": np.concatenate([classes[name] for name in names]),
      "labels": [first + i for i in range(len(names)) for _ in range(3)],
      "catname2label": {name: first + i for i, name in enumerate(names)},
      "label2catname": {first + i: name for i, name in enumerate(names)},
    }
    first += len(names)
  return contents


class _Python2Pickler(pickle._Pickler):
  """Writes text and bytes alike as Python 2's byte strings, which have no encoding."""

  dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

  def _save_string(self, value):
    data = value.encode("latin1") if isinstance(value, str) else value
    self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
    self.memoize(value)

  dispatch[str] = dispatch[bytes] = _save_string


def python2_pickle(content) -> bytes:
  buffer = io.BytesIO()
  _Python2Pickler(buffer, 2).dump(content)
  return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")
