"""optax's own conformance suite, pointed at other optimizers.

The optax wheel ships the tests that its contributed optimizers have to pass. They are
read from the installed file, not copied; five things are replaced in what was read, and
every replacement must apply the expected number of times, so that a new optax fails
here loudly rather than testing something else:

- the list of optimizers under test,
- the look-up of an optimizer by its name,
- the extra argument that one of them (sophia, `obj_fn`) is given, which becomes
  `grad_fn` for all,
- the optimizers that are given a schedule as their learning rate: of a link in front of
  Adam that is Adam's own,
- the types and targets: what one type or target shows is not shown again by another.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax.contrib

# Text of optax 0.2.8, its replacement, how often.
_REPLACEMENTS = (
  ("_ALL_OPTIMIZERS_UNDER_TEST = tuple(", "_THEIRS = tuple(", 1),
  (
    "_MAIN_OPTIMIZERS_UNDER_TEST = tuple(_MAIN_OPTIMIZERS_UNDER_TEST)",
    "_MAIN_OPTIMIZERS_UNDER_TEST = _ALL_OPTIMIZERS_UNDER_TEST = OURS",
    1,
  ),
  ("  if hasattr(contrib, opt_name):", "  if True: return FACTORIES[opt_name]", 1),
  ("    return getattr(contrib, opt_name)\n", "", 1),
  ("if opt_name in ['sophia']:", "if True:", 1),
  ("elif opt_name == 'sophia':", "elif True:", 3),
  ("if opt_name == 'sophia':", "if True:", 3),
  ("update_kwargs['obj_fn'] = objective", "update_kwargs |= EXTRA(objective)", 1),
  ("update_kwargs = {'obj_fn': objective}", "update_kwargs = EXTRA(objective)", 1),
  ("update_kwargs = {'obj_fn': obj_fn}", "update_kwargs = EXTRA(obj_fn)", 2),
  (", obj_fn=obj_fn)", ", **EXTRA(obj_fn))", 2),
  (", obj_fn=fun)", ", **EXTRA(fun))", 2),
)

# What is left out where compiling the whole suite takes too long. States and updates
# that keep their type keep it in an accumulation too.
_THINNED = (
  (
    """@parameterized.product(_ALL_OPTIMIZERS_UNDER_TEST)
  def test_optimizers_accept_learning_rate_schedule""",
    """@parameterized.product(SCHEDULED)
  def test_optimizers_accept_learning_rate_schedule""",
    1,
  ),
  ("wrap=[True, False]", "wrap=[False]", 1),  # There is no wrapper.
  (
    "_MAIN_OPTIMIZERS_UNDER_TEST, dtype=('bfloat16', 'float32')",
    "SCHEDULED, dtype=('bfloat16',)",
    2,
  ),
  (
    "dtype=(jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)",
    "dtype=(jnp.bfloat16,)",
    1,
  ),
  ("          _setup_parabola,\n", "", 1),
  ("          _setup_matrix_parabola,\n", "", 1),
)


def suite(
  optimizers: Sequence[Mapping[str, Any]],
  factories: Mapping[str, Callable[..., Any]],
  extra: Callable[[Callable[..., Any]], dict[str, Any]],
  scheduled: Sequence[str] | None = None,
) -> type:
  """Returns optax's test class for the given optimizers.

  Args:
    optimizers: `{"opt_name": ..., "opt_kwargs": ...}` each.
    factories: `opt_name -> factory(**opt_kwargs)`.
    extra: `extra(objective) -> the extra arguments of update`.
    scheduled: the `opt_name` of those that get a schedule and are accumulated; other
      tests are thinned out too then. None for the whole suite.
  """
  path = pathlib.Path(optax.contrib.__file__).with_name("_common_test.py")
  source = path.read_text()
  thinned = () if scheduled is None else _THINNED
  for old, new, count in _REPLACEMENTS + thinned:
    if source.count(old) != count:
      raise AssertionError(
        f"{path} of optax {optax.__version__} holds {old!r} {source.count(old)} times, "
        f"not {count}: read its changes and mend this file"
      )
    source = source.replace(old, new)
  rows = [{**row, "wrapper_name": None, "wrapper_kwargs": None} for row in optimizers]
  namespace: dict[str, Any] = {
    "__name__": "optax.contrib._common_test",
    "OURS": tuple(rows),
    "SCHEDULED": tuple(row for row in rows if row["opt_name"] in (scheduled or ())),
    "FACTORIES": dict(factories),
    "EXTRA": extra,
  }
  exec(compile(source, str(path), "exec"), namespace)
  return namespace["ContribTest"]
