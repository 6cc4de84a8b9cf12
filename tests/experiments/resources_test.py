"""The flags of devices: parts of the tasks, and what --deterministic asks for."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments import _program, omniglot, sinusoid
from jsharp.core.execution import Execution
from jsharp.training import devices, environment
from tests.experiments.flags_test import describe, identity
from tests.experiments.program_test import SMALL_NETWORK, TINY, TINY_IMAGES, run

EXPERIMENTS = {"omniglot": omniglot.EXPERIMENT, "sinusoid": sinusoid.EXPERIMENT}
# Training alone: compiling the evaluations takes longer.
TRAINING = """
import dataclasses
import sys

from absl import flags

from experiments import _program, omniglot


def build(description, execution):
  parts = omniglot.EXPERIMENT.build(description, execution)
  test = lambda trained, stop: {"num_eval_tasks": 2}
  return dataclasses.replace(parts, validate=None, test=test)


experiment = dataclasses.replace(omniglot.EXPERIMENT, build=build)
sys.exit(_program.start(experiment, sys.argv[1:], flags.FlagValues()))
"""


def set_environment(chosen):
  environment.set_environment(chosen.machine, num_tasks=chosen.training.num_tasks)


class ResourcesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("sines", "sinusoid", ()),
    ("images", "omniglot", (*TINY_IMAGES, SMALL_NETWORK)),
    ("seeds", "omniglot", (*TINY_IMAGES, SMALL_NETWORK, "--num_seeds=2")),
    ("ways", "omniglot", (*TINY_IMAGES, SMALL_NETWORK, "--train_way=2,3")),
  )
  def test_the_parts_of_a_step_are_its_tasks(self, experiment, arguments):
    chosen = describe(experiment, *arguments, "--num_tasks=4", "--num_devices=2")
    with jax.numpy_dtype_promotion("standard"):
      parts = EXPERIMENTS[experiment].build(chosen, Execution())
    self.assertEqual(parts.loop["num_devices"], 2)
    axis = 1 if "--num_seeds=2" in arguments else 0

    def draw(**part):
      return parts.sample_tasks(3, parts.data, **part)

    if "--train_way=2,3" in arguments:  # Drawn by the step that is taken.
      for i in range(2):
        step, _, how = draw(part=(i, 2))
        self.assertEqual((step, how), (3, {"part": (i, 2)}))
      return
    whole, *halves = jax.jit(lambda: [draw(), *(draw(part=(i, 2)) for i in range(2))])()
    jax.tree.map(
      lambda whole, *parts: np.testing.assert_array_equal(
        whole, np.concatenate(parts, axis)
      ),
      whole,
      *halves,
    )

  def test_deterministic(self):
    chosen = describe("sinusoid", "--deterministic", "--num_devices=1")
    given = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}
    with (
      mock.patch.dict(os.environ, given),
      mock.patch.object(environment.platform, "machine", lambda: "x86_64"),
    ):
      describe("sinusoid", "--deterministic")
      self.assertEqual(os.environ["XLA_FLAGS"], "--xla_cpu_max_isa=AVX2")
      for _ in range(2):
        set_environment(chosen)
        self.assertEqual(
          os.environ["XLA_FLAGS"].split(),
          [
            "--xla_cpu_max_isa=AVX2",
            "--xla_cpu_max_isa=AVX",
            "--xla_gpu_deterministic_ops=true",
          ],
        )

  def test_the_cpu_is_divided_among_devices(self):
    count = "--xla_force_host_platform_device_count"
    two = describe("sinusoid", "--num_devices=2", "--num_tasks=4")
    several = describe("sinusoid", "--num_devices=2", "--num_tasks=4", "--distributed")
    for chosen, given, expected in (
      (two, "", f"{count}=2"),
      (two, "--a=b", f"--a=b {count}=2"),
      (two, f"{count}=8", f"{count}=8"),
      (several, "", ""),
      (describe("sinusoid"), "", ""),  # 25 tasks
      (describe("sinusoid", "--num_tasks=6"), "", f"{count}=3"),
      (describe("sinusoid", "--num_tasks=7"), "", ""),
      (describe("sinusoid", "--num_tasks=6", "--num_devices=1"), "", ""),
    ):
      with (
        mock.patch.dict(os.environ, {"XLA_FLAGS": given}),
        mock.patch.object(os, "sched_getaffinity", lambda _: {0, 2, 4, 5}),
      ):
        os.environ.pop("NPROC", None)
        set_environment(chosen)
        self.assertEqual(os.environ["XLA_FLAGS"], expected)
        divided = expected != given
        self.assertEqual(int(os.environ.get("NPROC", 0)) >= 4, divided)

  def test_goes_against_other_chunks(self):
    with self.assertRaisesRegex(ValueError, "--task_chunk=2 is given; drop one"):
      describe("sinusoid", "--deterministic", "--task_chunk=2")

  def test_devices_are_checked_before_data_are_loaded(self):
    with (
      mock.patch.object(jax, "devices", lambda: [mock.Mock()] * 2),
      self.assertRaisesRegex(ValueError, "nearest number that can is 4"),
    ):
      _program._with_devices(describe("sinusoid", "--num_devices=2", "--num_tasks=5"))

  def test_a_batch_is_divided_only_if_asked(self):
    chosen = describe("supervised", "--batch_size=6")
    with mock.patch.object(jax, "device_count", lambda: 3):
      self.assertEqual(_program._with_devices(chosen).machine.num_devices, 1)
    two = describe("supervised", "--batch_size=5", "--num_devices=2")
    with (
      mock.patch.object(jax, "devices", lambda: [mock.Mock()] * 2),
      self.assertRaisesRegex(ValueError, "^batch_size=5 cannot .* nearest .* is 4$"),
    ):
      _program._with_devices(two)
    together = describe("supervised", "--batch_size=6", "--distributed")
    with (
      mock.patch.object(jax, "device_count", lambda: 3),
      mock.patch.object(devices, "task_mesh"),
    ):
      self.assertEqual(_program._with_devices(together).machine.num_devices, 3)

  @parameterized.parameters(
    (
      ("--perturbation_batch_size=4", "--statistics_batch_size=2"),
      "--statistics_batch_size=2, but .* --perturbation_batch_size=4; leave one",
    ),
    (("--statistics_batch_size=5",), "=5 does not divide --batch_size=16"),
    (
      ("--statistics_batch_size=4", "--num_devices=8"),
      "--num_devices=8 cannot .* in 4 groups of --statistics_batch_size=4 .*=4$",
    ),
  )
  def test_groups_that_cannot_be_divided(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      describe("supervised", "--batch_size=16", *given)

  def test_ordinary_runs_may_go_on_with_other_devices(self):
    plain = identity("supervised")
    self.assertEqual(identity("supervised", "--num_devices=4"), plain)
    ghosts = identity("supervised", "--statistics_batch_size=4")
    self.assertEqual(ghosts, {**plain, "training.statistics_batch_size": 4})

  @parameterized.parameters(
    ("cpu", 4, ("--num_tasks=6",), 3),
    ("cpu", 2, ("--num_tasks=6",), 1),  # XLA_FLAGS said otherwise
    ("cpu", 4, ("--num_tasks=6", "--num_devices=1"), 1),
    ("gpu", 4, ("--num_tasks=6",), 1),
  )
  def test_how_many_devices_by_default(self, platform, there, given, expected):
    chosen = describe("sinusoid", *given)
    with (
      mock.patch.object(jax, "default_backend", lambda: platform),
      mock.patch.object(jax, "device_count", lambda: there),
      mock.patch.object(os, "sched_getaffinity", lambda _: {0, 2, 4, 5}),
      mock.patch.object(devices, "task_mesh"),
    ):
      chosen = _program._with_devices(chosen)
    self.assertEqual(chosen.machine.num_devices, expected)

  def test_half_a_description_of_the_processes_is_refused(self):
    with tempfile.TemporaryDirectory() as directory:
      code, _, err = run("sinusoid", f"{directory}/run", *TINY, "--num_processes=2")
    self.assertEqual(code, 2)
    self.assertRegex(err, "^sinusoid: coordinator=None is missing.*go together")

  @parameterized.parameters(
    ((), "auto", None),
    (("--convolution=direct", "--task_chunk=3"), "direct", 3),
    (("--deterministic",), None, "in_order"),
  )
  def test_how_a_run_is_executed(self, given, convolution, chunk):
    seen = []

    def build(description, execution):
      seen.append(execution)
      raise ValueError("seen enough")

    with tempfile.TemporaryDirectory() as directory:
      code, *_ = run("sinusoid", f"{directory}/run", *TINY, *given, build=build)
    self.assertEqual(code, 2)
    (execution,) = seen
    self.assertEqual(execution.task_chunk, chunk)
    if convolution:
      self.assertEqual(execution.convolution, convolution)

  def test_a_run_may_go_on_with_others(self):
    plain = identity("sinusoid")
    for flag in (
      "--num_devices=4",
      "--convolution=im2col",
      "--second_order=recomputed",
      "--memory_budget=0.5",
      "--coordinator=host:1",
    ):
      self.assertEqual(identity("sinusoid", flag), plain)
    self.assertNotEqual(identity("sinusoid", "--deterministic"), plain)

  def test_deterministic_convolutions_have_the_same_bits_in_two_processes(self):
    # Two devices have one core each here, one device has more: forms of convolution,
    # loops and threads would differ.
    flags = [
      "--dataset=characters",
      "--algorithm=fomaml",
      "--way=2",
      "--query_shot=3",
      "--model=conv4",
      "--num_filters=16",
      "--num_inner_steps=2",
      "--num_tasks=2",
      "--num_steps=3",
      "--log_every=1",
      "--deterministic",
    ]
    records = []
    with tempfile.TemporaryDirectory() as directory:
      for number in (1, 2):
        run_dir = pathlib.Path(directory, str(number))
        where = [f"--num_devices={number}", f"--run_dir={run_dir}"]
        environment = {k: v for k, v in os.environ.items() if k != "NPROC"}
        subprocess.run(
          [sys.executable, "-c", TRAINING, *flags, *where],
          env=environment,
          check=True,
          capture_output=True,
          timeout=300,
        )
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        records.append(
          [
            {key: value for key, value in json.loads(line).items() if "loss" in key}
            for line in lines
          ]
        )
    self.assertLen(records[0], 3)
    self.assertEqual(*records)


if __name__ == "__main__":
  absltest.main()
