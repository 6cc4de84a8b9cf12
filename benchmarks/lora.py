"""Compares MAML over low-rank adapters with full MAML: memory, time and loss.

Question: what does it cost to adapt a few parameters of a transformer instead of all?

    python -m benchmarks.lora

Tasks are the topics of Python's own help texts (`pydoc_data.topics`): from 4 windows of
64 characters of a topic to the next characters in 4 other windows of it. Every fourth
topic is for testing. A transformer is first trained on windows of all training topics,
then meta-trained from there for the same number of steps by full MAML, by MAML over
adapters with all else meta-learned, and with all else frozen. The loss is in nats per
character, on 200 fixed test tasks, before and after adaptation; memory is what the
compiler reserves for a step in addition to its arguments.
"""

import functools
import pydoc_data.topics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jsharp
from jsharp import losses, models
from jsharp.evaluation import mean_and_ci95
from jsharp.evaluation.report import git_commit
from jsharp.types import Batch, MetaAlgorithm, Task

_PRETRAINING = flags.DEFINE_integer("pretraining_steps", 1500, "Steps of pretraining.")
_STEPS = flags.DEFINE_integer("steps", 300, "Meta-steps of each kind.")
_TASKS = flags.DEFINE_integer("eval_tasks", 200, "Test tasks.")
_RANK = flags.DEFINE_integer("rank", 4, "Rank of the adapters.")
_WIDTH = flags.DEFINE_integer("width", 64, "Width of the transformer.")

LENGTH, SHOT, NUM_TASKS, INNER_STEPS, VOCABULARY = 64, 4, 4, 3, 96


class Texts(NamedTuple):
  """Topics, one after another.

  Attributes:
    tokens: `[num_characters]` int32; 0 for all but printable ASCII.
    starts: `[num_topics]` int32.
    sizes: `[num_topics]` int32, numbers of windows that fit.
  """

  tokens: jax.Array
  starts: jax.Array
  sizes: jax.Array


def load() -> tuple[Texts, Texts]:
  """Training and test topics, those long enough for eight windows."""
  texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
  texts = [text for text in texts if len(text) >= 16 * LENGTH]
  parts = [t for i, t in enumerate(texts) if i % 4], texts[::4]
  train, test = map(_texts, parts)
  return train, test


def _texts(texts: Sequence[str]) -> Texts:
  tokens: list[np.ndarray] = []
  starts: list[int] = []
  sizes: list[int] = []
  for text in texts:
    codes = np.array([ord(c) - 31 if 32 <= ord(c) < 127 else 0 for c in text])
    starts.append(sum(len(part) for part in tokens))
    sizes.append(len(codes) - LENGTH - 1)
    tokens.append(codes)
  return Texts(
    jnp.asarray(np.concatenate(tokens), jnp.int32),
    jnp.asarray(starts, jnp.int32),
    jnp.asarray(sizes, jnp.int32),
  )


def windows(key: jax.Array, texts: Texts, topics: jax.Array) -> Batch:
  """A random window of each topic: characters, and the next character of each."""
  places = jax.random.uniform(key, topics.shape)
  begin = texts.starts[topics] + (places * texts.sizes[topics]).astype(jnp.int32)
  rows = texts.tokens[begin[:, None] + jnp.arange(LENGTH + 1)[None]]
  return Batch(rows[:, :-1], rows[:, 1:])


def task(key: jax.Array, texts: Texts) -> Task:
  """Windows of one topic to learn from, and others to predict."""
  of_topic, of_windows = jax.random.split(key)
  topic = jax.random.randint(of_topic, (), 0, len(texts.starts))
  rows = windows(of_windows, texts, jnp.full(2 * SHOT, topic))
  support, query = (
    jax.tree.map(lambda x, part=part: x[part], rows)
    for part in (slice(SHOT), slice(SHOT, None))
  )
  return Task(support, query)


def loss_of(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
  """Mean cross-entropy of the next characters."""

  def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits = apply_fn(params, batch.inputs)
    return losses.cross_entropy(logits.reshape(-1, VOCABULARY), batch.targets.ravel())

  return loss_fn


def pretrained(apply_fn: Any, params: Any, texts: Texts) -> Any:
  """The network trained on windows of all topics."""
  optimizer, loss_fn = optax.adam(3e-3), loss_of(apply_fn)

  def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
    params, state = carry
    key = jax.random.fold_in(jax.random.key(1), number)
    topics = jax.random.randint(key, (16,), 0, len(texts.starts))
    batch = windows(jax.random.fold_in(key, 0), texts, topics)
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss

  steps = jnp.arange(_PRETRAINING.value)
  scan = jax.jit(functools.partial(jax.lax.scan, step))
  (params, _), found = scan((params, optimizer.init(params)), steps)
  print(f"pretrained: {float(found[-100:].mean()):.3f} nats per character\n")
  return params


def measure(name: str, algorithm: MetaAlgorithm, start: Any, adapting: int) -> None:
  """Meta-trains, tests and prints a row."""
  train, test = load()
  state = algorithm.init(start)

  def tasks_of(number: Any) -> Task:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(2), number), NUM_TASKS)
    return jax.vmap(lambda key: task(key, train))(keys)

  tasks = tasks_of(0)
  compiled = jax.jit(algorithm.step).lower(state, tasks).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  state, _ = compiled(state, tasks)
  draw = jax.jit(tasks_of)
  begin = time.perf_counter()
  for number in range(1, _STEPS.value):
    state, _ = compiled(state, draw(number))
  jax.block_until_ready(state)
  seconds = (time.perf_counter() - begin) / max(1, _STEPS.value - 1)

  @jax.jit
  def tested(params: Any, number: jax.Array) -> list[jax.Array]:
    one = task(jax.random.fold_in(jax.random.key(3), number), test)
    return [
      loss_fns[name](algorithm.adapt(params, one.support, num_steps=steps), one.query)[
        0
      ]
      for steps in (0, INNER_STEPS)
    ]

  found = np.array([tested(state.params, i) for i in range(_TASKS.value)])
  cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in map(mean_and_ci95, found.T)]
  gain, half = mean_and_ci95(found[:, 0] - found[:, 1])
  print(
    f"| {name} | {adapting:,} | {memory.temp_size_in_bytes / 2**20:.1f} "
    f"| {1000 * seconds:.0f} | {' | '.join(cells)} | {gain:.3f} ± {half:.3f} |",
    flush=True,
  )


loss_fns: dict[str, Callable[..., Any]] = {}


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  print(
    f"commit {git_commit(Path(__file__).parents[1])}, jax {jax.__version__}, "
    f"{jax.devices()[0].device_kind} x {jax.device_count()}"
  )
  model = models.Transformer(
    vocabulary=VOCABULARY, length=LENGTH, width=_WIDTH.value, num_layers=2, num_heads=4
  )
  init_fn, apply_fn = models.as_functions(model)
  params = init_fn(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))
  params = pretrained(apply_fn, params, load()[0])
  with_adapters = models.with_adapters(
    jax.random.key(4), params, rank=_RANK.value, where=attention_and_mlp
  )
  print(
    "| MAML over | numbers that adapt | memory, MiB | ms per meta-step | loss before "
    "| after | gain |\n" + "|---" * 7 + "|"
  )
  kinds = {
    "everything": (apply_fn, params, None, 0.1),
    "adapters, all meta-learned": (
      models.lora(apply_fn),
      with_adapters,
      models.adapters_alone,
      1.0,
    ),
    "adapters, all else frozen": (
      models.lora(apply_fn, frozen=True),
      with_adapters,
      models.adapters_alone,
      1.0,
    ),
  }
  for name, (network, start, mask, rate) in kinds.items():
    loss_fns[name] = loss_of(network)
    algorithm = jsharp.maml(
      loss_fns[name],
      optax.sgd(rate),
      optax.adam(1e-3),
      num_inner_steps=INNER_STEPS,
      adapted_mask=mask,
    )
    tree = start.adapters if mask else start
    measure(name, algorithm, start, sum(x.size for x in jax.tree.leaves(tree)))


def attention_and_mlp(params: Any) -> Any:
  """The matrices of the blocks, not the tables and the head."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: "block" in jax.tree_util.keystr(path) and leaf.ndim == 2, params
  )


if __name__ == "__main__":
  app.run(main)
