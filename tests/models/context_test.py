"""Models with a context: the plain models at zeros, and where the context enters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses, normalization
from jsharp.algorithms import cavia
from jsharp.evaluation import evaluator
from jsharp.models import (
  MLP,
  ContextConv4,
  ContextMLP,
  Conv4,
  as_context_functions,
  as_functions,
)

SIZE = 3


@functools.cache
def convolutional(block=2, stride=2):
  """The plain model, the one with a context, parameters for it, images."""
  options = {"num_outputs": 4, "num_filters": 4, "stride": stride}
  model = ContextConv4(**options, context_size=SIZE, context_block=block)
  init_fn, apply_fn = as_context_functions(model)
  side = 8 if stride == 2 else 16
  images = jax.random.normal(jax.random.key(0), (6, side, side, 1))
  # Other parameters than at the start, where the normalisation is neutral.
  generator = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.asarray(generator.normal(0.2, 0.3, x.shape), x.dtype),
    jax.eval_shape(init_fn, jax.random.key(1), images),
  )
  plain = jax.jit(as_functions(Conv4(**options))[1], static_argnums=2)
  return plain, jax.jit(apply_fn, static_argnums=2), params, images


class ContextConv4Test(parameterized.TestCase):
  @parameterized.parameters((None, 1), (3, 2))
  def test_zeros_are_the_plain_model(self, num_statistics, stride):
    plain, apply_fn, params, images = convolutional(stride=stride)
    actual = apply_fn((params, jnp.zeros(SIZE)), images, num_statistics)
    # Linen takes no notice of parameters that a module does not ask for.
    expected = plain(params, images, num_statistics)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    some = apply_fn((params, jnp.ones(SIZE)), images, num_statistics)
    self.assertGreater(np.abs(some - expected).max(), 0.01)

  @parameterized.parameters((0, 1), (2, 2))
  def test_it_is_another_scale_and_offset_of_one_block(self, block, stride):
    plain, apply_fn, params, images = convolutional(block=block, stride=stride)
    context = jnp.array([-2.5, 4.0, -3.0])
    kernel = np.asarray(params["film"]["kernel"])
    scale, shift = np.split(np.asarray(context) @ kernel, 2)
    self.assertLess((1 + scale).min(), -0.2)  # where pooling would not commute
    norm = params[f"norm_{block}"]
    moved = params | {
      f"norm_{block}": {
        "scale": norm["scale"] * (1 + scale),
        "offset": norm["offset"] * (1 + scale) + shift,
      }
    }
    actual = apply_fn((params, context), images, None)
    np.testing.assert_allclose(actual, plain(moved, images, None), rtol=1e-4, atol=1e-5)

  def test_parameters_are_those_of_the_plain_model_and_one_matrix(self):
    images = jnp.zeros((2, 84, 84, 3))
    plain, context = (
      jax.eval_shape(as_functions(model)[0], jax.random.key(0), images)
      for model in (Conv4(5, num_filters=32), ContextConv4(5, num_filters=32))
    )
    self.assertEqual(context.pop("film")["kernel"].shape, (100, 64))
    self.assertEqual(jax.tree.map(jnp.shape, context), jax.tree.map(jnp.shape, plain))

  def test_bad_arguments_are_named(self):
    images = jnp.zeros((2, 8, 8, 1))
    for options, message in (
      ({"context_block": 4}, "context_block must be 0, 1, 2 or 3; got 4"),
      ({"stride": 3}, "stride"),
    ):
      init_fn, _ = as_context_functions(ContextConv4(4, **{"stride": 2, **options}))
      with self.assertRaisesRegex(ValueError, message):
        jax.eval_shape(init_fn, jax.random.key(0), images)
    _, apply_fn, params, images = convolutional()
    with self.assertRaisesRegex(ValueError, r"\[context_size\] = \[3\], got \(5,\)"):
      jax.eval_shape(lambda x: apply_fn((params, jnp.zeros(5)), x, None), images)
    with self.assertRaisesRegex(ValueError, "do not fit inputs"):
      apply_fn((params, jnp.zeros(SIZE)), jnp.zeros((2, 8, 8, 3)), None)

  def test_the_policies_and_cavia_take_it(self):
    _, apply_fn, params, images = convolutional()
    labels = jnp.array([0, 1, 2])
    task = jsharp.Task(
      jsharp.Batch(images[:3], labels), jsharp.Batch(images[3:], labels)
    )
    contextual = params, jnp.ones(SIZE)
    together = normalization.support_statistics(apply_fn)(contextual, task)
    np.testing.assert_allclose(together, apply_fn(contextual, images, 3)[3:], atol=1e-5)
    algorithm = cavia(
      losses.batch_loss(apply_fn, losses.cross_entropy),
      optax.sgd(1.0),
      optax.adam(1e-3),
      context=jnp.zeros(SIZE),
      num_inner_steps=1,
    )
    query_loss_fn = normalization.query_loss(
      normalization.support_statistics(apply_fn), losses.cross_entropy
    )
    adapted = jax.jit(algorithm.adapt)(params, task.support)
    before, after = (
      losses.cross_entropy(apply_fn((params, c), images[:3], None), labels)[0]
      for c in (jnp.zeros(SIZE), adapted.context)
    )
    self.assertLess(after, before)
    tasks = jax.tree.map(lambda x: x[None], task)
    measure = evaluator(algorithm.adapt, query_loss_fn)
    metrics = jax.eval_shape(measure, params, tasks)
    self.assertEqual(set(metrics), {"loss", "accuracy"})


class ContextMLPTest(absltest.TestCase):
  def test_it_is_its_formula(self):
    init_fn, apply_fn = as_context_functions(ContextMLP((7, 2), context_size=SIZE))
    x = jax.random.normal(jax.random.key(0), (5, 2, 2))
    params = jax.jit(init_fn)(jax.random.key(1), x)
    context = jnp.array([0.5, -1.0, 2.0])
    first, last = (
      jax.tree.map(np.asarray, params[name]) for name in ("dense_0", "dense_1")
    )
    rows = np.concatenate([np.reshape(x, (5, 4)), np.tile(context, (5, 1))], axis=1)
    hidden = np.maximum(rows @ first["kernel"] + first["bias"], 0)
    expected = hidden @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(apply_fn((params, context), x), expected, atol=1e-5)

  def test_zeros_are_the_plain_model(self):
    init_fn, apply_fn = as_context_functions(
      ContextMLP((7, 2), normalize=True, activation=jnp.tanh, context_size=SIZE)
    )
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params = jax.jit(init_fn)(jax.random.key(1), x)
    cut = params | {
      "dense_0": params["dense_0"] | {"kernel": params["dense_0"]["kernel"][:4]}
    }
    plain = as_functions(MLP((7, 2), normalize=True, activation=jnp.tanh))[1]
    plain, apply_fn = (jax.jit(fn, static_argnums=2) for fn in (plain, apply_fn))
    for num_statistics in (None, 3):
      actual = apply_fn((params, jnp.zeros(SIZE)), x, num_statistics)
      np.testing.assert_allclose(actual, plain(cut, x, num_statistics), atol=1e-5)

  def test_another_size_is_named(self):
    init_fn, apply_fn = as_context_functions(ContextMLP((7, 2), context_size=SIZE))
    params = jax.eval_shape(init_fn, jax.random.key(1), jnp.ones((1, 4)))
    with self.assertRaisesRegex(ValueError, r"got \(2,\)"):
      jax.eval_shape(apply_fn, (params, jnp.zeros(2)), jnp.ones((1, 4)))


if __name__ == "__main__":
  absltest.main()
