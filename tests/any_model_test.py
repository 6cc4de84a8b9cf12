"""The core asks for `apply_fn(params, x)` only: NNX and plain pytrees fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from flax import nnx

import jsharp
from jsharp import losses


def line_tasks(num_tasks=3):
  """Regression tasks y = slope * x, one slope per task."""
  x = jnp.linspace(-1, 1, 8)[None, :, None] * jnp.ones((num_tasks, 1, 1))
  slopes = jnp.linspace(-2, 2, num_tasks)[:, None, None]
  batch = jsharp.Batch(x, slopes * x)
  return jsharp.Task(support=batch, query=batch)


def two_steps(apply_fn, params):
  algorithm = jsharp.sharp_maml(
    losses.batch_loss(apply_fn, losses.squared_error),
    optax.sgd(0.1),
    optax.sgd(0.1, momentum=0.9),
    inner_rho=0.01,
    outer_rho=0.01,
    num_inner_steps=2,
  )
  state, step = algorithm.init(params), jax.jit(algorithm.step)
  for _ in range(2):
    state, metrics = step(state, line_tasks())
  return state.params, metrics["loss"]


def plain_apply(params, x):
  (w1, b1), (w2, b2) = params
  return jnp.tanh(x @ w1 + b1[None]) @ w2 + b2[None]


def handwritten_step(params, momentum, tasks):
  """The same meta-step without jsharp: a Python loop over tasks."""

  def loss(params, batch):
    return jnp.mean((plain_apply(params, batch.inputs) - batch.targets) ** 2)

  def perturbed(params, grads, rho):
    leaves = jax.tree.leaves(grads)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in leaves))
    return jax.tree.map(lambda w, g: w + rho * g / norm, params, grads)

  def task_loss(params, task):
    for _ in range(2):
      point = perturbed(params, jax.grad(loss)(params, task.support), 0.01)
      grads = jax.grad(loss)(point, task.support)
      params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
    return loss(params, task.query)

  def meta_gradient(params):
    each = [
      jax.grad(task_loss)(params, jax.tree.map(lambda x: x[i], tasks))  # noqa: B023
      for i in range(len(tasks.support.inputs))
    ]
    return jax.tree.map(lambda *g: sum(g) / len(each), *each)

  grads = meta_gradient(perturbed(params, meta_gradient(params), 0.01))
  momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
  return jax.tree.map(lambda w, m: w - 0.1 * m, params, momentum), momentum


class AnyModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    generator = np.random.default_rng(0)
    self.params = [
      (jnp.asarray(generator.normal(size=shape)), jnp.zeros(shape[1]))
      for shape in ((1, 8), (8, 1))
    ]
    expected, momentum = self.params, jax.tree.map(jnp.zeros_like, self.params)
    step = jax.jit(handwritten_step)
    for _ in range(2):
      expected, momentum = step(expected, momentum, line_tasks())
    self.expected = jax.tree.leaves(expected)

  def check(self, actual):
    for a, b in zip(actual, self.expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

  def test_a_plain_pytree(self):
    params, _ = two_steps(plain_apply, self.params)
    self.check(jax.tree.leaves(params))

  def test_an_nnx_model(self):
    class Model(nnx.Module):
      def __init__(self, rngs):
        self.hidden = nnx.Linear(1, 8, param_dtype=float, rngs=rngs)
        self.out = nnx.Linear(8, 1, param_dtype=float, rngs=rngs)

      def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))

    model = Model(nnx.Rngs(0))
    for layer, (kernel, bias) in zip(
      (model.hidden, model.out), self.params, strict=True
    ):
      layer.kernel[...], layer.bias[...] = kernel, bias
    graph, params = nnx.split(model, nnx.Param)
    params, _ = two_steps(lambda params, x: nnx.merge(graph, params)(x), params)
    learned = nnx.merge(graph, params)
    self.check(
      [
        learned.hidden.kernel[...],
        learned.hidden.bias[...],
        learned.out.kernel[...],
        learned.out.bias[...],
      ]
    )


if __name__ == "__main__":
  absltest.main()
