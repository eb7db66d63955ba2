"""Waiting for something to become true, in place of a sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float, description: str, *, interval: float = 0.01) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    The predicate is called at least once after the deadline, so that a machine that stood still is no failure.

    Raises:
        AssertionError: it was not true within ``timeout`` seconds; says ``description``.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        if result := predicate():
            return result
        if late:
            raise AssertionError(f"not within {timeout:g} s: {description}")
        time.sleep(interval)
