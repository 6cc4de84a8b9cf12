"""Predictions as ONNX models, by jax2onnx."""

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
"""By how much a probability may differ from JAX's before a model is refused."""

_INSTEAD = (
  "take its method export, which writes a program for JAX, or a learner of another "
  "algorithm or network"
)


def to_onnx(
  predict: Callable[[jax.Array], jax.Array],
  input_shape: tuple[int, ...],
  path: str | os.PathLike[str],
  *,
  facts: Mapping[str, Any],
) -> None:
  """Writes `images -> probabilities` as an ONNX model that was compared with JAX.

  Args:
    predict: `predict(images) -> [n, way]`, pure, with its parameters inside.
    input_shape: of an image.
    path: the file, in a directory that exists.
    facts: what the model's metadata say besides; JSON.

  Raises:
    ModuleNotFoundError: if jax2onnx is missing.
    ValueError: if the function cannot be converted, or the model answers differently.
    OSError: if the file cannot be written.
  """
  missing = [
    name
    for name in ("jax2onnx", "onnx", "onnxruntime")
    if importlib.util.find_spec(name) is None
  ]
  if missing:
    raise ModuleNotFoundError(
      f"ONNX models are written with {', '.join(missing)}; install the extra: "
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
  except Exception as error:  # Of any kind, by an operation that it does not know.
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
  """Without what jax2onnx and its parts log and warn of: a result is checked."""
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
  """Refuses a model that does not answer as JAX does, for two numbers of images."""
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
        f"the ONNX model answers differently: {apart:.1e} from JAX's probabilities for "
        f"{num_images} images, and at most {TOLERANCE:g} is accepted; {_INSTEAD}"
      )
