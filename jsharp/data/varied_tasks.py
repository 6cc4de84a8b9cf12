"""Tasks of varying way with unbalanced support sets, from several domains.

This is Meta-Dataset's protocol (Triantafillou et al. 2020, arXiv 1903.03096, section
3.2) with the fixed shapes that a compiled step needs. A task has one domain, chosen
uniformly; a uniform number of classes from `min_way` to `way`; and `num_support`
examples: one per class, the others in proportion to the class's size times
`exp(uniform(log 0.5, log 2))`, as far as it has images. In the query set, class counts
differ by at most one. Labels start at 0; labels from the number of classes up to `way`
have no examples, and algorithms for any number of classes never predict them.

Two things differ from that protocol: the number of support examples is fixed, while
there it is random, up to 500; and classes are drawn without the hierarchies of ImageNet
and Omniglot.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.data.dataset import Dataset
from jsharp.data.episodes import draw_distinct, gathered
from jsharp.types import Batch, Task


def check_varied_shape(
  dataset: Dataset, *, way: int, min_way: int, num_support: int, num_query: int
) -> tuple[int, int]:
  """Checks that the dataset is large enough for varied tasks.

  Args:
    dataset: where the images come from.
    way: the largest number of classes in a task.
    min_way: the smallest number of classes in a task.
    num_support: support examples of a task.
    num_query: query examples of a task.

  Returns:
    The largest numbers of support and query examples of one class.

  Raises:
    ValueError: if a domain has fewer than `way` classes, or a class has too few images;
      the message names it.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> check_varied_shape(dataset, way=2, min_way=2, num_support=4, num_query=4)
    (3, 2)
  """
  if not 2 <= min_way <= way:
    raise ValueError(f"min_way is {min_way}; it must lie between 2 and way={way}")
  for name, number in (("num_support", num_support), ("num_query", num_query)):
    if number < way:
      raise ValueError(f"{name} is {number}; give way={way} or more, one per class")
  if dataset.num_rotations > 1 and dataset.domains:
    raise ValueError("a dataset of several domains cannot have rotated classes")
  for name, size in dataset.domains or ((dataset.split, dataset.num_classes),):
    if size < way:
      raise ValueError(
        f"way is {way}, but the smallest domain, {name}, has {size} classes in split "
        f"{dataset.split!r}: use way <= {size}"
      )
  most_query = -(-num_query // min_way)
  most_support = num_support - min_way + 1
  name, count = dataset.smallest
  if min_way * min(most_support, count - most_query) < num_support:
    raise ValueError(
      f"a task of {min_way} classes needs {num_support} support and {num_query} query "
      f"images, but class {name!r} of split {dataset.split!r} has {count} images: "
      "lower shot or query_shot, or raise min_way"
    )
  return most_support, most_query


def sample_varied_task(
  key: jax.Array,
  dataset: Dataset,
  *,
  way: int,
  min_way: int,
  num_support: int,
  num_query: int,
  domain: int | None = None,
) -> Task:
  """Draws one task; a pure function, to be compiled with `dataset` as an argument.

  Args:
    key: a typed key.
    dataset: where the images come from (`Dataset.on_device` or `on_host`).
    way: the largest number of classes in a task.
    min_way: the smallest number of classes in a task.
    num_support: support examples of a task.
    num_query: query examples of a task.
    domain: the domain to use; None draws one.

  Returns:
    A task with inputs `[num_support, height, width, channels]` float32 in [0, 1] and
    int32 targets, class after class; the query set likewise.

  Raises:
    ValueError: see `check_varied_shape`.

  Example:
    >>> images = np.zeros([9, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays(dict.fromkeys("abcd", images), split="val")
    >>> task = sample_varied_task(
    ...   jax.random.key(0), dataset, way=4, min_way=2, num_support=8, num_query=4)
    >>> task.support.inputs.shape, sorted(set(task.support.targets.tolist()))
    ((8, 8, 8, 1), [0, 1])
  """
  most_support, most_query = check_varied_shape(
    dataset, way=way, min_way=min_way, num_support=num_support, num_query=num_query
  )
  keys = jax.random.split(key, 6)
  sizes = [size for _, size in dataset.domains] or [dataset.num_classes]
  if domain is None:
    number = jax.random.randint(keys[0], (), 0, len(sizes))
  else:
    number = jnp.int32(domain)
  firsts = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)
  size = jnp.asarray(sizes, jnp.int32)[number]
  classes = firsts[number] + draw_distinct(keys[1], size, way)
  rotation, base = jnp.divmod(classes, jnp.int32(dataset.num_base_classes))
  num_classes = jax.random.randint(keys[2], (), min_way, way + 1)
  counts = jnp.asarray(dataset.counts, jnp.int32)[base]

  # Gumbel top-k: examples without replacement, each with its class's weight.
  weights = jax.random.uniform(keys[3], (way,), minval=jnp.log(0.5), maxval=jnp.log(2))
  # A class's weight is shared by the examples that it offers besides the first.
  others = jnp.clip(counts - most_query, 2, most_support) - 1
  weights += jnp.log(counts.astype(jnp.float32) / others.astype(jnp.float32))
  scores = weights[:, None] + jax.random.gumbel(keys[4], (way, most_support))
  scores = scores.at[:, 0].set(jnp.inf)  # One of each.
  present = jnp.arange(way) < num_classes
  has_image = jnp.arange(most_support)[None] < counts[:, None] - most_query
  scores = jnp.where(present[:, None] & has_image, scores, -jnp.inf)
  _, chosen = jax.lax.top_k(scores.ravel(), num_support)
  labels, places = jnp.divmod(jnp.sort(chosen).astype(jnp.int32), most_support)

  asked = jnp.arange(num_query, dtype=jnp.int32)
  query_labels, turns = asked % num_classes, asked // num_classes
  order = jnp.argsort(query_labels * num_query + turns)
  query_labels, turns = query_labels[order], turns[order]

  within = draw_distinct(keys[5], counts, most_query + most_support)
  rows = jnp.asarray(dataset.offsets, jnp.int32)[base][:, None] + within

  def batch(labels: jax.Array, columns: jax.Array) -> Batch:
    chosen = rows[labels, columns][:, None]
    return Batch(gathered(dataset, chosen, rotation[labels]), labels)

  return Task(
    support=batch(labels, most_query + places), query=batch(query_labels, turns)
  )
