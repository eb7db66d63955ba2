"""What loads need of threads in one process: renewal of leases, the background, and who waits for whom (rule P11)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Final

from coherent_cache.core.operations import milliseconds
from coherent_cache.core.requests import Lease, RenewReply, RenewRequest, Reply, Request
from coherent_cache.core.waiting import Flight
from coherent_cache.errors import CoherentCacheError, LoaderDeadlock
from coherent_cache.events import Event, LeaseLost

RENEWALS_PER_LEASE: Final = 3
"""How often a lease is renewed in its time, so that one renewal may fail."""

MAX_BACKGROUND: Final = 256
"""Loads in the background at a time; who would begin another one loads in the foreground, or refreshes later."""


class _Run:
    """One run of a loader.

    Attributes:
        waits: what it waits for: flights, and loaders that it has begun itself. Several at once, if it has tasks.
    """

    __slots__ = ("waits",)

    def __init__(self) -> None:
        self.waits: list[Flight | _Run] = []


_run: Final[ContextVar[_Run | None]] = ContextVar("coherent_cache_loader", default=None)
"""The loader that the present thread or task runs, perhaps for another one: tasks, and threads that asyncio starts,
have the context of those that began them."""


def in_no_loader() -> Context:
    """Return a copy of the present context for what goes on behind the back of a loader that began it."""
    context = copy_context()
    context.run(_run.set, None)
    return context


class Dependencies:
    """Which loader runs for which flights, and which flights it waits for: a loader must not wait for itself."""

    def __init__(self) -> None:
        """Begin with no loader."""
        self._lock = threading.RLock()  # a signal handler may load while its thread is just beginning to

    @contextmanager
    def loading(self, flights: Sequence[Flight]) -> Iterator[None]:
        """Run the loader of these flights in the block."""
        outer, mine = _run.get(), _Run()
        with self._lock:
            for flight in flights:
                flight.runner = mine
            if outer is not None:
                outer.waits.append(mine)
        _run.set(mine)
        try:
            yield
        finally:
            _run.set(outer)
            with self._lock:
                for flight in flights:
                    flight.runner = None
                if outer is not None:
                    outer.waits.remove(mine)

    @contextmanager
    def waiting(self, flight: Flight | None) -> Iterator[None]:
        """Wait for a flight in the block; None for something else.

        Raises:
            LoaderDeadlock: its loader is the one that wants to wait, or waits for that. It is who waits last that
                closes the circle, and is told.
        """
        mine = _run.get()
        if flight is None or mine is None:  # who runs no loader keeps nobody waiting
            yield
            return
        with self._lock:
            if _reaches(flight, mine):
                raise LoaderDeadlock(flight.key)
            mine.waits.append(flight)
        try:
            yield
        finally:
            with self._lock:
                mine.waits.remove(flight)


def _reaches(flight: Flight, goal: _Run) -> bool:
    """Tell whether a flight's end depends on a loader's. Requires the lock."""
    seen: set[_Run] = set()
    found: list[Flight | _Run] = [flight]
    while found:
        at = found.pop()
        run = at.runner if isinstance(at, Flight) else at
        if run is goal:
            return True
        if isinstance(run, _Run) and run not in seen:
            seen.add(run)
            found += run.waits
    return False


class Renewals:
    """Renews the leases of all loads that are under way, by one thread that is started with the first of them."""

    def __init__(
        self,
        execute: Callable[[Sequence[Request]], Sequence[Reply]],
        clock: Callable[[], float],
        *,
        lease: float,
        name: str,
        emit: Callable[[Event], None],
    ) -> None:
        """Prepare; no thread runs yet.

        Args:
            execute: sends requests to Redis.
            clock: local clock in seconds.
            lease: seconds that a lease lives.
            name: of the thread.
            emit: takes events; must not block.
        """
        self._execute = execute
        self._emit = emit
        self._clock = clock
        self._lease = lease
        self._name = name
        self._changed = threading.Condition()
        # Each is renewed after a third of its time, so the first is always the next one due.
        self._due: dict[Lease, float] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    @contextmanager
    def holding(self, leases: Sequence[Lease]) -> Iterator[None]:
        """Renew these leases until the end of the block."""
        if not leases:
            yield
            return
        with self._changed:
            idle = not self._due
            for lease in leases:
                self._due[lease] = lease.taken_at + self._lease / RENEWALS_PER_LEASE
            if self._thread is None and not self._stopping:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads: the next load tries again; these leases last their time
                    pass
                else:
                    self._thread = thread
            elif idle:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                for lease in leases:
                    self._due.pop(lease, None)

    def stop(self, timeout: float) -> None:
        """End the thread, within ``timeout`` seconds or later."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                now = self._clock()
                due = [lease for lease, at in self._due.items() if at <= now]
                if not due:
                    self._changed.wait(min(self._due.values()) - now if self._due else None)
                    continue
            self._renew(due, now)

    def _renew(self, leases: list[Lease], now: float) -> None:
        """Renew what is still there. A lease that is gone is not asked for again: it may be somebody else's."""
        lease_ms = milliseconds(self._lease)
        held = [True for _ in leases]
        try:
            replies = self._execute([RenewRequest(lease.shard, lease, lease_ms) for lease in leases])
            held = [isinstance(reply, RenewReply) and reply.held for reply in replies]
        except CoherentCacheError:
            pass  # perhaps the next one gets through in time
        with self._changed:
            for lease, still in zip(leases, held, strict=True):
                if lease in self._due:
                    if still:
                        self._due[lease] = now + self._lease / RENEWALS_PER_LEASE
                    else:
                        del self._due[lease]
                        self._emit(LeaseLost(lease.shard, lease.key))


class Background:
    """Runs what nobody waits for, each in a thread of its own."""

    def __init__(self, name: str) -> None:
        """Make an empty one; ``name`` is that of its threads."""
        self._name = name
        self._lock = threading.RLock()  # a signal handler may stop what its thread is just doing
        self._threads: set[threading.Thread] = set()
        self._stopping = False

    def run(self, work: Callable[[], object]) -> bool:
        """Run ``work``, which raises nothing, in a thread and in a copy of the caller's context.

        Returns:
            False if there are too many, no more can be started, or this was stopped.
        """
        target = partial(in_no_loader().run, self._run, work)
        thread = threading.Thread(target=target, name=self._name, daemon=True)
        with self._lock:
            if self._stopping or len(self._threads) >= MAX_BACKGROUND:
                return False
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._threads.discard(thread)
            return False
        return True

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def stop(self, timeout: float) -> None:
        """Take nothing more, and wait for what runs, ``timeout`` seconds at most."""
        with self._lock:
            self._stopping = True
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        ends = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
