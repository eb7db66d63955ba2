"""What tests of embedding share: the application's configuration, and what Redis shows of its processes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from coherent_cache import CoherentCache
from coherent_cache.keys import shard_names
from integration.embedding.configuration import MAX_STALENESS, Configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


OPTIONS: dict[str, Any] = {"heartbeat": 0.1, "max_staleness": MAX_STALENESS, "timeout": 5.0}
PROCESS = re.compile(r"^coherent-cache:(?P<instance>.+-(?P<pid>\d+)-[0-9a-f]{8})(:.*)?$")


@pytest.fixture
def configure(redis_server, namespace):
    """Give what makes the application's configuration."""

    def make(**more):
        return Configuration(redis_server.url, OPTIONS | {"namespace": namespace}, **more)

    return make


@pytest.fixture
def connected(redis_server) -> Callable[[], dict[str, int]]:
    """Give what tells which instances of other processes have connections: process ids by instance."""

    def look() -> dict[str, int]:
        with redis_server.client() as plain:
            names = [match for client in plain.client_list() if (match := PROCESS.match(client["name"]))]
        return {match["instance"]: pid for match in names if (pid := int(match["pid"])) != os.getpid()}

    return look


@pytest.fixture
def members(redis_server, namespace) -> Callable[[], list[str]]:
    """Give what tells which instances may hold local values, as writers who wait for them see it (P12)."""
    registry = shard_names(namespace, 0, 0).members

    def look() -> list[str]:
        with redis_server.client() as plain:
            return [field.decode() for field in plain.hkeys(registry) if field]

    return look


@pytest.fixture
def stored(redis_server, namespace) -> Iterator[Callable[[str], tuple[int, str] | None]]:
    """Give what tells the version and the value that Redis has for a key."""
    with CoherentCache(redis_server.url, namespace=namespace, local_enabled=False) as remote:

        def look(key: str) -> tuple[int, str] | None:
            found = remote.get_entry(key)
            return None if found is None else (found.version.seq, found.value)

        yield look
