"""Measures how the points of a Winograd convolution amplify rounding errors.

Question: which points for F(4x4, 3x3) in float32, and what do larger tiles cost?

    python -m benchmarks.winograd_points

The error is the norm of the difference from a float64 convolution, relative to that:
tiles of normally distributed inputs with 32 channels, kernels of variance 1/288, all
sums and products in float32.
"""

from collections.abc import Sequence

import numpy as np
from absl import app

from benchmarks.tables import begin_table
from jsharp.nn._winograd import transforms

_HALF, _ROOT = 0.5**0.5, 2**0.5
POINTS: dict[str, tuple[float, ...]] = {
  "0, 1, -1": (0, 1, -1),
  "0, 1, -1, 2": (0, 1, -1, 2),
  "0, 1, -1, 2, -2": (0, 1, -1, 2, -2),
  "0, 1, -1, 1/2, -1/2": (0, 1, -1, 0.5, -0.5),
  "0, 1, -1, 1/2, -2": (0, 1, -1, 0.5, -2),
  "0, 3/2, -3/2, 5/8, -5/8": (0, 1.5, -1.5, 0.625, -0.625),
  "0, +-sqrt(1/2), +-sqrt(2)": (0, _HALF, -_HALF, _ROOT, -_ROOT),
  "0, 1, -1, +-1/2, +-2": (0, 1, -1, 0.5, -0.5, 2, -2),
}
_TILES, _CHANNELS = 400, 32


def error(points: Sequence[float] | None) -> float:
  """Error of tiles of `len(points) - 1` outputs per side; None: of direct sums."""
  tile = len(points) - 1 if points else 4
  generator = np.random.default_rng(0)
  side = tile + 2
  x = generator.standard_normal((_TILES, side, side, _CHANNELS)).astype(np.float32)
  w = generator.standard_normal((3, 3, _CHANNELS, _CHANNELS))
  w = (w / np.sqrt(9 * _CHANNELS)).astype(np.float32)
  exact = direct(x.astype(np.float64), w.astype(np.float64), tile)
  found = winograd(x, w, points) if points else direct(x, w, tile)
  return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def direct(x: np.ndarray, w: np.ndarray, tile: int) -> np.ndarray:
  """Every tile's outputs, tap by tap."""
  total = np.zeros([len(x), tile, tile, w.shape[-1]], x.dtype)
  for i in range(3):
    for j in range(3):
      total += x[:, i : i + tile, j : j + tile] @ w[i, j]
  return total


def winograd(x: np.ndarray, w: np.ndarray, points: Sequence[float]) -> np.ndarray:
  """The same by the transforms, rows and then columns."""
  of_input, of_kernel, of_output = (m.astype(x.dtype) for m in transforms(points))
  x = np.einsum("jb,tibc->ijtc", of_input, np.einsum("ia,tabc->tibc", of_input, x))
  w = np.einsum("jb,ibco->ijco", of_kernel, np.einsum("ia,abco->ibco", of_kernel, w))
  y = np.einsum("ai,ijto->ajto", of_output, x @ w)
  return np.einsum("bj,ajto->tabo", of_output, y)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  begin_table(["points beside infinity", "form", "error"])
  print(f"| | direct | {error(None):.1e} |")
  for name, points in POINTS.items():
    tile = len(points) - 1
    print(f"| {name} | F({tile}x{tile}, 3x3) | {error(points):.1e} |")


if __name__ == "__main__":
  app.run(main)
