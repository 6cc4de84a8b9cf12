"""Tests of the precision that networks are computed in."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp import losses, maml
from jsharp.algorithms.supervised import classifier
from jsharp.models import (
  MLP,
  AttentionLearner,
  ContextConv4,
  Conv4,
  ResNet,
  as_context_functions,
  as_functions,
  as_learner_functions,
  with_statistics,
)
from jsharp.nn import BatchNorm, conv2d
from jsharp.precision import PRECISIONS, compute_in, in_precision
from jsharp.types import Batch, Task

_EPS = 2.0**-8
"""The largest relative error of rounding to bfloat16."""


def images(rows, size=16, seed=0):
  return jax.random.normal(jax.random.key(seed), (rows, size, size, 1))


def conv4(stride=1):
  init_fn, apply_fn = as_functions(Conv4(3, num_filters=4, stride=stride))
  return jax.jit(init_fn)(jax.random.key(0), images(1)), apply_fn


def networks():
  """Per name: a network of positional arguments, and those arguments."""
  key, x = jax.random.key(0), images(8)
  params, conv = conv4()
  yield "conv4", conv, (params, x)
  params, conv = conv4(stride=2)
  yield "conv4_strided", conv, (params, x)
  init_fn, mlp = as_functions(MLP((16, 16, 3), normalize=True))
  yield "mlp", mlp, (jax.jit(init_fn)(key, x), x)
  init_fn, context = as_context_functions(ContextConv4(3, 4, context_size=5))
  yield "context", context, ((jax.jit(init_fn)(key, x), jnp.ones(5)), x)
  learner = AttentionLearner(MLP((16,)), 1, width=8, num_heads=2)
  init_fn, attention = as_learner_functions(learner)
  arguments = x[:4], jnp.ones([4, 1]), x[4:]
  yield "attention", attention, (jax.jit(init_fn)(key, *arguments), *arguments)


def products(text):
  """The lines of convolutions and matrix products in a lowered program."""
  return [line for line in text.splitlines() if re.search(r"\.(dot_gen|convol)", line)]


def meta_step(apply_fn, params):
  """A second-order meta-step, and arguments for it."""
  algorithm = maml(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    optax.sgd(0.1),
    optax.sgd(0.1),
    num_inner_steps=1,
  )
  labels = jnp.tile(jnp.arange(3), 2)
  sets = [Batch(images(6, seed=seed), labels) for seed in (1, 2)]
  tasks = jax.tree.map(lambda x: x[None], Task(*sets))
  return algorithm.step, (algorithm.init(params), tasks)


class PrecisionTest(parameterized.TestCase):
  @parameterized.named_parameters(networks())
  def test_bfloat16_is_float32_but_for_rounding(self, apply_fn, arguments):
    narrow = compute_in(apply_fn, jnp.bfloat16)
    expected, actual = (jax.jit(f)(*arguments) for f in (apply_fn, narrow))
    self.assertEqual(actual.dtype, jnp.float32)
    error = np.sqrt(np.mean(np.square(actual - expected)))
    size = np.sqrt(np.mean(np.square(expected)))
    # Some ten operations in a row, each with an error of its own.
    self.assertLess(error, 10 * _EPS * size)
    self.assertGreater(error, _EPS / 100 * size)
    text = jax.jit(narrow).lower(*arguments).as_text()
    self.assertNotEmpty(products(text))
    for line in products(text):
      self.assertIn("bf16>", line.split("->")[1])
    self.assertNotIn("f64", text)

  def test_gradients_are_float32_at_every_order(self):
    params, apply_fn = conv4(stride=2)
    narrow = compute_in(apply_fn, jnp.bfloat16)

    def loss(params):
      return jnp.square(narrow(params, images(6))).mean()

    gradient = jax.grad(loss)
    direction = jax.tree.map(jnp.ones_like, params)
    shapes = jax.eval_shape(
      lambda p: (gradient(p), jax.jvp(gradient, (p,), (direction,))), params
    )
    self.assertEqual({x.dtype for x in jax.tree.leaves(shapes)}, {jnp.dtype("float32")})

  @parameterized.parameters(1, 2)
  def test_a_meta_step_keeps_float32_masters(self, stride):
    params, apply_fn = conv4(stride)
    step, arguments = meta_step(compute_in(apply_fn, jnp.bfloat16), params)
    traced = jax.jit(step).trace(*arguments)
    text = traced.lower().as_text()
    self.assertGreater(len(products(text)), 20)
    for line in products(text):
      self.assertIn("bf16>", line.split("->")[1])
    state, metrics = traced.out_info
    dtypes = {x.dtype for x in jax.tree.leaves((state.params, metrics))}
    self.assertEqual(dtypes, {jnp.dtype("float32")})

  def test_a_small_update_is_not_swallowed(self):
    narrow = compute_in(lambda w, x: x * w, jnp.bfloat16)
    gradient = jax.grad(lambda w: narrow(w, jnp.ones(3)).mean())
    w = jnp.float32(1.0)
    for _ in range(16):
      w = w - jnp.float32(2.0**-12) * gradient(w)
    self.assertEqual(w, 1 - 2.0**-8)

  @parameterized.parameters((1, "float32", "HIGHEST"), (2, "tf32", "HIGH"))
  def test_precision_of_every_product(self, stride, precision, word):
    params, apply_fn = conv4(stride)
    step, arguments = meta_step(in_precision(apply_fn, precision), params)
    # Where it is compiled another precision may be asked for.
    with jax.default_matmul_precision("bfloat16"):
      lines = products(jax.jit(step).lower(*arguments).as_text())
    self.assertGreater(len(lines), 20)
    for line in lines:
      found = re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)
      self.assertEqual(found, [word, word], line)

  def test_float32_is_the_same_bits_on_a_cpu(self):
    params, apply_fn = conv4(stride=2)

    def value_and_gradient(apply_fn):
      return jax.value_and_grad(lambda p: jnp.square(apply_fn(p, images(6))).mean())

    expected, actual = (
      jax.jit(value_and_gradient(f))(params)
      for f in (apply_fn, in_precision(apply_fn, "float32"))
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.parameters("direct", "im2col")
  def test_convolutions_are_lowered_as_they_were_traced(self, form):
    x, w = jnp.ones([2, 6, 6, 3]), jnp.ones([3, 3, 3, 4])

    def loss(x, w):
      return jnp.sum(jnp.sin(conv2d(x, w, convolution=form)))

    def second(x, w):
      return jax.grad(lambda w: jnp.sum(jax.grad(loss)(x, w) ** 2))(w)

    with jax.default_matmul_precision("float32"):
      inside = jax.jit(second).trace(x, w)
    outside = jax.jit(second).trace(x, w)
    with jax.default_matmul_precision("float32"):
      texts = inside.lower().as_text(), outside.lower().as_text()
    self.assertNotIn("DEFAULT", "".join(products(texts[0])))
    self.assertIn("HIGHEST", texts[0])
    self.assertNotIn("HIGHEST", texts[1])
    self.assertNotIn("HIGHEST", jax.jit(second).lower(x, w).as_text())

  def test_running_statistics_stay_float32(self):
    x = 20 + images(6)
    init_fn, apply_fn = with_statistics(BatchNorm())
    params, start = init_fn(jax.random.key(0), x)
    narrow = compute_in(apply_fn, jnp.bfloat16)
    _, seen = narrow(params, x)
    rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
    _, expected = apply_fn(params, rounded)
    for name in start:
      self.assertEqual(seen[name].dtype, jnp.float32)
      np.testing.assert_allclose(seen[name], expected[name], rtol=1e-5)
    # The variance is a difference that bfloat16 would leave no digit of.
    outputs, same = narrow(params, x, statistics=seen)
    jax.tree.map(np.testing.assert_array_equal, same, seen)
    expected, _ = apply_fn(params, rounded, expected)
    np.testing.assert_allclose(outputs, expected, rtol=_EPS, atol=1e-3)

  def test_ordinary_training_keeps_float32_averages(self):
    module = ResNet(num_outputs=3, depth=8)
    transform = functools.partial(in_precision, precision="bfloat16")
    init_fn, loss_fn = classifier(module, transform=transform)
    batch = Batch(images(4, size=8), jnp.array([0, 1, 2, 0]))
    variables = init_fn(jax.random.key(0), batch.inputs)
    _, exact_loss_fn = classifier(module)

    @jax.jit
    def both(variables):
      return [f(variables, batch, True) for f in (loss_fn, exact_loss_fn)]

    (metrics, moved), (expected, exact) = both(variables)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.1)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(exact), strict=True):
      self.assertEqual(a.dtype, jnp.float32)
      np.testing.assert_allclose(a, b, rtol=0.1, atol=0.02)

  def test_what_is_not_floating_stays(self):
    def apply_fn(params, labels, *, named):
      self.assertEqual(
        [params.dtype, labels.dtype, named.dtype], ["bfloat16", "int32", "float32"]
      )
      return params, labels

    params, labels = compute_in(apply_fn, jnp.bfloat16)(
      jnp.ones(2), jnp.arange(2), named=jnp.ones(2)
    )
    self.assertEqual([params.dtype, labels.dtype], ["float32", "int32"])

  def test_bad_arguments_are_named(self):
    with self.assertRaisesRegex(ValueError, "dtype must be floating.*int8"):
      compute_in(lambda w, x: x, jnp.int8)
    with self.assertRaisesRegex(ValueError, f"{', '.join(PRECISIONS)}; got 'half'"):
      in_precision(lambda w, x: x, "half")


if __name__ == "__main__":
  absltest.main()
