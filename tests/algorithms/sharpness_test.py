"""SAM goes into either loop of every algorithm by its link, with no code of its own.

Radius 0 in both loops is the algorithm itself, and each loop's radius by itself changes
what is learned. The tests of ANIL, Meta-SGD, CAVIA, MAML++ and Reptile compare their
inner loops with SAM, and those of MAML++ and Reptile the outer one, which the others
have from MAML.
"""

import functools

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from tests.algorithms import conformance_test as table
from tests.algorithms.without_inner_loop import WithoutInnerLoop

# Fo-MAML and BOIL have the loops of MAML and ANIL, ridge and black box ProtoNet's.
TESTED_OTHERWISE = (
  *("fomaml", "anil", "boil", "meta_sgd", "maml_plus_plus", "cavia"),
  *("reptile", "reptile_keep_inner_state", "ridge", "black_box"),
)
ROWS = {
  name: row
  for name, row in table.ALGORITHMS.items()
  if not name.startswith("sharp_") and name not in TESTED_OTHERWISE
}


def one_step(constructor, radii, start, tasks):
  """The state after one meta-step; `radii` of the inner and the outer loop or None."""
  inner, outer = optax.sgd(0.3), optax.sgd(0.1)
  if radii is not None:
    inner = optax.chain(jsharp.sam(radii[0]), inner)
    outer = optax.chain(jsharp.sam(radii[1]), outer)
  algorithm = constructor(
    losses.batch_loss(table.apply_fn, losses.cross_entropy),
    inner,
    outer,
    num_inner_steps=1,
  )
  return algorithm.step(algorithm.init(start), tasks)[0].params


class SharpnessTest(parameterized.TestCase):
  @parameterized.parameters(*ROWS)
  def test_the_link_at_either_loop(self, name):
    constructor = ROWS[name]
    with jax.enable_x64(True):
      given = table.start(), jax.tree.map(lambda x: x[:2], table.tasks())
      plain = jax.jit(functools.partial(one_step, constructor, None))(*given)
      # One program for all radii: they are arguments.
      sharp = jax.jit(lambda *radii: one_step(constructor, radii, *given))

      def distance(low, up):
        pairs = zip(
          jax.tree.leaves(plain), jax.tree.leaves(sharp(low, up)), strict=True
        )
        return max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)

      self.assertLess(distance(0.0, 0.0), 1e-12)
      self.assertGreater(distance(0.0, 0.3), 1e-5)
      if not isinstance(constructor, WithoutInnerLoop):
        self.assertGreater(distance(0.3, 0.0), 1e-5)


if __name__ == "__main__":
  absltest.main()
