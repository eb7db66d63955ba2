"""Events: what a cache reports, as frozen dataclasses. Sent to ``on_event`` callbacks and to the log.

Every event has a stable name (``Event.name``) and a log level. Durations are seconds, versions are sequence numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events.

    Attributes:
        name: stable name, used as the event of the log line.
        level: log level.
    """

    name: ClassVar[str]
    level: ClassVar[Level]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for a log line."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """A shard changed its state (P5).

    Attributes:
        shard: number of the shard.
        old: state before.
        new: state now.
        cause: what made it change.
    """

    name: ClassVar[str] = "state_changed"
    level: ClassVar[Level] = "info"
    shard: int
    old: str
    new: str
    cause: str


@dataclass(frozen=True, slots=True)
class Resynced(Event):
    """A shard proved its position in the stream again (P6).

    Attributes:
        shard: number of the shard.
        outcome: ``first`` (nothing was held before), ``unbroken`` (nothing was missed), ``replayed``, or ``flushed``.
        seq: position now.
        replayed: missed messages that were applied from the log.
        dropped: local entries that were dropped because nothing proved them.
    """

    name: ClassVar[str] = "resynced"
    level: ClassVar[Level] = "info"
    shard: int
    outcome: str
    seq: int
    replayed: int
    dropped: int


@dataclass(frozen=True, slots=True)
class HistoryLost(Event):
    """Another epoch was seen: Redis lost this shard's data, and this instance forgets it too (P9).

    Attributes:
        shard: number of the shard.
        dropped: local entries that were dropped.
        cause: where the other epoch was seen.
    """

    name: ClassVar[str] = "history_lost"
    level: ClassVar[Level] = "warning"
    shard: int
    dropped: int
    cause: str


@dataclass(frozen=True, slots=True)
class MessageGap(Event):
    """A message does not continue the stream, by its number or its predecessor's nonce (P6): a resync follows.

    Attributes:
        shard: number of the shard.
        expected: sequence number that should have come.
        received: sequence number that came.
    """

    name: ClassVar[str] = "message_gap"
    level: ClassVar[Level] = "warning"
    shard: int
    expected: int
    received: int


@dataclass(frozen=True, slots=True)
class InvalidationReceived(Event):
    """A message was applied. One per message: made only when somebody listens at DEBUG.

    Attributes:
        shard: number of the shard.
        kind: ``set``, ``delete``, ``touch``, ``tag``, ``clear``, ``batch`` or ``release``.
        seq: version that the write made.
        origin: instance that wrote.
        names: keys or tags concerned.
        applied: whether an entry or a token here was affected.
        lag_ms: milliseconds from the write's execution in Redis to its application here, or None if not known yet.
    """

    name: ClassVar[str] = "invalidation"
    level: ClassVar[Level] = "debug"
    shard: int
    kind: str
    seq: int
    origin: str
    names: tuple[str, ...]
    applied: bool
    lag_ms: float | None


@dataclass(frozen=True, slots=True)
class MessageDamaged(Event):
    """A message could not be decoded: the shard was flushed (P8).

    Attributes:
        shard: number of the shard.
        reason: what is wrong with the bytes.
        dropped: local entries that were dropped.
    """

    name: ClassVar[str] = "message_damaged"
    level: ClassVar[Level] = "error"
    shard: int
    reason: str
    dropped: int


@dataclass(frozen=True, slots=True)
class FillRefused(Event):
    """A value was returned to its caller but not kept, because it may be outdated (P7).

    Attributes:
        shard: number of the shard.
        key: the key.
        seq: version of the value.
        cause: which rule refused it.
    """

    name: ClassVar[str] = "fill_refused"
    level: ClassVar[Level] = "debug"
    shard: int
    key: str
    seq: int
    cause: str


@dataclass(frozen=True, slots=True)
class LoadFailed(Event):
    """A loader raised, or returned what cannot be encoded.

    Attributes:
        key: the key.
        error: the exception's type.
    """

    name: ClassVar[str] = "load_failed"
    level: ClassVar[Level] = "warning"
    key: str
    error: str


@dataclass(frozen=True, slots=True)
class LeaseVoided(Event):
    """A loaded value was returned to its caller but not stored: something happened to its key meanwhile (P11).

    Attributes:
        shard: number of the shard.
        key: the key.
    """

    name: ClassVar[str] = "lease_voided"
    level: ClassVar[Level] = "debug"
    shard: int
    key: str


@dataclass(frozen=True, slots=True)
class StaleServed(Event):
    """A value was served beyond its time (``fail_safe``).

    Attributes:
        key: the key.
        cause: why it could not be loaded.
    """

    name: ClassVar[str] = "stale_served"
    level: ClassVar[Level] = "warning"
    key: str
    cause: str


@dataclass(frozen=True, slots=True)
class SubscriberConnected(Event):
    """The subscriber's connection was established.

    Attributes:
        server: run id of the server.
        transport: ``resp3`` (heartbeats on the same connection) or ``marks`` (heartbeats published by script).
    """

    name: ClassVar[str] = "subscriber_connected"
    level: ClassVar[Level] = "info"
    server: str
    transport: str


@dataclass(frozen=True, slots=True)
class SubscriberLost(Event):
    """The subscriber's connection was lost or given up; it will be made again.

    Attributes:
        cause: why.
        retry_in: seconds until the next attempt.
    """

    name: ClassVar[str] = "subscriber_lost"
    level: ClassVar[Level] = "warning"
    cause: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class ForeignValueSeen(Event):
    """Bytes under one of our keys are not ours, or damaged.

    Attributes:
        key: the key.
        reason: what is wrong with the bytes.
    """

    name: ClassVar[str] = "foreign_value"
    level: ClassVar[Level] = "warning"
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class InternalError(Event):
    """Something unexpected was caught and survived. Please report it.

    Attributes:
        where: what was being done.
        error: the exception's type and text.
    """

    name: ClassVar[str] = "internal_error"
    level: ClassVar[Level] = "error"
    where: str
    error: str
