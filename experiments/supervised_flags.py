"""The flags of ordinary classification, and what can be refused before JAX starts."""

from types import SimpleNamespace

from absl import flags

from experiments import common_flags, supervised_data_flags
from experiments.validators import norms, positive

SCHEDULES = ("cosine", "constant")

# Which of the flags that not every algorithm has are arguments of which constructor.
ALGORITHMS = {
  "sgd": (),
  "sam": ("p", "adaptive", "eta"),
  "asam": ("p", "eta"),
  "gsam": ("p", "alpha"),
  "wsam": ("p", "gamma"),
  "looksam": ("p", "alpha"),
  "friendly_sam": ("p", "sigma", "decay"),
  "vasso": ("p", "decay"),
  "momentum_sam": ("p",),
}
_OPTIONS = ("rho", "p", "adaptive", "eta", "alpha", "gamma", "sigma", "decay")

flags.disclaim_key_flags()  # as in common_flags.py


def define(flag_values: flags.FlagValues) -> None:
  """Defines every flag of the experiment."""
  f = flag_values
  common_flags.define_run(f)
  supervised_data_flags.define_data(f)
  supervised_data_flags.define_model(f)
  _define_training(f)
  _define_sharpness(f)
  _define_hessian(f)


def complete(settings: SimpleNamespace) -> list[str]:
  """Refuses flags that contradict each other; returns the words of the run's name.

  Raises:
    ValueError: for an option that the algorithm does not have.
  """
  algorithm = settings.algorithm
  given = [name for name in _OPTIONS if getattr(settings, name) is not None]
  allowed = {"rho", *ALGORITHMS[algorithm]} if algorithm != "sgd" else set()
  for name in given:
    if name not in allowed:
      having = [key for key, names in ALGORITHMS.items() if name in ("rho", *names)]
      raise ValueError(
        f"--{name} is no option of --algorithm={algorithm}; leave it out or choose "
        f"from {', '.join(key for key in having if key != 'sgd')}"
      )
  if algorithm in ("sgd", "momentum_sam") and (
    settings.sam_every is not None or settings.sam_start
  ):
    raise ValueError(
      f"--sam_every and --sam_start make nothing cheaper with --algorithm={algorithm}, "
      "which takes one gradient per step; leave them out"
    )
  if settings.hessian_steps < settings.hessian_eigenvalues:
    raise ValueError(
      f"--hessian_steps={settings.hessian_steps} finds at most as many eigenvalues, "
      f"not {settings.hessian_eigenvalues}; take more steps"
    )
  part = f"{settings.train_examples}examples" if settings.train_examples else None
  noise = f"noise{round(100 * settings.label_noise)}" if settings.label_noise else None
  size = f"{settings.model}{settings.depth}"
  size += f"x{settings.widen}" if settings.model == "wide_resnet" else ""
  words = [settings.dataset, size, settings.algorithm, part, noise]
  return [word for word in words if word]


def _define_training(f: flags.FlagValues) -> None:
  flags.DEFINE_enum(
    "algorithm",
    "sam",
    tuple(ALGORITHMS),
    "sgd with momentum, or one of the sharpness-aware algorithms in front of it.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_epochs", 20, "Passes over the training images.", flag_values=f
  )
  flags.DEFINE_integer(
    "batch_size",
    32,
    "Images per step; the rest of an epoch that fills no batch is dropped.",
    flag_values=f,
  )
  flags.DEFINE_float("lr", 0.1, "Step size at the start.", flag_values=f)
  flags.DEFINE_enum(
    "schedule",
    "cosine",
    SCHEDULES,
    "cosine: to 0 over the whole run, without warm-up; constant.",
    flag_values=f,
  )
  flags.DEFINE_float("momentum", 0.9, "Momentum of SGD.", flag_values=f)
  flags.DEFINE_boolean(
    "nesterov", True, "Nesterov's momentum, as in SAM's code.", flag_values=f
  )
  flags.DEFINE_float(
    "weight_decay",
    0.0005,
    "Times the parameters, all of them, added to the gradient that SGD is given.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "clip_gradient",
    None,
    "Shortens that gradient to this length where it is longer; SAM's code has 5. "
    "Default: no clipping.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "eval_every", 1, "Epochs from one validation to the next.", flag_values=f
  )
  positive(
    ("num_epochs", "batch_size", "eval_every"), f, "give a number of at least 1."
  )
  positive(("lr",), f, "usual values lie between 0.01 and 0.5.")
  positive(("clip_gradient",), f, "leave the flag out to train without clipping.")
  flags.register_validator(
    "momentum",
    lambda value: 0 <= value < 1,
    message="must be at least 0 and below 1; 0.9 is usual.",
    flag_values=f,
  )
  flags.register_validator(
    "weight_decay",
    lambda value: 0 <= value < float("inf"),
    message="must be finite and at least 0; 0.0005 is usual.",
    flag_values=f,
  )


def _define_sharpness(f: flags.FlagValues) -> None:
  for name, text in (
    ("rho", "Radius of the perturbation"),
    ("p", "Norm of the ball, from 1 to inf"),
    ("eta", "Offset of the adaptive ball (sam with --adaptive, asam)"),
    ("alpha", "gsam: size of the opposed part; looksam: share of the kept direction"),
    ("gamma", "wsam: weight of the sharpness, from 0 to 1"),
    ("sigma", "friendly_sam: how much of the running mean is left out"),
    ("decay", "friendly_sam, vasso: weight of the past in the running mean"),
  ):
    default = "Default: that of the algorithm, see docs/sam.md."
    flags.DEFINE_float(name, None, f"{text}. {default}", flag_values=f)
  flags.DEFINE_boolean(
    "adaptive",
    None,
    "sam: scale the ball by the size of each parameter.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "sam_every",
    None,
    "Perturb on every so many steps only. Default: 5 for looksam, 1 for the others.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "sam_start",
    0.0,
    "Epochs without perturbation at the start; parts of an epoch are possible.",
    flag_values=f,
  )
  positive(("rho",), f, "without a perturbation use --algorithm=sgd.")
  positive(("sam_every",), f, "give a number of at least 1.")
  norms(("p",), f)
  flags.register_validator(
    "sam_start",
    lambda value: 0 <= value < float("inf"),
    message="must be finite and at least 0.",
    flag_values=f,
  )


def _define_hessian(f: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    "hessian_eigenvalues",
    1,
    "Largest eigenvalues of the training loss's Hessian, measured at the start and at "
    "the end. 0: none.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "hessian_examples",
    1000,
    "Training images, always the same ones, that this loss is the mean over.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "hessian_steps",
    20,
    "Steps of Lanczos' method; each costs about two gradients on those images and "
    "one more copy of the parameters in memory.",
    flag_values=f,
  )
  positive(
    ("hessian_examples", "hessian_steps"), f, "for none use --hessian_eigenvalues=0."
  )
  flags.register_validator(
    "hessian_eigenvalues",
    lambda value: value >= 0,
    message="must be at least 0; 0 measures nothing.",
    flag_values=f,
  )
