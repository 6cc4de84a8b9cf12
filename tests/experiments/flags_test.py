"""Tests of the experiments' flags and flagfiles."""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

from absl import flags
from absl.testing import absltest, parameterized

from experiments import (
  _program,
  miniimagenet,
  navigation,
  omniglot,
  sinusoid,
  supervised,
)
from jsharp import _catalogue, _early, _flags
from jsharp.options import Options, fields
from jsharp.training import StopSignal

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = {
  module.EXPERIMENT.name: module.EXPERIMENT
  for module in (miniimagenet, navigation, omniglot, sinusoid, supervised)
}
META_LEARNING = ("miniimagenet", "omniglot", "sinusoid")
FLAGFILES = sorted((ROOT / "experiments" / "flagfiles").glob("*.txt"))
WITHOUT_INNER_RATE = "--algorithm=(protonet|ridge|black_box)"
HEAVY = ("jax", "flax", "numpy", "matplotlib", "PIL", "tensorflow_datasets", "tqdm")


def parse(experiment, *arguments):
  """What a command line gives: the values of its flags."""
  return EXPERIMENTS[experiment].program.parse(arguments, flags.FlagValues())


def describe(experiment, *arguments):
  """The run that a command line describes."""
  return _program.described(EXPERIMENTS[experiment], parse(experiment, *arguments))


def identity(experiment, *arguments):
  described = describe(experiment, *arguments)
  return _program.identity(EXPERIMENTS[experiment], described)


class FlagfilesTest(parameterized.TestCase):
  @parameterized.named_parameters((path.stem, path) for path in FLAGFILES)
  def test_says_how_and_whence_and_parses(self, path):
    text = path.read_text()
    experiment = re.search(r"python -m experiments\.(\w+)", text).group(1)
    self.assertRegex(text, "(?m)^# Source: |^# UNPUBLISHED SETTING: ")
    if experiment != "supervised" and not re.search(WITHOUT_INNER_RATE, text):
      self.assertRegex(text, "(?m)^# inner_lr: |maml_sinusoid_5shot.txt")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    parsed = parse(experiment, f"--flagfile={path}")
    for line in lines:
      name = line.removeprefix("--").removeprefix("no").partition("=")[0]
      known = name in parsed.values
      name = name if known else line.removeprefix("--").partition("=")[0]
      self.assertIn(name, parsed.present, line)
    self.assertEqual(parsed.unread(), [])
    self.assertLen({line.partition("=")[0] for line in lines}, len(lines))

  @parameterized.named_parameters(
    ("maml_omniglot", "omniglot", "maml_omniglot_5way_1shot"),
    ("maml_miniimagenet", "miniimagenet", "maml_miniimagenet_5way_1shot"),
    ("maml_sinusoid", "sinusoid", "maml_sinusoid_5shot"),
  )
  def test_defaults_of_the_experiments_are_the_published_ones(self, experiment, stem):
    path = ROOT / "experiments" / "flagfiles" / f"{stem}.txt"
    default, published = (
      identity(experiment, *arguments) for arguments in ([], [f"--flagfile={path}"])
    )
    # How MAML's own split of Omniglot and its 5 query images differ is in the file.
    # Validation belongs to no published setting.
    differing = {name for name in default if default[name] != published[name]}
    self.assertContainsSubset(
      differing,
      {
        "data.omniglot_split",
        "data.rotate_test",
        "tasks.eval_query_shot",
        "training.val_tasks",
      },
    )

  def test_published_inner_rates_are_converted_to_the_mean_loss(self):
    for stem, published in (
      ("maml_omniglot_5way_1shot", 0.4),
      ("maml_omniglot_20way_5shot", 0.1),
      ("fomaml_miniimagenet_5way_5shot", 0.01),
    ):
      path = ROOT / "experiments" / "flagfiles" / f"{stem}.txt"
      chosen = describe(stem.split("_")[1], f"--flagfile={path}")
      self.assertAlmostEqual(chosen.algorithm.inner_lr, published * chosen.tasks.way)

  def test_every_algorithm_has_one(self):
    names = [path.stem for path in FLAGFILES]
    for algorithm in _catalogue.outlines("algorithm"):
      self.assertTrue(any(name.startswith(f"{algorithm}_") for name in names))


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("--inner_lr=0", "inner_lr=0.0: must be positive and finite"),
    ("--inner_lr=nan", "inner_lr=nan: must be positive and finite"),
    ("--outer_lr=inf", "outer_lr=inf: must be positive and finite"),
    ("--inner_rho=-1", "inner_rho=-1.0: .*use --algorithm=maml"),
    ("--outer_rho=0", "outer_rho=0.0: .*use --algorithm=maml"),
    ("--p=0.5", "p=0.5: must lie between 1 and inf"),
    ("--p=nan", "p=nan: must lie between 1 and inf"),
    ("--clip_meta_gradient=-1", "clip_meta_gradient=-1.0: .*0 trains without"),
    ("--checkpoint_seconds=0", "checkpoint_seconds=0.0: must be positive"),
    ("--shot=0", "shot=0: .*at least 1"),
    ("--query_shot=-2", "query_shot=-2: .*at least 1"),
    ("--eval_query_shot=0", "eval_query_shot=0: .*at least 1"),
    ("--way=1", "way=1: .*a task needs at least 2 classes"),
    ("--num_tasks=0", "num_tasks=0: .*at least 1"),
    ("--num_steps=0", "num_steps=0: .*at least 1"),
    ("--num_inner_steps=0", "num_inner_steps=0: .*at least 1"),
    ("--num_eval_inner_steps=0", "num_eval_inner_steps=0: .*at least 1"),
    ("--task_chunk=0", "task_chunk=0: .*at least 1"),
    ("--log_every=0", "log_every=0: .*at least 1"),
    ("--eval_every=0", "eval_every=0: .*at least 1"),
    ("--val_tasks=0", "val_tasks=0: .*at least 1"),
    ("--eval_tasks=1", "eval_tasks=1: .*an interval needs at least 2 tasks"),
    ("--num_filters=0", "num_filters=0: .*at least 1"),
    ("--image_size=0", "image_size=0: .*at least 1"),
    ("--seed=-1", "seed=-1: must lie between 0"),
    ("--algorithm=matching", "algorithm=matching: .*black_box.*fomaml.*maml"),
    ("--train_way=5,x", "train_way=.*integers"),
    ("--eval_shot=0", "eval_shot=.*integers"),
    ("--support_label_noise=1.5", "support_label_noise=1.5: must lie between 0 and 1"),
    ("--eval_support_label_noise=0.2,2", "eval_support_label_noise=.*fractions"),
    ("--rotation=20,-20", "rotation=.*LOW <= HIGH"),
    ("--scale=1", "scale=.*LOW,HIGH"),
    ("--eval_shear=inf", "eval_shear=.*finite"),
    ("--test_dataset=cifar", "test_dataset=cifar: choose one of"),
    ("--initial_rates=0.1", "initial_rates=.*LOW,HIGH"),
    ("--proximity=0", "proximity=0.0: must be positive"),
    ("--ensemble=0", "ensemble=0: .*at least 1"),
    ("--final_outer_lr=-1", "final_outer_lr=-1.0: must be finite and at least 0"),
    ("--first_order_steps=-1", "first_order_steps=-1: must be finite and at least 0"),
    ("--model=resnet", "model=resnet: .*conv4.*mlp"),
    ("--omniglot_split=x", "omniglot_split=x: .*vinyals.*mixed"),
    ("--dataset=cifar", "dataset=cifar: choose one of .*characters.*tfds:NAME"),
    ("--dataset=tfds:", "dataset=tfds:: choose one of"),
    ("--shot=many", "shot=many: "),
    ("--inner_learning_rate=1", "inner_learning_rate"),
  )
  def test_names_flag_value_and_fix(self, argument, message):
    with self.assertRaisesRegex(flags.Error, message):
      parse("omniglot", argument)

  @parameterized.parameters(
    ("--label_noise=1.5", "label_noise=1.5: must lie between 0 and 1"),
    ("--val_fraction=1", "val_fraction=1.0: must be at least 0 and below 1"),
    ("--momentum=1", "momentum=1.0: must be at least 0 and below 1"),
    ("--weight_decay=-1", "weight_decay=-1.0: must be finite and at least 0"),
    ("--rho=0", "rho=0.0: .*use --algorithm=sgd"),
    ("--p=0.5", "p=0.5: must lie between 1 and inf"),
    ("--lr=nan", "lr=nan: must be positive and finite"),
    ("--clip_gradient=0", "clip_gradient=0.0: .*leave the flag out"),
    ("--sam_start=-1", "sam_start=-1.0: must be finite and at least 0"),
    ("--hessian_eigenvalues=-1", "hessian_eigenvalues=-1: must be .*at least 0"),
    ("--num_characters=1", "num_characters=1: must lie between 2 and 320"),
    ("--dataset=omniglot", "dataset=omniglot: choose one of .*image_folder.*tfds:NAME"),
    ("--augment=mixup", "augment=mixup: .*none.*basic.*cutout"),
    ("--num_epochs=0", "num_epochs=0: .*at least 1"),
    ("--train_examples=0", "train_examples=0: .*at least 1"),
  )
  def test_of_ordinary_training(self, argument, message):
    with self.assertRaisesRegex(flags.Error, message):
      parse("supervised", argument)

  @parameterized.parameters(
    (["--algorithm=sgd", "--rho=0.1"], "--rho has no effect .*=sgd; .* asam.* sam,"),
    (["--gamma=0.1"], "--gamma has no effect with --algorithm=sam; .* to wsam: drop"),
    (["--algorithm=vasso", "--sigma=0.5"], "--sigma has no .*=vasso.* friendly_sam:"),
    (["--algorithm=sgd", "--sam_every=2"], "--sam_every has no effect .*sgd.*looksam"),
    (["--algorithm=momentum_sam", "--sam_start=1"], "--sam_start has no .*momentum"),
    (["--hessian_steps=2", "--hessian_eigenvalues=3"], "finds at most .* not 3"),
  )
  def test_of_options_that_do_not_go_together(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      describe("supervised", *arguments)

  def test_infinity_norm_and_catalogue_names_are_allowed(self):
    values = parse("omniglot", "--p=inf", "--dataset=tfds:cifar100")
    self.assertEqual(values.values["p"].value, float("inf"))

  def test_the_program_says_it_without_a_traceback(self):
    ran = subprocess.run(
      [sys.executable, "-m", "experiments.miniimagenet", "--way=1"],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(ran.returncode, 2)
    self.assertRegex(ran.stderr, "^miniimagenet: flag --way=1: .*a task needs")
    self.assertNotIn("Traceback", ran.stderr)


class DescriptionTest(parameterized.TestCase):
  def test_defaults_that_follow_other_flags(self):
    tasks = describe("omniglot", "--shot=3", "--num_inner_steps=4", "--way=2").tasks
    self.assertEqual((tasks.query_shot, tasks.eval_query_shot), (3, 3))
    tasks = describe("sinusoid", "--query_shot=7").tasks
    self.assertEqual(tasks.eval_query_shot, 7)

  def test_an_algorithms_own_defaults_come_before_the_experiments(self):
    # One step of MAML's 2.0 would leave the proximal problem further from its solution.
    self.assertEqual(describe("omniglot", "--algorithm=maml").algorithm.inner_lr, 2.0)
    implicit = describe("omniglot", "--algorithm=imaml").algorithm
    self.assertEqual(implicit.inner_lr, 0.01)

  @parameterized.parameters(
    ("omniglot", [], "runs/omniglot-maml-5way-1shot-seed0"),
    (
      "omniglot",
      ["--dataset=tfds:a/b", "--way=20", "--seed=3"],
      "runs/omniglot-tfds-a-b-maml-20way-1shot-seed3",
    ),
    (
      "miniimagenet",
      ["--data_dir=/data/caltech101"],
      "runs/miniimagenet-caltech101-maml-5way-1shot-seed0",
    ),
    ("sinusoid", ["--algorithm=fomaml"], "runs/sinusoid-fomaml-5shot-seed0"),
    (
      "supervised",
      ["--dataset=tfds:cifar10", "--model=wide_resnet", "--depth=16", "--widen=4"],
      "runs/supervised-tfds-cifar10-wide_resnet16x4-sam-seed0",
    ),
    (
      "supervised",
      ["--algorithm=sgd", "--label_noise=0.4", "--seed=2"],
      "runs/supervised-characters-resnet8-sgd-noise40-seed2",
    ),
    (
      "supervised",
      ["--train_examples=60", "--label_noise=0.4"],
      "runs/supervised-characters-resnet8-sam-60examples-noise40-seed0",
    ),
  )
  def test_run_directory(self, experiment, arguments, expected):
    found = describe(experiment, *arguments).run.run_dir
    self.assertRegex(found, f"^{expected}-[0-9a-f]{{6}}$")

  def test_the_default_directory_differs_when_settings_do(self):
    argument_lists = ([], ["--inner_lr=1"], ["--query_shot=2"], ["--num_filters=8"])
    found = {describe("omniglot", *a).run.run_dir for a in argument_lists}
    self.assertLen(found, 4)
    longer = describe("omniglot", "--num_steps=7", "--log_every=3").run.run_dir
    self.assertIn(longer, found)

  def test_identity_leaves_out_what_changes_nothing(self):
    one = identity("omniglot", "--num_steps=10", "--run_dir=a", "--eval_tasks=2")
    self.assertEqual(one, identity("omniglot", "--task_chunk=2", "--num_devices=1"))
    for argument in ("--inner_lr=3", "--p=inf", "--seed=1", "--eval_every=7"):
      self.assertNotEqual(one, identity("omniglot", argument))

  @parameterized.product(
    experiment=META_LEARNING, algorithm=tuple(_catalogue.outlines("algorithm"))
  )
  def test_every_algorithm_goes_with_every_experiments_defaults(
    self, experiment, algorithm
  ):
    needs_classes = _catalogue.outlines("algorithm")[algorithm].classifies
    if experiment == "sinusoid" and needs_classes:
      with self.assertRaisesRegex(ValueError, f"{algorithm} classifies"):
        describe(experiment, f"--algorithm={algorithm}")
      return
    described = describe(experiment, f"--algorithm={algorithm}")
    self.assertEqual(described.algorithm.name, algorithm)


class UnreadTest(parameterized.TestCase):
  """Flags that the chosen algorithm does not read."""

  def describe(self, *arguments):
    out = io.StringIO()
    with contextlib.redirect_stderr(out):
      described = describe("omniglot", *arguments)
    return described, out.getvalue()

  def test_those_of_a_flagfile_are_left_out_with_one_line(self):
    path = ROOT / "experiments" / "flagfiles" / "quickstart.txt"
    described, said = self.describe(f"--flagfile={path}", "--algorithm=maml")
    self.assertEqual(described.algorithm.name, "maml")
    self.assertEqual(described.algorithm.inner_lr, 1.0)
    self.assertEqual(said.count("\n"), 1)
    self.assertRegex(said, "ignored.*--inner_rho, --outer_rho")
    described, said = self.describe(f"--flagfile={path}", "--algorithm=protonet")
    self.assertRegex(said, "--inner_lr.*--num_inner_steps.*--inner_rho")
    self.assertEqual(described.tasks.query_shot, 5)

  def test_nothing_is_said_where_all_are_read(self):
    path = ROOT / "experiments" / "flagfiles" / "quickstart.txt"
    self.assertEqual(self.describe(f"--flagfile={path}")[1], "")

  @parameterized.parameters(
    (["--algorithm=anil", "--proximity=3"], "--proximity has no effect .*imaml: drop"),
    (["--algorithm=protonet", "--inner_lr=3"], "--inner_lr has no effect .*protonet"),
    (["--inner_rho=0.3"], "--inner_rho=0.3 has no effect.*--sharpness=low"),
    (["--reuse_perturbation"], "--reuse_perturbation has no .*sharp_maml_both"),
  )
  def test_those_typed_by_hand_are_refused(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      self.describe(*arguments)

  @parameterized.parameters(
    (["--model=mlp", "--num_filters=3"], "ignored.*: --num_filters$"),
    (["--dataset=characters", "--rotate_test"], "ignored.*: --rotate_test$"),
  )
  def test_those_of_another_network_or_dataset_are_left_out(self, arguments, message):
    self.assertRegex(self.describe(*arguments)[1].strip(), message)

  def test_a_flag_typed_after_its_flagfile_counts_as_typed(self):
    path = ROOT / "experiments" / "flagfiles" / "quickstart.txt"
    words = (f"--flagfile={path}", "--algorithm=maml", "--inner_rho=0.2")
    with self.assertRaisesRegex(ValueError, "--inner_rho=0.2 has no effect"):
      self.describe(*words)


class HelpTest(parameterized.TestCase):
  @parameterized.parameters(*EXPERIMENTS)
  def test_imports_nothing_heavy_and_lists_what_is_read(self, experiment):
    code = (
      "import runpy, sys\n"
      f"sys.argv = ['{experiment}', '--help']\n"
      "try:\n"
      f"  runpy.run_module('experiments.{experiment}', run_name='__main__',\n"
      "                   alter_sys=True)\n"
      "finally:\n"
      f"  print('heavy:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    ran = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    self.assertIn("heavy: []", ran.stdout, ran.stderr)
    program = EXPERIMENTS[experiment].program
    for group in program.groups:
      self.assertIn(f"{group.title}:\n", ran.stdout)
    listed = set(re.findall(r"^  --(?:\[no\])?(\w+):$", ran.stdout, re.M))
    described = describe(experiment)
    for name, owners in program.owners().items():
      is_read = any(cls.__name__ in _names_in(described) for cls, _ in owners)
      self.assertEqual(name in listed, is_read, name)
    self.assertContainsSubset({c.flag for c in program.choices().values()}, listed)

  @parameterized.parameters("imaml", "reptile")
  def test_of_another_algorithm(self, algorithm):
    text = omniglot.EXPERIMENT.program.help([f"--algorithm={algorithm}"])
    for field in fields(_catalogue.outlines("algorithm")[algorithm]):
      self.assertRegex(text, rf"--(\[no\])?{field.name}:")
    self.assertRegex(
      text, r"(?s)maml_plus_plus,.* have\s+other\s+options:\s+--algorithm=NAME"
    )


def _names_in(description):
  """Names of the classes of a description and of everything nested in it."""
  found = {cls.__name__ for cls in type(description).__mro__}
  for field in fields(type(description)):
    value = getattr(description, field.name)
    if isinstance(value, Options):
      found |= _names_in(value)
  return found


class EarlySignalsTest(parameterized.TestCase):
  """Signals before there is anything to save."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  @parameterized.parameters(
    (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)
  )
  def test_they_end_a_program_in_order(self, number, expected):
    left = []

    def then(given):
      del given
      try:
        signal.raise_signal(number)
      finally:
        left.append("cleared")

    default = _early.DEFAULTS[number]
    self.addCleanup(signal.signal, number, signal.signal(number, default))
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      code = _flags.call(sinusoid.EXPERIMENT.program, [], flags.FlagValues(), then)
    self.assertEqual((code, left), (expected, ["cleared"]))
    self.assertIn("interrupted before it began", err.getvalue())
    self.assertIs(signal.getsignal(number), default)

  @parameterized.parameters(
    ("experiments.sinusoid", "experiments", 130),
    ("jsharp.predict", "jsharp", 130),
    ("experiments.own", "jsharp", -signal.SIGINT),  # Of somebody else's package.
    ("pytest", "experiments", -signal.SIGINT),
  )
  def test_while_modules_are_imported(self, module, imported, expected):
    code = (
      f"import signal, sys; sys.orig_argv = ['python', '-m', '{module}']; "
      "sys.argv[0] = '-m'; "
      "signal.signal(signal.SIGINT, signal.default_int_handler); "
      f"import {imported}; signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    self.assertEqual(done.returncode, expected)
    self.assertEqual("Traceback" in done.stderr, expected < 0)

  def test_one_within_an_import_ends_the_program_at_once(self):
    """Raised there, it would abort an extension module that is being set up."""
    (self.root / "slow.py").write_text(
      "import signal\ntry:\n  signal.raise_signal(signal.SIGTERM)\nexcept: pass\n"
    )
    code = (
      f"import sys; sys.path.insert(0, {str(self.root)!r})\n"
      "from jsharp import _early, _flags\n"
      "with _flags._heard():\n  import slow\nprint('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    self.assertEqual((done.returncode, done.stdout), (143, ""))
    self.assertEqual(done.stderr, "interrupted before it began.\n")

  def test_one_that_is_swallowed_is_not_lost(self):
    def then(given):
      del given
      with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)
      with StopSignal():
        self.fail("training began")

    default = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, default)
    code = _flags.call(sinusoid.EXPERIMENT.program, [], flags.FlagValues(), then)
    self.assertEqual(code, 130)

  def test_nohup_is_respected(self):
    self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard = lambda given: signal.raise_signal(signal.SIGHUP) or 7
    code = _flags.call(sinusoid.EXPERIMENT.program, [], flags.FlagValues(), heard)
    self.assertEqual(code, 7)


class MessageTest(parameterized.TestCase):
  @parameterized.parameters(
    (PermissionError(13, "Permission denied", "/a"), "/a: Permission denied"),
    (OSError(18, "Invalid link", "/a", None, "/b"), "/a -> /b: Invalid link"),
    (OSError(28, "cannot write /a (No space left)"), "cannot write /a (No space left)"),
    (OSError("nowhere to keep it"), "nowhere to keep it"),
    (ValueError("shot=0"), "shot=0"),
  )
  def test_what_cannot_be_read_is_named(self, error, expected):
    self.assertEqual(_flags.message(error), expected)


class HostileWordsTest(parameterized.TestCase):
  """What is on the command line or in a flagfile, and should not be."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def _refusal(self, *words):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      code = _program.start(sinusoid.EXPERIMENT, words, flags.FlagValues())
    self.assertEqual(code, 2)
    self.assertNotIn("Traceback", err.getvalue())
    return err.getvalue()

  def test_flagfiles_that_are_none(self):
    fifo, file = self.root / "fifo", self.root / "file"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero"):
      for words in ([f"--flagfile={path}"], ["--flagfile", str(path)]):
        self.assertIn(f"{path} is not a regular file", self._refusal(*words))
    for content, message in (
      (b"\xff\xfe\x00", "file is not UTF-8 text"),
      (b"--shot=1\n\0", "file is not text: it contains NUL bytes"),
      (
        b"#" * (2**20 + 1),
        "file has 1,048,577 bytes, more than the limit of 1,048,576",
      ),
    ):
      file.write_bytes(content)
      self.assertIn(message, self._refusal(f"--flagfile={file}"))
    self.assertIn("sinusoid: ", self._refusal(f"--flagfile={self.root}"))

  def test_flagfiles_nested_a_thousand_times(self):
    for number in range(1000):
      path = self.root / f"{number}"
      path.write_text(f"--flagfile={self.root / str(number + 1)}\n")
    self.assertIn(
      "0 includes more than 100", self._refusal(f"--flagfile={self.root}/0")
    )

  def test_a_word_that_no_file_can_hold(self):
    self.assertIn(r"'--run_dir=\udcff' is not UTF-8", self._refusal("--run_dir=\udcff"))


if __name__ == "__main__":
  absltest.main()
