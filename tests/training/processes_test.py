"""Two processes on one machine: the bits of one, a common stop, and lost peers.

`python -m tests.training.processes_test RUN_DIR NUM_STEPS NUM_PROCESSES PROCESS_ID PORT
TIMEOUT` is one of them; the first prints `ready` at its first validation. After the
meta-steps it takes ordinary steps on a divided batch.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized
from jax.experimental import multihost_utils

import jsharp
from jsharp.algorithms.supervised import classifier, supervised
from jsharp.data.streams import Stream
from jsharp.training import processes
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.loop import train
from jsharp.training.run_directory import RunDirectory
from jsharp.training.stop_signal import StopSignal
from jsharp.types import Batch
from tests import toy_runs
from tests.experiments.own_parts import Normalised
from tests.training import devices_test

LONG = 10**6
NUM_IMAGES = 8
INIT_FN, LOSS_FN = classifier(Normalised(num_outputs=3))


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
    for name, num_processes in (("cut", 2), ("whole", 1)):
      for process in self.begin(name, stopped + 10, num_processes=num_processes):
        _, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, error)
    (cut, cut_records), (whole, whole_records) = self.end("cut"), self.end("whole")
    self.assertTrue(toy_runs.same_bits(cut, whole))
    lines = lambda records: [r for r in records if "loss" in r]
    self.assertEqual(
      lines(cut_records)[: stopped // 10], lines(whole_records)[: stopped // 10]
    )
    two, one = (ordinary_end(self.root / run) for run in ("cut", "whole"))
    # Float32, three steps; one device adds in another order than two.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), two, one
    )
    self.assertEqual(int(one.step), 3)

  @parameterized.parameters(signal.SIGSTOP, signal.SIGKILL)
  def test_a_lost_process_ends_the_others(self, signum):
    both = self.begin("lost", LONG, timeout=10)
    self.wait_until_ready(both[0])
    start = time.monotonic()
    both[1].send_signal(signum)
    _, error = both[0].communicate(timeout=60)
    self.assertLess(time.monotonic() - start, 40)
    self.assertEqual(both[0].returncode, processes.GIVEN_UP, error)
    self.assertIn("gives up; start all processes again", error)


class TwoTest(parameterized.TestCase):
  """What two processes agree on, as this one of them sees it."""

  def two(self, *, there, number=1):
    """This process as one of two, with what the first one says and all gather."""
    gathered = iter(there)
    self.enter_context(mock.patch("jax.process_count", return_value=2))
    self.enter_context(mock.patch("jax.process_index", return_value=number))
    for name in ("broadcast_one_to_all", "process_allgather"):
      self.enter_context(
        mock.patch.object(multihost_utils, name, lambda _: next(gathered))
      )
    return processes.Peers(timeout=60.0)

  def of_first(self, facts, every):
    text = json.dumps(facts).encode()
    return [len(text), np.frombuffer(text, np.uint8), np.array(every)]

  def test_processes_of_one_run_go_on(self):
    facts = {"seed": 0, "fingerprints": {"train": "12ab"}, "versions": {"jax": "1"}}
    self.two(there=self.of_first(facts, [0, 0])).check_same(facts)

  @parameterized.parameters("seed", "eval_every", "fingerprints", "versions")
  def test_processes_of_other_runs_are_refused(self, name):
    facts = {"seed": 0, "eval_every": 5, "fingerprints": 1, "versions": 1}
    peers = self.two(there=self.of_first(facts, [0, 1]))
    with self.assertRaisesRegex(ValueError, f"  {name}: {facts[name]} in the first, 7"):
      peers.check_same({**facts, name: 7})

  def test_the_first_is_told_which_one_differs(self):
    peers = self.two(there=self.of_first({"seed": 0}, [0, 1]), number=0)
    with self.assertRaisesRegex(ValueError, "process 1: see there"):
      peers.check_same({"seed": 0})

  @parameterized.parameters(
    (
      ValueError,
      "Gloo all-reduce failed: Connection closed by peer",
      True,
    ),
    (ValueError, "shapes (3,) and (4,) differ", False),
  )
  def test_a_lost_connection_is_known_by_its_words(self, kind, text, lost):
    peers = self.two(there=())
    with mock.patch.object(peers, "_give_up") as give_up:
      try:
        with peers.patience("the other processes"):
          raise kind(text)
      except kind:
        self.assertFalse(lost)
    self.assertEqual(give_up.called, lost)

  def test_who_listens_to_this_machine_alone(self):
    for address in ("127.0.0.1:1", "127.0.0.2:1", "localhost:1", "[::1]:1"):
      self.assertTrue(processes._is_loopback(address), address)
    for address in ("node1:1", "10.0.0.1:1", "[fe80::1]:1", "127.0.0.1.example:1"):
      self.assertFalse(processes._is_loopback(address), address)

  @parameterized.parameters(
    ("127.0.0.1:x", "must be HOST:PORT with a port from 1 to 65535"),
    ("127.0.0.1:99999", "must be HOST:PORT"),
    ("127.0.0.1", "must be HOST:PORT"),
    ("no.such.host.invalid:80", "cannot find the host no.such.host.invalid"),
  )
  def test_a_coordinator_that_is_none(self, coordinator, message):
    with self.assertRaisesRegex(ValueError, message):
      processes.start(coordinator=coordinator, num_processes=2, process_id=1)

  def test_a_port_that_is_taken(self):
    with socket.socket() as taken:
      taken.bind(("127.0.0.1", 0))
      taken.listen()
      coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
      with self.assertRaisesRegex(ValueError, "port .* cannot be used here"):
        processes.start(coordinator=coordinator, num_processes=2, process_id=0)

  def test_others_that_never_come(self):
    ended = threading.Event()

    def initialize(*_, **__):
      self.assertTrue(ended.wait(10))

    codes, said = [], []
    with (
      mock.patch("jax.distributed.initialize", initialize),
      mock.patch("jax.config.update"),
      mock.patch("os.write", lambda _, text: said.append(text)),
      mock.patch("os._exit", lambda code: (codes.append(code), ended.set())),
    ):
      processes.start(
        coordinator="127.0.0.1:1", num_processes=2, process_id=1, timeout=0.05
      )
    self.assertEqual(codes, [processes.NEVER_CAME])
    self.assertIn(b"waited 0.05 s for the other processes", said[0])


def ordinary():
  """SAM with batch normalisation, and its initial variables."""
  optimizer = optax.chain(jsharp.sam(0.1), optax.sgd(0.1, momentum=0.9))
  variables = jax.jit(INIT_FN)(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
  return supervised(LOSS_FN, optimizer), variables


def ordinary_end(run_dir):
  """The last state of ordinary steps."""
  algorithm, variables = ordinary()
  path = run_dir / "ordinary" / "checkpoints"
  return Checkpoints(path).restore(algorithm.init(variables)).tree


class Images(Stream):
  """Random images from the host."""

  def __init__(self):
    self.spec = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, self.batch(0)))

  def batch(self, step):
    images = np.random.RandomState(step).normal(size=(NUM_IMAGES, 2, 2, 1))
    return Batch(images.astype(np.float32), np.arange(NUM_IMAGES, dtype=np.int32) % 3)

  def batches(self, first=0):
    for step in range(first, 3):
      yield self.batch(step)


def take_ordinary_steps(run_dir, peers):
  """Three steps on batches from the host, which all devices share."""
  with RunDirectory.open(run_dir / "ordinary", identity={}) as run:
    train(
      *ordinary(),
      lambda step, data: data,
      Images(),
      run=run,
      num_steps=3,
      num_tasks=NUM_IMAGES,
      progress=False,
      num_devices=jax.device_count(),
      divide="batch",
      peers=peers,
    )


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
  peers = processes.Peers(timeout=timeout)
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
      peers=peers,
    )
  if not result.interrupted:
    take_ordinary_steps(pathlib.Path(run_dir), peers)
  return stop.exit_code if result.interrupted else 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
