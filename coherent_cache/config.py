"""Settings: frozen, validated at construction, each default a named constant with its unit and reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from coherent_cache.errors import ConfigError

Policy = Literal["lru", "lfu", "fifo", "random"]
OnDisconnect = Literal["bypass", "serve_stale", "fail"]
OnForeign = Literal["raise", "miss"]
Compress = Literal["zlib", "zstd"]
LogKeys = Literal["plain", "hash", "redact"]

DEFAULT_MAX_ENTRIES: Final = 10_000
"""Entries of the local tier, over all shards."""

DEFAULT_TTL: Final = 300.0
"""Seconds that a value lives in Redis: a cache that forgets nothing fills up."""

DEFAULT_HEARTBEAT: Final = 1.0
"""Seconds between proofs of freshness. One small script per instance, shard and second (P4)."""

DEFAULT_MAX_STALENESS: Final = 5.0
"""Seconds that the local tier is served without a proof of freshness (P4)."""

DEFAULT_STALE_LIMIT: Final = 60.0
"""Seconds without proof that ``on_disconnect="serve_stale"`` goes on serving."""

DEFAULT_MAX_VALUE_BYTES: Final = 1024 * 1024
"""Largest encoded value. Redis executes one script at a time; big values make everybody wait."""

DEFAULT_COMPRESS_ABOVE: Final = 1024
"""Bytes of an encoded value from which it is compressed: fewer are not worth the time."""

MAX_SCHEMA: Final = 65_535
"""Largest number of a schema: it has two bytes in the envelope."""

DEFAULT_TIMEOUT: Final = 2.0
"""Seconds that one round trip to Redis, or one attempt to connect, may take."""

DEFAULT_MAX_CONNECTIONS: Final = 64
"""Connections for commands per instance; a caller that finds none free waits, ``timeout`` at most."""

DEFAULT_LOG_LENGTH: Final = 10_000
"""Invalidations that a shard's log keeps for replay (P6); about 150 bytes each for short keys."""

DEFAULT_REPLAY_LIMIT: Final = 2_000
"""Missed invalidations up to which a resync replays the log, as far as it reaches; beyond, a flush is cheaper (P6)."""

DEFAULT_LEASE: Final = 10.0
"""Seconds after which the lease of a loader that has died ends (P11). One that lives renews it, and may take longer."""

DEFAULT_LEASE_WAIT: Final = 60.0
"""Seconds that a process waits for another one's loader before it loads for itself (P11)."""

HEARTBEATS_PER_BOUND: Final = 3
"""``max_staleness`` must span at least this many heartbeats, so that one lost beat does not end service (P4)."""

MAX_PAYLOAD_BYTES: Final = 512 * 1024 * 1024
"""Redis takes no larger strings."""

MAX_SHARDS: Final = 1024
"""More shards than this help nobody: each costs a heartbeat."""

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_INSTANCE: Final = re.compile(r"[\x21-\x7e]{1,120}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Validated settings of one instance. See :class:`coherent_cache.CoherentCache` for what each one means."""

    namespace: str
    shards: int = 1
    max_entries: int = DEFAULT_MAX_ENTRIES
    max_bytes: int | None = None
    policy: Policy = "lru"
    ttl: float | None = DEFAULT_TTL
    local_ttl: float | None = None
    local_enabled: bool = True
    copy_values: bool = True
    heartbeat: float = DEFAULT_HEARTBEAT
    max_staleness: float = DEFAULT_MAX_STALENESS
    on_disconnect: OnDisconnect = "bypass"
    stale_limit: float = DEFAULT_STALE_LIMIT
    on_foreign: OnForeign = "raise"
    max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES
    compress: Compress | None = None
    compress_above: int = DEFAULT_COMPRESS_ABOVE
    schema: int = 0
    timeout: float = DEFAULT_TIMEOUT
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    log_length: int = DEFAULT_LOG_LENGTH
    replay_limit: int = DEFAULT_REPLAY_LIMIT
    lease: float = DEFAULT_LEASE
    lease_wait: float = DEFAULT_LEASE_WAIT
    log_keys: LogKeys = "plain"
    report: bool = True

    def __post_init__(self) -> None:
        """Check every option; the error names the option and the range that is allowed."""
        _match("namespace", self.namespace, _NAMESPACE, "1 to 64 of the characters A-Z a-z 0-9 _ . -")
        _integer("shards", self.shards, 1, MAX_SHARDS)
        _integer("max_entries", self.max_entries, self.shards, 10**9)
        if self.max_bytes is not None:
            _integer("max_bytes", self.max_bytes, self.shards, 2**50)
        _choice("policy", self.policy, get_args(Policy))
        check_ttl("ttl", self.ttl)
        check_ttl("local_ttl", self.local_ttl)
        for option in ("local_enabled", "copy_values", "report"):
            if not isinstance(getattr(self, option), bool):
                raise ConfigError(option, f"must be True or False, not {getattr(self, option)!r}")
        _seconds("heartbeat", self.heartbeat, 0.005, 3600)
        _seconds("max_staleness", self.max_staleness, 0.015, 86_400)
        if self.max_staleness < HEARTBEATS_PER_BOUND * self.heartbeat:
            raise ConfigError(
                "max_staleness",
                f"{self.max_staleness} s must be at least {HEARTBEATS_PER_BOUND} heartbeats "
                f"({HEARTBEATS_PER_BOUND} x {self.heartbeat} s); raise it or lower 'heartbeat'",
            )
        _choice("on_disconnect", self.on_disconnect, get_args(OnDisconnect))
        _seconds("stale_limit", self.stale_limit, 0, 10**7)
        _choice("on_foreign", self.on_foreign, get_args(OnForeign))
        _integer("max_value_bytes", self.max_value_bytes, 1, MAX_PAYLOAD_BYTES)
        if self.compress is not None:
            _choice("compress", self.compress, get_args(Compress), none="None, or ")
        _integer("compress_above", self.compress_above, 0, MAX_PAYLOAD_BYTES)
        _integer("schema", self.schema, 0, MAX_SCHEMA)
        _seconds("timeout", self.timeout, 0.01, 600)
        _integer("max_connections", self.max_connections, 1, 100_000)
        _integer("log_length", self.log_length, 1, 10**7)
        _integer("replay_limit", self.replay_limit, 0, 60_000)
        _seconds("lease", self.lease, 0.05, 3600)
        _seconds("lease_wait", self.lease_wait, 0, 86_400)
        _choice("log_keys", self.log_keys, get_args(LogKeys))

    @property
    def longest_age(self) -> float:
        """Seconds without a proof of freshness up to which a local value may be served, whatever happens."""
        return max(self.max_staleness, self.stale_limit) if self.on_disconnect == "serve_stale" else self.max_staleness


def check_ttl(option: str, ttl: object) -> None:
    """Check a time to live: None (no expiry), or seconds from 0.001 (Redis' resolution) to 10 years.

    Raises:
        ConfigError: anything else.
    """
    if ttl is not None:
        _seconds(option, ttl, 0.001, 315_360_000, none="None for no expiry, or ")


def check_seconds(option: str, value: object, low: float = 0.001, high: float = 315_360_000) -> None:
    """Check a duration that may be left out: None, or seconds between two bounds.

    Raises:
        ConfigError: anything else.
    """
    if value is not None:
        _seconds(option, value, low, high, none="None, or ")


def check_fraction(option: str, value: object) -> None:
    """Check a part of something that may be left out: None, or a number above 0 and below 1.

    Raises:
        ConfigError: anything else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1):
        raise ConfigError(option, f"must be None, or a number above 0 and below 1, not {value!r}")


def check_instance_id(instance_id: object) -> None:
    """Check an instance's name: 1 to 120 printable ASCII characters without spaces.

    Raises:
        ConfigError: anything else.
    """
    _match("instance_id", instance_id, _INSTANCE, "1 to 120 printable ASCII characters without spaces")


def _seconds(option: str, value: object, low: float, high: float, none: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(option, f"must be {none}seconds from {low} to {high}, not {value!r}")


def _integer(option: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(option, f"must be an integer from {low:,} to {high:,}, not {value!r}")


def _choice(option: str, value: object, allowed: tuple[str, ...], none: str = "") -> None:
    if value not in allowed:
        raise ConfigError(option, f"must be {none}one of {', '.join(map(repr, allowed))}, not {value!r}")


def _match(option: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ConfigError(option, f"must be {rule}, not {value!r}")
