"""``DEFAULT``: stands for what the cache was configured with."""

from __future__ import annotations

from typing import Final


class Default:
    """The type of :data:`DEFAULT`."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default()
"""Stands for "as the cache was configured"."""
