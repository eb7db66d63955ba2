"""What operations ask for, and what is answered: plain data between the pure core and the fronts.

An operation is a generator that yields a sequence of requests and is sent the sequence of their replies, in the same
order. A failure is thrown into it as :class:`coherent_cache.errors.CacheUnavailable`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from coherent_cache.core.waiting import Flight, Waiter
from coherent_cache.wire import Kind

MAX_KEYS_PER_SCRIPT: Final = 1000
"""Most keys of one script: Lua's stack bounds it, and Redis serves nobody else meanwhile (review A7)."""

MAX_BYTES_PER_SCRIPT: Final = 4 * 1024 * 1024
"""Payload bytes of one script from which a bulk write goes on in another one."""


class ReadRequest(NamedTuple):
    """Read values with all that is needed to judge them, atomically (P2).

    Attributes:
        shard: the shard that all keys belong to.
        keys: user keys in UTF-8, at most ``MAX_KEYS_PER_SCRIPT``.
        judge_tags: look up the floors of the tags that the envelopes name: costs the server more, so it is done only
            for envelopes with tags that are older than the last tag invalidation of the shard.
    """

    shard: int
    keys: tuple[bytes, ...]
    judge_tags: bool = False


class ReadReply(NamedTuple):
    """Answer to a :class:`ReadRequest`.

    Attributes:
        epoch: the shard's epoch; empty if the shard has no clock (all values are dead then).
        seq: the clock when the read was executed: the version of every absence (review A19).
        floor: envelopes up to this seq are dead (P10).
        tag_seq: version of the last tag invalidation; 0 if there was none, or ``judge_tags`` was asked for.
        now_ms: server clock when the read was executed, in milliseconds.
        envelopes: per key, in order: the stored bytes; None if there are none; for what is no string empty if one key
            was asked for, None if several were.
        tag_floors: per key, in order, the highest floor of the tags that its envelope names; empty if all are 0, or
            ``judge_tags`` was not asked for.
        server: run id of the server that answered (P16).
        sent_at: local clock before the request was sent, in seconds.
    """

    epoch: bytes
    seq: int
    floor: int
    tag_seq: int
    now_ms: int
    envelopes: Sequence[bytes | None]
    tag_floors: Sequence[int]
    server: str
    sent_at: float


@dataclass(frozen=True, slots=True)
class Condition:
    """What a conditional write requires of the present value.

    Attributes:
        epoch: epoch of the required version. For a key that must be absent: the epoch that it was found absent in, so
            that a history in which it was there since and that was lost is noticed; empty for any.
        seq: seq of the required version; 0 if the key must be absent.
    """

    epoch: bytes = b""
    seq: int = 0


class StoreRequest(NamedTuple):
    """Store values under one new version, log and publish it (P1).

    Attributes:
        shard: the shard that all keys belong to.
        keys: user keys.
        parts: for each key two parts of its envelope: what precedes the epoch and what follows the expiry, see
            :func:`coherent_cache.wire.envelope_prefix` and :func:`coherent_cache.wire.encode_content`.
        ttl_ms: milliseconds until Redis forgets them; 0 for never.
        condition: for exactly one key, what its present value must be.
        entropy: the 16 random bytes that the write is to bring, if members are to confirm it (P12); empty if not.
    """

    shard: int
    keys: tuple[str, ...]
    parts: tuple[bytes, ...]
    ttl_ms: int
    condition: Condition | None = None
    entropy: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Delete values under one new version, log and publish it, whether they are there or not (P1).

    ``entropy`` as of a :class:`StoreRequest`.
    """

    shard: int
    keys: tuple[str, ...]
    condition: Condition | None = None
    entropy: bytes = b""


@dataclass(frozen=True, slots=True)
class TouchRequest:
    """Give a live value another time to live, under a new version (P1, review A21)."""

    shard: int
    key: str
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class FloorRequest:
    """Raise the floor of the shard (``Kind.CLEAR``) or of tags (``Kind.TAG``) to a new version (P10).

    ``entropy`` as of a :class:`StoreRequest`.
    """

    shard: int
    kind: Kind
    tags: tuple[str, ...] = ()
    entropy: bytes = b""


class BatchRequest(NamedTuple):
    """Store and delete values under one new version, log and publish it in one message (P1).

    Attributes:
        shard: the shard that all keys belong to.
        keys: user keys, first those to store.
        parts: for each key to store two parts of its envelope, as of a :class:`StoreRequest`.
        ttls_ms: for each key to store, milliseconds until Redis forgets it; 0 for never.
    """

    shard: int
    keys: tuple[str, ...]
    parts: tuple[bytes, ...]
    ttls_ms: tuple[int, ...]


class Lease(NamedTuple):
    """The right to store what a loader will return, unless anything happens meanwhile (P11).

    Attributes:
        shard: the shard that the key belongs to.
        key: user key.
        content: what follows the expiry in the lease's envelope: a random token.
        epoch: history that it was taken in.
        seq: one above the clock when it was taken: floors from there on void it.
        version: seq of the value that is to be refreshed; 0 for a load, whose lease lies where the value will be.
        taken_at: local clock before it was asked for, in seconds.
    """

    shard: int
    key: str
    content: bytes
    epoch: bytes
    seq: int
    version: int
    taken_at: float


class LeaseRequest(NamedTuple):
    """Ask for a value, and if there is none for the right to load it (P11).

    Attributes:
        shard: the shard that the key belongs to.
        key: user key.
        parts: of the lease's envelope: what precedes the epoch and what follows the expiry.
        lease_ms: milliseconds that the lease lives unless it is renewed.
        version: seq of the value that is to be refreshed; 0 for a load.
        over_foreign: whether bytes of another program count as absent.
    """

    shard: int
    key: str
    parts: tuple[bytes, bytes]
    lease_ms: int
    version: int = 0
    over_foreign: bool = False


class LeaseStatus(StrEnum):
    """How a :class:`LeaseRequest` was answered."""

    VALUE = "value"  # there is one
    TAKEN = "taken"  # another lease lives
    LEASED = "leased"
    FOREIGN = "foreign"  # bytes of another program are there


class LeaseReply(NamedTuple):
    """Answer to a :class:`LeaseRequest`.

    Attributes:
        status: see :class:`LeaseStatus`.
        read: what a read would have answered at that moment; tags are judged.
        remaining: seconds that the other lease lives unless it is renewed; 0.0 if there is none.
    """

    status: LeaseStatus
    read: ReadReply
    remaining: float


class FillRequest(NamedTuple):
    """Store what was loaded under a new version, log and publish it, if the lease still holds (P11).

    Attributes:
        shard: the shard that the key belongs to.
        keys: the user key.
        parts: as of a :class:`StoreRequest`.
        ttl_ms: milliseconds until Redis forgets it; 0 for never.
        tags: its tags: an invalidation of one of them since the lease was taken voids it.
        lease: the lease.
    """

    shard: int
    keys: tuple[str]
    parts: tuple[bytes, bytes]
    ttl_ms: int
    tags: tuple[str, ...]
    lease: Lease


class ReleaseRequest(NamedTuple):
    """Give the lease of a load up, log and publish it, if it is still there (P11)."""

    shard: int
    keys: tuple[str]
    lease: Lease


class RenewRequest(NamedTuple):
    """Give a lease that is still there more time; with 0 milliseconds end it, and tell nobody (P11)."""

    shard: int
    lease: Lease
    lease_ms: int


class RenewReply(NamedTuple):
    """Answer to a :class:`RenewRequest`: whether the lease was still there."""

    held: bool


class Member(NamedTuple):
    """An instance that may hold local values of a shard, as Redis knows it (P12).

    Attributes:
        name: its name there: the instance's id, and what tells two of the same id apart.
        bound_ms: milliseconds that it may serve what it holds without a proof of freshness.
        seen_ms: server clock when it last asked for such a proof, in milliseconds.
    """

    name: str
    bound_ms: int
    seen_ms: int


class MembersRequest(NamedTuple):
    """Ask which instances may hold local values of a shard (P12)."""

    shard: int


class MembersReply(NamedTuple):
    """Answer to a :class:`MembersRequest`.

    Attributes:
        epoch: history that the registry belongs to; empty if there is none.
        created_ms: server clock when it was begun, in milliseconds.
        now_ms: server clock when it was read, in milliseconds.
        members: those that are in it.
        server: run id of the server that answered.
    """

    epoch: bytes
    created_ms: int
    now_ms: int
    members: tuple[Member, ...]
    server: str


class LeaveRequest(NamedTuple):
    """Take this instance out of a shard's registry: it serves nothing any more (P12)."""

    shard: int


class Left(NamedTuple):
    """Answer to a :class:`LeaveRequest`: whether it was in there."""

    entered: bool


class WriteReply(NamedTuple):
    """Answer to a write.

    Attributes:
        epoch: the shard's epoch.
        seq: the version that the write got; if not ``applied``, the clock as it is.
        applied: False if a condition did not hold or there was nothing to touch: nothing was changed then.
        existed: per key that was to be deleted, whether a live value was there before.
        current_seq: if not ``applied``, the version of the value that is there; 0 if it is absent.
        foreign: the condition could not be judged, because bytes of another program are there.
        server: run id of the server that answered (P16).
        sent_at: local clock before the request was sent, in seconds.
    """

    epoch: bytes
    seq: int
    applied: bool
    existed: Sequence[bool]
    current_seq: int
    foreign: bool
    server: str
    sent_at: float


class LoadRequest(NamedTuple):
    """Ask the front to call a loader. What it raises is thrown into the operation.

    Attributes:
        load: calls the loader.
        leases: to be renewed until it returns.
        flights: that end by it.
    """

    load: Callable[[], Any]
    leases: tuple[Lease, ...]
    flights: tuple[Flight, ...] = ()


class Loaded(NamedTuple):
    """What a loader returned."""

    value: Any


class WaitRequest(NamedTuple):
    """Ask the front to wait.

    Attributes:
        waiter: is woken by others; None to be told the time.
        until: local clock in seconds when the wait ends in any case.
        flight: the flight whose end is waited for, if it is one.
    """

    waiter: Waiter | None
    until: float
    flight: Flight | None = None


class Woken(NamedTuple):
    """How a wait ended.

    Attributes:
        woken: whether the waiter was woken.
        now: local clock in seconds.
    """

    woken: bool
    now: float


class SpawnRequest(NamedTuple):
    """Ask the front to run an operation in the background, and to answer at once."""

    operation: Operation[Any]


class Spawned(NamedTuple):
    """Whether the operation runs in the background; if not, it was not begun, and is the asker's to run."""

    running: bool


RedisRequest = (
    ReadRequest
    | StoreRequest
    | DeleteRequest
    | TouchRequest
    | FloorRequest
    | BatchRequest
    | LeaseRequest
    | FillRequest
    | ReleaseRequest
    | RenewRequest
    | MembersRequest
    | LeaveRequest
)
"""What goes to Redis, all that is yielded at once in one round trip; reads never together with others."""

RedisReply = ReadReply | WriteReply | LeaseReply | RenewReply | MembersReply | Left

FrontRequest = LoadRequest | WaitRequest | SpawnRequest
"""What the front does itself; each is yielded alone."""

FRONT_REQUESTS: Final = frozenset((LoadRequest, WaitRequest, SpawnRequest))

Request = RedisRequest | FrontRequest
Reply = RedisReply | Loaded | Woken | Spawned

T = TypeVar("T")
Operation = Generator[Sequence[Request], Sequence[Reply], T]
"""An operation of the core: yields requests, is sent their replies, returns its result."""
