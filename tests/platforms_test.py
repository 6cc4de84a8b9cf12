"""Every meta-step lowers for GPUs and TPUs, on a machine that has neither."""

import functools
from typing import get_args
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import _catalogue, learners, losses
from jsharp.algorithms import OuterLoop
from jsharp.models import conv4
from jsharp.nn import conv2d
from jsharp.types import Convolution

WAY, SIDE, CHANNELS = 3, 8, 3
FILTERS = 16
"""Enough channels for Winograd's form."""

# Options that make a learner quick to build and to trace.
SMALL = {
  "black_box": {"width": 8, "num_heads": 2, "num_layers": 1},
  "meta_sgd": {"initial_rates": (0.1, 0.1)},
}
FORMS = (*((form, 1) for form in get_args(Convolution)), ("auto", 2), ("direct", 2))


def lowered(algorithm, params):
  """The meta-step as StableHLO, one program for both platforms, from shapes alone."""

  def batch(size):
    shape = (2, size, SIDE, SIDE, CHANNELS)
    return jsharp.Batch(
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.ShapeDtypeStruct(shape[:2], jnp.int32),
    )

  exported = jax.export.export(jax.jit(algorithm.step), platforms=("cuda", "tpu"))(
    jax.eval_shape(algorithm.init, params),
    jsharp.Task(support=batch(WAY), query=batch(2 * WAY)),
  )
  return exported.mlir_module()


def apply_fn(params, x, *, form, stride):
  for kernel in params["kernels"]:
    x = jnp.tanh(conv2d(x, kernel, stride=stride, convolution=form))
  return x.mean((1, 2)) @ params["head"]


class PlatformsTest(parameterized.TestCase):
  @parameterized.parameters(*_catalogue.outlines("algorithm"))
  def test_every_algorithm(self, name):
    description = learners.Description(
      algorithm=_catalogue.find("algorithm", name)(**SMALL.get(name, {})),
      network=conv4.Conv4Options(num_filters=2),
      outer=OuterLoop(outer_optimizer="sgd"),  # Adam's count breaks strict promotion.
      num_outputs=WAY,
      input_shape=(SIDE, SIDE, CHANNELS),
    )
    with mock.patch.object(conv4, "_BLOCKS", 1):
      learner = learners.build(description)
      program = lowered(learner.algorithm(), learner.made.params)
    self.assertIn("stablehlo.convolution", program)

  @parameterized.parameters(*FORMS)
  def test_every_form_of_convolution(self, form, stride):
    shapes = {
      "kernels": [(3, 3, CHANNELS, FILTERS), (3, 3, FILTERS, FILTERS)],
      "head": (FILTERS, WAY),
    }
    params = jax.tree.map(
      lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
      shapes,
      is_leaf=lambda x: isinstance(x, tuple),
    )
    network = functools.partial(apply_fn, form=form, stride=stride)
    # Its step contains the derivatives that MAML's has.
    algorithm = jsharp.sharp_maml(
      losses.batch_loss(network, losses.cross_entropy),
      optax.sgd(0.1),
      optax.sgd(0.1),
      num_inner_steps=1,
      inner_rho=0.05,
      outer_rho=0.05,
    )
    program = lowered(algorithm, params)
    # Winograd's form is for CPUs and is the direct one elsewhere; im2col consists of
    # matrix products alone.
    self.assertEqual("stablehlo.convolution" not in program, form == "im2col")


if __name__ == "__main__":
  absltest.main()
