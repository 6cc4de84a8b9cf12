"""Two processes on one machine: the bits of one, a common stop, and lost peers.

`python -m tests.training.processes_test RUN_DIR NUM_STEPS NUM_PROCESSES PROCESS_ID PORT
TIMEOUT` is one of them; the first prints `ready` at its first validation.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl.testing import parameterized

from jsharp.training import processes
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.loop import train
from jsharp.training.run_directory import RunDirectory
from jsharp.training.stop_signal import StopSignal
from tests import toy_runs
from tests.training import devices_test

LONG = 10**6


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def end_of(process):
  process.kill()
  if not process.stdout.closed:
    process.communicate()


class ProcessesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def begin(self, name, num_steps, *, num_processes=2, timeout=60):
    """Starts the processes of a run."""
    port = free_port()
    environment = {
      **os.environ,
      "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX",
      "JAX_PLATFORMS": "cpu",
    }
    started = []
    for number in range(num_processes):
      directory = self.root / (name if number == 0 else f"{name} {number}")
      arguments = [directory, num_steps, num_processes, number, port, timeout]
      process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.processes_test", *map(str, arguments)],
        cwd=pathlib.Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      self.addCleanup(end_of, process)
      started.append(process)
    return started

  def wait_until_ready(self, process):
    for line in process.stdout:
      if line == "ready\n":
        return
    self.fail(process.communicate()[1])

  def end(self, name):
    algorithm = devices_test.sine_learner(execution=devices_test.IN_ORDER)
    template = algorithm.init(devices_test.start())
    last = Checkpoints(self.root / name / "checkpoints").restore(template)
    with RunDirectory.open(self.root / name, identity={}) as run:
      return last.tree, toy_runs.steady(run.read_metrics())

  def test_stopped_together_and_resumed_gives_the_same_bits(self):
    both = self.begin("cut", LONG)
    self.wait_until_ready(both[0])
    both[1].send_signal(signal.SIGTERM)
    for process in both:
      _, error = process.communicate(timeout=60)
      self.assertEqual(process.returncode, 143, error)
    stopped = int(self.end("cut")[0].step)
    self.assertBetween(stopped, 10, LONG - 1)
    for name, num_processes in (("cut", 2), ("cut", 1), ("whole", 1)):
      more = 10 if num_processes == 2 else 20
      for process in self.begin(name, stopped + more, num_processes=num_processes):
        _, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, error)
    (cut, cut_records), (whole, whole_records) = self.end("cut"), self.end("whole")
    self.assertTrue(toy_runs.same_bits(cut, whole))
    lines = lambda records: [r for r in records if "loss" in r]
    self.assertEqual(
      lines(cut_records)[: stopped // 10], lines(whole_records)[: stopped // 10]
    )

  @parameterized.parameters(signal.SIGSTOP, signal.SIGKILL)
  def test_a_lost_process_ends_the_others(self, signum):
    both = self.begin("lost", LONG, timeout=10)
    self.wait_until_ready(both[0])
    start = time.monotonic()
    both[1].send_signal(signum)
    _, error = both[0].communicate(timeout=60)
    self.assertLess(time.monotonic() - start, 40)
    # By patience or, if that comes first, by JAX, which hears no heartbeats.
    self.assertIn(both[0].returncode, (processes.GIVEN_UP, -signal.SIGABRT), error)
    self.assertRegex(error, "gives up; start all of them again|heartbeat")


def main(run_dir, num_steps, num_processes, process_id, port, timeout):
  """Trains on sine waves."""
  num_steps, num_processes, process_id, timeout = map(
    int, (num_steps, num_processes, process_id, timeout)
  )
  if num_processes > 1:
    processes.start(
      coordinator=f"127.0.0.1:{port}",
      num_processes=num_processes,
      process_id=process_id,
      timeout=timeout,
    )
  told = []

  def validate(params):
    if not told:
      print("ready", flush=True)
      told.append(True)
    return {"accuracy": float(np.asarray(jax.tree.leaves(params)[0]).sum())}

  with StopSignal() as stop, RunDirectory.open(run_dir, identity={}) as run:
    result = train(
      devices_test.sine_learner(execution=devices_test.IN_ORDER),
      devices_test.start(),
      devices_test.sample_tasks,
      None,
      run=run,
      num_steps=num_steps,
      num_tasks=devices_test.NUM_TASKS,
      log_every=10,
      eval_every=10,
      validate=validate,
      progress=False,
      stop=stop,
      num_devices=jax.device_count(),
      peers=processes.Peers(timeout=timeout),
    )
  return stop.exit_code if result.interrupted else 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
