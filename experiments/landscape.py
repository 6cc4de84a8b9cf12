r"""The loss landscape around trained networks, and how sharp it is.

Do the sharpness-aware runs lie in flatter places, and do flatter ones generalise
better? Finished runs are measured on the same tasks and drawn side by side.

  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/A-and-B
  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/lines \
    --dimensions=1
  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/paths \
    --plane=path

A run is a directory that experiments.omniglot or experiments.miniimagenet has finished.
The same command goes on where it was interrupted; with another --ceiling it draws the
pictures again. docs/landscapes.md says what is measured.
"""

import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging

from experiments import validators

OBJECTIVES = ("meta", "task", "adapted")

# They change how long a start takes, how it is shown and where things lie.
BENIGN = ["runs", "out", "ceiling", "data_dir", "compilation_cache_dir"]


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  f = flag_values
  flags.DEFINE_list(
    "runs", None, "Directories of finished runs, separated by commas.", flag_values=f
  )
  flags.DEFINE_string(
    "out",
    None,
    "Directory for the pictures, the numbers and what was computed so far.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "checkpoint",
    "best",
    ("best", "last"),
    "Which parameters: the best ones of the validation, which the run was tested with, "
    "or the last ones.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "objective",
    "meta",
    OBJECTIVES,
    "Whose landscape. meta: the query loss after adaptation, as a function of the "
    "meta-parameters; task: their query loss without adaptation; adapted: the query "
    "loss around each task's own adapted parameters.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "split", "test", ("train", "val", "test"), "Classes of the tasks.", flag_values=f
  )
  flags.DEFINE_integer("num_tasks", 20, "Tasks that are averaged.", flag_values=f)
  flags.DEFINE_integer(
    "seed", 0, "Seed of tasks, directions and random vectors.", flag_values=f
  )
  _define_grid(f)
  _define_measures(f)
  flags.DEFINE_integer(
    "task_chunk",
    None,
    "Tasks computed at once: memory against speed. Default: 1 on a CPU, all on an "
    "accelerator.",
    flag_values=f,
  )
  flags.DEFINE_string(
    "data_dir",
    None,
    "Where the data lie now, if not where they were in training.",
    flag_values=f,
  )
  flags.DEFINE_string(
    "compilation_cache_dir",
    "~/.cache/jsharp/xla",
    "As for training: compiled programs, for you alone. Empty: no cache.",
    flag_values=f,
  )
  positive = validators.positive
  positive(
    ("grid", "num_tasks", "point_chunk", "task_chunk"),
    f,
    "give a number of at least 1.",
  )
  positive(("extent", "ceiling"), f, "usual extents are 0.2 to 1.")
  validators.seeds(("seed",), f)
  for name in ("runs", "out"):
    flags.mark_flag_as_required(name, f)


def _define_grid(f: flags.FlagValues) -> None:
  flags.DEFINE_enum(
    "dimensions",
    "2",
    ("1", "2"),
    "2: a plane, contours and surfaces; 1: a line, with a band over tasks.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "plane",
    "random",
    ("random", "path"),
    "random: the same random directions for all runs, each scaled to its own filters; "
    "path: for each run the two directions that explain most of its own way through "
    "training, which runs with --keep_path have kept. Their units are distances.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "grid", 25, "Points along each axis; an odd number has the centre.", flag_values=f
  )
  flags.DEFINE_float(
    "extent",
    1.0,
    "The axes go from minus to plus this; at 1 a filter is moved by its own length. "
    "With --plane=path a factor: at 1 the whole path lies inside, less comes closer to "
    "the drawn parameters.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "orthogonal",
    False,
    "Make the second direction exactly orthogonal to the first one, filter by filter; "
    "random ones are nearly so.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "keep_vectors",
    False,
    "Move biases and the parameters of normalisation too.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "point_chunk",
    1,
    "Points computed at once: memory against speed on an accelerator.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "ceiling", None, "Values above are drawn at this height.", flag_values=f
  )


def _define_measures(f: flags.FlagValues) -> None:
  flags.DEFINE_boolean(
    "measure", True, "Measure sharpness too, and not only draw.", flag_values=f
  )
  flags.DEFINE_list(
    "radii", ["0.05", "0.5"], "Radii of the worst-case rise, a list.", flag_values=f
  )
  flags.DEFINE_list(
    "adaptive_radii",
    ["0.5"],
    "The same relative to the size of each parameter.",
    flag_values=f,
  )
  flags.DEFINE_list(
    "average_radii",
    ["1"],
    "Radii of the average rise, a list. Random vectors are nearly orthogonal to all "
    "sharp directions, so these radii are larger.",
    flag_values=f,
  )
  flags.DEFINE_list(
    "adaptive_average_radii",
    ["10"],
    "The same relative to the size of each parameter.",
    flag_values=f,
  )
  for name, default, what in (
    ("ascent_steps", 10, "Steps of the search for the worst case."),
    ("trace_samples", 20, "Random vectors for the trace of the Hessian."),
    ("average_samples", 20, "Pairs of random perturbations for the average rise."),
    ("hessian_steps", 15, "Lanczos steps for the largest eigenvalue."),
    ("gap_tasks", 200, "Tasks of the training and of the test classes for the gap."),
  ):
    flags.DEFINE_integer(name, default, what, flag_values=f)
  for name in (
    "radii",
    "adaptive_radii",
    "average_radii",
    "adaptive_average_radii",
  ):
    flags.register_validator(
      name,
      _are_radii,
      message="needs positive numbers separated by commas, as in 0.05,0.5; empty for "
      "none.",
      flag_values=f,
    )
  validators.positive(
    ("ascent_steps", "hessian_steps"), f, "give a number of at least 1."
  )
  for name in ("trace_samples", "average_samples", "gap_tasks"):
    flags.register_validator(
      name,
      lambda value: value >= 2,
      message="a standard error needs at least 2.",
      flag_values=f,
    )


def _are_radii(values: list[str]) -> bool:
  try:
    return all(0 < float(value) < float("inf") for value in values)
  except ValueError:
    return False


def run(flag_values: flags.FlagValues) -> int:
  """Measures, draws and reports; returns the exit code.

  Codes are those of `experiments.program`: 0 done, 2 refused, 130 and 143 interrupted.
  """
  ours = flags.FlagValues()
  define_flags(ours)
  options = {name: flag_values[name].value for name in ours}

  from experiments import landscape_runs

  try:
    _check(options)
    runs = landscape_runs.read(
      options["runs"] or [],
      measure=bool(options["measure"]),
      need_path=options["plane"] == "path",
    )
  except (ValueError, OSError) as error:
    return _refuse(error)

  # Only now: they import JAX.
  from experiments import landscape_session

  try:
    return landscape_session.run(options, runs, benign=BENIGN)
  except (ValueError, OSError) as error:
    return _refuse(error)


def _check(options: Mapping[str, Any]) -> None:
  """Refuses flags that say nothing of the plane of a path."""
  if options["plane"] != "path":
    return
  if options["dimensions"] != "2":
    raise ValueError("--plane=path is a plane, no line; take --dimensions=2")
  for name in ("orthogonal", "keep_vectors"):
    if options[name]:
      raise ValueError(
        f"--{name} is about random directions, and those of --plane=path are "
        f"orthogonal and move all parameters; leave --{name} out"
      )


def _refuse(error: Exception) -> int:
  message = getattr(error, "strerror", None) or str(error)
  print(f"landscape: {message.replace('run_dir=', '--out=')}", file=sys.stderr)
  return 2


def _start() -> None:
  define_flags(flags.FLAGS)

  def parse(arguments: list[str]) -> list[str]:
    try:
      return flags.FLAGS(arguments)
    except flags.Error as error:
      print(f"landscape: {error}\n--help lists every flag.", file=sys.stderr)
      sys.exit(2)

  def main(arguments: list[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    if len(arguments) > 1:
      print(
        f"landscape: {arguments[1]!r} is no flag; flags start with --.", file=sys.stderr
      )
      return 2
    return run(flags.FLAGS)

  app.run(main, flags_parser=parse)


if __name__ == "__main__":
  _start()
