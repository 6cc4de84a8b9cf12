"""Whether the devices of a process have one core each."""

from unittest import mock

import jax
from absl.testing import absltest, parameterized

from jsharp import _cores as cores
from jsharp.training.devices import compiler_options


class CoresTest(parameterized.TestCase):
  @parameterized.parameters(
    ("cpu", 1, 1, True),
    ("cpu", 2, 1, False),
    ("cpu", 2, 2, True),
    ("cpu", 8, 4, False),
    ("cpu", 2, 8, True),
    ("gpu", 1, 1, False),
  )
  def test_by_platform_cores_and_devices(self, platform, num_cores, devices, expected):
    with (
      mock.patch.object(jax, "default_backend", return_value=platform),
      mock.patch.object(cores, "_num_cores", return_value=num_cores),
      mock.patch.object(jax, "local_device_count", return_value=devices),
    ):
      self.assertEqual(cores.one_core_each(), expected)

  def test_products_of_such_devices_have_one_thread(self):
    for one, expected in ((True, {"xla_cpu_multi_thread_eigen": False}), (False, {})):
      with mock.patch("jsharp.training.devices.one_core_each", return_value=one):
        self.assertEqual(compiler_options(), expected)

  def test_it_can_be_assumed(self):
    with mock.patch.object(cores, "_num_cores", return_value=1000):
      self.assertFalse(cores.one_core_each())
      with cores.assume_one_core_each():
        self.assertTrue(cores.one_core_each())
        with mock.patch.object(jax, "default_backend", return_value="gpu"):
          self.assertEqual(compiler_options(), {})
        with cores.assume_one_core_each(False):
          self.assertFalse(cores.one_core_each())
      self.assertFalse(cores.one_core_each())


if __name__ == "__main__":
  absltest.main()
