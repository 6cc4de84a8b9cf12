"""The flags of the image experiments: their data and their models."""

from collections.abc import Iterable, Sequence

from absl import flags

from experiments import resource_flags
from experiments.validators import positive

DATASETS = ("omniglot", "miniimagenet", "characters", "image_folder")
MODELS = ("conv4", "conv4_strided", "mlp")
OMNIGLOT_SPLITS = ("vinyals", "mixed")

flags.disclaim_key_flags()  # as in common_flags.py


def define_classification(flag_values: flags.FlagValues) -> None:
  """Defines the flags of the classification data and models."""
  f = flag_values
  flags.DEFINE_string(
    "dataset",
    None,
    "What to learn from in place of the experiment's own data: omniglot, "
    "miniimagenet, characters (drawn by jsharp itself, needs no files), image_folder "
    "(any split/class/image) or tfds:NAME (already prepared by tensorflow-datasets).",
    flag_values=f,
  )
  flags.DEFINE_string(
    "data_dir", None, "Directory that holds the files of the dataset.", flag_values=f
  )
  flags.DEFINE_enum(
    "omniglot_split",
    "vinyals",
    OMNIGLOT_SPLITS,
    "Characters of each Omniglot split: vinyals (1028 / 172 / 423) or mixed (1100 / "
    "100 / 423 drawn at random, as in MAML's code).",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "rotate_test",
    False,
    "Omniglot: rotated characters are further classes in the test split too, as in "
    "MAML's code, and not in training and validation only.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "image_size",
    None,
    "Height and width in pixels that images are resized to or drawn in. Default: 28 "
    "for omniglot and characters, 84 for image_folder; miniimagenet and tfds come as "
    "they are.",
    flag_values=f,
  )
  flags.DEFINE_integer("way", 5, "Classes per task.", flag_values=f)
  flags.DEFINE_enum(
    "model",
    "conv4",
    MODELS,
    "conv4: four convolutions with max-pooling; conv4_strided: with stride 2 in place "
    "of pooling, the fast one; mlp: the net without convolutions, 256-128-64-64.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_filters", 64, "Filters per convolution of the conv4 models.", flag_values=f
  )
  flags.DEFINE_boolean(
    "adapt_norm",
    False,
    "Let the inner loop change the normalisation's scale and offset too. By default "
    "they are meta-learned only, as in the authors' code.",
    flag_values=f,
  )
  positive(("image_size", "num_filters"), f, "give a number of at least 1.")
  flags.register_validator(
    "way",
    lambda value: value >= 2,
    message="a task needs at least 2 classes.",
    flag_values=f,
  )
  one_of_datasets(("dataset",), f, DATASETS)
  resource_flags.define_images(f)


def one_of_datasets(
  names: Iterable[str], flag_values: flags.FlagValues, datasets: Sequence[str]
) -> None:
  """Makes flags refuse other datasets and tfds:NAME; None is their default."""
  for name in names:
    flags.register_validator(
      name,
      lambda value: value is None or value in datasets or is_tfds(value),
      message=f"choose one of {', '.join(datasets)} or tfds:NAME.",
      flag_values=flag_values,
    )


def is_tfds(dataset: str) -> bool:
  """Whether the dataset is one of tensorflow-datasets, `tfds:NAME`."""
  return dataset.startswith("tfds:") and len(dataset) > len("tfds:")
