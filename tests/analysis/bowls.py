"""Quadratic losses around zero, for measures of sharpness with a closed form."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

DIMENSION = 6


def bowl(curvature, slope, params):
  """`slope' e + e' H e / 2` with `e` the two leaves one after another."""
  e = jnp.concatenate([params["a"], params["b"].reshape(-1)])
  return slope @ e + e @ curvature @ e / 2


def problem(seed=0, lowest=0.0):
  """A symmetric matrix, a slope, and the loss of both around zero."""
  generator = np.random.default_rng(seed)
  q, _ = np.linalg.qr(generator.normal(size=(DIMENSION, DIMENSION)))
  curvature = q @ np.diag(lowest + np.array([0, 1, 1, 2, 3, 6.0])) @ q.T
  slope = generator.normal(size=DIMENSION)
  loss = Partial(bowl, *(jnp.asarray(x, jnp.float32) for x in (curvature, slope)))
  return curvature, slope, loss


def at(values):
  values = jnp.asarray(values, jnp.float32)
  return {"a": values[:2], "b": values[2:].reshape(2, 2)}


ORIGIN = at(np.zeros(DIMENSION))
