"""Workers that use a cache: they write, read, take notes of both, and show what they hold in the end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from coherent_cache import CoherentCache
from coherent_cache.errors import CacheUnavailable
from coherent_cache.keys import shard_of
from coherent_cache.wire import Kind
from integration.blocking import BlockingCache, LoopThread, io_of
from integration.history import KILL, SET, TOUCH, Read, Write, dump
from integration.waiting import wait_until
from integration.workers import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from integration.workers import Context

KEYS = [f"key-{number}" for number in range(100)]
TAGS = ["red", "green", "blue"]
TTL = 3600  # seconds: nothing expires in a soak, so that every absence has a cause
QUIET = 30.0  # seconds until a quiet instance must have caught up
LEAST = 500  # operations of a thread, however slow the machine is: fewer put nothing to the test
BATCH = 20  # operations between two pauses
PAUSE = 0.015  # seconds

REPORT_NS = 20_000_000  # between two reports of a value that stays the same

_clock = time.monotonic


def tags_of(key: str) -> tuple[str, ...]:
    """Two keys of three carry a tag, always the same one, so that a tag invalidation concerns known keys."""
    number = int(key.partition("-")[2])
    return () if number % 3 == 0 else (TAGS[number // 3 % len(TAGS)],)


ALIKE = {tags_of(key): [other for other in KEYS if tags_of(other) == tags_of(key)] for key in KEYS}


def stamp_of(value: Any) -> str:
    """Name of a value; see :func:`value_of`."""
    return value if isinstance(value, str) else value["stamp"]


def value_of(key: str, stamp: str) -> Any:
    """Half of the values are shared when they are hit, half are decoded."""
    return stamp if len(key) % 2 else {"stamp": stamp, "key": key}


class _Answered:
    """What one thread has been answered in its present operation."""

    def __init__(self, front: CoherentCache) -> None:
        self.front = front
        self.replies: list[tuple[Any, Any]] = []


_answered: ContextVar[_Answered] = ContextVar("answered")
"""Of the thread, and of the tasks that it has begun on an event loop."""


class Notebook:
    """Operations of one process on one cache, with the records of what they did and saw.

    Each thread says first which front it uses, by :meth:`use`.
    """

    def __init__(self, cache: CoherentCache, aio: BlockingCache, process: int) -> None:
        self.process = process
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.failures = 0
        self._count = 0
        self._lock = threading.Lock()
        # The versions that delete, touch, update, clear and tag invalidations made: they do not return them.
        execute, execute_on_loop = io_of(cache).execute, io_of(aio).execute

        def observed(requests: Sequence[Any]) -> list[Any]:
            replies = execute(requests)
            answered = _answered.get(None)  # none in threads of the cache
            if answered is not None:
                answered.replies.extend(zip(requests, replies, strict=True))
            return replies

        async def observed_on_loop(requests: Sequence[Any]) -> list[Any]:
            replies = await execute_on_loop(requests)
            _answered.get().replies.extend(zip(requests, replies, strict=True))
            return replies

        io_of(cache).execute = observed
        io_of(aio).execute = observed_on_loop

    def use(self, front: CoherentCache | BlockingCache) -> None:
        """Let the present thread use a front."""
        _answered.set(_Answered(front))

    @property
    def cache(self) -> CoherentCache:
        """The front that the present thread uses."""
        return self._local.front

    @property
    def _local(self) -> _Answered:
        return _answered.get()

    def make_stamp(self) -> str:
        with self._lock:
            self._count += 1
            return f"{self.process}-{self._count}"

    # -- writes ------------------------------------------------------------------------------------------------------

    def set(self, keys: Sequence[str]) -> None:
        stamps = {key: self.make_stamp() for key in keys}
        values = {key: value_of(key, stamp) for key, stamp in stamps.items()}

        def write() -> dict[str, int]:
            if len(keys) == 1:
                (key,) = keys
                return {key: self.cache.set(key, values[key], ttl=TTL, tags=tags_of(key)).seq}
            # All keys of a bulk write have the same tags.
            versions = self.cache.set_many(values, ttl=TTL, tags=tags_of(keys[0]))
            return {key: version.seq for key, version in versions.items()}

        self._note(dict.fromkeys(keys, SET), stamps, write)

    def delete(self, keys: Sequence[str]) -> None:
        def write() -> dict[str, int]:
            if len(keys) == 1:
                self.cache.delete(keys[0])
            else:
                self.cache.delete_many(keys)
            return {key: reply.seq for request, reply in self._replies() for key in request.keys}

        self._note(dict.fromkeys(keys, KILL), {}, write)

    def batch(self, stored: Sequence[str], deleted: Sequence[str]) -> None:
        """Store some keys and delete others, together. The two have none in common."""
        stamps = {key: self.make_stamp() for key in stored}

        def write() -> dict[str, int]:
            with self.cache.batch() as batch:
                for key, stamp in stamps.items():
                    batch.set(key, value_of(key, stamp), ttl=TTL, tags=tags_of(key))
                for key in deleted:
                    batch.delete(key)
            return {key: version.seq for key, version in batch.result.versions.items()}

        self._note(dict.fromkeys(stored, SET) | dict.fromkeys(deleted, KILL), stamps, write)

    def touch(self, key: str) -> None:
        def write() -> dict[str, int]:
            return {key: self._replies()[0][1].seq} if self.cache.touch(key, TTL) else {}

        self._note({key: TOUCH}, {}, write)

    def update(self, key: str) -> None:
        stamp = self.make_stamp()  # the last attempt's is the one that counts, so one for all attempts will do

        def write() -> dict[str, int]:
            self.cache.update(key, lambda _: value_of(key, stamp), ttl=TTL, tags=tags_of(key))
            return {key: self._replies()[-1][1].seq}

        self._note({key: SET}, {key: stamp}, write)

    def invalidate_tag(self, tag: str) -> None:
        keys = [key for key in KEYS if tag in tags_of(key)]
        self._floor(keys, lambda: self.cache.invalidate_tags(tag))

    def clear(self) -> None:
        self._floor(KEYS, self.cache.clear)

    def _floor(self, keys: Sequence[str], call: Callable[[], object]) -> None:
        def write() -> dict[str, int]:
            call()
            floors = {request.shard: reply.seq for request, reply in self._replies()}
            return {key: floors[shard_of(key.encode(), len(floors))] for key in keys}

        self._note(dict.fromkeys(keys, KILL), {}, write)

    def _replies(self) -> list[tuple[Any, Any]]:
        """Return the applied writes of the operation under way."""
        return [(request, reply) for request, reply in self._local.replies if getattr(reply, "applied", False)]

    def _note(self, kinds: dict[str, str], stamps: dict[str, str], write: Callable[[], dict[str, int]]) -> None:
        self._local.replies = []
        began = _clock()
        try:
            versions = write()
        except CacheUnavailable as error:
            self.failures += 1
            if error.maybe_applied or error.applied_keys:
                self.writes += [
                    Write(self.process, key, kind, None, stamps.get(key), began, None) for key, kind in kinds.items()
                ]
            return
        ended = _clock()
        self.writes += [
            Write(self.process, key, kind, versions[key], stamps.get(key), began, ended)
            for key, kind in kinds.items()
            if key in versions
        ]

    # -- reads -------------------------------------------------------------------------------------------------------

    def get_entry(self, key: str) -> None:
        self._local.replies = []
        began = _clock()
        entry = self.cache.get_entry(key)
        ended = _clock()
        if entry is None:
            self.reads.append(Read(self.process, key, False, None, None, "redis", None, began, ended))
        else:
            seq, age = entry.version.seq, entry.age_bound
            self.reads.append(Read(self.process, key, True, seq, None, entry.tier, age, began, ended))

    def get(self, key: str) -> None:
        self._local.replies = []
        began = _clock()
        value = self.cache.get(key)
        self._note_value(key, value, began, _clock())

    def get_many(self, keys: Sequence[str]) -> None:
        self._local.replies = []
        began = _clock()
        found = self.cache.get_many(keys)
        ended = _clock()
        for key in keys:
            self._note_value(key, found.get(key), began, ended)

    def _note_value(self, key: str, value: Any, began: float, ended: float) -> None:
        stamp = None if value is None else stamp_of(value)
        self.reads.append(Read(self.process, key, value is not None, None, stamp, None, None, began, ended))


class Soak:
    """Reads and writes at random, mostly of a few keys, in one thread."""

    def __init__(self, notebook: Notebook, rng: Random, until: float) -> None:
        self._notebook = notebook
        self._rng = rng
        self._until = until
        self.operations = 0

    def run(self) -> None:
        while _clock() < self._until or self.operations < LEAST:
            for _ in range(BATCH):
                self._step()
            time.sleep(PAUSE)

    def _key(self) -> str:
        return KEYS[min(int(self._rng.paretovariate(0.6)) - 1, 10**6) % len(KEYS)]

    def _keys(self, count: int) -> list[str]:
        first = self._key()
        return list({first, *self._rng.choices(ALIKE[tags_of(first)], k=count)})

    def _step(self) -> None:
        notebook, rng = self._notebook, self._rng
        self.operations += 1
        dice = rng.random()
        if dice < 0.92:
            reads = (notebook.get_entry, notebook.get, lambda key: notebook.get_many([key, *self._keys(4)]))
            rng.choices(reads, (10, 5, 1))[0](self._key())
            return
        writes: tuple[tuple[float, Callable[[], None]], ...] = (
            (40, lambda: notebook.set([self._key()])),
            (8, lambda: notebook.set(self._keys(5))),
            (12, lambda: notebook.delete([self._key()])),
            (3, lambda: notebook.delete(self._keys(3))),
            (6, self._batch),
            (20, lambda: notebook.update(self._key())),
            (14, lambda: notebook.touch(self._key())),
            (2.5, lambda: notebook.invalidate_tag(rng.choice(TAGS))),
            (0.5, notebook.clear),
        )
        rng.choices([write for _, write in writes], [weight for weight, _ in writes])[0]()

    def _batch(self) -> None:
        first, *others = self._keys(4)
        self._notebook.batch([first, *others[1:]], others[:1])


def give_signal(folder: Path, name: str, text: str = "") -> None:
    """Let a file appear, with all of its text at once."""
    (folder / f"{name}-unfinished").write_text(text)
    (folder / f"{name}-unfinished").rename(folder / name)


@worker
def soak(
    context: Context,
    *,
    url: str,
    options: dict[str, Any],
    threads: int,
    seed: int,
    folder: str,
) -> dict[str, Any]:
    """Read and write from the signal ``go`` to the moment that it names; after ``quiet`` show the local tier."""
    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(QUIET)
        context.emit(ready=context.index)
        wait_until((Path(folder) / "go").exists, 2 * QUIET, "everybody is there")
        until = float((Path(folder) / "go").read_text())
        loop = LoopThread()
        aio = BlockingCache(cache.aio, loop)
        notebook = Notebook(cache, aio, context.index)
        soaks = [Soak(notebook, Random(f"{seed}-{context.index}-{number}"), until) for number in range(threads)]
        fronts = [(cache, aio)[(context.index + number) % 2] for number in range(threads)]  # both, on one core
        errors: list[str] = []

        def run(each: Soak, front: CoherentCache | BlockingCache) -> None:
            notebook.use(front)
            try:
                each.run()
            except BaseException as error:
                errors.append(f"{type(error).__name__}: {error}")
                raise

        running = [threading.Thread(target=run, args=pair) for pair in zip(soaks, fronts, strict=True)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert not errors, errors
        context.emit(stopped=context.index)
        wait_until((Path(folder) / "quiet").exists, QUIET, "everybody has stopped")
        _catch_up(cache)
        held = _held(cache)
        dump(Path(folder) / f"history-{context.index}", notebook.writes, notebook.reads)
        stats = cache.stats()
        aio.close()
        loop.stop()
        return {
            "held": held,
            "operations": sum(each.operations for each in soaks),
            "failures": notebook.failures,
            "stats": stats.as_dict(),
        }


def _catch_up(cache: CoherentCache) -> None:
    """Wait until a cache has applied all that Redis has done."""
    instance = cache._runtime.instance
    names = cache._runtime._subscriber._scripts.names
    with _plain(cache) as plain:

        def caught_up() -> bool:
            clocks = [plain.hmget(name.clock, "epoch", "seq") for name in names]
            positions = [(shard.epoch, b"%d" % (shard.position or 0)) for shard in instance.shards]
            return cache.state == "coherent" and positions == [tuple(clock) for clock in clocks]

        wait_until(caught_up, QUIET, "the instance has applied all messages")


def _held(cache: CoherentCache) -> dict[str, list[Any]]:
    """Return what the local tier holds, per key: epoch in hex, seq and value."""
    return {
        key: [(shard.epoch or b"").hex(), entry.seq, cache._value(entry)]
        for shard in cache._runtime.instance.shards
        for key, entry in shard.tier.entries.items()
    }


def _plain(cache: CoherentCache) -> Any:
    import redis  # noqa: PLC0415  # this worker alone needs it

    kwargs = cache._endpoint.kwargs
    return redis.Redis(host=kwargs["host"], port=kwargs["port"], db=cache._endpoint.database)


@worker
def watch(
    context: Context,
    *,
    url: str,
    options: dict[str, Any],
    keys: list[str],
    folder: str,
) -> dict[str, Any]:
    """Read some keys again and again, taking notes, until the file ``stop`` is there; twice more then."""
    stop = Path(folder) / "stop"
    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(QUIET)
        cache.warm(keys)
        loop = LoopThread()
        aio = BlockingCache(cache.aio, loop)
        notebook = Notebook(cache, aio, context.index)
        notebook.use((cache, aio)[context.index % 2])
        context.emit(ready=cache.instance_id)
        rounds = 0
        while not stop.exists():
            for key in keys:
                try:
                    notebook.get_entry(key)
                except CacheUnavailable:
                    notebook.failures += 1
            rounds += 1
            if rounds % 20 == 0:
                context.emit(round=rounds)
            time.sleep(0.002)
        _catch_up(cache)
        for key in [*keys, *keys]:
            notebook.get_entry(key)
        dump(Path(folder) / f"history-{context.index}", notebook.writes, notebook.reads)
        stats = cache.stats().as_dict()
        aio.close()
        loop.stop()
        return {"rounds": rounds, "failures": notebook.failures, "stats": stats}


@worker
def read_on(context: Context, *, url: str, options: dict[str, Any], key: str) -> None:
    """Read a key over and over until told to end (SIGTERM); report what was read, and when the read began.

    ``at`` is nanoseconds of a clock that all processes of the machine share.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(QUIET)
        context.emit(ready=True)
        told, told_at = None, 0
        while True:
            at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            value = cache.get(key)
            if value != told or at > told_at + REPORT_NS:
                told, told_at = value, at
                context.emit(value=value, at=at)
            time.sleep(PAUSE / 10)


@worker
def hits(context: Context, *, url: str, options: dict[str, Any], count: int) -> dict[str, int]:
    """Take ``count`` local hits between two calls of ``getppid``, which a tracer can see."""
    import os  # noqa: PLC0415

    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(QUIET)
        cache.set("shared", 1)
        cache.set("copied", {"a": [1, 2, 3]})
        get = cache.get
        get("shared"), get("copied")
        before = cache.stats().hits
        os.getppid()
        for _ in range(count // 2):
            get("shared")
            get("copied")
        os.getppid()
        return {"hits": cache.stats().hits - before}


# A kind that the soak's notes know is one that messages have; this fails when a new kind is added and not soaked. The
# end of a lease changes nothing that could be noted; for loads see integration/test_loads.py.
assert {kind.name for kind in Kind} == {"SET", "DELETE", "TOUCH", "TAG", "CLEAR", "BATCH", "RELEASE"}
