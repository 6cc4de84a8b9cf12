"""Exporting learners as programs that run with JAX alone, without jsharp.

`jax.export` writes a traced function, including its constants, as StableHLO. The
program must not depend on a platform or on the number of examples: exported learners
are built with `PORTABLE`, and sizes are symbolic unless they are fixed.
"""

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jsharp import options
from jsharp._checks import check_choice, check_count
from jsharp._files import write_atomically, write_json
from jsharp._version import __version__
from jsharp.learners._prediction import Policy, outputs_under
from jsharp.types import Batch

if TYPE_CHECKING:
  from jsharp.learners._learner import Learner

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

FORMAT = 1
"""Version of the JSON file that accompanies a program."""


def export_learner(
  learner: "Learner",
  path: str | os.PathLike[str],
  *,
  way: int | None,
  policy: Policy,
  num_steps: int | None,
  num_support: int | None,
  num_images: int | None,
  platforms: Sequence[str],
) -> None:
  """Writes adaptation and prediction as one program; see `Learner.export`.

  Args:
    learner: the learner to export, built with `jsharp.core.execution.PORTABLE`.
    path: see `Learner.export`, as for the other arguments.
    way: see there.
    policy: see there.
    num_steps: see there.
    num_support: see there.
    num_images: see there.
    platforms: see there.
  """
  about = learner.description
  check_choice("policy", policy, get_args(Policy))
  is_regression = about.problem == "regression"
  if is_regression and way is not None:
    raise ValueError(f"way={way}: the learner solves a regression; leave it out")
  way = check_count(
    "way", about.num_outputs if way is None else way, minimum=1 if is_regression else 2
  )
  adapt_options = learner.inner_steps(num_steps)
  if not is_regression:
    learner.check_way(way)
  fewest = about.algorithm.fewest_support(1 if is_regression else way)
  learner = learner.replace(_constants(learner.params))
  outputs = outputs_under(learner, way, policy)

  def adapt_and_predict(
    support: jax.Array, targets: jax.Array, inputs: jax.Array
  ) -> jax.Array:
    batch = Batch(support, targets)
    adapted = learner.adapt(batch, way=way, **adapt_options)
    found = outputs(adapted, batch, inputs).astype(jnp.float32)
    if is_regression:
      return found
    # A program cannot raise an error for a wrong label, so its results become NaN.
    known = jnp.all((targets >= 0) & (targets < way))
    return jnp.where(known, jax.nn.softmax(found), jnp.nan)

  num = _size("support", num_support, fewest)
  examples = {"support": _Argument(num, "float32", about.input_shape)}
  if is_regression:
    examples["targets"] = _Argument(num, "float32", (way,))
  else:
    examples["labels"] = _Argument(num, "int32", ())
  _write(
    adapt_and_predict,
    {**examples, "images": _images(num_images, about.input_shape)},
    path,
    platforms=platforms,
    what=f"{about.algorithm.name} on {about.network.name}",
    facts={
      "outputs": "numbers" if is_regression else "probabilities",
      "policy": policy,
      "way": way,
      "num_support": num_support,
      "fewest_support": fewest,
      "num_images": num_images,
      **_looks(about),
      "learner": options.to_json(about),
    },
  )


class ToExport(NamedTuple):
  """A classifier of fixed classes, ready to be exported.

  Attributes:
    predict: `predict(images) -> [n, num_classes]`, pure, with its parameters inside.
    input_shape: the shape of an image.
    facts: further facts for users of the export, as JSON.
  """

  predict: Callable[[jax.Array], jax.Array]
  input_shape: tuple[int, ...]
  facts: Mapping[str, Any]


class Exportable:
  """A classifier of fixed classes that can be exported to other programs."""

  def _to_export(self) -> ToExport:
    raise NotImplementedError

  def export(
    self,
    path: str | os.PathLike[str],
    *,
    num_images: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
  ) -> None:
    """Writes `images -> probabilities` for its classes as a program for JAX alone.

    The program takes float32 `[n, height, width, channels]` in [0, 1], with the size
    and channels of the training images. `PATH.json`, written next to it, has the
    classes and, for a few-shot learner, how images must be prepared. `Learner.export`
    writes a program that can also learn new classes.

    Args:
      path: the file of the program, in an existing directory.
      num_images: a fixed number of images, for a consumer that needs fixed shapes; any
        number if None.
      platforms: the platforms that it can run on.

    Raises:
      ModuleNotFoundError: if flatbuffers is missing, which JAX needs to write programs.
      ValueError: if the classifier has a method `fit` that was not called.
      OSError: if a file cannot be written.

    Example:
      See `jsharp.learners.Learner.export`.
    """
    what = self._to_export()
    _write(
      what.predict,
      {"images": _images(num_images, what.input_shape)},
      path,
      platforms=platforms,
      what="the network",
      facts={"outputs": "probabilities", "num_images": num_images, **what.facts},
    )

  def to_onnx(self, path: str | os.PathLike[str]) -> None:
    """Writes `images -> probabilities` for its classes as an ONNX model.

    The input "images" is float32 `[n, height, width, channels]` in [0, 1] for any n;
    the output "probabilities" is float32 `[n, num_classes]`. The model's metadata
    "jsharp" is a JSON string with the facts that `export` writes next to a program.
    Before the file is written, onnxruntime runs the model on a few random images, and
    its probabilities must agree with JAX's to 1e-5.

    Args:
      path: the file, in an existing directory.

    Raises:
      ModuleNotFoundError: if the extra is missing: `pip install "jsharp[onnx]"`.
      ValueError: if the classifier has a method `fit` that was not called, or if the
        network cannot be converted; the message says why.
      OSError: if the file cannot be written.

    Example:
      See docs/export.md.
    """
    from jsharp.learners import _onnx

    what = self._to_export()
    _onnx.to_onnx(what.predict, what.input_shape, path, facts=what.facts)


class _Size(NamedTuple):
  """A number of examples: fixed, or symbolic."""

  name: str
  fixed: int | None
  fewest: int


class _Argument(NamedTuple):
  """An argument of a program: `[num, *shape]`."""

  num: _Size
  dtype: str
  shape: tuple[int, ...]


def _size(name: str, fixed: int | None, fewest: int) -> _Size:
  if fixed is not None:
    fixed = check_count(f"num_{name}", fixed, minimum=fewest)
  return _Size(name, fixed, fewest)


def _images(num_images: int | None, input_shape: tuple[int, ...]) -> _Argument:
  return _Argument(_size("images", num_images, 1), "float32", input_shape)


def _constants(params: Any) -> Any:
  """The parameters as constants of a trace, on whatever device they are."""
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)


def _looks(about: Any) -> dict[str, Any]:
  """How images are prepared, for learners of images."""
  if len(about.input_shape) != 3:
    return {}
  return {"looks": dataclasses.asdict(about.looks)}


def _write(
  function: Callable[..., jax.Array],
  arguments: Mapping[str, _Argument],
  path: str | os.PathLike[str],
  *,
  platforms: Sequence[str],
  what: str,
  facts: Mapping[str, Any],
) -> None:
  """Exports a function, and writes the program and its JSON file."""
  if importlib.util.find_spec("flatbuffers") is None:
    raise ModuleNotFoundError(
      "JAX needs flatbuffers to write a program; install it: pip install flatbuffers"
    )
  from jax import export

  if unknown := set(platforms) - set(PLATFORMS):
    raise ValueError(
      f"platforms must be among {', '.join(PLATFORMS)}, got {sorted(unknown)}; leave "
      "the argument out for all platforms"
    )
  sizes: dict[str, Any] = {a.num.name: a.num.fixed for a in arguments.values()}
  free = {a.num for a in arguments.values() if a.num.fixed is None}
  if free:
    names = sorted(size.name for size in free)
    symbols = export.symbolic_shape(
      ",".join(names),
      constraints=[f"{size.name} >= {size.fewest}" for size in free if size.fewest > 1],
    )
    sizes.update(zip(names, symbols, strict=True))
  shapes = {
    name: jax.ShapeDtypeStruct((sizes[a.num.name], *a.shape), a.dtype)
    for name, a in arguments.items()
  }
  try:
    exported = export.export(jax.jit(function), platforms=tuple(platforms))(
      *shapes.values()
    )
  except Exception as error:
    if not free:
      raise
    fix = ", ".join(f"num_{name}=" for name in names)
    raise ValueError(
      f"{what} cannot be exported for any number of {' and '.join(names)}: {error}\n"
      f"If the reason is an unknown size, pass a fixed one: {fix}"
    ) from error
  program = bytes(exported.serialize())
  write_atomically(path, program)
  write_json(
    pathlib.Path(f"{os.fspath(path)}.json"),
    {
      "program_format": FORMAT,
      "jsharp": __version__,
      "jax": jax.__version__,
      "calling_convention": exported.calling_convention_version,
      "platforms": list(exported.platforms),
      "program_sha256": hashlib.sha256(program).hexdigest(),
      "arguments": dict(zip(shapes, map(str, exported.in_avals), strict=True)),
      "result": str(exported.out_avals[0]),
      **facts,
    },
  )
