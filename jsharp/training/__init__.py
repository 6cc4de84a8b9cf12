"""The training loop, with its records, checkpoints, devices and processes.

`train` runs any `jsharp.MetaAlgorithm` and resumes interrupted runs. `RunDirectory` and
`Checkpoints` hold a run's files; the options describe whole runs for programs.
"""

from jsharp.training.checkpoints import Checkpoints, Restored
from jsharp.training.compilation_cache import use_compilation_cache
from jsharp.training.devices import (
  divide_batch,
  execution_for,
  on_devices,
  one_copy,
  replicate,
  task_mesh,
)
from jsharp.training.dispatch import NonFiniteLossError, SampleFn
from jsharp.training.finished import (
  FinishedRun,
  check_comparable,
  description_of,
  read_run,
)
from jsharp.training.loop import TrainingResult, train
from jsharp.training.mixture import mixture
from jsharp.training.over_seeds import over_seeds
from jsharp.training.run_directory import RunDirectory
from jsharp.training.stop_signal import StopRequested, StopSignal

__all__ = [
  "Checkpoints",
  "FinishedRun",
  "NonFiniteLossError",
  "Restored",
  "RunDirectory",
  "SampleFn",
  "StopRequested",
  "StopSignal",
  "TrainingResult",
  "check_comparable",
  "description_of",
  "divide_batch",
  "execution_for",
  "mixture",
  "on_devices",
  "one_copy",
  "over_seeds",
  "read_run",
  "replicate",
  "task_mesh",
  "train",
  "use_compilation_cache",
]
