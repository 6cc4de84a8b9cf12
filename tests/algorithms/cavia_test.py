"""CAVIA: a linear model by hand, and MAML where the context is a shift."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from jsharp.algorithms import Contextual, cavia
from jsharp.core.objectives import on_query
from jsharp.evaluation import evaluator
from tests import quadratics as quad

INNER_LR, OUTER_LR = 0.1, 0.3


def linear_tasks(num_tasks=3, examples=5):
  generator = np.random.default_rng(0)
  make = lambda: jsharp.Batch(
    generator.normal(size=(num_tasks, examples)),
    generator.normal(size=(num_tasks, examples)),
  )
  return jsharp.Task(make(), make())


def linear_loss_fn(contextual, batch):
  """The prediction `slope * x + weight * context`, mean squared error."""
  (slope, weight), context = contextual
  outputs = slope * batch.inputs + weight * context
  return jnp.mean((outputs - batch.targets) ** 2), {}


class CaviaTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 3)
  def test_a_linear_model_by_hand(self, steps):
    with jax.enable_x64(True):
      tasks = linear_tasks()
      slope, weight = 0.7, -1.3
      algorithm = cavia(
        linear_loss_fn,
        optax.sgd(INNER_LR),
        optax.sgd(OUTER_LR),
        context=jnp.zeros(()),
        num_inner_steps=steps,
      )
      gradients, query_losses, contexts = [], [], []
      for x, y, x_query, y_query in zip(*tasks.support, *tasks.query, strict=True):
        context, by_params = 0.0, np.zeros(2)
        for _ in range(steps):
          error = np.mean(slope * x + weight * context - y)
          # context - lr * 2 * weight * error, and its derivative in (slope, weight).
          by_error = np.array([x.mean(), context]) + weight * by_params
          by_params = by_params - 2 * INNER_LR * (
            np.array([0.0, error]) + weight * by_error
          )
          context -= 2 * INNER_LR * weight * error
        errors = slope * x_query + weight * context - y_query
        by_outputs = 2 * errors / len(errors)
        direct = np.array([by_outputs @ x_query, by_outputs.sum() * context])
        gradients.append(direct + by_outputs.sum() * weight * by_params)
        query_losses.append(np.mean(errors**2))
        contexts.append(context)
      on_device = quad.on_device(tasks)
      state = algorithm.init((slope, weight))
      state, metrics = jax.jit(algorithm.step)(state, on_device)
      expected = np.array([slope, weight]) - OUTER_LR * np.mean(gradients, axis=0)
      np.testing.assert_allclose(state.params, expected, rtol=1e-10)
      np.testing.assert_allclose(metrics["loss"], query_losses, rtol=1e-10)
      support = jax.tree.map(lambda x: x[1], on_device.support)
      adapted = algorithm.adapt((slope, weight), support)
      self.assertIsInstance(adapted, Contextual)
      self.assertEqual(tuple(map(float, adapted.params)), (slope, weight))
      np.testing.assert_allclose(adapted.context, contexts[1], rtol=1e-10)

  @parameterized.parameters(False, True)
  def test_a_context_that_shifts_the_parameters_is_maml(self, first_order):
    # Its inner loop then takes MAML's steps, from zero instead of from the parameters.
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(4), quad.start()
      loss_fn = lambda c, batch: quad.loss_fn(c.params + c.context, batch)
      algorithm = cavia(
        losses.first_order(loss_fn) if first_order else loss_fn,
        optax.sgd(INNER_LR),
        optax.sgd(OUTER_LR),
        context=jnp.ones(quad.DIMENSION),  # Values are not looked at.
        num_inner_steps=3,
      )
      step = jax.jit(algorithm.step)
      state, metrics = step(algorithm.init(w), quad.on_device(tasks))
      gradient, query_losses = quad.meta_gradient(
        tasks, w, INNER_LR, 3, first_order=first_order
      )
      np.testing.assert_allclose(state.params, w - OUTER_LR * gradient, rtol=1e-10)
      np.testing.assert_allclose(metrics["loss"], query_losses, rtol=1e-10)
      adapt = functools.partial(algorithm.adapt, num_steps=5)
      measure = jax.jit(evaluator(adapt, on_query(loss_fn)))
      metrics = measure(w, quad.on_device(tasks))
      _, query_losses = quad.meta_gradient(tasks, w, INNER_LR, 5)
      np.testing.assert_allclose(metrics["loss"], query_losses, rtol=1e-10)

  def test_an_inner_sam_link_perturbs_the_context_alone(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(1), quad.start()
      loss_fn = lambda c, batch: quad.loss_fn(c.params + c.context, batch)
      algorithm = cavia(
        loss_fn,
        optax.chain(jsharp.sam(0.4), optax.sgd(INNER_LR)),
        optax.sgd(OUTER_LR),
        context=jnp.zeros(quad.DIMENSION),
        num_inner_steps=2,
      )
      support = quad.on_device(jax.tree.map(lambda x: x[0], tasks.support))
      expected, _ = quad.inner(tasks, 0, w, INNER_LR, 2, rho=0.4)
      params, context = jax.jit(algorithm.adapt)(w, support)
      np.testing.assert_array_equal(params, w)
      np.testing.assert_allclose(w + np.asarray(context), expected, rtol=1e-10)

  def test_shapes_alone_make_a_context(self):
    shape = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    algorithm = cavia(
      lambda c, batch: (jnp.sum(c.params * c.context["a"] * batch), {}),
      optax.sgd(1.0),
      optax.sgd(1.0),
      context=shape,
      num_inner_steps=1,
    )
    adapted = algorithm.adapt(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(adapted.context["a"], [-3.0, -8.0])

  @parameterized.parameters(
    ({"context": ()}, "context must hold at least one array"),
    ({"num_inner_steps": -1}, "num_inner_steps"),
    ({"num_inner_steps": True}, "num_inner_steps"),
  )
  def test_bad_arguments_are_named(self, options, message):
    options = {"context": np.zeros(2), "num_inner_steps": 1, **options}
    with self.assertRaisesRegex(ValueError, message):
      cavia(linear_loss_fn, optax.sgd(0.1), optax.sgd(0.1), **options)

  def test_bad_steps_of_adapt_are_named(self):
    algorithm = cavia(
      linear_loss_fn,
      optax.sgd(0.1),
      optax.sgd(0.1),
      context=jnp.zeros(()),
      num_inner_steps=1,
    )
    with self.assertRaisesRegex(ValueError, "num_steps .* got True"):
      algorithm.adapt((0.1, 0.2), None, num_steps=True)


if __name__ == "__main__":
  absltest.main()
