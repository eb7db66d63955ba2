"""Operations on a cache that take notes of what they did and saw."""

from __future__ import annotations

from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any

from coherent_cache import Acknowledgement
from coherent_cache.core.requests import WriteReply
from coherent_cache.errors import CacheUnavailable, VersionConflict
from integration.blocking import io_of
from integration.coherence_workers import stamp_of, tags_of, value_of
from integration.soak.records import (
    AMBIGUOUS,
    CONFLICT,
    KILL,
    LOCAL,
    NONE,
    OK,
    REDIS,
    REFUSED,
    SET,
    TOUCH,
    clock,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coherent_cache import CoherentCache
    from coherent_cache.versions import Version
    from integration.blocking import BlockingCache
    from integration.soak.records import Log

KEYS = [f"key-{number}" for number in range(60)]
ALIKE = {tags_of(key): [other for other in KEYS if tags_of(other) == tags_of(key)] for key in KEYS}
TTL = 3600.0  # seconds: longer than any soak
WAIT = 20.0  # seconds: longer than the bound of any instance


class _Noted:
    """What one thread has asked and been answered in its present operation, and its notes of reads."""

    def __init__(self, front: CoherentCache) -> None:
        self.front = front
        self.requests: list[Any] = []
        self.replies: list[tuple[Any, Any]] = []
        self.lines: list[list[Any]] = []


_noted: ContextVar[_Noted] = ContextVar("noted")
"""Of the thread, and of the tasks that it has begun on an event loop."""


class Notebook:
    """Operations of one process on one cache, with the notes of what they did and saw.

    Each thread says first which front it uses, by :meth:`use`.
    """

    def __init__(self, cache: CoherentCache, aio: BlockingCache, log: Log) -> None:
        self._log = log
        self._process = cache.instance_id
        self._numbers = count(1)
        self._shard = cache._runtime.instance.shards[0]
        # What Redis answered: the versions that delete, touch, update, clear and tag invalidations made, and the clock
        # and the server of each read.
        execute, execute_on_loop = io_of(cache).execute, io_of(aio).execute

        def observed(requests: Sequence[Any]) -> list[Any]:
            noted = _noted.get(None)  # none in threads of the cache
            if noted is None:
                return execute(requests)
            noted.requests.extend(requests)
            replies = execute(requests)
            noted.replies.extend(zip(requests, replies, strict=True))
            return replies

        async def observed_on_loop(requests: Sequence[Any]) -> list[Any]:
            noted = _noted.get()
            noted.requests.extend(requests)
            replies = await execute_on_loop(requests)
            noted.replies.extend(zip(requests, replies, strict=True))
            return replies

        io_of(cache).execute = observed
        io_of(aio).execute = observed_on_loop

    def use(self, front: CoherentCache | BlockingCache) -> None:
        """Let the present thread use a front."""
        _noted.set(_Noted(front))

    @property
    def cache(self) -> CoherentCache:
        """The front that the present thread uses."""
        return self._local.front

    @property
    def _local(self) -> _Noted:
        return _noted.get()

    def make_stamp(self) -> str:
        return f"{self._process}/{next(self._numbers)}"

    # -- writes ------------------------------------------------------------------------------------------------------

    def set(self, key: str, ttl: float = TTL) -> None:
        stamp = self.make_stamp()
        self._write(
            SET, "set", [key], [stamp], ttl,
            lambda: self.cache.set(key, value_of(key, stamp), ttl=ttl, tags=tags_of(key)),
        )  # fmt: skip

    def set_acknowledged(self, key: str) -> None:
        stamp = self.make_stamp()
        self._write(
            SET, "set_wait", [key], [stamp], TTL,
            lambda: self.cache.set(key, value_of(key, stamp), ttl=TTL, tags=tags_of(key), wait=WAIT),
        )  # fmt: skip

    def delete_acknowledged(self, key: str) -> None:
        self._write(KILL, "delete_wait", [key], [], None, lambda: self.cache.delete(key, wait=WAIT))

    def set_many(self, keys: Sequence[str]) -> None:
        stamps = [self.make_stamp() for _ in keys]
        values = {key: value_of(key, stamp) for key, stamp in zip(keys, stamps, strict=True)}
        # All keys of a bulk write have the same tags.
        self._write(
            SET, "set_many", list(keys), stamps, TTL,
            lambda: self.cache.set_many(values, ttl=TTL, tags=tags_of(keys[0])),
        )  # fmt: skip

    def compare_and_set(self, key: str, version: Any) -> None:
        stamp = self.make_stamp()
        self._write(
            SET, "set_if", [key], [stamp], TTL,
            lambda: self.cache.set(key, value_of(key, stamp), ttl=TTL, tags=tags_of(key), if_version=version),
        )  # fmt: skip

    def update(self, key: str) -> None:
        stamp = self.make_stamp()  # of all attempts: one of them at most is applied
        self._write(
            SET, "update", [key], [stamp], TTL,
            lambda: self.cache.update(key, lambda _: value_of(key, stamp), ttl=TTL, tags=tags_of(key)),
        )  # fmt: skip

    def delete(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            self._write(KILL, "delete", list(keys), [], None, lambda: self.cache.delete(keys[0]))
        else:
            self._write(KILL, "delete_many", list(keys), [], None, lambda: self.cache.delete_many(keys))

    def delete_if(self, key: str, version: Version) -> None:
        self._write(KILL, "delete_if", [key], [], None, lambda: self.cache.delete(key, if_version=version))

    def touch(self, key: str, ttl: float = TTL) -> None:
        self._write(TOUCH, "touch", [key], [], ttl, lambda: self.cache.touch(key, ttl))

    def invalidate_tag(self, tag: str) -> None:
        keys = [key for key in KEYS if tag in tags_of(key)]
        self._write(KILL, "invalidate_tags", keys, [], None, lambda: self.cache.invalidate_tags(tag))

    def clear(self) -> None:
        self._write(KILL, "clear", KEYS, [], None, self.cache.clear)

    def _write(
        self,
        kind: str,
        operation: str,
        keys: list[str],
        stamps: list[str],
        ttl: float | None,
        call: Callable[[], object],
    ) -> None:
        number = next(self._numbers)
        self._begin()
        self._log.write(["w", number, operation, kind, keys, stamps, ttl, clock()])
        outcome, result = OK, None
        try:
            result = call()
        except CacheUnavailable as error:
            outcome = AMBIGUOUS if error.maybe_applied else REFUSED
        except VersionConflict:
            outcome = CONFLICT
        else:
            if operation == "touch" and not result:
                outcome = NONE
        ended = clock()
        epoch, seq, server = "", 0, None
        writes = [(request, reply) for request, reply in self._local.replies if isinstance(reply, WriteReply)]
        if outcome in (OK, NONE, CONFLICT):
            reply = writes[-1][1]
            assert reply.applied == (outcome == OK)
            epoch, seq, server = short(reply.epoch), reply.seq, reply.server
        sent = [request for request in self._local.requests if hasattr(request, "condition")]
        condition = sent[-1].condition if sent else None
        required = None if condition is None else [short(condition.epoch), condition.seq]
        acknowledged = isinstance(result, Acknowledgement) and result.acknowledged
        self._log.write(["d", number, outcome, ended, epoch, seq, server, required, acknowledged])

    # -- reads -------------------------------------------------------------------------------------------------------

    def get_entry(self, key: str) -> Any:
        """Read a key; return its entry, None if there is none or the read failed."""
        server = self._begin()
        began = clock()
        try:
            entry = self.cache.get_entry(key)
        except CacheUnavailable:
            return self._failed("get_entry", began)
        ended = clock()
        if entry is None:
            self._note("get_entry", key, None, server, began, ended)
        else:
            known = (short(entry.version.epoch), entry.version.seq, entry.age_bound)
            self._note("get_entry", key, entry.value, server, began, ended, known)
            assert (entry.tier == LOCAL) == (key not in self._answers())
        return entry

    def get(self, key: str) -> None:
        server = self._begin()
        began = clock()
        try:
            value = self.cache.get(key)
        except CacheUnavailable:
            self._failed("get", began)
        else:
            self._note("get", key, value, server, began, clock())

    def get_many(self, keys: Sequence[str]) -> None:
        server = self._begin()
        began = clock()
        try:
            found = self.cache.get_many(keys)
        except CacheUnavailable:
            self._failed("get_many", began)
        else:
            ended = clock()
            for key in keys:
                self._note("get_many", key, found.get(key), server, began, ended)

    def flush(self) -> None:
        """Write out this thread's notes of reads."""
        lines, self._local.lines = self._local.lines, []
        self._log.write(*lines)

    def _begin(self) -> str | None:
        """Begin an operation; return the server that the stream comes from."""
        self._local.requests, self._local.replies = [], []
        return self._shard.server

    def _failed(self, operation: str, began: float) -> None:
        self._local.lines.append(["f", operation, began, clock()])

    def _answers(self) -> dict[str, Any]:
        """Return Redis' last answer per key that it was asked for."""
        return {key.decode(): reply for request, reply in self._local.replies for key in request.keys}

    def _note(
        self,
        operation: str,
        key: str,
        value: Any,
        server: str | None,
        began: float,
        ended: float,
        known: tuple[str, int, float | None] = ("", 0, None),
    ) -> None:
        stamp = None if value is None else stamp_of(value)
        if isinstance(value, dict) and value["key"] != key:
            stamp = f"of {value['key']}: {stamp}"  # the checker knows no such value
        reply = self._answers().get(key)
        tier, clock_epoch, clock_seq = LOCAL, "", 0
        if reply is not None:
            tier, server, clock_epoch, clock_seq = REDIS, reply.server, short(reply.epoch), reply.seq
        epoch, seq, age = known
        self._local.lines.append(
            ["r", operation, key, stamp, epoch, seq, tier, age, server, clock_epoch, clock_seq, began, ended]
        )
