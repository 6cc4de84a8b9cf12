"""Measures the cost of a SAM step, and of optax's: time, gradients, state and memory.

Question: how much slower is `optax.chain(jsharp.sam(rho), optax.adamw(lr))` than the
two gradients that it needs at least?

    python -m benchmarks.sam

The reference is two programs, one after the other: a gradient, and a plain AdamW step
with its own gradient. (In one program the compiler would compute the gradient only
once.) All forms alternate, `--seconds` at a time for `--rounds` rounds; ratios are
taken within rounds. The column "gradients" is one plus the time above a plain AdamW
step in units of one gradient. Memory is what the compiler reports.

    python -m benchmarks.sam --suite

runs optax's common suite of tests, all of it, over `optax.contrib.sam` (Adam base, both
modes) and over jsharp's constructors, and prints what fails.
tests/perturbations/conformance_test.py runs a part of it.
"""

import importlib
import platform
import statistics
import time
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jsharp
from benchmarks.tables import spread
from jsharp import models
from jsharp.algorithms.supervised import classifier
from jsharp.evaluation.report import git_commit
from jsharp.types import Batch, Variables

_PROBLEMS = flags.DEFINE_list(
  "problems", ["resnet", "mlp"], "Which problems, comma-separated."
)
_SECONDS = flags.DEFINE_float(
  "seconds", 3.0, "Seconds per form and round.", lower_bound=0
)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Number of rounds.", lower_bound=1)
_SUITE = flags.DEFINE_boolean(
  "suite", False, "Run optax's tests on contrib.sam and ours."
)

_RHO = 0.05
_TWO = "a gradient, then adamw"


class Problem(NamedTuple):
  """A training problem.

  Attributes:
    loss_fn: `loss_fn(params) -> loss`, of one fixed batch.
    params: initial parameters.
    description: label in the table.
  """

  loss_fn: Callable[[Any], jax.Array]
  params: Any
  description: str


def mlp(batch_size: int = 128) -> Problem:
  """A 10-million-parameter MLP on random data."""
  init_fn, apply_fn = models.as_functions(models.MLP((2048, 2048, 2048, 10)))
  x, y = _data((batch_size, 784))
  params = init_fn(jax.random.key(0), x[:1])
  return Problem(lambda w: _cross_entropy(apply_fn(w, x), y), params, "MLP")


def resnet(batch_size: int = 128) -> Problem:
  """The small network of `experiments.supervised` on random images."""
  init_fn, loss_fn = classifier(models.ResNet(num_outputs=10, depth=8))
  batch = Batch(*_data((batch_size, 32, 32, 3)))
  variables = init_fn(jax.random.key(0), batch.inputs[:1])

  def mean_loss(w: Any) -> jax.Array:
    metrics, _ = loss_fn(Variables(w, variables.statistics), batch, True)
    return metrics["loss"].mean()

  return Problem(mean_loss, variables.params, "ResNet-8")


def _data(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  generator = np.random.default_rng(0)
  inputs = jnp.asarray(generator.normal(size=shape), jnp.float32)
  return inputs, jnp.asarray(generator.integers(10, size=shape[0]), jnp.int32)


def _cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


class Form:
  """One compiled training step that keeps its own state."""

  def __init__(self, problem: Problem, tx: Any, grad_fn: Any = None):
    gradient = jax.value_and_grad(problem.loss_fn)

    def step(carry: Any) -> Any:
      w, state = carry
      _, grads = gradient(w)
      extra = {"grad_fn": grad_fn} if grad_fn else {}
      updates, state = tx.update(grads, state, w, **extra)
      return optax.apply_updates(w, updates), state

    state = tx.init(problem.params)
    self._carry = (jax.tree.map(jnp.copy, problem.params), state)
    self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    self._step = jax.jit(step, donate_argnums=0).lower(self._carry).compile()
    self._gradient = jax.jit(gradient).lower(problem.params).compile()
    memory = self._step.memory_analysis()
    self.temp_bytes = memory.temp_size_in_bytes if memory else 0

  def time(self, seconds: float, *, extra_gradient: bool = False) -> float:
    """Seconds per step over about `seconds`, perhaps with a gradient before each."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
      # Five steps: a whole period of SAM on every fifth step.
      for _ in range(5):
        if extra_gradient:
          jax.block_until_ready(self._gradient(self._carry[0]))
        self._carry = jax.block_until_ready(self._step(self._carry))
      count += 5
    return (time.perf_counter() - start) / count


def forms(problem: Problem) -> dict[str, Form]:
  """Every form of the step, compiled."""
  adamw = optax.adamw(1e-4)
  grad_fn = jax.grad(problem.loss_fn)
  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(_RHO))
  every, look = (link(_RHO, every=5) for link in (jsharp.sam_every, jsharp.looksam))
  opaque = optax.contrib.sam(adamw, ascent, opaque_mode=True)
  return {
    "adamw": Form(problem, adamw),
    "chain(sam, adamw)": Form(problem, optax.chain(jsharp.sam(_RHO), adamw), grad_fn),
    "chain(sam_every 5, adamw)": Form(problem, optax.chain(every, adamw), grad_fn),
    "chain(looksam 5, adamw)": Form(problem, optax.chain(look, adamw), grad_fn),
    "momentum_sam(adamw)": Form(problem, jsharp.momentum_sam(adamw, _RHO)),
    "contrib.sam, opaque": Form(problem, opaque, lambda w, _: grad_fn(w)),
    # Half a SAM step per call: two calls make one.
    "contrib.sam, transparent": Form(problem, optax.contrib.sam(adamw, ascent)),
  }


def report(name: str) -> None:
  """Prints the rows of one problem."""
  problem = {"mlp": mlp, "resnet": resnet}[name]()
  size = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
  timed = forms(problem)
  base_bytes = timed["adamw"].state_bytes
  for form in timed.values():
    form.time(0.0)
  times: dict[str, list[float]] = {_TWO: [], **{label: [] for label in timed}}
  for _ in range(_ROUNDS.value):
    times[_TWO].append(timed["adamw"].time(_SECONDS.value, extra_gradient=True))
    for label, form in timed.items():
      calls = 2 if "transparent" in label else 1
      times[label].append(calls * form.time(_SECONDS.value))
  one, two = times["adamw"], times[_TWO]
  for label, values in times.items():
    form = timed.get(label, timed["adamw"])
    ratios = [t / b for t, b in zip(values, two, strict=True)]
    cost = [1 + (t - a) / (b - a) for t, a, b in zip(values, one, two, strict=True)]
    print(
      f"| {problem.description}, {size:,} | {label} "
      f"| {spread([1e3 * t for t in values], 1)} | {spread(ratios, 2)} "
      f"| {statistics.median(cost):.2f} | {form.state_bytes - base_bytes:,} "
      f"| {form.temp_bytes / 2**20:.1f} |",
      flush=True,
    )


def whole_suite() -> None:
  """Runs optax's common tests, all of them, over optax's own SAM and over ours."""
  ours: Any = importlib.import_module("tests.perturbations.conformance_test")
  from tests.perturbations.optax_suite import suite

  def factory(opaque: bool) -> Callable[..., Any]:
    def build(learning_rate: optax.ScalarOrSchedule) -> Any:
      ascent = optax.chain(optax.contrib.normalize(), optax.sgd(1e-3))
      return optax.contrib.sam(optax.adam(learning_rate), ascent, opaque_mode=opaque)

    return build

  for name, opaque in {"transparent": False, "opaque": True}.items():
    tests = suite(
      [{"opt_name": name, "opt_kwargs": {"learning_rate": 1e-2}}],
      {name: factory(opaque)},
      lambda objective: {"grad_fn": lambda w, _: jax.grad(objective)(w)},
    )
    _run(f"contrib.sam, {name}", tests)
  tests = suite(
    ours.OPTIMIZERS,
    ours.FACTORIES,
    lambda objective: {"grad_fn": jax.grad(objective)},
  )
  _run(f"jsharp, {len(ours.OPTIMIZERS)} links", tests)


def _run(name: str, tests: Any) -> None:
  loaded = unittest.defaultTestLoader.loadTestsFromTestCase(tests)
  result = unittest.TestResult()
  loaded.run(result)
  broken = {
    getattr(test, "test_case", test)._testMethodName
    for test, _ in (*result.failures, *result.errors)
  }
  print(f"{name}: {result.testsRun} tests, {len(broken)} fail", flush=True)
  for test in sorted(broken):
    print(f"  {test}")


def main(argv: Sequence[str]) -> None:
  del argv
  commit = git_commit(Path(__file__).parents[1])
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, optax "
    f"{optax.__version__}; {jax.devices()[0].device_kind} x {jax.device_count()}, "
    f"{platform.machine()}, commit {commit}"
  )
  if _SUITE.value:
    return whole_suite()
  print(
    "| problem, parameters | form | ms per step, median (range) | over two gradients "
    "| gradients | state beyond adamw's, bytes | temporary memory, MiB |"
  )
  print("|---|---|---|---|---|---|---|", flush=True)
  for name in _PROBLEMS.value:
    report(name)


if __name__ == "__main__":
  app.run(main)
