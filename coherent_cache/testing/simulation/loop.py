"""Virtual time: one queue of events, and threads that lose the processor where they take a lock."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, Final, Protocol

MAX_DEPTH: Final = 4
"""Threads that may be descheduled one inside the other."""

MAX_EVENTS: Final = 50_000
"""Events after which a run is taken for a livelock."""


class Violation(AssertionError):
    """The protocol broke a promise.

    Attributes:
        rule: which promise, in one word or two: what a shrunk schedule must still break.
    """

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Killed(BaseException):
    """The process of the running thread was killed."""


class Owner(Protocol):
    """Whose thread an event runs in: those of a paused process wait, those of a dead one never run."""

    alive: bool
    paused_until: float

    def check(self) -> None:
        """Check what must hold between any two steps of this process."""


class Loop:
    """The events of one run, in the order of virtual time.

    Attributes:
        now: virtual time in seconds.
        events: events run so far.
        flying: writes that have been sent and that a server may still execute.
        preempt_chance: how often a thread loses the processor where it takes a lock.
    """

    __slots__ = ("_count", "_depth", "_heap", "_stopped", "events", "flying", "now", "preempt_chance", "rng")

    def __init__(self, rng: Random, preempt_chance: float = 0.0) -> None:
        self.now = 0.0
        self.events = 0
        self.flying = 0
        self.preempt_chance = preempt_chance
        self.rng = rng
        self._heap: list[tuple[float, int, Owner | None, Callable[..., None], tuple[Any, ...]]] = []
        self._count = count()
        self._depth = 0
        self._stopped = False

    def at(self, time: float, owner: Owner | None, run: Callable[..., None], *args: Any) -> None:
        """Run something at a time (now, if that has passed). Without an owner it is the network or a server."""
        heappush(self._heap, (time, next(self._count), owner, run, args))

    def run_until(self, time: float) -> None:
        """Run all events up to a time."""
        heap = self._heap
        while heap and heap[0][0] <= time:
            self._step()
        self.now = max(self.now, time)

    def _step(self) -> None:
        time, number, owner, run, args = heappop(self._heap)
        self.now = max(self.now, time)
        if owner is not None:
            if not owner.alive:
                return
            if owner.paused_until > self.now:
                heappush(self._heap, (owner.paused_until, number, owner, run, args))
                return
        self.events += 1
        if self.events > MAX_EVENTS:
            self._stopped = True
            raise Violation("livelock", f"more than {MAX_EVENTS} events")
        try:
            run(*args)
            if owner is not None:
                owner.check()
        except Killed:
            if owner is None or owner.alive:
                raise
        except BaseException:
            # No thread that the exception passes through may be descheduled any more.
            self._stopped = True
            raise

    def stop(self) -> None:
        """Deschedule no thread any more: what is left of operations may be cleaned up at any time."""
        self._stopped = True

    def maybe_preempt(self, owner: Owner) -> None:
        """Take the processor from a thread, perhaps: everything else goes on meanwhile.

        Raises:
            Killed: the thread's process was killed meanwhile.
        """
        if self._stopped or self._depth >= MAX_DEPTH or self.rng.random() >= self.preempt_chance:
            return
        self.preempt(owner, 10 ** self.rng.uniform(-4, 0.3))

    def preempt(self, owner: Owner, seconds: float) -> None:
        """Take the processor from a thread for some seconds."""
        self._depth += 1
        try:
            self.run_until(self.now + seconds)
            while owner.alive and owner.paused_until > self.now:
                self.run_until(owner.paused_until)
        finally:
            self._depth -= 1
        if not owner.alive:
            raise Killed


class PreemptibleLock:
    """A shard's lock: the place where its threads can be descheduled. Nobody is while holding it."""

    __slots__ = ("_depth", "_loop", "_owner")

    def __init__(self, loop: Loop, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
        self._depth = 0

    @property
    def held(self) -> bool:
        """Whether a thread holds it."""
        return self._depth > 0

    def __enter__(self) -> None:
        if self._depth == 0 and self._loop.preempt_chance:
            self._loop.maybe_preempt(self._owner)
        self._depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
