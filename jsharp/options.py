"""Typed, checked options: what describes algorithms, networks, datasets and runs.

A description is a frozen dataclass derived from `Options`. Each field is an `option`
with a type, a default, a help text, a check and one role. Flags, the identity of a run,
the protocol of a result and the file of a saved learner all follow from it.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ridge(Algorithm):
      '''A closed-form ridge head.'''
      name: ClassVar[str] = "ridge"
      penalty: float = option(1.0, "Weight of the penalty.", check=positive())

This module imports nothing heavy: `jsharp._catalogue` reads descriptions from source
without importing the modules that they stand in.
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
    TESTING: on which tasks it is tested; runs that are compared share these.
    MACHINE: where and how fast it runs; it changes results by rounding at most.

  Example:
    >>> Role("machine") is Role.MACHINE
    True
  """

  LEARNER = "learner"
  TRAINING = "training"
  TESTING = "testing"
  MACHINE = "machine"


class Check(NamedTuple):
  """A condition on a value, and what to say where it does not hold.

  Attributes:
    accepts: `accepts(value) -> bool`; it may raise TypeError or ValueError for no.
    message: what is wrong and how to mend it.
  """

  accepts: Callable[[Any], bool]
  message: str


def positive(fix: str) -> Check:
  """A finite number above 0.

  Example:
    >>> positive("0.1 is usual.").accepts(0.0)
    False
  """
  return Check(
    lambda value: value > 0 and math.isfinite(value),
    f"must be positive and finite; {fix}",
  )


def at_least(low: float, fix: str = "") -> Check:
  """A finite number that is `low` or more.

  Example:
    >>> at_least(1).message
    'must be finite and at least 1; give 1 or more.'
  """
  return Check(
    lambda value: low <= value < math.inf,
    f"must be finite and at least {low:g}; {fix or f'give {low:g} or more.'}",
  )


def between(low: float, high: float, fix: str = "", *, below: bool = False) -> Check:
  """A number from `low` to `high`, which is itself allowed unless `below`.

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
  """The order of a norm, from 1 to infinity.

  Example:
    >>> norm().accepts(math.inf), norm().accepts(0.5)
    (True, False)
  """
  return Check(
    lambda value: value >= 1, "must lie between 1 and inf; 2 is the papers' norm."
  )


def finite() -> Check:
  """Any finite number.

  Example:
    >>> finite().accepts(-3.0)
    True
  """
  return Check(math.isfinite, "must be finite.")


def each(check: Check, message: str) -> Check:
  """A list that is not empty and whose entries all pass a check.

  Example:
    >>> each(at_least(1), "needs whole numbers.").accepts((5, 0))
    False
  """
  return Check(
    lambda value: bool(value) and all(check.accepts(entry) for entry in value), message
  )


def interval(message: str) -> Check:
  """Two finite numbers LOW, HIGH in this order.

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
  """A field of a description.

  Args:
    default: its default; a field without one has to be given.
    help: what it is, with its unit, for the help of a program.
    check: what a value has to fulfil; None as a value always does.
    role: what it belongs to; that of its class if None.
    identity: whether another value makes another run. None for the rule: yes, unless
      the role is MACHINE.
    shared: whether runs that are compared must have the same value. None for the rule:
      yes, if the role is TESTING.
    added: whether the field is younger than the first saved learners and runs. They
      lack it and have its default, which must be what they did; and a run with the
      default is the same run as one without the field.

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
  """An option as programs need it.

  Attributes:
    name: of the field.
    type: its annotation, without None.
    optional: whether None is a value.
    default: its default, `MISSING` if it has none.
    help: what it is.
    check: what values have to fulfil, None for nothing.
    role: what it belongs to.
    identity: whether another value makes another run.
    shared: whether runs that are compared must have the same value.
    added: whether earlier files lack it and have its default.
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
  """Base of every description: a frozen dataclass of `option` fields.

  Subclasses of one kind (`Algorithm`, `Network`, ...) set `kind`; those that can be
  chosen by name set `name` too.
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
    """Fills in defaults that depend on other fields, and checks fields together."""

  def _set(self, name: str, value: Any) -> None:
    """Fills in a field that is None; for `complete`."""
    if getattr(self, name) is None:
      object.__setattr__(self, name, value)

  def replace(self, **changes: Any) -> Self:
    """The same description with other values."""
    return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def fields(cls: type[Options]) -> list[Field]:
  """The options of a description, in the order of their definition.

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
  """A value as its field holds it: integers as floats, lists as tuples.

  Args:
    field: from `fields`.
    value: what was given.

  Returns:
    The value.

  Raises:
    ValueError: if it is of another type or does not pass the check; the message names
      the field, the value and the fix.

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
  """A value for a message, cut where it is long.

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
    raise ValueError(
      f"{field.name}={shown(value)}: must be {_WORDS.get(kind, kind.__name__)}, got a "
      f"{type(value).__name__}"
    )
  return value


_WORDS = {
  int: "a whole number",
  float: "a number",
  str: "a text",
  bool: "true or false",
}


def _passes(check: Check, value: Any) -> bool:
  try:
    return bool(check.accepts(value))
  except (TypeError, ValueError):
    return False


def to_json(description: Options) -> dict[str, Any]:
  """A description as JSON holds it: its name, if it has one, and every field.

  Infinity becomes the text "inf", which strict JSON lacks.

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
  """Reads what `to_json` wrote, strictly.

  Args:
    cls: the description's class, or the class of its kind.
    content: from JSON.
    where: what is read, for messages, such as "config.json: learner".
    find: `find(kind, name) -> class`, for a description that has a name.

  Returns:
    The description.

  Raises:
    ValueError: for an unknown or missing field, a value of another type or out of
      range; the message names the field, the value and the fix.

  Example:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Rate(Options):
    ...   lr: float = option(0.1)
    >>> from_json(Rate, {"lr": 0.5, "rho": 1}, where="rate", find=lambda cls, name: cls)
    Traceback (most recent call last):
    ValueError: rate: unknown field 'rho' of Rate; it has lr
  """
  if not isinstance(content, Mapping):
    raise ValueError(f"{where} must be a table of fields, got {content!r}")
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
  """The fields that make it what it is, by name, those of nested descriptions too.

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
  """The values of some fields, those of nested descriptions as `parent.field`.

  Args:
    description: any.
    wanted: which fields.
    prefix: put before each name.

  Returns:
    Values ready for JSON; a nested description's name stands under its parent's.

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
  """`select`; with `of_before` without added fields that have their defaults."""
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
