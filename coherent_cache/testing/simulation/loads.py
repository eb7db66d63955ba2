"""Loads as the simulation sees them: what loaders read and when, and that nothing outdated is ever stored (I3, I14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coherent_cache.core.requests import (
    BatchRequest,
    DeleteRequest,
    FillRequest,
    FloorRequest,
    RedisReply,
    RedisRequest,
    StoreRequest,
    WriteReply,
)
from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.wire import Kind


class Load(NamedTuple):
    """What one loader read.

    Attributes:
        key: the key.
        time: when it read, in virtual seconds.
        writes: writes that the primary had executed then.
    """

    key: str
    time: float
    writes: int


class LoadedValues:
    """Every loaded value, and when each key, tag and shard was last invalidated by a write that was acknowledged.

    A database is written before the cache is invalidated. So a value that was read before an invalidation may be
    outdated, and must not be stored after it.
    """

    def __init__(self) -> None:
        """Begin with nothing loaded."""
        self._loads: dict[int, Load] = {}
        self._writes = 0
        self._invalidated: dict[tuple[str, int, str], int] = {}

    def begin(self, number: int, key: str, now: float) -> None:
        """Note that a loader has read a value."""
        self._loads[number] = Load(key, now, self._writes)

    def read_at(self, number: int) -> float | None:
        """Return when a value was read by its loader; None if it was not loaded."""
        load = self._loads.get(number)
        return None if load is None else load.time

    def forgive(self) -> None:
        """Forget the invalidations: the primary that knew of them is gone, and perhaps they with it."""
        self._invalidated.clear()

    def executed(self, request: RedisRequest, reply: RedisReply, number: int | None) -> None:
        """Note what the primary has executed, and check a fill.

        Args:
            request: the request.
            reply: its reply.
            number: for a fill, the number of the value that was stored; None if it was none.

        Raises:
            Violation: what was loaded before an invalidation was stored after it.
        """
        if not isinstance(reply, WriteReply) or not reply.applied:
            return
        if isinstance(request, FillRequest):
            if number is not None:
                self._check(request.shard, self._loads[number], request.tags, number)
            return
        self._writes += 1
        for kind, name in _invalidates(request):
            self._invalidated[kind, request.shard, name] = self._writes

    def _check(self, shard: int, load: Load, tags: Sequence[str], number: int) -> None:
        for place in (("key", shard, load.key), ("clear", shard, ""), *(("tag", shard, tag) for tag in tags)):
            if self._invalidated.get(place, 0) > load.writes:
                what = " ".join(map(str, place))
                raise Violation(
                    "I3", f"{load.key}=v{number} was loaded before {what} was invalidated, and stored after"
                )


def _invalidates(request: RedisRequest) -> list[tuple[str, str]]:
    match request:
        case StoreRequest() | DeleteRequest() | BatchRequest():
            return [("key", key) for key in request.keys]
        case FloorRequest(kind=Kind.CLEAR):
            return [("clear", "")]
        case FloorRequest():
            return [("tag", tag) for tag in request.tags]
    return []
