"""Settings for XLA that must be made before JAX starts, and the cores for a step."""

import os
import platform
from collections.abc import Mapping

from jsharp._machine import num_cores
from jsharp.training.options import Machine

# Without fused multiply-add instructions, which XLA uses depending on how it fuses
# operations.
_SAME_BITS: Mapping[str, str] = {
  "x86_64": "--xla_cpu_max_isa=AVX",
  "AMD64": "--xla_cpu_max_isa=AVX",
}
_SAME_BITS_GPU = "--xla_gpu_deterministic_ops=true"
_VIRTUAL_DEVICES = "--xla_force_host_platform_device_count"


def set_environment(machine: Machine, *, num_tasks: int) -> None:
  """Configures XLA for deterministic results and virtual CPU devices.

  JAX must not have started yet. The CPU is divided into `num_devices` devices, or
  `cores_for_tasks` devices by default, unless XLA_FLAGS gives a number or there are
  several processes. Other platforms are not affected.

  Args:
    machine: the machine options.
    num_tasks: tasks or examples per step, which the devices share.

  Example:
    >>> print(set_environment(Machine(), num_tasks=1))
    None
  """
  flags_given = os.environ.get("XLA_FLAGS", "").split()
  asked: list[str | None] = []
  if machine.deterministic:
    asked += [_SAME_BITS.get(platform.machine()), _SAME_BITS_GPU]
    # XLA divides sums among its threads; enough threads for 16 devices, see below.
    os.environ.setdefault("NPROC", str(max(32, os.cpu_count() or 1)))
  divided = any(flag.startswith(_VIRTUAL_DEVICES) for flag in flags_given)
  if not (divided or machine.is_distributed):
    num_devices = machine.num_devices or cores_for_tasks(num_tasks)
    if num_devices > 1:
      asked.append(f"{_VIRTUAL_DEVICES}={num_devices}")
      # Collectives can deadlock with fewer threads than devices.
      threads = max(2 * num_devices, os.cpu_count() or 1)
      os.environ.setdefault("NPROC", str(threads))
  if asked:
    missing = [flag for flag in asked if flag and flag not in flags_given]
    os.environ["XLA_FLAGS"] = " ".join(flags_given + missing)


def cores_for_tasks(num_tasks: int) -> int:
  """The largest usable number of cores that divides a number of tasks.

  Example:
    >>> cores_for_tasks(1)
    1
  """
  return next(
    n for n in range(min(num_cores(), num_tasks), 0, -1) if num_tasks % n == 0
  )
