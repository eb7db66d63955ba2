"""What the application is told by its environment."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MAX_STALENESS = 3.0  # seconds, in all tests
READY = 20.0  # seconds until an instance must be coherent
USED_BEFORE = "used-before"  # the key that a process uses when it imports the application, if it is to
VARIABLE = "CACHE_APPLICATION"


@dataclass(frozen=True)
class Configuration:
    """What the application is to do.

    Attributes:
        url: of Redis.
        options: of the cache.
        use_at_import: whether the cache is used when this module is imported, before a server forks its workers.
        close: whether the cache is closed where servers have a place for that: a lifespan, a signal.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    use_at_import: bool = False
    close: bool = True

    def environment(self) -> dict[str, str]:
        """Return the environment variable that says so."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of_environment(cls) -> Self:
        """Return what this process was told."""
        return cls(**json.loads(os.environ[VARIABLE]))
