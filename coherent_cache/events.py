"""Events: what a cache reports, as frozen dataclasses. Sent to ``on_event`` callbacks and to the log.

Every event has a stable name (``Event.name``), a log level, and fields with stable names. Durations are seconds unless
a field's name says otherwise; a version is its sequence number in the shard's present history. No field ever holds a
value.
``docs/reference/events.md`` is made of the docstrings here, by ``docs/reference/make_events.py``.

Events of level ``debug`` come per message or command, and are made only while somebody wants them: a callback, or a log
that writes DEBUG.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Literal

Level = Literal["debug", "info", "warning", "error"]

KEY_FIELDS: Final = frozenset({"key", "names"})
"""Fields that hold keys or tags: the log may hash or redact them (``log_keys``)."""

QUOTING_FIELDS: Final = frozenset({"cause", "reason"})
"""Fields with texts of errors, which may quote a key: the log leaves quotations out where keys are not to be plain. The
field ``text``, of an unknown error, is left out as a whole."""


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
class WritePublished(Event):
    """A write of this instance was executed by Redis, logged and published (P1).

    Attributes:
        shard: number of the shard.
        kind: ``set`` (fills after a load included), ``delete``, ``touch``, ``tag``, ``clear`` or ``batch``.
        version: version that the write made.
        names: keys concerned; for ``tag`` the tags; for ``clear`` nothing.
    """

    name: ClassVar[str] = "write_published"
    level: ClassVar[Level] = "debug"
    shard: int
    kind: str
    version: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """A shard changed its state (P5).

    Attributes:
        shard: number of the shard.
        old: state before: ``connecting``, ``coherent``, ``suspect`` or ``disconnected``.
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
        cause: why it was needed.
        outcome: ``first`` (nothing was held before), ``unbroken`` (nothing was missed), ``replayed``, or ``flushed``.
        version: position now.
        replayed: how many missed messages were applied from the log.
        dropped: how many local entries were dropped because nothing proved them.
    """

    name: ClassVar[str] = "resynced"
    level: ClassVar[Level] = "info"
    shard: int
    cause: str
    outcome: str
    version: int
    replayed: int
    dropped: int


@dataclass(frozen=True, slots=True)
class HistoryLost(Event):
    """Another epoch was seen: Redis lost this shard's data, and this instance forgets it too (P9).

    Attributes:
        shard: number of the shard.
        dropped: how many local entries were dropped.
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
        expected: version that should have come.
        received: version that came.
    """

    name: ClassVar[str] = "message_gap"
    level: ClassVar[Level] = "warning"
    shard: int
    expected: int
    received: int


@dataclass(frozen=True, slots=True)
class InvalidationReceived(Event):
    """A message came, and was applied or ignored. One per message, those of own writes included.

    Attributes:
        shard: number of the shard.
        kind: ``set``, ``delete``, ``touch``, ``tag``, ``clear``, ``batch`` or ``release`` (a lease was given up).
        version: version that the write made.
        origin: instance that wrote.
        names: keys concerned; for ``tag`` the tags; for ``clear`` nothing.
        applied: True if an entry or a command under way here was concerned; False if it was ignored.
        lag_ms: milliseconds from the write's execution in Redis to its application here, or None if not known yet.
    """

    name: ClassVar[str] = "invalidation"
    level: ClassVar[Level] = "debug"
    shard: int
    kind: str
    version: int
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
        dropped: how many local entries were dropped.
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
        version: version of the value.
        cause: which rule refused it.
    """

    name: ClassVar[str] = "fill_refused"
    level: ClassVar[Level] = "debug"
    shard: int
    key: str
    version: int
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
class LeaseTaken(Event):
    """This instance may load a key, and nobody else does meanwhile (P11).

    Attributes:
        shard: number of the shard.
        key: the key.
        version: version of the value that is to be refreshed; 0 if there is none.
    """

    name: ClassVar[str] = "lease_taken"
    level: ClassVar[Level] = "debug"
    shard: int
    key: str
    version: int


@dataclass(frozen=True, slots=True)
class LeaseLost(Event):
    """A lease was gone when it was to be renewed: the key was written, deleted or cleared during the load (P11).

    Attributes:
        shard: number of the shard.
        key: the key.
    """

    name: ClassVar[str] = "lease_lost"
    level: ClassVar[Level] = "debug"
    shard: int
    key: str


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
        away: seconds since it was lost, or first could not be made; None for the first connection.
    """

    name: ClassVar[str] = "subscriber_connected"
    level: ClassVar[Level] = "info"
    server: str
    transport: str
    away: float | None


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
class EntriesRemoved(Event):
    """Local entries made room or expired: a summary, per shard at most one in ten seconds.

    Attributes:
        shard: number of the shard.
        seconds: seconds that it covers.
        evicted: how many entries were removed because a limit was reached.
        expired: how many were removed because their time was over.
        too_large: how many were not kept because each alone exceeds ``max_bytes``.
        held: how many entries are held now.
    """

    name: ClassVar[str] = "entries_removed"
    level: ClassVar[Level] = "debug"
    shard: int
    seconds: float
    evicted: int
    expired: int
    too_large: int
    held: int


@dataclass(frozen=True, slots=True)
class CommandFailed(Event):
    """Redis refused a command or is away; the caller got the error too.

    Attributes:
        cause: the error's text.
        maybe_applied: whether a write may have been executed all the same.
    """

    name: ClassVar[str] = "command_failed"
    level: ClassVar[Level] = "warning"
    cause: str
    maybe_applied: bool


@dataclass(frozen=True, slots=True)
class UnknownFormatSeen(Event):
    """A newer release wrote what this one cannot read: a value counts as a miss, a message flushes. Told once a minute.

    Attributes:
        shard: number of the shard.
        what: ``value`` or ``message``.
        reason: which format.
        count: how many there were since the last report, this one included.
    """

    name: ClassVar[str] = "unknown_format"
    level: ClassVar[Level] = "warning"
    shard: int
    what: str
    reason: str
    count: int


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
class RightsMissing(Event):
    """The Redis user lacks rights; what needs them will fail, or be slower. ``coherent_cache.acl_rule`` tells all.

    Attributes:
        rights: what lacks, as ``ACL SETUSER`` takes it.
    """

    name: ClassVar[str] = "rights_missing"
    level: ClassVar[Level] = "error"
    rights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InternalError(Event):
    """Something unexpected was caught and survived. Please report it.

    Attributes:
        where: what was being done.
        error: the exception's type.
        text: the exception's text.
    """

    name: ClassVar[str] = "internal_error"
    level: ClassVar[Level] = "error"
    where: str
    error: str
    text: str


@dataclass(frozen=True, slots=True)
class EventsSuppressed(Event):
    """There were more events of one name than the log writes in a second. Its line has the level of those left out.

    Attributes:
        of: name of the events.
        count: how many more there were.
        seconds: seconds that it covers.
    """

    name: ClassVar[str] = "events_suppressed"
    level: ClassVar[Level] = "info"
    of: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """Events came faster than log and callbacks took them; the oldest were dropped, and reached neither.

    Attributes:
        count: how many were dropped since the last event of this name.
    """

    name: ClassVar[str] = "events_dropped"
    level: ClassVar[Level] = "warning"
    count: int


def catalogue() -> tuple[type[Event], ...]:
    """Return the classes of all events, in the order of this module."""
    return tuple(
        kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    )
