"""The core asks for `apply_fn(params, x)` only: NNX and plain pytrees fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from flax import nnx

import jsharp
from jsharp import losses


def line_tasks(num_tasks=6):
  """Regression tasks y = slope * x, one slope per task."""
  x = jnp.linspace(-1, 1, 8)[None, :, None] * jnp.ones((num_tasks, 1, 1))
  slopes = jnp.linspace(-2, 2, num_tasks)[:, None, None]
  batch = jsharp.Batch(x, slopes * x)
  return jsharp.Task(support=batch, query=batch)


def losses_before_and_after(apply_fn, params):
  algorithm = jsharp.sharp_maml(
    losses.supervised(apply_fn, losses.squared_error),
    optax.sgd(0.1),
    optax.sgd(0.1, momentum=0.9),
    inner_rho=0.01,
    outer_rho=0.01,
    num_inner_steps=2,
  )
  state, tasks = algorithm.init(params), line_tasks()
  step = jax.jit(algorithm.step)
  state, first = step(state, tasks)
  for _ in range(40):
    state, last = step(state, tasks)
  return first["loss"].mean(), last["loss"].mean()


class AnyModelTest(absltest.TestCase):
  def test_an_nnx_model(self):
    class Model(nnx.Module):
      def __init__(self, rngs):
        self.hidden = nnx.Linear(1, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

      def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))

    graph, params = nnx.split(Model(nnx.Rngs(0)), nnx.Param)
    first, last = losses_before_and_after(
      lambda params, x: nnx.merge(graph, params)(x), params
    )
    self.assertLess(last, 0.6 * first)

  def test_a_plain_pytree(self):
    generator = np.random.default_rng(0)
    params = [
      (jnp.asarray(generator.normal(size=(1, 16)), jnp.float32), jnp.zeros((1, 16))),
      (jnp.asarray(generator.normal(size=(16, 1)) / 4, jnp.float32), jnp.zeros((1, 1))),
    ]

    def apply_fn(params, x):
      (w1, b1), (w2, b2) = params
      return jnp.tanh(x @ w1 + b1) @ w2 + b2

    first, last = losses_before_and_after(apply_fn, params)
    self.assertLess(last, 0.6 * first)


if __name__ == "__main__":
  absltest.main()
