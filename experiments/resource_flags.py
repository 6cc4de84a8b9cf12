"""The flags of memory and devices: what changes a result by rounding at most."""

import os
import platform
from types import SimpleNamespace

from absl import flags

from experiments import process_flags
from experiments.validators import positive

flags.disclaim_key_flags()  # as in common_flags.py

# Without instructions that multiply and add in one rounding, which XLA uses or not as a
# program's fusions fall.
_SAME_BITS = {
  "x86_64": "--xla_cpu_max_isa=AVX",
  "AMD64": "--xla_cpu_max_isa=AVX",
}
_DECIDED_BY_BUDGET = {
  "task_chunk": None,
  "second_order": "stored",
  "deterministic": False,
}
_SAME_BITS_GPU = "--xla_gpu_deterministic_ops=true"
_VIRTUAL_DEVICES = "--xla_force_host_platform_device_count"


def define(flag_values: flags.FlagValues) -> None:
  """Defines them."""
  f = flag_values
  flags.DEFINE_integer(
    "task_chunk",
    None,
    "Tasks computed at once, in training and evaluation: memory against speed, with "
    "equal results up to rounding. Default: 1 on a CPU, all on an accelerator.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_devices",
    None,
    "Devices that the tasks of a meta-step are divided among, --num_tasks being a "
    "multiple; a run can go on with another number. On a CPU: parts of it. Default: as "
    "many of its cores as divide --num_tasks on a CPU, all devices of several "
    "processes, else 1.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "convolution",
    "auto",
    ("auto", "direct", "im2col", "winograd"),
    "How convolutions are computed, with equal results up to rounding: by XLA, as "
    "matrix products, or with fewer multiplications where the shape suits that. auto: "
    "by shape, platform and the cores of a device.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "deterministic",
    False,
    "The same bits on any number of x86 CPU devices: tasks one at a time, their "
    "gradients added in order, no contracted products. Elsewhere what of this there "
    "is. Default: the same to rounding.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "second_order",
    "stored",
    ("stored", "recomputed", "forward_over_reverse"),
    "How a meta-gradient goes back through inner gradients, with equal results up to "
    "rounding: by all that they computed, which grows with the number of inner steps; "
    "by computing each anew; or by Hessian-vector products. The latter two keep one "
    "copy of the parameters per inner step (on a CPU with Python 3.11 only from 11 "
    "inner steps on).",
    flag_values=f,
  )
  flags.DEFINE_string(
    "memory_budget",
    None,
    "Chooses the fastest --task_chunk and --second_order whose training step fits: "
    "bytes, as in 8e9 or 8GiB, or a fraction of the device's memory, as in 0.5. "
    "Default: they are as given.",
    flag_values=f,
  )
  positive(("task_chunk", "num_devices"), f, "give a number of at least 1.")


def define_images(flag_values: flags.FlagValues) -> None:
  """Defines the flag of the experiments that have images."""
  flags.DEFINE_enum(
    "images",
    "auto",
    ("auto", "device", "host"),
    "Where the images of the dataset are kept: on the device, or in host memory, from "
    "where those of the next tasks are fetched while a meta-step runs. No result "
    "depends on it. auto: on the device, unless they take more than half of its "
    "memory.",
    flag_values=flag_values,
  )


def complete(settings: SimpleNamespace) -> None:
  """Fills in what --deterministic means.

  Raises:
    ValueError: if one flag decides on what another one says.
  """
  if settings.memory_budget is not None:
    for flag, default in _DECIDED_BY_BUDGET.items():
      if getattr(settings, flag) != default:
        raise ValueError(
          f"--memory_budget decides on --{flag}, got "
          f"--{flag}={getattr(settings, flag)} too; drop one of them"
        )
  if not settings.deterministic:
    return
  if settings.task_chunk is not None:
    raise ValueError(
      "--deterministic computes one task at a time, got --task_chunk="
      f"{settings.task_chunk}; drop one of them"
    )
  settings.task_chunk = "in_order"


def set_environment(settings: SimpleNamespace) -> None:
  """Asks XLA for --deterministic and for virtual CPU devices.

  JAX must not have started yet. The CPU is divided among --num_devices devices, or as
  many as `cores_for_tasks`, unless XLA_FLAGS says among how many or there are several
  processes; other platforms take no notice.
  """
  flags_given = os.environ.get("XLA_FLAGS", "").split()
  asked: list[str | None] = []
  if getattr(settings, "deterministic", False):
    asked += [_SAME_BITS.get(platform.machine()), _SAME_BITS_GPU]
    # XLA divides sums among the threads that it has: 16 devices' worth, below.
    os.environ.setdefault("NPROC", str(max(32, os.cpu_count() or 1)))
  num_devices = getattr(settings, "num_devices", 1) or cores_for_tasks(settings)
  divided = any(flag.startswith(_VIRTUAL_DEVICES) for flag in flags_given)
  if num_devices > 1 and not (divided or process_flags.asked(settings)):
    asked.append(f"{_VIRTUAL_DEVICES}={num_devices}")
    # Collectives can deadlock with fewer threads than devices.
    threads = max(2 * num_devices, os.cpu_count() or 1)
    os.environ.setdefault("NPROC", str(threads))
  if asked:
    missing = [flag for flag in asked if flag and flag not in flags_given]
    os.environ["XLA_FLAGS"] = " ".join(flags_given + missing)


def cores_for_tasks(settings: SimpleNamespace) -> int:
  """The most cores that this process may use and that divide --num_tasks."""
  # As `jsharp._cores` counts them, which imports JAX: too early for that.
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  num_tasks = settings.num_tasks
  return next(n for n in range(min(cores, num_tasks), 0, -1) if num_tasks % n == 0)
