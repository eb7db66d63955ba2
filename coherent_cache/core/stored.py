"""What Redis holds of keys, for people who look on: versions and times, not values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple

from coherent_cache.wire import CODE_LEASE, CODE_NOTHING, WireError, decode_header


class Presence(StrEnum):
    """What lies under a key in Redis."""

    VALUE = "value"
    ABSENT = "absent"
    LEASE = "lease"  # somebody is loading it (P11)
    NOTHING = "nothing"  # a loader has found no such thing (P11)
    DEAD = "dead"  # a value below its floors, or of a lost history: absent for every read (P2, P10)
    FOREIGN = "foreign"  # bytes of another program


class Stored(NamedTuple):
    """What Redis holds of one key.

    Attributes:
        key: user key.
        presence: see :class:`Presence`.
        seq: version; 0 if there is none.
        least: an entry of this key, in this epoch, whose version is below that is outdated: a write or a floor came
            after it. 0 if nothing says so: what is absent may have been deleted, or have expired.
        expires_in: seconds until Redis forgets it; ``inf`` for never.
    """

    key: str
    presence: Presence
    seq: int
    least: int
    expires_in: float


class Snapshot(NamedTuple):
    """What Redis holds of keys of one shard, at one moment.

    Attributes:
        shard: number of the shard.
        epoch: its history; empty if there is no clock: nothing is there.
        seq: its clock.
        floor: values up to this seq are dead (P10).
        time_us: the server's clock in microseconds.
        server: run id of the server.
        found: per key, in order.
    """

    shard: int
    epoch: bytes
    seq: int
    floor: int
    time_us: int
    server: str
    found: tuple[Stored, ...]


def judge(key: str, raw: Sequence[Any], epoch: bytes, floor: int) -> Stored:
    """Judge what lies under a key.

    Args:
        key: user key.
        raw: what ``versions.lua`` answers: state, header, highest floor of its tags, PTTL.
        epoch: the shard's epoch.
        floor: the shard's floor.
    """
    state, head, tag_floor, pttl = raw
    expires_in = pttl / 1000 if pttl >= 0 else inf
    least = floor + 1 if floor else 0
    if state != 1:
        presence = Presence.FOREIGN if state else Presence.ABSENT
        return Stored(key, presence, 0, least, expires_in)
    try:
        its_epoch, seq, codec = decode_header(head)
    except WireError:
        return Stored(key, Presence.FOREIGN, 0, least, expires_in)
    if its_epoch != epoch:
        return Stored(key, Presence.DEAD, seq, least, expires_in)
    if codec == CODE_LEASE:
        return Stored(key, Presence.LEASE, seq, least, expires_in)
    if seq <= floor or seq <= tag_floor:
        return Stored(key, Presence.DEAD, seq, max(least, seq + 1), expires_in)
    presence = Presence.NOTHING if codec == CODE_NOTHING else Presence.VALUE
    return Stored(key, presence, seq, seq, expires_in)
