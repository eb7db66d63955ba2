"""Public names that are imported when they are first asked for (PEP 562).

pytest imports this package for its plugin in every project of an environment, whether it uses a cache or not; redis-py
and the rest would make it start half a second later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module


def lazily(package: str, names: Sequence[str], homes: Sequence[str]) -> Callable[[str], object]:
    """Return a ``__getattr__`` for a package.

    Args:
        package: the package's name.
        names: its public names.
        homes: the modules that define them, the cheapest to import first.
    """

    def getattr_(name: str) -> object:
        if name in names:
            for home in homes:
                module = import_module(home)
                if hasattr(module, name):
                    value: object = getattr(module, name)
                    setattr(sys.modules[package], name, value)  # this function is not asked again
                    return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattr_
