"""The quadratic family, where every algorithm has a closed form, in NumPy.

A task is `L(w) = (w - b)' A (w - b) / 2` on either set, with gradient
`A (w - b)`. The oracles here use matrices only, no automatic differentiation.
"""

import jax.numpy as jnp
import numpy as np

from jsharp import Batch, Task

DIMENSION = 4


def loss_fn(params, batch):
  """The quadratic loss; `batch.inputs` is A, `batch.targets` is b."""
  offset = params - batch.targets
  return 0.5 * offset @ batch.inputs @ offset, {}


def random_tasks(num_tasks, seed=0):
  """`num_tasks` quadratic tasks as float64 NumPy arrays."""
  generator = np.random.default_rng(seed)

  def batch():
    factor = generator.normal(size=(num_tasks, DIMENSION, DIMENSION))
    matrices = factor @ factor.transpose(0, 2, 1) / DIMENSION + 0.1 * np.eye(DIMENSION)
    return Batch(matrices, generator.normal(size=(num_tasks, DIMENSION)))

  return Task(batch(), batch())


def start(seed=1):
  """A starting point `[DIMENSION]`, no entry near zero."""
  w = np.random.default_rng(seed).normal(size=DIMENSION)
  return w + np.sign(w) * 0.2


def on_device(tree):
  """The same tree as JAX arrays of the default precision."""
  import jax

  return jax.tree.map(jnp.asarray, tree)


def gradient(batch, task, w):
  """`A (w - b)` of one task."""
  return batch.inputs[task] @ (w - batch.targets[task])


def ball(g, rho, metric=None):
  """SAM's perturbation for p = 2 in the geometry `metric`, and its Jacobian in g."""
  t = np.ones_like(g) if metric is None else metric
  norm = np.linalg.norm(t * g)
  value = rho * t * t * g / norm
  jacobian = rho * (np.diag(t * t) / norm - np.outer(t * t * g, t * t * g) / norm**3)
  return value, jacobian


def inner(tasks, task, w, lr, steps, rho=None, differentiate=True, first_order=False):
  """Adapted parameters and their Jacobian with respect to `w`."""
  jacobian = np.eye(len(w))
  matrix = tasks.support.inputs[task]
  for _ in range(steps):
    g = gradient(tasks.support, task, w)
    point, by_point = w, np.eye(len(w))
    if rho is not None:
      perturbation, by_g = ball(g, rho)
      point = w + perturbation
      if differentiate:
        by_point = by_point + by_g @ matrix
    step_jacobian = np.eye(len(w)) - lr * matrix @ by_point
    w = w - lr * gradient(tasks.support, task, point)
    if not first_order:
      jacobian = step_jacobian @ jacobian
  return w, jacobian


def meta_gradient(tasks, w, lr, steps, **options):
  """The mean meta-gradient at `w` and the query loss of every task."""
  gradients, losses = [], []
  for task in range(len(tasks.query.targets)):
    adapted, jacobian = inner(tasks, task, w, lr, steps, **options)
    g = gradient(tasks.query, task, adapted)
    gradients.append(jacobian.T @ g)
    losses.append(0.5 * (adapted - tasks.query.targets[task]) @ g)
  return np.mean(gradients, axis=0), np.array(losses)
