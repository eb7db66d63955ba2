"""What a server's settings mean for a cache, and what to do about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

LEAST_VERSION: Final = (5, 0)
"""Oldest Redis that works."""

RESP3_VERSION: Final = (6, 0)
"""Oldest Redis that runs heartbeats on the connection on which invalidations come."""

LEAST_PUBSUB_BUFFER: Final = 1024 * 1024
"""Bytes of a subscriber's output buffer below which a burst of invalidations ends its connection."""

SLOW: Final = 0.01
"""Seconds of a median round trip from which Redis is far away, or busy."""

FULL: Final = 0.9
"""Part of ``maxmemory`` or ``maxclients`` from which there is little left."""

LEAST_BOUND: Final = 1.0
"""Seconds that a self-test's eviction may take until it is called slow."""

CLOCK_TOLERANCE: Final = 0.05
"""Part by which a server's clock may run fast or slow, as rules that wait for a bound take it (P12)."""

CLOCK_RESOLUTION: Final = 0.1
"""Seconds by which a short measurement of a clock may be wrong for other reasons."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # works, until something else happens
    PROBLEM = "problem"  # does not work as it should


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was looked at.

    Attributes:
        level: how bad it is.
        topic: what was looked at.
        found: what is the case.
        advice: what to do; empty if nothing.
    """

    level: Level
    topic: str
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What came of writing on one instance and waiting on another one.

    Attributes:
        seconds: from each write's call to the moment at which the other instance returned its value.
        error: why it could not be done; empty if it could.
        transport: how heartbeats travel: ``resp3`` or ``marks``; empty if unknown.
    """

    seconds: tuple[float, ...] = ()
    error: str = ""
    transport: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out about a server and a namespace.

    Attributes:
        info: what INFO says, by name.
        config: what CONFIG GET says, by name; None if it is not allowed.
        round_trips: seconds that each of some PINGs took.
        server_seconds: seconds that passed by the server's clock during the examination.
        local_seconds: seconds that passed meanwhile by the local clock.
        user: name of the user that permissions were looked at of.
        lacking: the rights that it lacks, as ACL SETUSER takes them; None if they cannot be found out.
        namespace: name of the namespace.
        exists: whether anything was ever written or read in it.
        clock_ttl: milliseconds until the clock of a shard expires; None if it does not.
        instances: how many instances report themselves in it.
        self_test: the self-test; None if it was not wanted.
    """

    info: Mapping[str, str]
    config: Mapping[str, str] | None
    round_trips: tuple[float, ...]
    server_seconds: float
    local_seconds: float
    user: str
    lacking: tuple[str, ...] | None
    namespace: str
    exists: bool
    clock_ttl: int | None
    instances: int
    self_test: SelfTest | None


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Judge what was found out."""
    return (
        *_server(facts.info),
        *_memory(facts.info),
        *_replication(facts.info, facts.config),
        *_persistence(facts.info),
        *_clients(facts.info, facts.config),
        *_permissions(facts),
        *_times(facts),
        *_namespace(facts),
        *_self_test(facts),
    )


def number(text: str | None) -> int:
    """Return a number that a server told, 0 if it told none."""
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else 0


def _server(info: Mapping[str, str]) -> Iterator[Finding]:
    text = info.get("redis_version", "")
    version = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    if not version:
        yield Finding(Level.NOTE, "version", "the server does not tell its version", "allow this user INFO: +info")
    elif version < LEAST_VERSION:
        yield Finding(Level.PROBLEM, "version", f"Redis {text}", "use Redis 6 or newer, or Valkey")
    elif version < RESP3_VERSION:
        yield Finding(
            Level.NOTE, "version", f"Redis {text} has no RESP3: heartbeats are published by scripts",
            "give ?protocol=2 in the URL, or use Redis 6 or newer",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "version", f"Redis {text}")
    mode = info.get("redis_mode", "")
    if mode == "standalone":
        yield Finding(Level.OK, "mode", "a single server")
    elif mode:
        what = "a Sentinel, which holds no data" if mode == "sentinel" else "a node of a cluster"
        advice = (
            "give a redis+sentinel:// URL" if mode == "sentinel" else "give the URL of a server without cluster mode"
        )
        yield Finding(Level.PROBLEM, "mode", f"this is {what}", advice)
    if info.get("loading") == "1":
        yield Finding(Level.PROBLEM, "loading", "the server is still loading its data", "wait until it has")


def _memory(info: Mapping[str, str]) -> Iterator[Finding]:
    policy, limit = info.get("maxmemory_policy", ""), number(info.get("maxmemory"))
    if policy.startswith("allkeys"):
        yield Finding(
            Level.WARNING if limit else Level.NOTE, "maxmemory-policy",
            f"{policy}: the clock and the log of a shard may be evicted; then every local tier is emptied",
            "CONFIG SET maxmemory-policy volatile-lru (values have an expiry, clock and log have none), or give the "
            "cache a server of its own",
        )  # fmt: skip
    elif policy == "noeviction" and limit:
        yield Finding(
            Level.NOTE, "maxmemory-policy", "noeviction: when memory is full, writes are refused (deletions work)",
            "CONFIG SET maxmemory-policy volatile-lru, if values may go instead",
        )  # fmt: skip
    elif policy:
        yield Finding(Level.OK, "maxmemory-policy", f"{policy}: clock and log stay")
    used = number(info.get("used_memory"))
    if limit and used > FULL * limit:
        yield Finding(
            Level.WARNING, "memory", f"{used:,} of {limit:,} bytes are in use", "raise maxmemory, or shorten ttl"
        )


def _replication(info: Mapping[str, str], config: Mapping[str, str] | None) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield Finding(
            Level.PROBLEM, "role", "this is a replica: it accepts no writes, so nothing is ever proven fresh",
            f"give the primary's URL: {info.get('master_host', '?')}:{info.get('master_port', '?')}",
        )  # fmt: skip
        return
    replicas = number(info.get("connected_slaves"))
    wanted = number((config or {}).get("min-replicas-to-write"))
    good = number(info.get("min_slaves_good_slaves")) if "min_slaves_good_slaves" in info else replicas
    if wanted > good:
        yield Finding(
            Level.PROBLEM, "replicas", f"{good} of the {wanted} replicas of min-replicas-to-write: writes are refused",
            "bring the replicas back, or lower min-replicas-to-write",
        )  # fmt: skip
    elif replicas and config is not None and not wanted:
        yield Finding(
            Level.NOTE, "replicas",
            f"{replicas} replicas, min-replicas-to-write is 0: a primary that is cut off goes on accepting writes, "
            "which a failover discards",
            "CONFIG SET min-replicas-to-write 1, min-replicas-max-lag 10, if that is worse than refused writes",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "replicas", f"{replicas} replicas")


def _persistence(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err":
        yield Finding(
            Level.PROBLEM, "persistence", "the server could not save its data, and may refuse writes (MISCONF)",
            "look into the server's log; free its disk",
        )  # fmt: skip


def _clients(info: Mapping[str, str], config: Mapping[str, str] | None) -> Iterator[Finding]:
    connected, most = number(info.get("connected_clients")), number(info.get("maxclients"))
    if most and connected > FULL * most:
        yield Finding(Level.WARNING, "clients", f"{connected:,} of {most:,} connections are in use", "raise maxclients")
    if config is None:
        yield Finding(
            Level.NOTE, "settings", "CONFIG GET is not allowed: buffers, time-outs and notifications are not known",
            "run doctor as a user with +config|get",
        )  # fmt: skip
        return
    found = re.search(r"pubsub (\d+) (\d+) (\d+)", config.get("client-output-buffer-limit", ""))
    if found is not None:
        hard, soft, seconds = map(int, found.groups())
        limits = f"pubsub {hard:,} {soft:,} {seconds}"
        if not hard:
            yield Finding(
                Level.WARNING, "output buffers", f"{limits}: no limit; a subscriber that hangs fills its memory",
                "CONFIG SET client-output-buffer-limit 'pubsub 33554432 8388608 60'",
            )  # fmt: skip
        elif min(hard, soft or hard) < LEAST_PUBSUB_BUFFER:
            yield Finding(
                Level.PROBLEM, "output buffers", f"{limits}: a burst of invalidations ends subscribers' connections",
                "CONFIG SET client-output-buffer-limit 'pubsub 33554432 8388608 60'",
            )  # fmt: skip
        else:
            yield Finding(Level.OK, "output buffers", limits)
    timeout = number(config.get("timeout"))
    if timeout:
        yield Finding(
            Level.NOTE, "timeout", f"the server closes connections that are idle for {timeout} s; they are made again"
        )
    if config.get("tcp-keepalive") == "0":
        yield Finding(
            Level.NOTE,
            "tcp-keepalive",
            "off: connections of hosts that have vanished stay",
            "CONFIG SET tcp-keepalive 300",
        )
    if config.get("notify-keyspace-events"):
        yield Finding(
            Level.NOTE, "notify-keyspace-events", f"{config['notify-keyspace-events']}: costs the server time",
            "this cache does not need it: CONFIG SET notify-keyspace-events '', unless something else does",
        )  # fmt: skip


def _permissions(facts: Facts) -> Iterator[Finding]:
    if facts.lacking is None:
        yield Finding(
            Level.NOTE, "permissions", f"the rights of user {facts.user!r} cannot be found out",
            "run doctor as that user, or as an administrator of Redis 7 or newer with --user",
        )  # fmt: skip
    elif facts.lacking:
        rights = " ".join(facts.lacking)
        yield Finding(
            Level.PROBLEM, "permissions", f"user {facts.user!r} lacks {rights}", f"ACL SETUSER {facts.user} {rights}"
        )
    else:
        yield Finding(Level.OK, "permissions", f"user {facts.user!r} has every right that is needed")


def _times(facts: Facts) -> Iterator[Finding]:
    trips = sorted(facts.round_trips)
    if trips:
        median, longest = trips[len(trips) // 2], trips[-1]
        told = f"round trip {1000 * median:.1f} ms, at most {1000 * longest:.1f} ms of {len(trips)}"
        if median > SLOW:
            yield Finding(Level.WARNING, "latency", told, "put Redis nearer; look for slow commands (SLOWLOG GET)")
        else:
            yield Finding(Level.OK, "latency", told)
    drift = facts.server_seconds - facts.local_seconds
    if abs(drift) > CLOCK_RESOLUTION + CLOCK_TOLERANCE * facts.local_seconds:
        yield Finding(
            Level.WARNING, "clock",
            f"the server's clock went {drift:+.2f} s beside the local one within {facts.local_seconds:.1f} s",
            "let the server's clock be slewed, not stepped (chrony); expiry and acknowledged writes go by it",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "clock", "the server's clock runs as the local one does")


def _namespace(facts: Facts) -> Iterator[Finding]:
    if not facts.exists:
        yield Finding(
            Level.NOTE,
            "namespace",
            f"nothing is there: no cache has ever used {facts.namespace!r}",
            "is that its name?",
        )
    elif facts.clock_ttl is not None:
        yield Finding(
            Level.PROBLEM, "namespace", f"another program lets the clock expire in {facts.clock_ttl / 1000:.0f} s",
            "find out which; PERSIST the key that ends with ':clock'",
        )  # fmt: skip
    else:
        yield Finding(
            Level.OK, "namespace", f"{facts.namespace!r} is in use; {facts.instances} instances report themselves"
        )


def _self_test(facts: Facts) -> Iterator[Finding]:
    test = facts.self_test
    if test is None:
        return
    if test.error:
        if "permission" in test.error.lower():
            yield Finding(
                Level.NOTE, "self-test", f"this user may not use a scratch namespace: {test.error}",
                "run doctor as a user with ~cc:{doctor-* &cc:{doctor-*, or with --no-self-test",
            )  # fmt: skip
        else:
            yield Finding(Level.PROBLEM, "self-test", test.error, "see the findings above, and the server's log")
        return
    times = sorted(test.seconds)
    median, longest = times[len(times) // 2], times[-1]
    told = (
        f"{len(times)} writes on one instance were read on another {1000 * median:.1f} ms later, at most "
        f"{1000 * longest:.1f} ms"
    )
    if longest > LEAST_BOUND:
        yield Finding(Level.WARNING, "self-test", told, "look at latency and at the load of this machine")
    else:
        yield Finding(Level.OK, "self-test", told)
    if test.transport == "marks":
        yield Finding(
            Level.NOTE, "transport", "heartbeats are published by scripts: the server or a proxy has no RESP3",
            "nothing need be done; RESP3 saves a connection per heartbeat",
        )  # fmt: skip


def as_dict(finding: Finding) -> dict[str, Any]:
    """Return a finding as a dict of plain values."""
    return {"level": finding.level.value, "topic": finding.topic, "found": finding.found, "advice": finding.advice}
