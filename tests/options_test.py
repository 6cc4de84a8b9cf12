"""Typed options: checks, strict JSON, identity, roles."""

import dataclasses
import json
import math
from typing import ClassVar, Literal

from absl.testing import absltest, parameterized

from jsharp import options
from jsharp.options import Options, Role, at_least, each, interval, option, positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(Options):
  kind: ClassVar[str] = "shape"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ball(Shape):
  name: ClassVar[str] = "ball"
  rho: float = option(0.05, "Radius.", check=positive("0.05 is usual."))
  p: float = option(2.0, check=options.norm())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cube(Shape):
  name: ClassVar[str] = "cube"
  side: int = option(check=at_least(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine(Options):
  role: ClassVar[Role] = Role.MACHINE
  devices: int | None = option(None, check=at_least(1))
  same_bits: bool = option(False, identity=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Options):
  shape: Shape = option()
  other: Shape | None = option(None)
  order: Literal["first", "second"] = option("second")
  ways: tuple[int, ...] | None = option(None, check=each(at_least(1), "needs counts."))
  span: tuple[float, ...] = option((0.8, 1.2), check=interval("needs LOW,HIGH."))
  steps: int = option(10, role=Role.TRAINING, identity=False)
  folder: str = option("", role=Role.MACHINE, shared=True)
  besides: int = option(0, role=Role.TESTING, shared=False)
  tasks: int | None = option(None, role=Role.TESTING)
  machine: Machine = option(Machine(), role=Role.MACHINE)

  def complete(self):
    self._set("tasks", self.steps)


def find(kind, name):
  (cls,) = [cls for cls in (Ball, Cube) if cls.name == name] or [None]
  if cls is None:
    raise ValueError(f"there is no {kind.kind} {name!r}")
  return cls


def read(content):
  return options.from_json(Run, content, where="run.json", find=find)


class ValuesTest(parameterized.TestCase):
  @parameterized.parameters(
    (Ball, {"rho": 0.0}, "rho=0.0: must be positive and finite; 0.05 is usual"),
    (Ball, {"rho": math.nan}, "rho=nan: must be positive"),
    (Ball, {"rho": "0.1"}, "rho='0.1': must be a number, got a str"),
    (Ball, {"rho": True}, "rho=True: must be a number, got a bool"),
    (Ball, {"p": 0.5}, "p=0.5: must lie between 1 and inf"),
    (Cube, {"side": 1.0}, "side=1.0: must be an integer, got a float"),
    (Cube, {"side": None}, "side=None: must be an integer"),
    (Run, {"shape": Ball(), "order": "third"}, "order='third': choose one of first, s"),
    (Run, {"shape": Ball(), "ways": (5, 0)}, r"ways=\(5, 0\): needs counts"),
    (Run, {"shape": Ball(), "ways": 5}, "ways=5: must be a list of int"),
    (Run, {"shape": Ball(), "span": (2, 1)}, r"span=\(2.0, 1.0\): needs LOW,HIGH"),
    (Run, {"shape": Machine()}, "shape=Machine.*: must be a Shape"),
  )
  def test_wrong_values_are_refused_by_name(self, cls, values, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(**values)

  def test_integers_become_floats_and_lists_tuples(self):
    run = Run(shape=Ball(rho=1), ways=[5, 10], span=[1, 2])
    self.assertIsInstance(run.shape.rho, float)
    self.assertEqual((run.ways, run.span), ((5, 10), (1.0, 2.0)))

  def test_what_depends_on_other_fields_is_filled_in(self):
    self.assertEqual(Run(shape=Ball(), steps=7).tasks, 7)
    self.assertEqual(Run(shape=Ball(), steps=7, tasks=3).tasks, 3)

  def test_descriptions_are_values(self):
    run = Run(shape=Ball())
    self.assertEqual(run, Run(shape=Ball()))
    self.assertNotEqual(run, run.replace(steps=11))
    with self.assertRaises(dataclasses.FrozenInstanceError):
      run.steps = 3


class JsonTest(parameterized.TestCase):
  def test_round_trip_through_strict_json(self):
    run = Run(
      shape=Cube(side=3), other=Ball(p=math.inf), ways=(5,), machine=Machine(devices=2)
    )
    text = json.dumps(options.to_json(run), allow_nan=False)
    self.assertEqual(read(json.loads(text)), run)

  @parameterized.parameters(
    (lambda c: c.update(lr=1), "run.json: unknown field 'lr' of Run; it has shape"),
    (lambda c: c.pop("span"), "run.json: the field 'span' of Run is missing"),
    (lambda c: c["shape"].pop("rho"), "run.json.shape: the field 'rho' of Ball is mis"),
    (lambda c: c["shape"].update(name="disc"), "there is no shape 'disc'"),
    (lambda c: c["shape"].pop("name"), "run.json.shape: the field 'name' is missing"),
    (
      lambda c: c.update(shape=3),
      "run.json.shape must be a JSON object of fields, got 3",
    ),
    (lambda c: c["shape"].update(rho=-1), "run.json.shape: rho=-1.0: must be positive"),
    (lambda c: c.update(steps="10"), "run.json: steps='10': must be an integer"),
    (lambda c: c.update(machine=None), "run.json.machine must be a JSON object"),
  )
  def test_anything_else_is_refused_with_its_place(self, damage, message):
    content = options.to_json(Run(shape=Ball()))
    damage(content)
    with self.assertRaisesRegex(ValueError, message):
      read(content)


class SelectionTest(absltest.TestCase):
  def test_identity_leaves_out_the_machine_and_what_may_change(self):
    one = Run(shape=Ball(), steps=10, tasks=5)
    same = one.replace(steps=99, machine=Machine(devices=8))
    self.assertEqual(options.identity(one), options.identity(same))
    self.assertNotIn("machine.devices", options.identity(one))
    for other in (
      one.replace(shape=Cube(side=1)),
      one.replace(shape=Ball(rho=1)),
      one.replace(tasks=6),
      one.replace(machine=Machine(same_bits=True)),
    ):
      self.assertNotEqual(options.identity(one), options.identity(other))

  def test_a_field_that_came_later_has_its_default_in_earlier_files(self):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(Options):
      rho: float = option(0.1)
      norm: str = option("batch", added=True)
      limit: float = option(math.inf, added=True)
      inner: Cube = option(Cube(side=2), added=True)

    def read(content):
      return options.from_json(
        Later, content, where="saved", find=lambda cls, name: Cube
      )

    self.assertEqual(read({"rho": 0.5}), Later(rho=0.5))
    self.assertEqual(read(options.to_json(Later(norm="group"))).norm, "group")
    with self.assertRaisesRegex(ValueError, "'rho' of Later is missing"):
      read({"norm": "batch"})
    self.assertEqual(options.identity(Later()), {"rho": 0.1})
    self.assertContainsSubset(
      {"norm": "group", "inner": "cube", "inner.side": 3},
      options.identity(Later(norm="group", inner=Cube(side=3))),
    )

  def test_fields_of_a_role_by_their_path(self):
    run = Run(shape=Ball(), tasks=5)
    testing = options.select(run, lambda field: field.role is Role.TESTING)
    self.assertEqual(testing, {"besides": 0, "tasks": 5})
    learner = options.select(run, lambda field: field.role is Role.LEARNER)
    self.assertContainsSubset({"shape": "ball", "shape.rho": 0.05}, learner)

  def test_comparisons_share_the_test_unless_a_field_says_otherwise(self):
    shared = options.select(Run(shape=Ball(), tasks=5), lambda field: field.shared)
    self.assertEqual(shared, {"folder": "", "tasks": 5})


if __name__ == "__main__":
  absltest.main()
