"""A small loss whose clean and sharp gradients point in different directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def params(dtype=jnp.float32):
  return {
    "kernel": jnp.array([[0.5, -1.0], [0.25, 0.75], [-0.5, 1.5]], dtype),
    "norm": {"scale": jnp.array([1.0, 0.5], dtype)},
  }


def batch(seed=0, size=8, dtype=jnp.float32):
  generator = np.random.default_rng(seed)
  x = generator.normal(size=(size, 3))
  y = generator.normal(size=(size, 2))
  return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def loss(w, data):
  x, y = data
  scale = jnp.broadcast_to(w["norm"]["scale"], y.shape)
  error = jnp.tanh(x @ w["kernel"]) * scale - y
  return jnp.mean(jnp.sum(jnp.square(error), axis=1))


_gradient = jax.jit(jax.grad(loss))


def grad_fn(data):
  return lambda w: _gradient(w, data)


def step(tx, state, w, data, **extra):
  """One step of an optax optimizer, given everything that links ask for."""
  of_batch = lambda w: loss(w, data)
  value, grads = jax.value_and_grad(of_batch)(w)
  updates, state = tx.update(
    grads, state, w, value=value, grad=grads, grad_fn=jax.grad(of_batch), **extra
  )
  return optax.apply_updates(w, updates), state


@functools.cache
def compiled_step(tx):
  return jax.jit(lambda state, w, data: step(tx, state, w, data))


def run(tx, w, batches):
  one = compiled_step(tx)
  state = tx.init(w)
  for data in batches:
    w, state = one(state, w, data)
  return w


def flat(tree):
  """All leaves as one float64 vector, for oracles in NumPy."""
  return np.concatenate(
    [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  )


def unflat(vector, like):
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([x.size for x in leaves])[:-1]
  parts = np.split(np.asarray(vector), ends)
  return jax.tree.unflatten(
    structure,
    [
      jnp.asarray(v.reshape(x.shape), x.dtype)
      for v, x in zip(parts, leaves, strict=True)
    ],
  )


class Oracle:
  """The same loss as functions of one float64 vector."""

  def __init__(self, seeds=range(4)):
    self.like = params(jnp.float64)
    self.start = flat(self.like)
    self.batches = [batch(seed, dtype=jnp.float64) for seed in seeds]

  def gradient(self, w, step):
    return flat(_gradient(unflat(w, self.like), self.batches[step]))


def unit(v):
  return v / np.linalg.norm(v)
