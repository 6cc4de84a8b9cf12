"""The published class splits, which make results comparable.

Omniglot: the alphabets and their sizes are those of Lake et al. (2015, "Human-level
concept learning through probabilistic program induction"). Vinyals et al. (2016,
"Matching networks for one shot learning") keep five background alphabets for
validation and the last 423 evaluation characters, in alphabetical order, for testing.
Finn et al. (2017, "Model-agnostic meta-learning") shuffle all characters and train on
1200, of which their code keeps 100 for validation.

mini-ImageNet: the WordNet ids of the 64 / 16 / 20 classes are Ravi and Larochelle's
(2017, "Optimization as a model for few-shot learning").

CIFAR-FS: the 64 / 16 / 20 classes are those of Bertinetto et al. (2019, "Meta-learning
with differentiable closed-form solvers"), as Torchmeta lists them.

FC100: the superclasses are those of Oreshkin et al. (2018, "TADAM: Task dependent
adaptive metric for improved few-shot learning"), appendix and code.

tieredImageNet: the WordNet ids are those of the CSVs of Ren et al. (2018,
"Meta-learning for semi-supervised few-shot classification"), the numbers of images
those of the paper.

CUB-200-2011: every second species trains, and of the others every second one validates
(Chen et al. 2019, "A closer look at few-shot classification"). Images per species are
counted in the file list of Wah et al. (2011).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jsharp.data import _class_lists

OMNIGLOT_BACKGROUND = {
  "Alphabet_of_the_Magi": 20,
  "Anglo-Saxon_Futhorc": 29,
  "Arcadian": 26,
  "Armenian": 41,
  "Asomtavruli_(Georgian)": 40,
  "Balinese": 24,
  "Bengali": 46,
  "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
  "Braille": 26,
  "Burmese_(Myanmar)": 34,
  "Cyrillic": 33,
  "Early_Aramaic": 22,
  "Futurama": 26,
  "Grantha": 43,
  "Greek": 24,
  "Gujarati": 48,
  "Hebrew": 22,
  "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
  "Japanese_(hiragana)": 52,
  "Japanese_(katakana)": 47,
  "Korean": 40,
  "Latin": 26,
  "Malay_(Jawi_-_Arabic)": 40,
  "Mkhedruli_(Georgian)": 41,
  "N_Ko": 33,
  "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
  "Sanskrit": 42,
  "Syriac_(Estrangelo)": 23,
  "Tagalog": 17,
  "Tifinagh": 55,
}
"""Characters per alphabet of `images_background`: 30 alphabets, 964 characters."""

OMNIGLOT_EVALUATION = {
  "Angelic": 20,
  "Atemayar_Qelisayer": 26,
  "Atlantean": 26,
  "Aurek-Besh": 26,
  "Avesta": 26,
  "Ge_ez": 26,
  "Glagolitic": 45,
  "Gurmukhi": 45,
  "Kannada": 41,
  "Keble": 26,
  "Malayalam": 47,
  "Manipuri": 40,
  "Mongolian": 30,
  "Old_Church_Slavonic_(Cyrillic)": 45,
  "Oriya": 46,
  "Sylheti": 28,
  "Syriac_(Serto)": 23,
  "Tengwar": 25,
  "Tibetan": 42,
  "ULOG": 26,
}
"""Characters per alphabet of `images_evaluation`: 20 alphabets, 659 characters."""

OMNIGLOT_DRAWINGS = 20
"""Every character was drawn once by each of 20 people."""

_VINYALS_VAL_ALPHABETS = frozenset(
  (
    "Armenian",
    "Bengali",
    "Early_Aramaic",
    "Hebrew",
    "Mkhedruli_(Georgian)",
  )
)
_VINYALS_NUM_TEST = 423

FOLDERS = {
  "train": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "test": "test",
}
"""Names of the folder or list of each split."""

NAMES = ("train", "val", "test")

VAL_SHARE, TEST_SHARE = 0.16, 0.2
"""Fractions of the classes when they are divided; the rest is for training."""

Split = dict[str, tuple[str, ...]]
"""Class names under `"train"`, `"val"` and `"test"`."""


class Composition(NamedTuple):
  """The expected classes and images of a dataset.

  Attributes:
    classes: the class names of each split.
    images_per_class: the exact number of images of every class, or the number by class
      name. A class without a number may have any.
    image_size: height and width of an image in pixels.
  """

  classes: Split
  images_per_class: int | Mapping[str, int]
  image_size: int

  def images_of(self, name: str) -> int | None:
    """The number of images that a class must have; None for any.

    Example:
      >>> Composition({"train": ("cat",)}, 600, 32).images_of("cat")
      600
    """
    if isinstance(self.images_per_class, int):
      return self.images_per_class
    return self.images_per_class.get(name)


_RAVI = {
  "train": """
    n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367
    n02089867 n02091831 n02101006 n02105505 n02108089 n02108551 n02108915 n02111277
    n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 n02747177 n02795169
    n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140
    n03347037 n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605
    n03908618 n03924679 n03998194 n04067472 n04243546 n04251144 n04258138 n04275548
    n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 n04604644
    n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613
  """,
  "val": """
    n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792
    n03075370 n03417042 n03535780 n03584254 n03770439 n03773504 n03980874 n09256479
  """,
  "test": """
    n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486
    n02443484 n02871525 n03127925 n03146219 n03272010 n03544143 n03775546 n04146614
    n04149813 n04418357 n04522168 n07613480
  """,
}

MINI_IMAGENET = Composition(
  classes={split: tuple(ids.split()) for split, ids in _RAVI.items()},
  images_per_class=600,
  image_size=84,
)
"""mini-ImageNet: 64 / 16 / 20 classes of 600 images of 84x84 pixels."""

CIFAR_100_SUPERCLASSES = {
  name: tuple(classes.split()) for name, classes in _class_lists.CIFAR_100.items()
}
"""CIFAR-100: 20 superclasses of five classes each, in the order of their labels."""

CIFAR_100_CLASSES = tuple(sorted(sum(CIFAR_100_SUPERCLASSES.values(), ())))
"""CIFAR-100: the 100 classes in the order of their fine labels."""


def _cifar(val: tuple[str, ...], test: tuple[str, ...]) -> Composition:
  train = tuple(name for name in CIFAR_100_CLASSES if name not in (*val, *test))
  return Composition({"train": train, "val": val, "test": test}, 600, 32)


CIFAR_FS = _cifar(
  tuple(_class_lists.CIFAR_FS["val"].split()),
  tuple(_class_lists.CIFAR_FS["test"].split()),
)
"""CIFAR-FS: 64 / 16 / 20 classes of CIFAR-100, 600 images of 32x32 pixels each."""

FC100_SUPERCLASSES = {
  "val": (
    "large_carnivores",
    "large_omnivores_and_herbivores",
    "non-insect_invertebrates",
    "small_mammals",
  ),
  "test": ("aquatic_mammals", "insects", "medium_mammals", "people"),
}
"""FC100: what it validates and tests on; the other 12 superclasses train."""

FC100 = _cifar(
  *(
    tuple(sorted(sum((CIFAR_100_SUPERCLASSES[name] for name in names), ())))
    for names in FC100_SUPERCLASSES.values()
  )
)
"""FC100: 60 / 20 / 20 classes of CIFAR-100, 600 images of 32x32 pixels each."""

TIERED_IMAGENET = Composition(
  classes={
    split: tuple(ids.split()) for split, ids in _class_lists.TIERED_IMAGENET.items()
  },
  images_per_class={},
  image_size=84,
)
"""tieredImageNet: 351 / 97 / 160 classes of 84x84 pixels, of about 1300 images each."""

TIERED_IMAGENET_IMAGES = {"train": 448_695, "val": 124_261, "test": 206_209}
"""tieredImageNet: the number of images of each split."""

_CUB = {
  f"{number:03d}.{name}": int(count)
  for number, (name, count) in enumerate(
    (entry.split(":") for entry in _class_lists.CUB.split()), 1
  )
}

CUB = Composition(
  classes={
    "train": tuple(_CUB)[0::2],
    "val": tuple(_CUB)[1::4],
    "test": tuple(_CUB)[3::4],
  },
  images_per_class=_CUB,
  image_size=84,
)
"""CUB-200-2011: 100 / 50 / 50 species of 41 to 60 images, read at 84x84 pixels."""


def omniglot_characters(alphabets: dict[str, int]) -> tuple[str, ...]:
  """The class names `alphabet/characterNN` of some alphabets, in their order.

  Example:
    >>> omniglot_characters({"Angelic": 2})
    ('Angelic/character01', 'Angelic/character02')
  """
  return tuple(
    f"{alphabet}/character{number:02d}"
    for alphabet, size in alphabets.items()
    for number in range(1, size + 1)
  )


def vinyals() -> Split:
  """Vinyals' split of Omniglot: 1028 / 172 / 423 characters.

  Returns:
    The class names of each split. Only Gurmukhi is cut in two: its last four
    characters are test classes, its first 41 train classes.

  Example:
    >>> {name: len(classes) for name, classes in vinyals().items()}
    {'train': 1028, 'val': 172, 'test': 423}
  """
  background = omniglot_characters(OMNIGLOT_BACKGROUND)
  evaluation = omniglot_characters(OMNIGLOT_EVALUATION)
  val = tuple(
    name for name in background if name.split("/")[0] in _VINYALS_VAL_ALPHABETS
  )
  train = tuple(name for name in background if name not in val)
  return {
    "train": train + evaluation[:-_VINYALS_NUM_TEST],
    "val": val,
    "test": evaluation[-_VINYALS_NUM_TEST:],
  }


def mixed(seed: int = 0) -> Split:
  """Finn's kind of Omniglot split: 1100 / 100 / 423 characters drawn at random.

  The published code shuffles without a fixed seed, so its exact split is unknown; this
  split is a function of `seed`.

  Example:
    >>> {name: len(classes) for name, classes in mixed().items()}
    {'train': 1100, 'val': 100, 'test': 423}
  """
  names = omniglot_characters(OMNIGLOT_BACKGROUND | OMNIGLOT_EVALUATION)
  order = permutation(names, seed)
  return {"train": order[:1100], "val": order[1100:1200], "test": order[1200:]}


def divided(names: tuple[str, ...], seed: int, *, least: int = 2) -> Split:
  """Divides classes at random: 16 % validation, 20 % test, the rest training.

  Both fractions are rounded to the nearest number of classes. mini-ImageNet's 64 / 16 /
  20 classes have the same fractions.

  Args:
    names: the names of the classes, in any order.
    seed: decides, together with the names, the split of each class.
    least: the minimum number of classes per split; a task needs two.

  Raises:
    ValueError: if there are too few classes.

  Example:
    >>> divided(tuple("abcdefg"), 0)
    {'train': ('a', 'e', 'f'), 'val': ('c', 'g'), 'test': ('b', 'd')}
  """
  if len(names) < least * len(NAMES):
    raise ValueError(
      f"{len(names)} classes ({', '.join(sorted(names))}) are too few to divide: "
      f"train, val and test need {least} each."
    )
  order = permutation(tuple(sorted(names)), seed)
  num_val, num_test = (
    max(least, round(share * len(order))) for share in (VAL_SHARE, TEST_SHARE)
  )
  parts = (order[num_val + num_test :], order[:num_val], order[num_val:][:num_test])
  return {split: tuple(sorted(part)) for split, part in zip(NAMES, parts, strict=True)}


def permutation(names: tuple[str, ...], seed: int) -> tuple[str, ...]:
  """A random order of `names` that depends only on `seed` and the names.

  Example:
    >>> permutation(("a", "b", "c", "d"), 0)
    ('c', 'd', 'b', 'a')
  """
  # RandomState's stream is frozen for all NumPy versions; Generator's is not.
  order = np.random.RandomState(seed).permutation(len(names))
  return tuple(names[index] for index in order)
