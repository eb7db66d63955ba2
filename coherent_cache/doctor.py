"""Examines a server and a namespace: asks what it may ask, tries what it may try (see core/diagnosing.py)."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from coherent_cache.cache import CoherentCache
from coherent_cache.core.diagnosing import Facts, SelfTest
from coherent_cache.errors import CoherentCacheError
from coherent_cache.keys import shard_names
from coherent_cache.remote.connection import ReplyError
from coherent_cache.remote.inquiry import Inquiry
from coherent_cache.runtime import clock

PINGS: Final = 20
"""Round trips that are measured."""

SELF_TEST_WRITES: Final = 20
"""Writes of the self-test."""

SELF_TEST_SECONDS: Final = 5.0
"""Seconds that one of them may take to be seen, and that the instances have to become ready."""

SELF_TEST_HEARTBEAT: Final = 0.2
"""Seconds between heartbeats of the self-test's instances."""

LOOK_SECONDS: Final = 0.0005
"""Seconds between two looks whether a write is seen."""

CONFIG: Final = (
    "client-output-buffer-limit", "timeout", "tcp-keepalive", "notify-keyspace-events", "min-replicas-to-write",
)  # fmt: skip
"""Settings that matter."""


def examine(cache: CoherentCache, url: object, *, user: str | None = None, self_test: bool = True) -> Facts:
    """Find out what can be found out.

    Args:
        cache: of the namespace.
        url: where Redis is, for the self-test.
        user: user whose permissions are looked at; None for the connection's own.
        self_test: whether to write in a scratch namespace, and to remove it again.

    Raises:
        CacheUnavailable: Redis is away or refused.
        NamespaceMismatch: the namespace was created with other settings.
    """
    namespace = cache.namespace
    with cache._runtime.inquiry() as inquiry:  # noqa: SLF001  # of this package
        database = cache._endpoint.database  # noqa: SLF001  # the same
        names = shard_names(namespace, 0, database)
        begun, server_begun = clock(), _server_time(inquiry)
        trips = []
        for _ in range(PINGS):
            sent = clock()
            inquiry.try_command("PING")
            trips.append(clock() - sent)
        info = _info(inquiry)
        lacking = inquiry.lacking_rights(user)
        who = user or _whoami(inquiry)
        fleet = inquiry.fleet()
        left = inquiry.try_command("PTTL", names.clock)
        config = _config(inquiry)
        tested = _self_test(inquiry, url, database) if self_test else None
        server_ended, ended = _server_time(inquiry), clock()
    return Facts(
        info=info,
        config=config,
        round_trips=tuple(trips),
        server_seconds=server_ended - server_begun,
        local_seconds=ended - begun,
        user=who,
        lacking=lacking,
        namespace=namespace,
        exists=fleet.exists,
        clock_ttl=left if isinstance(left, int) and left >= 0 else None,
        instances=len(fleet.reports),
        self_test=tested,
    )


def _server_time(inquiry: Inquiry) -> float:
    seconds, microseconds = inquiry.command("TIME")
    return int(seconds) + int(microseconds) / 1e6


def _info(inquiry: Inquiry) -> dict[str, str]:
    answer = inquiry.try_command("INFO")
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _config(inquiry: Inquiry) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for name in CONFIG:
        answer = inquiry.try_command("CONFIG", "GET", name)
        if isinstance(answer, ReplyError):
            return None
        found |= _pairs(answer)
    return found


def _pairs(answer: Any) -> dict[str, str]:
    """Read names and values, which RESP3 answers as a map and RESP2 as a list."""
    flat: list[Any] = [each for pair in answer.items() for each in pair] if isinstance(answer, dict) else list(answer)
    if flat and isinstance(flat[0], tuple | list):
        flat = [each for pair in flat for each in pair]
    texts = [each.decode("utf-8", "replace") for each in flat]
    return dict(zip(texts[::2], texts[1::2], strict=False))


def _whoami(inquiry: Inquiry) -> str:
    answer = inquiry.try_command("ACL", "WHOAMI")
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else "<user>"


def _self_test(inquiry: Inquiry, url: object, database: int) -> SelfTest:
    namespace = f"doctor-{os.urandom(6).hex()}"
    names = shard_names(namespace, 0, database)
    for words in (("DEL", names.probe), ("PUBLISH", names.channel, "")):
        refused = inquiry.try_command(*words)
        if isinstance(refused, ReplyError):
            return SelfTest(error=str(refused))
    transports: list[str] = []
    try:
        with _instance(url, namespace) as writer, _instance(url, namespace) as reader:
            reader.on_event(lambda event: transports.append(getattr(event, "transport", "")))
            seconds = _measure(writer, reader)
    except CoherentCacheError as error:
        return SelfTest(error=f"it could not be done: {error}")
    finally:
        # Their heartbeats would make it again. Their reports go by themselves.
        inquiry.try_command("DEL", names.value(b"probe"), names.log, names.members, names.clock)
    if seconds is None:
        return SelfTest(error=f"an instance was not coherent, or did not see a write, within {SELF_TEST_SECONDS:g} s")
    return SelfTest(seconds=tuple(seconds), transport=next(filter(None, transports), ""))


def _instance(url: object, namespace: str) -> CoherentCache:
    return CoherentCache(
        url, namespace=namespace, heartbeat=SELF_TEST_HEARTBEAT, max_staleness=SELF_TEST_SECONDS, ttl=60.0
    )


def _measure(writer: CoherentCache, reader: CoherentCache) -> list[float] | None:
    """Return how long each write took to be seen; None if one was not."""
    if not (writer.wait_ready(SELF_TEST_SECONDS) and reader.wait_ready(SELF_TEST_SECONDS)):
        return None
    seconds = []
    for number in range(SELF_TEST_WRITES):
        begun = clock()
        writer.set("probe", number)
        while reader.get("probe") != number:
            if clock() - begun > SELF_TEST_SECONDS:
                return None
            time.sleep(LOOK_SECONDS)
        seconds.append(clock() - begun)
    return seconds
