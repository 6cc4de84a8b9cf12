"""Conversion of descriptions to flags and back: names, defaults, help and errors.

A program lists the descriptions that it consists of. Their options become absl flags,
and the values of the flags become descriptions again. Only then is anything slow
imported: `--help` and errors read descriptions by `jsharp._catalogue`.
"""

import contextlib
import dataclasses
import os
import signal
import textwrap
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from absl import flags, logging

from jsharp import _catalogue, _early, _files
from jsharp._terminal import open_streams, say, tell
from jsharp.options import MISSING, Check, Field, Options, fields, fitted

flags.disclaim_key_flags()

_MOST_FLAGFILES = 100
_MAX_FLAGFILE_BYTES = 2**20


class Choice(NamedTuple):
  """A description that is chosen by name.

  Attributes:
    kind: the kind of description, as in `jsharp._catalogue`.
    flag: the flag that selects it.
    help: the help text of that flag.
    default: the flag's default; None if it may be left out.
    hidden: names that do not apply to this program.
    aliases: other names of the flag.
    strict: whether options of the other choices are errors if typed by hand, since they
      have no effect; otherwise they are ignored with a message.
  """

  kind: str
  flag: str
  help: str
  default: str | None
  hidden: tuple[str, ...] = ()
  aliases: tuple[str, ...] = ()
  strict: bool = False


Part = str | type[Options] | Choice


class Group(NamedTuple):
  """Flags that belong together.

  Attributes:
    title: the heading in the help.
    parts: for each attribute of the program's description its class, as "module:Class"
      or, if importing it is fast, the class itself; or a `Choice`.
  """

  title: str
  parts: Mapping[str, Part]


@dataclasses.dataclass(frozen=True)
class Program:
  """The flags of one program.

  Attributes:
    name: the program's name.
    groups: its flags.
    defaults: its own defaults, which replace those of the descriptions.
    summary: the beginning of `--help`.
  """

  name: str
  groups: tuple[Group, ...]
  defaults: Mapping[str, Any]
  summary: str

  def parts(self) -> Iterator[tuple[str, Part]]:
    """The attributes of its description, each with its class or choice."""
    for group in self.groups:
      yield from group.parts.items()

  def choices(self) -> dict[str, Choice]:
    """The choices, by the attribute that they fill."""
    return {name: part for name, part in self.parts() if isinstance(part, Choice)}

  def define(self, values: flags.FlagValues, foreign: Sequence[str] = ()) -> None:
    """Defines the flags on a `FlagValues`.

    Args:
      values: where they are defined.
      foreign: names such as `module:Class` whose options are defined too.
    """
    for choice in self.choices().values():
      _define_choice(choice, values)
    for name, owners in self.owners(foreign).items():
      default = self.defaults.get(name, _common_default(owners))
      _define_option([field for _, field in owners], default, values)

  def owners(
    self, foreign: Sequence[str] = ()
  ) -> dict[str, list[tuple[type[Options], Field]]]:
    """The descriptions with an option of the flag's name, for each flag."""
    found: dict[str, list[tuple[type[Options], Field]]] = {}
    for _, part in self.parts():
      for cls in _classes(part, foreign):
        for field in fields(cls):
          found.setdefault(field.name, []).append((cls, field))
    return found

  def parse(
    self,
    arguments: Sequence[str],
    values: flags.FlagValues,
    *,
    background: Sequence[str] = (),
  ) -> "Given":
    """Defines the flags, parses a command line and records where flags came from.

    Args:
      arguments: the words after the program's name.
      values: where flags are defined and parsed.
      background: words that are read first, like those of a flagfile: flags without
        effect among them are not an error.

    Returns:
      The parsed command line.

    Raises:
      flags.Error: for a flag that is unknown or has an invalid value.
      ValueError: for a user's own description that cannot be imported.
    """
    words = ["program", *background, *arguments]
    expanded = values.read_flags_from_files(words, force_gnu=False)
    foreign = _foreign(self._chosen(expanded[1:]).values())
    self.define(values, foreign)
    rest = values(words)
    by_hand = flags.FlagValues()
    self.define(by_hand, foreign)
    by_hand(["program", *_without_flagfiles(arguments)], known_only=True)
    typed = {name for name in by_hand if by_hand[name].present}
    present = {
      name for name in by_hand if values[name].present
    }  # `values` may contain absl's own flags too.
    return Given(self, values, frozenset(present), frozenset(typed), tuple(rest[1:]))

  def flags_of(self, selected: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `jsharp.options.select` returned, by the names of the flags."""
    choices = self.choices()
    found: dict[str, Any] = {}
    for path, value in selected.items():
      choice = choices.get(path)
      found.setdefault(choice.flag if choice else path.rpartition(".")[2], value)
    return found

  def _chosen(self, words: Sequence[str]) -> dict[str, str | None]:
    """The choices on a command line, read before its flags are defined."""
    probe = flags.FlagValues()
    for choice in self.choices().values():
      for flag in (choice.flag, *choice.aliases):
        flags.DEFINE_string(flag, None, "", flag_values=probe)
    probe(["program", *words], known_only=True)
    return {flag: probe[flag].value for flag in probe}

  def help(self, words: Sequence[str]) -> str:
    """The help text: all flags by group, with the options of the chosen algorithm."""
    chosen = self._chosen(words)
    foreign = _foreign(chosen.values())
    lines = [self.summary.strip(), ""]
    for group in self.groups:
      lines += [f"{group.title}:"]
      for part in group.parts.values():
        if isinstance(part, Choice):
          lines += self._help_of_choice(part, chosen, foreign)
        else:
          lines += _help_of(_outline(part), self.defaults)
      lines.append("")
    lines.append("--flagfile=FILE reads flags from a file, one to a line.")
    return "\n".join(lines)

  def _help_of_choice(
    self, choice: Choice, chosen: dict[str, str | None], foreign: Sequence[str]
  ) -> list[str]:
    default = self.defaults.get(choice.flag, choice.default)
    given = [chosen[flag] for flag in (choice.flag, *choice.aliases) if chosen[flag]]
    name = given[0] if given else default
    names = _names(choice)
    lines = _entry(f"--{choice.flag}", choice.help, default)
    found = {cls.name: cls for cls in _classes(choice, foreign)}
    if name in found:
      lines += _help_of(found[name], self.defaults)
    shown = {field.name for field in fields(found[name])} if name in found else set()
    others = [
      other
      for other in names
      if any(field.name not in shown for field in fields(found[other]))
    ]
    if others and choice.default is not None:
      have = "has" if len(others) == 1 else "have"
      lines += _wrap(
        f"({', '.join(others)} {have} other options: --{choice.flag}=NAME --help)"
      )
    return lines


class Given(NamedTuple):
  """A parsed command line.

  Attributes:
    program: the program.
    values: the values of its flags.
    present: names of the flags that were given.
    typed: those that were typed by hand, not read from a flagfile.
    rest: words that are not flags.
  """

  program: Program
  values: flags.FlagValues
  present: frozenset[str]
  typed: frozenset[str]
  rest: tuple[str, ...]

  def name_of(self, choice: Choice) -> str | None:
    """The chosen name."""
    for flag in (*choice.aliases, choice.flag):
      if flag in self.present:
        return self.values[flag].value
    return self.program.defaults.get(choice.flag, choice.default)

  def value(self, field: Field, own_defaults: Sequence[str] = ()) -> Any:
    """The value of an option: as given, or the program's or the option's default.

    Raises:
      ValueError: if it has no value.
    """
    default = self.program.defaults.get(field.name, field.default)
    if field.name in own_defaults:
      default = field.default
    if field.name not in self.present:
      if default is MISSING:
        raise ValueError(f"--{field.name} is missing: {field.help}")
      return default
    return _converted(field, self.values[field.name].value)

  def changed(self, name: str) -> bool:
    """Whether a flag's value differs from its default."""
    return self.values[name].value != self.values[name].default

  def unread(self) -> list[str]:
    """Given flags that have no effect with what was chosen.

    Raises:
      ValueError: if one of them belongs to a strict choice and was typed by hand, with
        a value other than its default.
    """
    read = set()
    foreign = _foreign(map(self.name_of, self.program.choices().values()))
    for _, part in self.program.parts():
      if isinstance(part, Choice):
        name = self.name_of(part)
        classes = [c for c in _classes(part, foreign) if _is_named(c, name)]
      else:
        classes = [_outline(part)]
      read |= {field.name for cls in classes for field in fields(cls)}
    owners = self.program.owners(foreign)
    strict = {c.kind for c in self.program.choices().values() if c.strict}
    left = sorted(n for n in self.present & owners.keys() if n not in read)
    for name in left:
      is_strict = owners[name][0][0].kind in strict
      if is_strict and name in self.typed and self.changed(name):
        raise ValueError(self._refusal(name, owners[name]))
    return left

  def _refusal(self, name: str, owners: list[tuple[type[Options], Field]]) -> str:
    kind = owners[0][0].kind
    (choice,) = [c for c in self.program.choices().values() if c.kind == kind][:1]
    readers = ", ".join(cls.name for cls, _ in owners)
    return (
      f"--{name} has no effect with --{choice.flag}={self.name_of(choice)}; it belongs "
      f"to {readers}: drop --{name} or change --{choice.flag}"
    )

  def build(self) -> dict[str, Any]:
    """Builds the descriptions, by attribute; imports what they need.

    Raises:
      ValueError: naming the option, its value and the fix.
    """
    made: dict[str, Any] = {}
    for attribute, part in self.program.parts():
      if isinstance(part, Choice):
        name = self.name_of(part)
        if name is None:
          made[attribute] = None
          continue
        cls = _catalogue.find(part.kind, name)
      else:
        cls = _real(part)
      own = getattr(cls, "own_defaults", ())
      made[attribute] = cls(**{f.name: self.value(f, own) for f in fields(cls)})
    return made

  def text(self, description: Options) -> str:
    """The flags of a description as the lines of a flagfile."""
    wanted = {choice.flag for choice in self.program.choices().values()}
    wanted |= {field.name for field in _all_fields(description)}
    lines = []
    for name in sorted(wanted & set(self.values)):
      if name in self.present or name in self.program.defaults:
        lines.append(self.values[name].serialize())
    return "".join(f"{line}\n" for line in lines if line)


def _foreign(names: Iterable[str | None]) -> list[str]:
  """The names that refer to classes outside the library, as module:Class."""
  return [name for name in names if name and ":" in name]


def _all_fields(description: Options) -> Iterator[Field]:
  for field in fields(type(description)):
    value = getattr(description, field.name)
    if isinstance(value, Options):
      yield from _all_fields(value)
    else:
      yield field


def _outline(part: str | type[Options]) -> type[Options]:
  if isinstance(part, type):
    return part
  module, name = part.split(":")
  return _catalogue.outline(module)[name]


def _real(part: str | type[Options]) -> type[Options]:
  return part if isinstance(part, type) else _catalogue.real(*part.split(":"))


def _names(choice: Choice) -> list[str]:
  known = _catalogue.outlines(choice.kind)
  return [name for name in known if name not in choice.hidden]


def _classes(part: Part, foreign: Sequence[str]) -> list[type[Options]]:
  if not isinstance(part, Choice):
    return [_outline(part)]
  known = _catalogue.outlines(part.kind)
  own = [known[name] for name in _names(part)]
  for name in foreign:
    try:
      found = _catalogue.find(part.kind, name)
    except ValueError:
      continue  # Of another kind; `build` reports names that do not exist.
    if found.name not in known and not any(_is_named(cls, name) for cls in own):
      own.append(found)
  return own


def _is_named(cls: type[Options], name: str | None) -> bool:
  """Whether a name selects a class; `tfds:NAME` selects `tfds:`."""
  prefix = cls.name.endswith(":") and name is not None and name.startswith(cls.name)
  return cls.name == name or prefix


def _common_default(owners: list[tuple[type[Options], Field]]) -> Any:
  defaults = {repr(field.default): field.default for _, field in owners}
  (default, *others) = defaults.values()
  return None if others or default is MISSING else default


def _define_choice(choice: Choice, values: flags.FlagValues) -> None:
  names = [n if not n.endswith(":") else f"{n}NAME" for n in _names(choice)]
  known = _names(choice)

  def accepts(value: str | None) -> bool:
    if value is None:
      return True
    head, colon, tail = value.partition(":")
    return value in known if not colon else bool(head and tail)

  for flag in (choice.flag, *choice.aliases):
    default = choice.default if flag == choice.flag else None
    flags.DEFINE_string(flag, default, choice.help, flag_values=values)
    flags.register_validator(
      flag,
      accepts,
      message=f"choose one of {', '.join(names)}, or name your own as module:Class.",
      flag_values=values,
    )


def _define_option(
  same_name: list[Field], default: Any, values: flags.FlagValues
) -> None:
  first = same_name[0]
  arguments = (first.name, default, first.help)
  origin = typing.get_origin(first.type)
  if origin is Literal:
    found = dict.fromkeys(arg for f in same_name for arg in typing.get_args(f.type))
    flags.DEFINE_enum(first.name, default, tuple(found), first.help, flag_values=values)
    return
  if origin is tuple:
    listed = None if default is None else [str(entry) for entry in default]
    flags.DEFINE_list(first.name, listed, first.help, flag_values=values)
  else:
    define: Any = {
      bool: flags.DEFINE_boolean,
      int: flags.DEFINE_integer,
      float: flags.DEFINE_float,
      str: flags.DEFINE_string,
    }[first.type]
    define(*arguments, flag_values=values)
  checks: list[Check] = [f.check for f in same_name if f.check is not None]
  if checks:
    flags.register_validator(
      first.name,
      lambda value: value is None or _accepted(same_name, value),
      message=checks[0].message,
      flag_values=values,
    )


def _accepted(same_name: list[Field], value: Any) -> bool:
  """Whether a flag's value is valid for one of the options of its name."""
  for field in same_name:
    try:
      fitted(field, _converted(field, value))
    except ValueError:
      continue
    return True
  return False


def _converted(field: Field, value: Any) -> Any:
  """Converts a flag's value to the option's type: a list flag holds strings."""
  if typing.get_origin(field.type) is not tuple or value is None:
    return value
  (kind, *_) = typing.get_args(field.type)
  try:
    return tuple(kind(entry) for entry in value)
  except ValueError as error:
    fix = field.check.message if field.check else f"must be a list of {kind.__name__}"
    raise ValueError(f"{field.name}={','.join(value)}: {fix}") from error


def _without_flagfiles(arguments: Sequence[str]) -> list[str]:
  """The words of a command line without its flagfiles."""
  kept, skip = [], False
  for word in arguments:
    bare = word.lstrip("-")
    if skip:
      skip = False
    elif word.startswith("-") and bare == "flagfile":
      skip = True
    elif not (word.startswith("-") and bare.startswith("flagfile=")):
      kept.append(word)
  return kept


def _help_of(cls: type[Options], defaults: Mapping[str, Any]) -> list[str]:
  lines: list[str] = []
  own = getattr(cls, "own_defaults", ())
  for field in fields(cls):
    default = field.default
    if field.name in defaults and field.name not in own:
      default = defaults[field.name]
    head = f"--[no]{field.name}" if field.type is bool else f"--{field.name}"
    text = field.help
    if typing.get_origin(field.type) is Literal:
      text = f"<{'|'.join(map(str, typing.get_args(field.type)))}> {text}"
    lines += _entry(head, text, default)
  return lines


def _entry(head: str, text: str, default: Any) -> list[str]:
  shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
  text = text if default in (None, MISSING) else f"{text} (default: {shown})"
  return [f"  {head}:", *_wrap(text)]


def _wrap(text: str) -> list[str]:
  return textwrap.wrap(
    text, 88, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
  )


def words(values: Mapping[str, Any]) -> list[str]:
  """Formats flags as the words of a command line."""
  found = []
  for name, value in values.items():
    if isinstance(value, bool):
      found.append(f"--{name}" if value else f"--no{name}")
    else:
      listed = value if isinstance(value, list | tuple) else [value]
      found.append(f"--{name}={','.join(map(str, listed))}")
  return found


def check_words(words: Sequence[str]) -> None:
  """Checks that words are UTF-8 and that their flagfiles can be read.

  Args:
    words: the words of a command line.

  Raises:
    ValueError: for a word that is not UTF-8, a flagfile that is not a regular text file
      or is too large, or too many flagfiles; the message names it.
    OSError: for a flagfile that cannot be read.

  Example:
    >>> check_words(["--flagfile=/dev/zero"])
    Traceback (most recent call last):
    jsharp._files.FileError: /dev/zero is not a regular file; replace it by the ...
  """
  for word in words:
    if word != word.encode(errors="replace").decode():
      raise ValueError(f"{word!r} is not UTF-8; rename the file or directory")
  files: dict[str, None] = {}
  waiting = _flagfiles(words)
  while waiting:
    path = os.path.expanduser(waiting.pop())
    if path in files or not os.path.lexists(path):  # absl reports missing files.
      continue
    files[path] = None
    if len(files) > _MOST_FLAGFILES:
      raise _files.FileError(
        f"{next(iter(files))} includes more than {_MOST_FLAGFILES} flagfiles, the last "
        f"one {path}; put their flags into fewer files"
      )
    content = _files.read_bytes(path, most=_MAX_FLAGFILE_BYTES)
    try:
      lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
      raise _files.FileError(f"{path} is not UTF-8 text: {error}") from error
    if "\0" in content.decode():
      raise _files.FileError(f"{path} is not text: it contains NUL bytes")
    waiting += _flagfiles([line.strip() for line in lines])


def _flagfiles(words: Sequence[str]) -> list[str]:
  """The names of flagfiles on a command line, `--flagfile=A` or `--flagfile A`."""
  found = []
  for word, following in zip(words, [*words[1:], ""], strict=False):
    name, equals, value = word.partition("=")
    if name in ("-flagfile", "--flagfile"):
      found.append(value.strip("\"'") if equals else following)
  return [name for name in found if name]


@contextlib.contextmanager
def _heard() -> Iterator[None]:
  """Ends the program on SIGTERM and SIGHUP as on Ctrl-C, unless it has other handlers.

  Without a handler these signals would leave temporary files behind, and the first
  process of a container would ignore them. A plain KeyboardInterrupt raised inside
  `exec`, as during imports, would make Python kill itself at exit, whatever the code.
  """
  mended = []
  if threading.current_thread() is threading.main_thread():
    _early.leave()
    for number, default in _early.DEFAULTS.items():
      if signal.getsignal(number) is default:
        signal.signal(number, _early.ended_by)
        mended.append(number)
  try:
    yield
  finally:
    _early.heard.clear()
    for number in mended:
      signal.signal(number, _early.DEFAULTS[number])


def call(
  program: Program,
  arguments: Sequence[str],
  values: flags.FlagValues,
  then: Callable[[Given], int],
  *,
  takes_words: bool = False,
) -> int:
  """Runs a program with a command line: prints help or an error, or calls `then`.

  Args:
    program: the program.
    arguments: the words after its name.
    values: where flags are defined and parsed.
    then: what the program does; a ValueError from it is reported as a bad argument.
    takes_words: whether it accepts words that are not flags.

  Returns:
    The exit code.
  """
  open_streams()
  try:
    check_words(arguments)
  except (ValueError, OSError) as error:
    return refuse(program.name, message(error))
  with _heard():
    return _call(program, arguments, values, then, takes_words=takes_words)


def _call(
  program: Program,
  arguments: Sequence[str],
  values: flags.FlagValues,
  then: Callable[[Given], int],
  *,
  takes_words: bool,
) -> int:
  name = program.name
  # On many machines XLA warns that every cached program was compiled for another
  # machine, because of features that only affect tuning (openxla/xla#44565). XLA reads
  # this variable when JAX starts.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    if any(word in ("-h", "--help", "-help", "--helpfull") for word in arguments):
      tell(program.help([w for w in arguments if "help" not in w]))
      return 0
    given = program.parse(arguments, values)
    if given.rest and not takes_words:
      return refuse(name, f"{given.rest[0]!r} is not a flag; flags start with --.")
    if "verbosity" not in values or not values["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # absl would show JAX's info messages.
    return then(given)
  except flags.Error as error:
    return refuse(name, f"{error}\n--help lists every flag.")
  except ValueError as error:
    return refuse(name, message(error))
  except KeyboardInterrupt as error:
    say(f"{name}: interrupted before it began.")
    return 128 + (error.args[0] if isinstance(error, _early.Ended) else signal.SIGINT)


def message(error: Exception) -> str:
  """An exception's message, without the errno that `OSError` puts in front."""
  if not isinstance(error, OSError) or not error.strerror:
    return str(error)
  named = [str(name) for name in (error.filename, error.filename2) if name is not None]
  return ": ".join([" -> ".join(named)] * bool(named) + [error.strerror])


def refuse(name: str, text: str) -> int:
  """Prints why nothing was done; returns exit code 2."""
  say(f"{name}: {text}")
  return 2
