"""A class-balanced subset of the training set."""

from collections.abc import Sequence

import numpy as np


def balanced_subset(
  labels: np.ndarray, num_examples: int, class_names: Sequence[str], *, seed: int
) -> np.ndarray:
  """Chooses random examples, with class counts that differ by at most one.

  They are the first examples of an order that depends on `seed` and `labels`, so a
  smaller subset is contained in a larger one.

  Args:
    labels: `[num_labels]` integers in `[0, len(class_names))`, on the host.
    num_examples: the number of examples to choose.
    class_names: one per class, for the errors.
    seed: decides which examples, independently of the machine.

  Returns:
    `[num_examples]` distinct indices of `labels`, ascending.

  Raises:
    ValueError: if `num_examples` is less than one per class, or more than can be
      balanced.

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> chosen = balanced_subset(labels, 5, ("circle", "cross"), seed=0)
    >>> labels[chosen].tolist()
    [0, 0, 1, 1, 1]
  """
  num_classes = len(class_names)
  counts = np.bincount(labels, minlength=num_classes)
  smallest = int(np.argmin(counts))
  most = int(np.minimum(counts, counts[smallest] + 1).sum())
  if num_examples < num_classes:
    raise ValueError(
      f"num_examples is {num_examples}, but there are {num_classes} classes; choose "
      "at least one example of each"
    )
  if num_examples > most:
    raise ValueError(
      f"num_examples is {num_examples}, but there are {len(labels)} examples, "
      f"{counts[smallest]} of the class {class_names[smallest]}; choose at most "
      f"{most}, so that class counts differ by at most one"
    )
  # RandomState's stream is frozen for all NumPy versions; Generator's is not.
  generator = np.random.RandomState(seed)
  classes = generator.permutation(num_classes)
  order = generator.permutation(len(labels))
  num_each, num_more = divmod(num_examples, num_classes)
  with_more = [label for label in classes if counts[label] > num_each][:num_more]
  by_class = order[np.argsort(labels[order], kind="stable")]
  members = np.split(by_class, np.cumsum(counts)[:-1])
  chosen = [
    members[label][: num_each + (label in with_more)] for label in range(num_classes)
  ]
  return np.sort(np.concatenate(chosen))
