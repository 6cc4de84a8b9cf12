"""Conversion of predictions to ONNX models, by jax2onnx."""

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jsharp._files import write_atomically
from jsharp._version import __version__
from jsharp.nn._plain import in_plain_operations

TOLERANCE = 1e-5
"""The largest accepted difference between a model's probability and JAX's."""

_INSTEAD = (
  "use the method export, which writes a program for JAX, or a learner with another "
  "algorithm or network"
)


def to_onnx(
  predict: Callable[[jax.Array], jax.Array],
  input_shape: tuple[int, ...],
  path: str | os.PathLike[str],
  *,
  facts: Mapping[str, Any],
) -> None:
  """Writes `images -> probabilities` as an ONNX model, after comparing it with JAX.

  Args:
    predict: `predict(images) -> [n, way]`, pure, with its parameters inside.
    input_shape: the shape of an image.
    path: the file, in an existing directory.
    facts: further metadata of the model, as JSON.

  Raises:
    ModuleNotFoundError: if jax2onnx is missing.
    ValueError: if the function cannot be converted, or the model's results differ.
    OSError: if the file cannot be written.
  """
  missing = [
    name
    for name in ("jax2onnx", "onnx", "onnxruntime")
    if importlib.util.find_spec(name) is None
  ]
  if missing:
    raise ModuleNotFoundError(
      f"writing ONNX models needs {', '.join(missing)}; install the extra: "
      'pip install "jsharp[onnx]"'
    )
  try:
    with _quiet():
      import jax2onnx
      import onnx

      model = jax2onnx.to_onnx(
        in_plain_operations(predict),
        [("n", *input_shape)],
        model_name="jsharp",
        input_names=["images"],
        output_names=["probabilities"],
      )
  except Exception as error:  # Unknown operations can raise anything.
    raise ValueError(
      f"the network cannot be converted to ONNX: {error}\nInstead {_INSTEAD}"
    ) from error
  onnx.helper.set_model_props(
    model, {"jsharp": json.dumps({"jsharp": __version__, **facts})}
  )
  content: bytes = model.SerializeToString()
  _compare(content, predict, input_shape)
  write_atomically(path, content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses logs and warnings of jax2onnx; the result is checked instead."""
  logger = logging.getLogger("onnx_ir")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    logger.setLevel(level)


def _compare(
  content: bytes,
  predict: Callable[[jax.Array], jax.Array],
  input_shape: tuple[int, ...],
) -> None:
  """Compares a model's probabilities with JAX's, for two numbers of images."""
  import onnxruntime

  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  random = np.random.default_rng(0)
  for num_images in (1, 3):
    images = random.random((num_images, *input_shape), np.float32)
    (found,) = session.run(None, {"images": images})
    expected = np.asarray(jax.jit(predict)(images))
    apart = float(np.abs(found - expected).max())
    if found.shape != expected.shape or not apart <= TOLERANCE:
      raise ValueError(
        f"the ONNX model's probabilities differ from JAX's by {apart:.1e} for "
        f"{num_images} images, but at most {TOLERANCE:g} is accepted; {_INSTEAD}"
      )
