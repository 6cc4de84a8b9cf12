"""One optimizer step that computes two gradients with one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jsharp
from jsharp.core.descent import descend

START = {"w": jnp.array([0.3, -0.7]), "b": jnp.float32(0.2)}


def _value_and_grad(params):
  def loss_fn(params):
    loss = jnp.cos(params["w"] @ jnp.array([1.0, 2.0]) + params["b"] ** 2)
    return loss, {"seen": params["b"]}

  return jax.value_and_grad(loss_fn, has_aux=True)(params)


def _step(optimizer, *, one_program):
  optimizer = optax.with_extra_args_support(optimizer)

  def step(params, opt_state):
    return descend(
      optimizer, _value_and_grad, params, opt_state, one_program=one_program
    )

  return jax.jit(step), optimizer.init(START)


def _gradients(step, *args):
  """How many gradients the program has: the derivative of a cosine has one sine."""
  return str(jax.make_jaxpr(step)(*args)).count(" sin ")


_ONE_MORE = {
  "sam": optax.chain(jsharp.sam(0.1), optax.sgd(0.1, 0.9)),
  "asam": optax.chain(jsharp.sam(0.1, adaptive=True), optax.sgd(0.1)),
  "scheduled": optax.chain(
    jsharp.sam(optax.linear_schedule(0.1, 0, 9)), optax.sgd(0.1)
  ),
  "gsam": optax.chain(jsharp.gsam(0.1), optax.sgd(0.1, momentum=0.9)),
}
_OTHERS = {
  "no gradient": optax.sgd(0.1),
  "under a condition": optax.chain(jsharp.sam_every(0.1, every=2), optax.sgd(0.1)),
  "two gradients": optax.chain(jsharp.sam(0.1), jsharp.sam(0.05), optax.sgd(0.1)),
  "a value elsewhere": optax.chain(
    optax.sgd(0.1), optax.scale_by_backtracking_linesearch(3)
  ),
}


@pytest.mark.parametrize("name", [*_ONE_MORE, *_OTHERS])
def test_one_program_takes_the_same_step(name):
  optimizer = (_ONE_MORE | _OTHERS)[name]
  once, state = _step(optimizer, one_program=True)
  twice, _ = _step(optimizer, one_program=False)
  found = wanted = (START, state)
  for _ in range(3):
    *found, seen = once(*found)
    *wanted, wanted_seen = twice(*wanted)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
      (found, seen),
      (wanted, wanted_seen),
    )
  if name in _ONE_MORE:
    assert _gradients(once, START, state) == 1
    assert _gradients(twice, START, state) == 2
  else:
    assert _gradients(once, START, state) == _gradients(twice, START, state)
