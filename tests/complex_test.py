"""Complex parameters are two real variables each, wherever jsharp differentiates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import algorithms, analysis, perturbations
from jsharp.core import second_order
from jsharp.types import Variables

POINT = {"z": jnp.array([0.3 + 0.2j, -0.4 + 0.1j]), "w": jnp.array([0.5])}
ASCENT = jsharp.sam_ascent(0.1)


def loss_of(params, targets):
  """Not holomorphic, and not symmetric in real and imaginary parts."""
  a = params["z"].real - targets.real
  b = params["z"].imag - targets.imag - params["w"]
  return jnp.sum((a**2 + b**2) ** 2 + a * b**2)


def loss_fn(params, batch):
  return loss_of(params, batch.targets), {}


def apart(params):
  return jax.tree.map(lambda x: jnp.stack([x.real, x.imag]), params)


def together(pairs):
  join = lambda x: jax.lax.complex(x[0], x[1])
  return {"z": join(pairs["z"]), "w": pairs["w"][0]}


def of_pairs(fn):
  return lambda pairs, *args: fn(together(pairs), *args)


def tasks():
  targets = jnp.array([[0.2 - 0.1j], [0.5j], [-0.3 + 0.2j]])
  batch = jsharp.Batch(targets, targets)
  return jsharp.Task(batch, jax.tree.map(lambda x: -x, batch))


def on_query(fn):
  return lambda params, task: fn(params, task.query)


def forward_over_reverse(fn, *args, **options):
  options["query_loss_fn"] = on_query(fn)
  return jsharp.maml(second_order.forward_over_reverse(fn), *args, **options)


ALGORITHMS = {
  "equation_14": functools.partial(
    jsharp.sharp_maml, inner_rho=0.1, outer_rho=0.1, reuse_perturbation=True
  ),
  "forward_over_reverse": forward_over_reverse,
  "reptile": algorithms.reptile,
  "imaml": functools.partial(algorithms.imaml, proximity=2.0, num_cg_steps=6),
  "maml_plus_plus": functools.partial(algorithms.maml_plus_plus, inner_lr=0.05),
}


TARGET = jnp.array(0.1 - 0.2j)


def ordinary_step(loss, params):
  def example_loss(variables, batch, train):
    return {"loss": loss(variables.params, batch.targets)[None]}, ()

  algorithm = algorithms.supervised(example_loss, optax.sgd(0.1))
  state = algorithm.init(Variables(params, ()))
  return algorithm.step(state, jsharp.Batch(TARGET, TARGET))[0].params.params


def sharpened_step(loss, params):
  grads = jax.grad(jsharp.sharpen(lambda w: loss(w, TARGET), ASCENT))(params)
  return jax.tree.map(lambda w, g: w - 0.1 * g.conj(), params, grads)


def functional_step(loss, params):
  value_and_grad = perturbations.functional_sam(
    lambda w: loss(w, TARGET), lambda out: out**2, ASCENT
  )
  return value_and_grad(params)[1]


def hessian_times(loss, params):
  return analysis.hessian_vector_product(lambda w: loss(w, TARGET), params)(params)


def slope_of_the_meta_objective(loss, params):
  task_loss_fn = lambda w, task: (loss(w, task), {})
  objective = analysis.meta_objective(task_loss_fn, tasks().query.targets)
  gradient = lambda w: jax.tree.map(jnp.conj, jax.grad(objective)(w))
  return jax.jvp(gradient, (params,), (params,))[1]


STEPS = {
  "supervised": ordinary_step,
  "sharpen": sharpened_step,
  "functional_sam": functional_step,
  "hessian_vector_product": hessian_times,
  "meta_objective": slope_of_the_meta_objective,
}


class ComplexTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.point = jax.tree.map(
      lambda x: jnp.asarray(x, complex if jnp.iscomplexobj(x) else float), POINT
    )

  def assert_close(self, actual, expected):
    for name in actual:
      np.testing.assert_allclose(actual[name], expected[name], rtol=1e-9)

  def assert_like_pairs(self, fn):
    """`fn(loss, params)` is the same of real and imaginary parts as two variables."""
    actual = jax.jit(functools.partial(fn, loss_of))(self.point)
    pairs = jax.jit(functools.partial(fn, of_pairs(loss_of)))(apart(self.point))
    self.assert_close(actual, together(pairs))

  @parameterized.named_parameters(*ALGORITHMS.items())
  def test_a_meta_step(self, constructor):
    def step(loss, params):
      algorithm = constructor(
        lambda params, batch: (loss(params, batch.targets), {}),
        optax.sgd(0.05),
        optax.sgd(0.1),
        num_inner_steps=1,
      )
      params = algorithm.step(algorithm.init(params), tasks())[0].params
      return getattr(params, "params", params)

    self.assert_like_pairs(step)

  @parameterized.named_parameters(*STEPS.items())
  def test_what_else_differentiates(self, step):
    self.assert_like_pairs(step)

  def test_probes_of_real_numbers_refuse_it(self):
    loss = lambda params: loss_of(params, 0.0)
    key = jax.random.key(0)
    for measure in (
      lambda: analysis.trace(loss, POINT, num_samples=2, key=key),
      lambda: analysis.largest_eigenvalues(loss, POINT, key=key),
      lambda: analysis.average_case_rise(loss, POINT, rho=1.0, num_samples=2, key=key),
    ):
      with self.assertRaisesRegex(ValueError, r"params\['z'\] is complex.*two leaves"):
        measure()


if __name__ == "__main__":
  absltest.main()
