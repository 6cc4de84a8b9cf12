"""The exports of a package, derived from its own imports."""

import types
from collections.abc import Mapping
from typing import Any


def exported(namespace: Mapping[str, Any]) -> list[str]:
  """The public names that a package imports from its modules.

  Args:
    namespace: `globals()` of the package.

  Returns:
    Their names, sorted, for `__all__`.

  Example:
    >>> exported({"maml": len, "_private": 1, "json": types, "__name__": "package"})
    ['maml']
  """
  return sorted(
    name
    for name, value in namespace.items()
    if not name.startswith("_")
    and name not in ("exported", "TYPE_CHECKING")
    and not isinstance(value, types.ModuleType)
  )
