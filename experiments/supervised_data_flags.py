"""The flags of ordinary classification that say what is learned by what network."""

from absl import flags

from experiments.classification_flags import one_of_datasets
from experiments.validators import positive, seeds

DATASETS = ("characters", "image_folder")
MODELS = ("resnet", "wide_resnet")
AUGMENTATIONS = ("none", "basic", "cutout")

flags.disclaim_key_flags()  # as in common_flags.py


def define_data(flag_values: flags.FlagValues) -> None:
  """Defines the flags of the data."""
  f = flag_values
  flags.DEFINE_string(
    "dataset",
    "characters",
    "characters (drawn by jsharp itself, needs no files; of each class 15 drawings for "
    "training and 5 for testing), image_folder (train/CLASS/IMAGE and "
    "test/CLASS/IMAGE, the same classes in both) or tfds:NAME (already prepared by "
    "tensorflow-datasets, as tfds:cifar10).",
    flag_values=f,
  )
  flags.DEFINE_string(
    "data_dir",
    None,
    "Directory that holds the files of the dataset; image_folder: or a tar or zip.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "image_size",
    None,
    "Height and width in pixels that images are resized to or drawn in. Default: 28 "
    "for characters, others as they are.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_characters",
    20,
    "characters: how many of the 320 training classes are used.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "val_fraction",
    0.0,
    "Share of the training images held out for validation, before label noise; the "
    "parameters that are best on them are tested. 0: nothing is held out and the last "
    "parameters are tested, as in the papers. Not with data that have a val split.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "train_examples",
    None,
    "Train on that many of the training images only, the first ones of a random order "
    "in which the classes take turns; chosen after --val_fraction and before label "
    "noise. Default: all.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "label_noise",
    0.0,
    "Share of the training labels that are drawn anew, from 0 to 1.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "label_noise_other_classes",
    False,
    "Draw wrong labels from the other classes only, so that exactly the share "
    "--label_noise is wrong. By default from all classes, the true one included.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "data_seed",
    0,
    "Seed of what is held out, of --train_examples and of the label noise; apart from "
    "--seed, so that runs of several seeds have the same data.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "augment",
    "none",
    AUGMENTATIONS,
    "basic: shift by up to 4 pixels and mirror (characters are not mirrored); cutout: "
    "and blank a square of 16 pixels.",
    flag_values=f,
  )
  one_of_datasets(("dataset",), f, DATASETS)
  flags.register_validator(
    "val_fraction",
    lambda value: 0 <= value < 1,
    message="must be at least 0 and below 1; 0.1 is a tenth.",
    flag_values=f,
  )
  flags.register_validator(
    "label_noise",
    lambda value: 0 <= value <= 1,
    message="must lie between 0 and 1; 0.4 is 40 percent.",
    flag_values=f,
  )
  flags.register_validator(
    "num_characters",
    lambda value: 2 <= value <= 320,
    message="must lie between 2 and 320.",
    flag_values=f,
  )
  seeds(("data_seed",), f)
  positive(("image_size", "train_examples"), f, "give a number of at least 1.")


def define_model(flag_values: flags.FlagValues) -> None:
  """Defines the flags of the network."""
  f = flag_values
  flags.DEFINE_enum(
    "model",
    "resnet",
    MODELS,
    "resnet: the small one for CIFAR, 16-32-64 channels; wide_resnet: pre-activation.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "depth",
    8,
    "Layers with weights: 6n + 2 for resnet (8, 20, 32, 56), 6n + 4 for wide_resnet "
    "(10, 16, 28, 40).",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "widen", 2, "Factor of the channels of wide_resnet.", flag_values=f
  )
  positive(("depth", "widen"), f, "give a number of at least 1.")
