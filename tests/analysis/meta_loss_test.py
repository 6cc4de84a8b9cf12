"""The meta-objective as a loss: value, gradient, Hessian, third derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp import Batch, Task, after_adaptation, inner_loop, maml
from jsharp.analysis import (
  average_case_rise,
  hessian_vector_product,
  meta_objective,
  per_task,
)
from jsharp.core.objectives import on_query
from jsharp.losses import batch_loss, cross_entropy
from jsharp.nn import conv2d, max_pool
from tests import quadratics

KEY = jax.random.key(0)


class MetaObjectiveTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_hessian_of_the_quadratic_family(self, chunk):
    tasks = quadratics.random_tasks(5)
    w, lr = quadratics.start(), 0.1
    algorithm = maml(
      quadratics.loss_fn, optax.sgd(lr), optax.sgd(0.1), num_inner_steps=2
    )
    task_loss_fn = after_adaptation(algorithm.adapt, on_query(quadratics.loss_fn))
    loss = meta_objective(task_loss_fn, quadratics.on_device(tasks), chunk=chunk)
    gradient, losses = quadratics.meta_gradient(tasks, w, lr, 2)
    hessian = 0
    for task in range(5):
      _, jacobian = quadratics.inner(tasks, task, w, lr, 2)
      hessian += jacobian.T @ tasks.query.inputs[task] @ jacobian / 5
    params = jnp.asarray(w, jnp.float32)
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(grads, gradient, rtol=1e-4, atol=1e-5)
    for derivative in (jax.hessian(loss), jax.jacrev(jax.grad(loss))):
      np.testing.assert_allclose(
        jax.jit(derivative)(params), hessian, rtol=1e-4, atol=1e-5
      )
    each = per_task(task_loss_fn, quadratics.on_device(tasks))
    np.testing.assert_allclose(each(params)["loss"], losses, rtol=1e-4)

  def test_is_compiled_once_for_all_tasks_of_a_shape(self):
    traced = []

    def task_loss_fn(w, task):
      traced.append(1)
      return w * task, {}

    for seed in range(3):
      loss = meta_objective(task_loss_fn, jnp.full((2,), float(seed)))
      average_case_rise(loss, jnp.float32(1), rho=0.1, num_samples=2, key=KEY)
      if not seed:
        first = len(traced)
    self.assertLen(traced, first)


class ThirdDerivativeTest(absltest.TestCase):
  def test_hessian_of_mamls_objective_through_convolution_and_pooling(self):
    def apply_fn(params, inputs):
      return max_pool(conv2d(inputs, params["kernel"])).mean((1, 2)) ** 2

    loss_fn = batch_loss(apply_fn, cross_entropy)
    adapt = inner_loop(loss_fn, optax.sgd(0.7), num_steps=1)
    task_loss_fn = after_adaptation(adapt, on_query(loss_fn))
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64(True):
      support, query = (
        Batch(jnp.asarray(inputs), jnp.arange(2)[None])
        for inputs in draw(2, 1, 2, 4, 4, 1)
      )
      loss = meta_objective(task_loss_fn, Task(support, query))
      params, vector = ({"kernel": jnp.asarray(x)} for x in draw(2, 3, 3, 1, 2))

      @jax.jit
      def slope_and_product(params):
        return jax.grad(loss)(params), hessian_vector_product(loss, params)(vector)

      move = lambda by: jax.tree.map(lambda w, v: w + by * v, params, vector)
      product = slope_and_product(params)[1]["kernel"]
      # Small against the distance to the next kink of the pooling.
      ahead, behind = (slope_and_product(move(by))[0]["kernel"] for by in (1e-6, -1e-6))
      numeric = np.asarray(ahead - behind) / 2e-6
    self.assertGreater(np.linalg.norm(product), 1e-2)
    np.testing.assert_allclose(product, numeric, rtol=1e-6, atol=1e-8)


if __name__ == "__main__":
  absltest.main()
