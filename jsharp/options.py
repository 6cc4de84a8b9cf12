"""Typed, checked options that describe algorithms, networks, datasets and runs.

A description is a frozen dataclass derived from `Options`. Each field is an `option`
with a type, a default, a help text, a check and one role. Flags, the identity of a run,
the protocol of a result and the file of a saved learner all follow from it.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ridge(Algorithm):
      '''A closed-form ridge head.'''
      name: ClassVar[str] = "ridge"
      penalty: float = option(1.0, "Weight of the penalty.", check=positive())

Importing this module is fast: `jsharp._catalogue` reads descriptions from source
without importing their modules.
"""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

MISSING = dataclasses.MISSING
_LONGEST_SHOWN = 300


class Role(enum.StrEnum):
  """What an option belongs to.

  Attributes:
    LEARNER: what the learner is.
    TRAINING: how it is trained, and which of its parameters are kept.
    TESTING: which tasks it is tested on; runs must share these to be compared.
    MACHINE: where and how fast it runs; it changes results only by rounding.

  Example:
    >>> Role("machine") is Role.MACHINE
    True
  """

  LEARNER = "learner"
  TRAINING = "training"
  TESTING = "testing"
  MACHINE = "machine"


class Check(NamedTuple):
  """A condition on a value, with an error message.

  Attributes:
    accepts: `accepts(value) -> bool`; a TypeError or ValueError counts as False.
    message: what is wrong and how to fix it.
  """

  accepts: Callable[[Any], bool]
  message: str


def positive(fix: str) -> Check:
  """Accepts a finite number above 0.

  Example:
    >>> positive("0.1 is usual.").accepts(0.0)
    False
  """
  return Check(
    lambda value: value > 0 and math.isfinite(value),
    f"must be positive and finite; {fix}",
  )


def at_least(low: float, fix: str = "") -> Check:
  """Accepts a finite number of at least `low`.

  Example:
    >>> at_least(1).message
    'must be finite and at least 1; give 1 or more.'
  """
  return Check(
    lambda value: low <= value < math.inf,
    f"must be finite and at least {low:g}; {fix or f'give {low:g} or more.'}",
  )


def between(low: float, high: float, fix: str = "", *, below: bool = False) -> Check:
  """Accepts a number from `low` to `high`; `high` itself only without `below`.

  Example:
    >>> between(0, 1, below=True).accepts(1)
    False
  """
  if below:
    message = f"must be at least {low:g} and below {high:g}"
    return Check(lambda value: low <= value < high, f"{message}; {fix}".rstrip("; "))
  message = f"must lie between {low:.10g} and {high:.10g}"
  return Check(lambda value: low <= value <= high, f"{message}; {fix}".rstrip("; "))


def norm() -> Check:
  """Accepts the order of a norm, from 1 to infinity.

  Example:
    >>> norm().accepts(math.inf), norm().accepts(0.5)
    (True, False)
  """
  return Check(
    lambda value: value >= 1, "must lie between 1 and inf; 2 is the papers' norm."
  )


def finite() -> Check:
  """Accepts any finite number.

  Example:
    >>> finite().accepts(-3.0)
    True
  """
  return Check(math.isfinite, "must be finite.")


def each(check: Check, message: str) -> Check:
  """Accepts a non-empty list whose entries all pass a check.

  Example:
    >>> each(at_least(1), "needs whole numbers.").accepts((5, 0))
    False
  """
  return Check(
    lambda value: bool(value) and all(check.accepts(entry) for entry in value), message
  )


def interval(message: str) -> Check:
  """Accepts two finite numbers LOW, HIGH with LOW <= HIGH.

  Example:
    >>> interval("needs LOW,HIGH.").accepts((1.0, 0.5))
    False
  """
  return Check(
    lambda value: (
      len(value) == 2 and all(map(math.isfinite, value)) and value[0] <= value[1]
    ),
    message,
  )


def option(
  default: Any = MISSING,
  help: str = "",
  *,
  check: Check | None = None,
  role: Role | None = None,
  identity: bool | None = None,
  shared: bool | None = None,
  added: bool = False,
) -> Any:
  """Declares a field of a description.

  Args:
    default: its default; a field without a default is required.
    help: what it is, with its unit, for the help of a program.
    check: a condition on its values; the value None always passes.
    role: what it belongs to; the role of its class if None.
    identity: whether a different value makes a different run. None for the rule: yes,
      unless the role is MACHINE.
    shared: whether runs must have the same value to be compared. None for the rule:
      yes, if the role is TESTING.
    added: whether the field was added after the first saved learners and runs. These
      lack the field and get its default, which must reproduce their behaviour; a run
      with the default has the same identity as a run without the field.

  Returns:
    The field, for a frozen dataclass derived from `Options`.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float = option(0.1, "Step size.", check=positive("0.1 is usual."))
    >>> Rate(lr=-1.0)
    Traceback (most recent call last):
    ValueError: lr=-1.0: must be positive and finite; 0.1 is usual.
  """
  metadata = {
    "help": help,
    "check": check,
    "role": role,
    "identity": identity,
    "shared": shared,
    "added": added,
  }
  return dataclasses.field(default=default, metadata=metadata)


class Field(NamedTuple):
  """An option of a description, with the rules of `option` applied.

  Attributes:
    name: the field's name.
    type: its annotation, without None.
    optional: whether None is allowed.
    default: its default; `MISSING` if it has none.
    help: what it is.
    check: a condition on its values, or None.
    role: what it belongs to.
    identity: whether a different value makes a different run.
    shared: whether runs must have the same value to be compared.
    added: whether earlier files lack the field and get its default.
  """

  name: str
  type: Any
  optional: bool
  default: Any
  help: str
  check: Check | None
  role: Role
  identity: bool
  shared: bool
  added: bool


class Options:
  """Base class of descriptions: frozen dataclasses of `option` fields.

  A base class of one kind (`Algorithm`, `Network`, ...) sets `kind`; subclasses that
  can be chosen by name set `name` too.
  """

  kind: ClassVar[str] = ""
  name: ClassVar[str] = ""
  role: ClassVar[Role] = Role.LEARNER

  def __post_init__(self) -> None:
    for field in fields(type(self)):
      value = fitted(field, getattr(self, field.name))
      object.__setattr__(self, field.name, value)
    self.complete()

  def complete(self) -> None:
    """Sets defaults that depend on other fields, and checks combinations of fields."""

  def _set(self, name: str, value: Any) -> None:
    """Sets a field if it is None; for use in `complete`."""
    if getattr(self, name) is None:
      object.__setattr__(self, name, value)

  def replace(self, **changes: Any) -> Self:
    """A copy with some values changed."""
    return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def fields(cls: type[Options]) -> list[Field]:
  """The options of a description, in order of definition.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float | None = option(None, "Step size.")
    >>> [(field.name, field.type, field.optional) for field in fields(Rate)]
    [('lr', <class 'float'>, True)]
  """
  if not dataclasses.is_dataclass(cls):
    return []
  hints = typing.get_type_hints(cls)
  found = []
  for field in dataclasses.fields(cls):
    kind, optional = _without_none(hints[field.name])
    role = field.metadata.get("role") or cls.role
    identity, shared = map(field.metadata.get, ("identity", "shared"))
    found.append(
      Field(
        name=field.name,
        type=kind,
        optional=optional,
        default=field.default,
        help=field.metadata.get("help", ""),
        check=field.metadata.get("check"),
        role=role,
        identity=role is not Role.MACHINE if identity is None else identity,
        shared=role is Role.TESTING if shared is None else shared,
        added=bool(field.metadata.get("added")),
      )
    )
  return found


def _without_none(annotation: Any) -> tuple[Any, bool]:
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    rest = [a for a in typing.get_args(annotation) if a is not type(None)]
    if len(rest) == 1:
      return rest[0], True
  return annotation, False


def fitted(field: Field, value: Any) -> Any:
  """Checks a value and converts it to its field's type, such as an integer to a float.

  Args:
    field: from `fields`.
    value: the value.

  Returns:
    The converted value.

  Raises:
    ValueError: if it has another type or does not pass the check; the message names the
      field, the value and the fix.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float = option(0.1)
    >>> fitted(fields(Rate)[0], 1)
    1.0
  """
  if value is None and field.optional:
    return None
  wanted = field.type
  origin, args = typing.get_origin(wanted), typing.get_args(wanted)
  if origin is Literal:
    if value not in args or isinstance(value, bool):
      choices = ", ".join(map(str, args))
      raise ValueError(f"{field.name}={shown(value)}: choose one of {choices}")
  elif origin is tuple:
    value = _entries(field, value, args[0])
  elif isinstance(wanted, type) and issubclass(wanted, Options):
    if not isinstance(value, wanted):
      raise ValueError(f"{field.name}={shown(value)}: must be a {wanted.__name__}")
  else:
    value = _scalar(field, value, wanted)
  if field.check is not None and not _passes(field.check, value):
    raise ValueError(f"{field.name}={shown(value)}: {field.check.message}")
  return value


def shown(value: Any) -> str:
  """Formats a value for a message, truncated if it is long.

  Example:
    >>> shown("a" * 1000)[-5:]
    'aa...'
  """
  text = repr(value)
  return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _entries(field: Field, value: Any, kind: type) -> tuple[Any, ...]:
  if not isinstance(value, list | tuple):
    raise ValueError(f"{field.name}={shown(value)}: must be a list of {kind.__name__}")
  return tuple(_scalar(field, entry, kind) for entry in value)


def _scalar(field: Field, value: Any, kind: type) -> Any:
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    article = "an" if type(value) is int else "a"
    raise ValueError(
      f"{field.name}={shown(value)}: must be {_WORDS.get(kind, kind.__name__)}, got "
      f"{article} {type(value).__name__}"
    )
  return value


_WORDS = {
  int: "an integer",
  float: "a number",
  str: "a string",
  bool: "true or false",
}


def _passes(check: Check, value: Any) -> bool:
  try:
    return bool(check.accepts(value))
  except (TypeError, ValueError):
    return False


def to_json(description: Options) -> dict[str, Any]:
  """A description as JSON values: its name, if it has one, and every field.

  Infinity, which strict JSON lacks, becomes the string "inf".

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float = option(0.1)
    >>> to_json(Rate())
    {'lr': 0.1}
  """
  named = {"name": description.name} if description.name else {}
  return named | {
    field.name: _plain(getattr(description, field.name))
    for field in fields(type(description))
  }


def _plain(value: Any) -> Any:
  if isinstance(value, Options):
    return to_json(value)
  if isinstance(value, tuple):
    return [_plain(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def from_json(
  cls: type[Options],
  content: Any,
  *,
  where: str,
  find: Callable[[type[Options], str], type[Options]],
) -> Any:
  """Reads the output of `to_json`, strictly.

  Args:
    cls: the description's class, or the base class of its kind.
    content: the parsed JSON.
    where: what is read, for messages, such as "config.json: learner".
    find: `find(kind, name) -> class`, for descriptions with a name.

  Returns:
    The description.

  Raises:
    ValueError: for an unknown or missing field, or a value that has another type or is
      out of range; the message names the field, the value and the fix.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float = option(0.1)
    >>> from_json(Rate, {"lr": 0.5, "rho": 1}, where="rate", find=lambda cls, name: cls)
    Traceback (most recent call last):
    ValueError: rate: unknown field 'rho' of Rate; it has lr
  """
  if not isinstance(content, Mapping):
    raise ValueError(f"{where} must be a JSON object of fields, got {content!r}")
  given = dict(content)
  if cls.kind:
    name = given.pop("name", None)
    if not isinstance(name, str):
      raise ValueError(f"{where}: the field 'name' is missing; it names the {cls.kind}")
    cls = find(cls, name)
  known = {field.name: field for field in fields(cls)}
  if unknown := sorted(given.keys() - known.keys()):
    raise ValueError(
      f"{where}: unknown field {unknown[0]!r} of {cls.__name__}; it has "
      f"{', '.join(known)}"
    )
  for name, field in known.items():
    if field.added:
      given.setdefault(name, _plain(field.default))
  if missing := [name for name in known if name not in given]:
    raise ValueError(
      f"{where}: the field {missing[0]!r} of {cls.__name__} is missing; write every "
      "field, as jsharp.save does"
    )
  values = {}
  for name, field in known.items():
    value = given[name]
    if isinstance(field.type, type) and issubclass(field.type, Options):
      if value is not None or not field.optional:
        value = from_json(field.type, value, where=f"{where}.{name}", find=find)
    elif field.type is float and value in ("inf", "-inf"):
      value = float(value)
    values[name] = value
  try:
    return cls(**values)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def identity(description: Options) -> dict[str, Any]:
  """The fields that identify a run, by name, including those of nested descriptions.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Machine(Options):
    ...   role: ClassVar[Role] = Role.MACHINE
    ...   devices: int = option(1)
    ...   precision: str = option("float32", identity=True)
    ...   norm: str = option("batch", identity=True, added=True)
    >>> identity(Machine(devices=2)), identity(Machine(norm="group"))
    ({'precision': 'float32'}, {'precision': 'float32', 'norm': 'group'})
  """
  return _select(description, lambda field: field.identity, "", of_before=True)


def select(
  description: Options, wanted: Callable[[Field], bool], prefix: str = ""
) -> dict[str, Any]:
  """The values of selected fields; those of nested descriptions as `parent.field`.

  Args:
    description: any description.
    wanted: `wanted(field) -> bool`, which selects fields.
    prefix: a prefix for each name.

  Returns:
    JSON values by name; the name of a nested description is under its field's name.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float = option(0.1, role=Role.TRAINING)
    >>> select(Rate(), lambda field: field.role is Role.TESTING)
    {}
  """
  return _select(description, wanted, prefix, of_before=False)


def _select(
  description: Options,
  wanted: Callable[[Field], bool],
  prefix: str,
  *,
  of_before: bool,
) -> dict[str, Any]:
  """`select`; `of_before` leaves out added fields that have their defaults."""
  found: dict[str, Any] = {}
  for field in fields(type(description)):
    value = getattr(description, field.name)
    if of_before and field.added and value == field.default:
      continue
    if isinstance(value, Options):
      if value.name and wanted(field):
        found[prefix + field.name] = value.name
      inner = f"{prefix}{field.name}."
      found |= _select(value, wanted, inner, of_before=of_before)
    elif wanted(field):
      found[prefix + field.name] = _plain(value)
  return found
