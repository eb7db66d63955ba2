"""What one cache is made of in one process: instance, connections, thread. A forked child makes its own (rule P13)."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf
from random import Random
from typing import Any, Final, Protocol

from coherent_cache.__about__ import __version__
from coherent_cache.config import Settings
from coherent_cache.core.instance import Instance
from coherent_cache.core.leasing import LoaderError
from coherent_cache.core.reporting import ProcessFacts, Reporter
from coherent_cache.core.requests import (
    FRONT_REQUESTS,
    LeaveRequest,
    Loaded,
    LoadRequest,
    Operation,
    ReadRequest,
    Reply,
    Request,
    Spawned,
    SpawnRequest,
    T,
    WaitRequest,
    Woken,
)
from coherent_cache.core.waiting import Flight, Waiter
from coherent_cache.errors import CacheUnavailable, CoherentCacheError, ConfigError, LoaderDeadlock
from coherent_cache.event_hub import EventHub
from coherent_cache.events import CommandFailed, Event, InternalError
from coherent_cache.loads import Background, Dependencies, Renewals
from coherent_cache.logs import EventLog
from coherent_cache.remote.async_io import AsyncIO
from coherent_cache.remote.inquiry import Inquiry
from coherent_cache.remote.scripts import Scripts
from coherent_cache.remote.subscriber import Subscriber
from coherent_cache.remote.sync_io import ConnectionPool, SyncIO
from coherent_cache.remote.topology import Endpoint
from coherent_cache.serializers import Codec

clock: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""The local clock, in seconds: one that counts the time a suspended machine sleeps, where there is one (review A22)."""

Tracer = Callable[[str, Sequence[Request]], contextlib.AbstractContextManager[object]]
"""Given the instance's id and what an operation asks for, returns what is entered around the answering."""

CHECK_NAMESPACE: Final = (ReadRequest(0, (b"-",)),)
"""Compares the settings with shard 0's, which every number of shards has, before another shard is touched."""


def make_instance_id() -> str:
    """Make an instance id: ``host-pid-random``."""
    host = "".join(
        char if char.isascii() and char.isprintable() and char != " " else "_" for char in socket.gethostname()
    )
    return f"{host[:60]}-{os.getpid()}-{os.urandom(4).hex()}"


class Attached(Protocol):
    """What an event loop has of a runtime."""

    def close(self) -> None:
        """Close it, from any thread."""


class Runtime:
    """One cache in one process.

    Attributes:
        instance: the pure core.
        instance_id: name of the instance.
        pid: the process that it belongs to.
        tracer: is told of all that leaves the local tier; None for nobody.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        endpoint: Endpoint,
        *,
        instance_id: str,
        callbacks: dict[int, Callable[[Event], None]],
    ) -> None:
        """Combine the parts; nothing is connected or started yet.

        Args:
            settings: the instance's settings.
            codec: its codec.
            endpoint: where Redis is.
            instance_id: name of the instance.
            callbacks: who gets events, besides the log.
        """
        rng = Random(os.urandom(16))  # noqa: S311  # jitter and random replacement are no secrets
        self.pid = os.getpid()
        self.settings = settings
        self.instance_id = instance_id
        self.tracer: Tracer | None = None
        self._endpoint = endpoint
        log = EventLog(clock=clock, log_keys=settings.log_keys, namespace=settings.namespace, instance=instance_id)
        self.events = EventHub(log, callbacks, clock=clock)
        member = f"{instance_id}:{os.urandom(8).hex()}"  # two instances may have one id
        self.instance = Instance(
            settings,
            codec,
            instance_id=instance_id,
            member=member,
            lock=threading.RLock,
            rng=rng,
            emit=self.events.emit,
        )
        self.events.on_traces = self.instance.set_trace
        reporter = None
        if settings.report:
            facts = ProcessFacts(__version__, socket.gethostname(), self.pid, time.time(), clock())
            reporter = Reporter(self.instance, facts)
        scripts = Scripts(settings, instance_id=instance_id, database=endpoint.database, member=member)
        name = f"coherent-cache:{instance_id}"
        self._pool = ConnectionPool(
            endpoint, scripts.rights, name=name, size=settings.max_connections, timeout=settings.timeout
        )
        self._io = SyncIO(endpoint, scripts, self._pool, clock)
        self._subscriber = Subscriber(
            self.instance.shards,
            settings,
            endpoint=endpoint,
            scripts=scripts,
            io=self._io,
            pool=self._pool,
            name=f"{name}:subscriber",
            clock=clock,
            rng=rng,
            counters=self.instance.counters,
            events=self.events,
            reporter=reporter,
        )
        self._name = name
        self._scripts = scripts
        self._renewals = Renewals(
            self._io.execute, clock, lease=settings.lease, name=f"{name}:renewals", emit=self.events.emit
        )
        self._dependencies = Dependencies()
        self._background = Background(f"{name}:load")
        self._start_lock = threading.RLock()  # a signal handler may close what its thread is just starting
        self.started = False
        self.checked = settings.shards == 1
        self.closed = False
        self._closing = threading.Lock()
        self._ended = False
        self._attached: set[Attached] = set()

    def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end with threads: the driver of the generators."""
        if not self.started:
            self.start()
        if not self.checked:
            self._io.execute(CHECK_NAMESPACE)
            self.checked = True
        self.raise_fatal()
        return self._drive(operation)

    def _drive(self, operation: Operation[T]) -> T:
        """Run an operation in a runtime that was started and found sound."""
        try:
            requests = next(operation)
            while True:
                try:
                    tracer = self.tracer
                    if tracer is None:
                        replies = self._answer(requests)
                    else:
                        with tracer(self.instance_id, requests):
                            replies = self._answer(requests)
                except BaseException as error:  # noqa: BLE001  # every failure is the operation's to judge
                    self.note_failure(error)
                    requests = operation.throw(error)
                else:
                    self.note_answer()
                    requests = operation.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            operation.close()
            if self.events.waiting:
                self.events.drain()

    def _answer(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Have requests answered, by the front itself or by Redis."""
        return (self._serve(requests[0]),) if type(requests[0]) in FRONT_REQUESTS else self._io.execute(requests)

    def _serve(self, request: Request) -> Reply:
        """Do what an operation asks of the front: call a loader, wait, begin something in the background (P11)."""
        match request:
            case LoadRequest():
                with self.loading(request):
                    value = request.load()
                    if inspect.iscoroutine(value):
                        value.close()
                        raise ConfigError("loader", "must be no coroutine function here: see cache.aio")
                    return Loaded(value)
            case WaitRequest():
                waiter = request.waiter
                if waiter is not None and not waiter.woken:
                    event = threading.Event()
                    waiter.listen(event.set)
                    with self.waiting(request):
                        _refuse_to_block(request.flight)
                        event.wait(None if request.until == inf else max(0.0, request.until - clock()))
                return Woken(waiter is not None and waiter.woken, clock())
            case SpawnRequest():
                return Spawned(self.spawn(request.operation))
            case _:
                raise AssertionError(f"the front does not know {type(request).__name__}")

    def spawn(self, operation: Operation[Any]) -> bool:
        """Run an operation in the background, in a copy of the caller's context; its errors are told as events.

        Returns:
            False if there is no thread for it.
        """
        return self._background.run(partial(self._run_alone, operation))

    def _run_alone(self, operation: Operation[Any]) -> None:
        # Whoever began it has passed the checks. If another one refused it here, its flight would never end.
        try:
            self._drive(operation)
        except LoaderError:
            pass  # an event has told
        except BaseException as error:  # noqa: BLE001  # this thread has nobody to tell it to
            self.events.emit(InternalError("background load", type(error).__name__, str(error)))
            self.events.drain()

    # -- for drivers of its operations -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Start if need be, and pass the checks that need no Redis.

        Raises:
            CacheUnavailable: the cache is closed.
            NamespaceMismatch: the namespace was created with other settings.
        """
        if not self.started:
            self.start()
        self.raise_fatal()

    def raise_fatal(self) -> None:
        """Raise what will never be otherwise."""
        if self._subscriber.fatal is not None:
            raise self._subscriber.fatal

    def raise_refused(self) -> None:
        """Raise what will not be otherwise until somebody repairs it, or not at all since the cache is closed."""
        if self.closed:
            raise CacheUnavailable("the cache is closed")
        self.raise_fatal()
        if self._subscriber.refused is not None:
            raise self._subscriber.refused

    def note_failure(self, error: BaseException) -> None:
        """Count and tell that Redis refused something or is away, if that is what it is."""
        if isinstance(error, CacheUnavailable):
            self.instance.counters.errors += 1
            self.events.emit(CommandFailed(str(error), error.maybe_applied))

    def note_answer(self) -> None:
        """Tell the subscriber that Redis answers again, if it has not found out yet."""
        if self._subscriber.pausing:
            self._subscriber.wake()

    @contextlib.contextmanager
    def loading(self, request: LoadRequest) -> Iterator[None]:
        """Run a loader in the block: its leases are renewed until the end of it.

        Raises:
            CacheUnavailable: the cache is closed.
        """
        if self.closed:
            raise CacheUnavailable("the cache is closed")
        with self._dependencies.loading(request.flights), self._renewals.holding(request.leases):
            yield

    def waiting(self, request: WaitRequest) -> contextlib.AbstractContextManager[None]:
        """Wait in the block, for a flight perhaps.

        Raises:
            LoaderDeadlock: it would never end.
        """
        return self._dependencies.waiting(request.flight)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Waiter]:
        """Yield a waiter that is woken when the stream's state changes."""
        waiter = self._subscriber.watch()
        try:
            yield waiter
        finally:
            self._subscriber.ignore(waiter)

    def asynchronous(self) -> AsyncIO:
        """Make what runs requests on the running event loop."""
        return AsyncIO(self._endpoint, self._scripts, clock, name=self._name, server=lambda: self._pool.server)

    def attach(self, attached: Attached) -> None:
        """Close something together with this.

        Raises:
            CacheUnavailable: the cache is closed.
        """
        with self._start_lock:
            if self.closed:
                raise CacheUnavailable("the cache is closed")
            self._attached.add(attached)

    def detach(self, attached: Attached) -> None:
        """Leave something alone that was attached."""
        with self._start_lock:
            self._attached.discard(attached)

    @property
    def attached(self) -> Iterable[Attached]:
        """What is closed together with this."""
        with self._start_lock:
            return tuple(self._attached)

    # -- from beginning to end -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the subscriber thread, once.

        If no thread can be started, reads and writes go to Redis, and the next of them tries again: there are too many,
        or the interpreter ends (Python 3.12), and this is what is to be done last.
        """
        with self._start_lock:
            if self.closed:
                raise CacheUnavailable("the cache is closed")
            if self.started:
                return
            self.started = True
            self.instance.set_trace(self.events.traces())
            if self.settings.local_enabled:
                self.started = self._subscriber.start()
        _close_with_child()

    @property
    def server(self) -> str:
        """Where Redis is, for people: never with user or password."""
        note = self._endpoint.note
        return f"{self._endpoint.description} ({note})" if note else self._endpoint.description

    def inquiry(self) -> Inquiry:
        """Return what asks the whole fleet; it must be closed.

        Raises:
            CacheUnavailable: the cache is closed, or Redis is away.
            NamespaceMismatch: the namespace was created with other settings.
        """
        self.begin()
        if not self.checked:
            self._io.execute(CHECK_NAMESPACE)
            self.checked = True
        return Inquiry(self._endpoint, self._scripts, self._io, clock=clock, name=f"{self._name}:inquiry")

    def wait(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``predicate`` holds, looked at whenever the stream's state changed; return whether it does.

        Raises:
            CacheUnavailable: the cache is closed, perhaps meanwhile.
            NamespaceMismatch: the namespace was created with other settings: it will never hold.
            NotPermitted: the user lacks a right that the subscriber needs.
        """
        self.start()
        if not self.settings.local_enabled:
            self._io.execute(CHECK_NAMESPACE)
            self.checked = True
            return True
        ready = self._subscriber.wait(predicate, timeout if self.started else 0.0)
        if not ready:
            self.raise_refused()
        return ready

    def close(self, meanwhile: Callable[[], object] | None = None) -> None:
        """Stop the thread and close the connections. Idempotent; a runtime of another process is left alone.

        Nobody waits for another one who is just closing it, such as the thread that this signal handler interrupts.
        What one was interrupted in, the next one does.

        Args:
            meanwhile: waits for what goes on elsewhere; called when nothing more can begin, and all is connected still.
        """
        if self.pid != os.getpid() or not self._closing.acquire(blocking=False):
            return
        try:
            if not self._ended:
                self._close(meanwhile)
                self._ended = True
        finally:
            self._closing.release()

    def _close(self, meanwhile: Callable[[], object] | None) -> None:
        with self._start_lock:
            self.closed = True
        if self.started and self.settings.local_enabled:
            self._leave(connected=self._pool.server is not None)
        self.instance.wake_all()  # they ask again, and find it closed
        if meanwhile is not None:
            meanwhile()
        self._background.stop(self.settings.timeout)
        self._renewals.stop(self.settings.timeout + 1)
        self._pool.close()
        for attached in self.attached:
            attached.close()
        self.instance.wake_all()  # who has begun to wait meanwhile
        self.instance.clear_local()
        self.events.close()

    def _leave(self, *, connected: bool) -> None:
        """Stop the thread and leave the registries of members, if Redis can be reached (P12).

        Only when nothing is served any more; else a write could be acknowledged that is not seen here.
        """
        ended = self._subscriber.stop(self.settings.timeout + 1)
        for shard in self.instance.shards:
            shard.leave()
        if ended and (connected or self._subscriber.parted):  # it may have connected only just now
            with contextlib.suppress(CoherentCacheError):
                self._io.execute([LeaveRequest(shard.index) for shard in self.instance.shards])


def _refuse_to_block(flight: Flight | None) -> None:
    """Refuse to block an event loop that is to go on before the wait can end.

    Raises:
        LoaderDeadlock: this thread runs the loop that leads the flight.
    """
    if flight is not None and flight.home is not None and flight.home is asyncio._get_running_loop():  # noqa: SLF001
        raise LoaderDeadlock(flight.key)


_runtimes: weakref.WeakSet[RuntimeHolder] = weakref.WeakSet()


class _Current:
    """A place for the runtime of the present process."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def close(self) -> None:
        self.runtime.close()


class RuntimeHolder:
    """Holds the runtime of the present process for the fronts that share it; closes it when all of them are gone."""

    def __init__(self, make: Callable[[], Runtime], callbacks: dict[int, Callable[[Event], None]]) -> None:
        """Make the first runtime.

        Args:
            make: makes a runtime for the present process.
            callbacks: who gets events.
        """
        self.callbacks = callbacks
        self._make = make
        self._current = _Current(make())
        self._fronts: list[weakref.WeakMethod[Callable[[Runtime], None]]] = []
        self._finalizer = weakref.finalize(self, self._current.close)
        _runtimes.add(self)

    def attach(self, adopt: weakref.WeakMethod[Callable[[Runtime], None]]) -> None:
        """Tell a front which runtime there is, now and whenever there is another one."""
        self._fronts.append(adopt)
        self._tell(adopt)

    def replace(self) -> None:
        """In a forked child: leave everything of the parent alone and begin anew (P13).

        The parent's runtime is dropped without being closed: its locks may be held by threads that do not exist here.
        Its sockets' descriptors go with it; redis-py shuts a connection down only in the process that made it.
        """
        tracer = self._current.runtime.tracer
        self._current.runtime = self._make()
        self._current.runtime.tracer = tracer
        for adopt in self._fronts:
            self._tell(adopt)

    def close(self) -> None:
        """Close the runtime of the present process."""
        self._current.close()

    def _tell(self, adopt: weakref.WeakMethod[Callable[[Runtime], None]]) -> None:
        method = adopt()
        if method is not None:
            method(self._current.runtime)


def _after_fork_in_child() -> None:
    for holder in list(_runtimes):
        holder.replace()


os.register_at_fork(after_in_child=_after_fork_in_child)


_closed_with: int | None = None
"""Process at whose end everything is closed by multiprocessing."""


def _close_with_child() -> None:
    """In a child of multiprocessing: close everything at its end. A forked one calls no exit function of its parent's.

    Their connections would end all the same, but writers that wait for all instances would wait for their bound (P12).
    """
    global _closed_with  # noqa: PLW0603
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        if _closed_with == os.getpid():
            return
        _closed_with = os.getpid()
        # A negative priority: after what the application has registered there.
        sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=-1)


def _close_all() -> None:
    # Threads that are not daemons go on after this, and may use a cache.
    others = {thread for thread in threading.enumerate() if not thread.daemon} - {threading.current_thread()}
    if not others:
        for holder in list(_runtimes):
            holder.close()
