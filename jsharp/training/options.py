"""What describes a run beside its learner and its tasks: the loop and the machine."""

import dataclasses
from typing import ClassVar, Literal

from jsharp.options import Options, Role, at_least, between, option, positive

_SEED = between(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Options):
  """A run: where it lies, its seed, its records."""

  role: ClassVar[Role] = Role.MACHINE

  run_dir: str | None = option(
    None,
    "Directory of the run: checkpoints, metrics, result. The same command with the "
    "same directory goes on where it stopped. Default: runs/, with a name made of the "
    "experiment, its data, the algorithm, the kind of task, the seed and a digest of "
    "all settings.",
  )
  compilation_cache_dir: str = option(
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, so that a second start need not compile again. "
    "It holds native code: it is created for you alone and refused if others can "
    "write to it. Empty: no cache.",
  )
  seed: int = option(
    0,
    "Seed of the initial parameters and of what is trained on when.",
    check=_SEED,
    role=Role.TRAINING,
  )
  precision: Literal["float32", "tf32", "bfloat16"] = option(
    "float32",
    "What the network's products are computed in: float32 on every device; tf32 where "
    "a GPU has it, else float32; bfloat16, forward and backward, with parameters, "
    "updates, losses and metrics in float32.",
    role=Role.LEARNER,
  )
  log_every: int = option(
    50, "Steps from one line of metrics to the next.", check=at_least(1)
  )
  checkpoint_seconds: float = option(
    60.0,
    "Seconds from one checkpoint to the next: what a power cut can cost. Ctrl-C and "
    "SIGTERM save by themselves.",
    check=positive("usual values lie between 10 and 600."),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTraining(Options):
  """How long a learner is trained, and which of its parameters are kept."""

  role: ClassVar[Role] = Role.TRAINING

  num_tasks: int = option(
    4, "Tasks per meta-step; their meta-gradients are averaged.", check=at_least(1)
  )
  num_steps: int = option(
    60_000,
    "Meta-steps in all. No schedule depends on it: a finished run can be made longer. "
    "baseline and baseline_plus_plus learn nothing from tasks and take one.",
    check=at_least(1),
    identity=False,
  )
  eval_every: int = option(
    500,
    "Meta-steps from one validation to the next. It decides which parameters can "
    "become the best checkpoint, so a run keeps it.",
    check=at_least(1),
  )
  val_tasks: int = option(
    200,
    "Validation tasks, always the same ones; the checkpoint that is best on them is "
    "the one that is tested.",
    check=at_least(1),
  )
  keep_path: bool = option(
    False,
    "Keep the initial parameters and those of every validation, to draw the way of "
    "training in a landscape: one copy of the parameters each (4 bytes per number), "
    "num_steps / eval_every + 1 in all.",
  )
  ensemble: int = option(
    1,
    "Tests the ensemble of this many checkpoints too, those that were best in "
    "validation; 5 in MAML++.",
    check=at_least(1),
  )
  num_seeds: int = option(
    1,
    "Trains this many seeds, from --seed on, in one program; each by itself, with "
    "parameters and tasks of its own. The checkpoint that is tested is the one with "
    "the best validation on average over the seeds.",
    check=at_least(1),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Testing(Options):
  """How many tasks the chosen parameters are tested on."""

  role: ClassVar[Role] = Role.TESTING

  eval_tasks: int = option(
    600,
    "Test tasks, always the same ones. 600 is the papers' number; the interval shrinks "
    "with its square root.",
    check=at_least(2, "an interval needs at least 2 tasks; the papers use 600."),
    identity=False,
  )
  eval_seed: int = option(
    0,
    "Seed of the validation and test tasks; apart from --seed, so that runs of several "
    "seeds are measured on the same tasks.",
    check=_SEED,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine(Options):
  """Memory, devices and processes: what changes a result by rounding at most."""

  role: ClassVar[Role] = Role.MACHINE

  task_chunk: int | None = option(
    None,
    "Tasks computed at once, in training and evaluation: memory against speed, with "
    "equal results up to rounding. Default: 1 on a CPU, all on an accelerator.",
    check=at_least(1),
  )
  num_devices: int | None = option(
    None,
    "Devices that the tasks of a meta-step are divided among, --num_tasks being a "
    "multiple; a run can go on with another number. On a CPU: parts of it. Default: "
    "as many of its cores as divide --num_tasks on a CPU, all devices of several "
    "processes, else 1.",
    check=at_least(1),
  )
  convolution: Literal["auto", "direct", "im2col", "winograd"] = option(
    "auto",
    "How convolutions are computed, with equal results up to rounding: by XLA, as "
    "matrix products, or with fewer multiplications where the shape suits that. auto: "
    "by shape, platform and the cores of a device.",
  )
  deterministic: bool = option(
    False,
    "The same bits on any number of x86 CPU devices: tasks one at a time, their "
    "gradients added in order, no contracted products. Elsewhere what of this there "
    "is. Default: the same to rounding.",
    identity=True,
  )
  memory_budget: str | None = option(
    None,
    "Chooses the fastest --task_chunk and --second_order whose training step fits: "
    "bytes, as in 8e9 or 8GiB, or a fraction of the device's memory, as in 0.5. "
    "Default: they are as given.",
  )
  distributed: bool = option(
    False,
    "Train with the other processes of this job, on all their devices; found from "
    "SLURM, Open MPI, Kubernetes or a TPU pod, or given by --coordinator.",
  )
  coordinator: str | None = option(
    None,
    "HOST:PORT of the first process, which keeps the run directory; with "
    "--num_processes and --process_id.",
  )
  num_processes: int | None = option(
    None, "How many processes there are.", check=at_least(1)
  )
  process_id: int | None = option(None, "Which one this is, from 0.")
  peer_timeout: float = option(
    300.0,
    "Seconds after which a process gives up on others that do not answer; those that "
    "died break their connections and are noticed sooner.",
    check=positive("usual values lie between 60 and 600."),
  )

  def complete(self) -> None:
    """Refuses flags that decide on what another one says."""
    if self.memory_budget is not None:
      for name in ("task_chunk", "deterministic"):
        if getattr(self, name):
          raise ValueError(
            f"--memory_budget decides on --{name}, got --{name}={getattr(self, name)} "
            "too; drop one of them"
          )
      if self.is_distributed:
        raise ValueError(
          "--memory_budget would be decided by each process on its own; find the flags "
          "with one process, then pass --task_chunk and --second_order"
        )
    if self.deterministic and self.task_chunk is not None:
      raise ValueError(
        "--deterministic computes one task at a time, got --task_chunk="
        f"{self.task_chunk}; drop one of them"
      )

  @property
  def is_distributed(self) -> bool:
    """Whether other processes take part."""
    given = (self.coordinator, self.num_processes, self.process_id)
    return self.distributed or any(value is not None for value in given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Options):
  """Where the files of a dataset lie."""

  role: ClassVar[Role] = Role.MACHINE

  data_dir: str | None = option(
    None,
    "Directory that holds the files of the dataset; image_folder: or a tar or zip.",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement(Files):
  """Where the files of a dataset lie, and where its images are kept."""

  data_dir: str | None = option(
    None,
    "Directory that holds the files of the dataset; image_folder: or a tar or zip.",
    shared=True,
  )
  test_data_dir: str | None = option(
    None, "Directory of --test_dataset. Default: as --data_dir.", shared=True
  )
  images: Literal["auto", "device", "host"] = option(
    "auto",
    "Where the images of the dataset are kept: on the device, or in host memory, from "
    "where those of the next tasks are fetched while a meta-step runs. No result "
    "depends on it. auto: on the device, unless they take more than half of its "
    "memory.",
  )
