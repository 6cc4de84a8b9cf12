"""A decoder-only transformer: token by token in NumPy, and the past alone."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.models import Transformer, as_functions

MODEL = Transformer(vocabulary=7, length=5, width=6, num_layers=1, num_heads=2)
TOKENS = jnp.array([[0, 3, 3, 6, 1], [5, 4, 0, 2, 2]])


def normalised(x, params):
  centred = x - x.mean()
  unit = centred / np.sqrt((centred**2).mean() + 1e-6)
  return unit * params["scale"] + params["offset"]


def linear(x, params):
  return x @ params["kernel"] + params["bias"]


def softmax(x):
  powers = np.exp(x - x.max())
  return powers / powers.sum()


def token_by_token(params, tokens):
  """The last token's logits, one head and one past token at a time."""
  params = jax.tree.map(np.asarray, params)
  block = params["block_0"]
  vectors = [
    params["tokens"][token] + params["positions"][place]
    for place, token in enumerate(tokens)
  ]
  read = [normalised(x, block["norm_0"]) for x in vectors]
  seen = []
  for head in (slice(0, 3), slice(3, 6)):
    asked = linear(read[-1], block["ask"])[head]
    keys = [linear(x, block["key"])[head] for x in read]
    values = np.stack([linear(x, block["value"])[head] for x in read])
    seen.append(softmax(np.array([asked @ key / 3**0.5 for key in keys])) @ values)
  x = vectors[-1] + linear(np.concatenate(seen), block["out"])
  hidden = np.asarray(jax.nn.gelu(linear(normalised(x, block["norm_1"]), block["up"])))
  x = x + linear(hidden, block["down"])
  return linear(normalised(x, params["norm"]), params["head"])


class TransformerTest(parameterized.TestCase):
  def test_every_next_token_by_numpy(self):
    with jax.enable_x64(True):
      init_fn, apply_fn = as_functions(MODEL)
      params = init_fn(jax.random.key(0), TOKENS)
      params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
      found = jax.jit(apply_fn)(params, TOKENS)
      for text, tokens in enumerate(np.asarray(TOKENS)):
        for last in range(1, 6):
          np.testing.assert_allclose(
            found[text, last - 1], token_by_token(params, tokens[:last]), rtol=1e-9
          )

  @parameterized.parameters(
    (jnp.zeros((1, 6), jnp.int32), "at most 5.; got int32 .1, 6."),
    (jnp.zeros((1, 5)), "must be integers"),
  )
  def test_refuses(self, tokens, message):
    with self.assertRaisesRegex(ValueError, message):
      MODEL.init(jax.random.key(0), tokens)


if __name__ == "__main__":
  absltest.main()
