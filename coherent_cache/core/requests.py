"""What operations ask of Redis, and what it answers: plain data between the pure core and whoever talks to Redis.

An operation is a generator that yields a sequence of requests and is sent the sequence of their replies, in the same
order. A failure is thrown into it as :class:`coherent_cache.errors.CacheUnavailable`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

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
    """

    shard: int
    keys: tuple[str, ...]
    parts: tuple[bytes, ...]
    ttl_ms: int
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Delete values under one new version, log and publish it, whether they are there or not (P1)."""

    shard: int
    keys: tuple[str, ...]
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class TouchRequest:
    """Give a live value another time to live, under a new version (P1, review A21)."""

    shard: int
    key: str
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class FloorRequest:
    """Raise the floor of the shard (``Kind.CLEAR``) or of tags (``Kind.TAG``) to a new version (P10)."""

    shard: int
    kind: Kind
    tags: tuple[str, ...] = ()


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


Request = ReadRequest | StoreRequest | DeleteRequest | TouchRequest | FloorRequest | BatchRequest
Reply = ReadReply | WriteReply

T = TypeVar("T")
Operation = Generator[Sequence[Request], Sequence[Reply], T]
"""An operation of the core: yields requests, is sent their replies, returns its result."""
