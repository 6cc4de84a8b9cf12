"""The core asks for `apply_fn(params, x)` only: NNX and plain pytrees fit."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import nnx

import jsharp
from jsharp import algorithms, analysis, losses, models, tree
from jsharp.core import descend, second_order


def line_tasks(num_tasks=2):
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


def two_layers():
  generator = np.random.default_rng(0)
  return [
    (jnp.asarray(generator.normal(size=shape)), jnp.zeros(shape[1]))
    for shape in ((1, 8), (8, 1))
  ]


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


@functools.cache
def after_two_handwritten_steps():
  params = two_layers()
  momentum = jax.tree.map(jnp.zeros_like, params)
  step = jax.jit(handwritten_step)
  for _ in range(2):
    params, momentum = step(params, momentum, line_tasks())
  return jax.tree.leaves(params)


class AnyModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.params = two_layers()

  def check(self, actual):
    for a, b in zip(actual, after_two_handwritten_steps(), strict=True):
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Mixed:
  """A model as Equinox has them: not only arrays with a derivative are leaves."""

  hidden: Any
  out: Any
  activation: Any
  calls: Any

  def __call__(self, x):
    return self.activation(x @ self.hidden) @ self.out


class OtherLeavesTest(parameterized.TestCase):
  """Leaves without a derivative change nothing, and stay what they are."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    generator = np.random.default_rng(0)
    self.params = {
      "hidden": jnp.asarray(generator.normal(size=(1, 4))),
      "out": jnp.asarray(generator.normal(size=(4, 1))),
    }
    self.model = Mixed(**self.params, activation=jnp.tanh, calls=jnp.array(3))
    self.batch = jax.tree.map(lambda x: x[0], line_tasks().support)

  def loss(self, model, batch):
    if isinstance(model, dict):
      model = Mixed(**model, activation=jnp.tanh, calls=None)
    return jnp.mean((model(batch.inputs) - batch.targets) ** 2)

  def loss_fn(self, model, batch):
    return self.loss(model, batch), {}

  def check(self, model, params):
    for name, expected in params.items():
      np.testing.assert_allclose(getattr(model, name), expected, rtol=1e-10)

  def stays(self, model):
    self.assertIs(model.activation, jnp.tanh)
    self.assertEqual(model.calls, 3)

  @parameterized.named_parameters(
    ("sharp", lambda loss_fn: jsharp.inner_loop(
      loss_fn, optax.chain(jsharp.sam(0.1), optax.sgd(0.1)), num_steps=2)),
    ("reptile", lambda loss_fn: algorithms.reptile(
      loss_fn, optax.sgd(0.1, momentum=0.9), optax.sgd(0.1), num_inner_steps=2,
      inner_batch_size=4).adapt),
    ("imaml", lambda loss_fn: algorithms.implicit_adaptation(
      loss_fn, optax.sgd(0.1), num_steps=2, proximity=2.0)),
  )  # fmt: skip
  def test_adaptation_and_its_derivative(self, make):
    adapt = make(self.loss_fn)
    adapted = adapt(self.model, self.batch)
    self.check(adapted, jax.jit(adapt)(self.params, self.batch))
    self.stays(adapted)
    query = lambda params: self.loss(adapt(params, self.batch), self.batch)
    with_others = lambda params: query(dataclasses.replace(self.model, **params))
    self.check(
      Mixed(**jax.jit(jax.grad(with_others))(self.params), activation=0, calls=0),
      jax.jit(jax.grad(query))(self.params),
    )

  def test_meta_steps(self):
    def fixed(model):
      return dataclasses.replace(model, activation=jnp.tanh)

    def step(constructor, loss_fn, params):
      momentum = optax.sgd(0.1, momentum=0.9)
      algorithm = constructor(loss_fn, optax.sgd(0.1), momentum, num_inner_steps=1)
      start = algorithm.init(params)
      return jax.jit(algorithm.step)(start, line_tasks())[0].params

    model = dataclasses.replace(self.model, activation=None)  # jit takes no functions.

    def with_less_memory(transform):
      def constructor(loss_fn, *args, **options):
        query = lambda params, task: loss_fn(params, task.query)
        return jsharp.maml(transform(loss_fn), *args, query_loss_fn=query, **options)

      return constructor

    for constructor in (
      jsharp.fomaml,
      algorithms.reptile,
      with_less_memory(second_order.recomputed),
      with_less_memory(second_order.forward_over_reverse),
    ):
      stepped = step(constructor, lambda w, batch: self.loss_fn(fixed(w), batch), model)
      self.check(stepped, step(constructor, self.loss_fn, self.params))
      self.stays(fixed(stepped))

  def test_sharp_losses_and_links(self):
    loss = lambda model: self.loss(model, self.batch)
    sharp = jsharp.sharpen(loss, jsharp.sam_ascent(0.1, adaptive=True))
    expected = jax.grad(sharp)(self.params)
    filtered_grad = lambda fn: lambda model: tree.value_and_grad(fn)(model)[1]
    self.check(filtered_grad(sharp)(self.model), expected)
    for link in (
      jsharp.asam(0.1, eta=0.0),
      jsharp.looksam(0.1),
      jsharp.vasso(0.1),
      jsharp.momentum_sam(optax.sgd(0.1, momentum=0.9), 0.1),
    ):
      grad_fn = filtered_grad(loss)
      (updates, state), (expected, plain) = (
        link.update(grad_fn(params), link.init(params), params, grad_fn=grad_fn)
        for params in (self.model, self.params)
      )
      self.check(updates, expected)
    centred = jsharp.perturbations.centre(self.model, state)
    self.stays(centred)
    self.check(centred, jsharp.perturbations.centre(self.params, plain))
    outputs = lambda model: (
      model(self.batch.inputs)
      if isinstance(model, Mixed)
      else outputs(Mixed(**model, activation=jnp.tanh, calls=None))
    )
    step = jsharp.functional_sam(
      outputs, lambda y: jnp.mean(y**2), jsharp.sam_ascent(0.1)
    )
    self.check(step(self.model)[1], step(self.params)[1])
    product = lambda params: analysis.hessian_vector_product(loss, params)(params)
    self.check(product(self.model), product(self.params))

  @jax.numpy_dtype_promotion("standard")
  def test_measures_of_sharpness(self):
    loss = lambda model: self.loss(model, self.batch)
    key = jax.random.key(0)
    shown = lambda params: analysis.direction(key, params)
    for measure in (
      lambda w: analysis.trace(loss, w, num_samples=2, key=key),
      lambda w: analysis.largest_eigenvalues(loss, w, num_steps=3, key=key).values,
      lambda w: analysis.worst_case_rise(loss, w, rho=0.1, num_steps=2, key=key)[:2],
      lambda w: analysis.average_case_rise(loss, w, rho=0.1, num_samples=2, key=key),
      lambda w: analysis.line(loss, w, shown(w), [0.0, 1.0]),
    ):
      np.testing.assert_allclose(measure(self.model), measure(self.params), rtol=1e-6)
    moved = dataclasses.replace(self.model, out=self.params["out"] + 1)
    turned = dataclasses.replace(self.model, hidden=self.params["hidden"] * 2)
    found = analysis.principal_directions([moved, turned], self.model)
    self.assertIsNone(found.first.activation)
    np.testing.assert_allclose(found.explained.sum(), 1)

  def test_an_equinox_model_with_dropout_and_batch_norm(self):
    import equinox as eqx

    class Net(eqx.Module):
      hidden: eqx.nn.Linear
      norm: eqx.nn.BatchNorm
      dropout: eqx.nn.Dropout
      activation: Any

      def __init__(self, key):
        self.hidden = eqx.nn.Linear(1, 3, key=key)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.dropout, self.activation = eqx.nn.Dropout(0.5), jnp.tanh

      def __call__(self, x, state, key):
        hidden, state = self.norm(self.hidden(x), state)
        return self.dropout(self.activation(hidden), key=key), state

    def loss(model, state, key, batch):
      keys = jax.random.split(key, len(batch.inputs))
      run = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
      outputs, state = run(batch.inputs, state, keys)
      return jnp.mean((outputs - batch.targets) ** 2), state

    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.enter_context(jax.numpy_rank_promotion("allow"))
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    arguments = state, jax.random.key(1), self.batch
    sharp = jsharp.sharpen(loss, jsharp.sam_ascent(0.1), has_aux=True)
    gradient_of = lambda fn: eqx.filter_jit(eqx.filter_grad(fn, has_aux=True))
    actual, after = gradient_of(sharp)(model, *arguments)
    link = jsharp.sam(0.1)
    gradient_fn = gradient_of(loss)
    grads, clean = gradient_fn(model, *arguments)
    updates, _ = link.update(
      grads,
      link.init(None),
      model,
      grad_fn=lambda model: gradient_fn(model, *arguments)[0],
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9)
    jax.tree.map(close, actual, updates)
    jax.tree.map(close, jax.tree.leaves(after), jax.tree.leaves(clean))

  def test_masks_by_name_find_attributes(self):
    marked = models.part_mask("inner")({"inner": self.model, "other": self.params})
    self.assertTrue(marked["inner"].hidden)
    self.assertFalse(marked["other"]["hidden"])
    nested = Mixed(self.model, self.model, None, None)
    marked = models.part_mask("out")(nested)
    self.assertEqual((marked.hidden.hidden, marked.out.hidden), (False, True))

    nested = lambda: nnx.Dict(inner=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    state = nnx.state(nnx.eval_shape(nested))
    self.assertTrue(all(jax.tree.leaves(models.part_mask("inner")(state))))
    with self.assertRaisesRegex(ValueError, r"it has \['inner'\]"):
      models.part_mask("kernel")(state)

  def test_nothing_to_adapt_is_refused(self):
    adapt = jsharp.inner_loop(lambda w, x: (w * x, {}), optax.sgd(0.1), num_steps=1)
    with self.assertRaisesRegex(ValueError, "nothing to adapt.*int64.*floats"):
      adapt(3, 1.0)
    square = tree.value_and_grad(lambda w: (w**2, {}), has_aux=True)
    with self.assertRaisesRegex(ValueError, "no floating-point leaf.*pass floats"):
      descend(optax.with_extra_args_support(optax.sgd(0.1)), square, 3, ())


if __name__ == "__main__":
  absltest.main()
