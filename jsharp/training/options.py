"""Options of a run other than its learner and tasks: the loop and the machine."""

import dataclasses
from typing import ClassVar, Literal

from jsharp.options import Options, Role, at_least, between, option, positive

_SEED = between(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Options):
  """The directory, seed and records of a run."""

  role: ClassVar[Role] = Role.MACHINE

  run_dir: str | None = option(
    None,
    "Directory of the run: checkpoints, metrics, result. The same command with the "
    "same directory resumes the run. Default: a subdirectory of runs/, named by the "
    "experiment, its data, the algorithm, the kind of task, the seed and a digest of "
    "all settings.",
  )
  compilation_cache_dir: str = option(
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, which a second start reuses. It holds native "
    "code: it is created with access for you only, and rejected if others can write "
    "to it. Empty: no cache.",
  )
  seed: int = option(
    0,
    "Seed of the initial parameters and of the sampling of training data.",
    check=_SEED,
    role=Role.TRAINING,
  )
  precision: Literal["float32", "tf32", "bfloat16"] = option(
    "float32",
    "Precision of the network's matrix products and convolutions: float32 on every "
    "device; tf32 on GPUs that support it, otherwise float32; bfloat16 in the forward "
    "and backward pass, with parameters, updates, losses and metrics in float32.",
    role=Role.LEARNER,
  )
  log_every: int = option(50, "Steps between two lines of metrics.", check=at_least(1))
  checkpoint_seconds: float = option(
    60.0,
    "Seconds between two checkpoints: the most work that a power failure can cost. "
    "Ctrl-C and SIGTERM save before the run stops.",
    check=positive("usual values lie between 10 and 600."),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTraining(Options):
  """The length of training, and which parameters are kept."""

  role: ClassVar[Role] = Role.TRAINING

  num_tasks: int = option(
    4, "Tasks per meta-step; their meta-gradients are averaged.", check=at_least(1)
  )
  num_steps: int = option(
    60_000,
    "Number of meta-steps. No schedule depends on it, so a finished run can be "
    "extended. baseline and baseline_plus_plus learn nothing from tasks and take one.",
    check=at_least(1),
    identity=False,
  )
  eval_every: int = option(
    500,
    "Meta-steps between two validations. It decides which parameters can become the "
    "best checkpoint, so it cannot change within a run.",
    check=at_least(1),
  )
  val_tasks: int = option(
    200,
    "Number of validation tasks, always the same ones; the checkpoint that is best on "
    "them is tested.",
    check=at_least(1),
  )
  keep_path: bool = option(
    False,
    "Keep the initial parameters and those of every validation, to draw the training "
    "trajectory in a landscape: num_steps / eval_every + 1 copies of the parameters (4 "
    "bytes per number).",
  )
  ensemble: int = option(
    1,
    "Also test the ensemble of this many checkpoints, those with the best validation; "
    "5 in MAML++.",
    check=at_least(1),
  )
  num_seeds: int = option(
    1,
    "Train this many seeds, starting at --seed, in one program. Each has its own "
    "parameters and tasks. The tested checkpoint is the one with the best mean "
    "validation over the seeds.",
    check=at_least(1),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Testing(Options):
  """The number and the seed of test tasks."""

  role: ClassVar[Role] = Role.TESTING

  eval_tasks: int = option(
    600,
    "Number of test tasks, always the same ones. The papers use 600; the interval "
    "shrinks with the square root of the number.",
    check=at_least(2, "an interval needs at least 2 tasks; the papers use 600."),
    identity=False,
  )
  eval_seed: int = option(
    0,
    "Seed of the validation and test tasks. It is separate from --seed, so that runs "
    "with different seeds are measured on the same tasks.",
    check=_SEED,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices(Options):
  """The devices and processes that share a batch of ordinary training."""

  role: ClassVar[Role] = Role.MACHINE

  num_devices: int | None = option(
    None,
    "Number of devices that the images of a batch are divided among; --batch_size must "
    "be a multiple of it. Results are those of one device up to rounding, including "
    "batch statistics, perturbations and random draws. A run can resume with another "
    "number. A CPU is divided into this many devices. Default: with several processes "
    "all devices; otherwise 1.",
    check=at_least(1),
  )
  distributed: bool = option(
    False,
    "Train together with the other processes of this job, on all their devices. They "
    "are found from SLURM, Open MPI, Kubernetes or a TPU pod, or by --coordinator.",
  )
  coordinator: str | None = option(
    None,
    "HOST:PORT of the first process, which writes the run directory. Needs "
    "--num_processes and --process_id.",
  )
  num_processes: int | None = option(None, "Number of processes.", check=at_least(1))
  process_id: int | None = option(None, "Number of this process, counted from 0.")
  peer_timeout: float = option(
    300.0,
    "Seconds after which a process gives up on others that do not respond. The death "
    "of a process breaks its connections and is noticed sooner.",
    check=positive("usual values lie between 60 and 600."),
  )

  @property
  def is_distributed(self) -> bool:
    """Whether other processes take part."""
    given = (self.coordinator, self.num_processes, self.process_id)
    return self.distributed or any(value is not None for value in given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine(Devices):
  """Memory, devices and processes: options that change results only by rounding."""

  task_chunk: int | None = option(
    None,
    "Tasks computed at a time, in training and evaluation: fewer need less memory, "
    "more can be faster. Results agree up to rounding. Default: 1 on a CPU, all on an "
    "accelerator.",
    check=at_least(1),
  )
  num_devices: int | None = option(
    None,
    "Number of devices that the tasks of a meta-step are divided among; --num_tasks "
    "must be a multiple of it. A run can resume with another number. A CPU is divided "
    "into this many devices. Default: on a CPU the largest usable number of cores that "
    "divides --num_tasks; with several processes all devices; otherwise 1.",
    check=at_least(1),
  )
  convolution: Literal["auto", "direct", "im2col", "winograd"] = option(
    "auto",
    "How convolutions are computed; results agree up to rounding. direct: by XLA; "
    "im2col: as matrix products; winograd: with fewer multiplications where the shape "
    "allows it; auto: chosen by shape, platform and the cores of a device.",
  )
  deterministic: bool = option(
    False,
    "Make results bitwise equal on any number of x86 CPU devices: compute one task at "
    "a time, add gradients in order, use no fused multiply-add. On other platforms "
    "this applies as far as possible. By default results agree up to rounding.",
    identity=True,
  )
  memory_budget: str | None = option(
    None,
    "Choose the fastest --task_chunk and --second_order whose training step fits into "
    "this memory: bytes, as in 8e9 or 8GiB, or a fraction of the device's memory, as "
    "in 0.5. Default: use these flags as given.",
  )

  def complete(self) -> None:
    """Rejects flags that conflict with each other."""
    if self.memory_budget is not None:
      for name in ("task_chunk", "deterministic"):
        if getattr(self, name):
          raise ValueError(
            f"--memory_budget chooses --{name}, but --{name}={getattr(self, name)} is "
            "given too; drop one of them"
          )
      if self.is_distributed:
        raise ValueError(
          "--memory_budget would let each process choose for itself; find the flags "
          "with one process, then pass --task_chunk and --second_order"
        )
    if self.deterministic and self.task_chunk is not None:
      raise ValueError(
        "--deterministic computes one task at a time, but --task_chunk="
        f"{self.task_chunk} is given; drop one of them"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Options):
  """The location of a dataset's files."""

  role: ClassVar[Role] = Role.MACHINE

  data_dir: str | None = option(
    None,
    "Directory with the files of the dataset; for image_folder also a tar or zip file.",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement(Files):
  """The location of a dataset's files, and of its images in memory."""

  data_dir: str | None = option(
    None,
    "Directory with the files of the dataset; for image_folder also a tar or zip file.",
    shared=True,
  )
  test_data_dir: str | None = option(
    None, "Directory of --test_dataset. Default: as --data_dir.", shared=True
  )
  images: Literal["auto", "device", "host"] = option(
    "auto",
    "Where the images of the dataset are kept; it does not affect results. device: in "
    "device memory; host: in host memory, and the images of the next tasks are copied "
    "while a meta-step runs; auto: on the device, unless they take more than half of "
    "its memory.",
  )
