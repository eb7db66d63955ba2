"""Waiting without polling (rule P11): what is to be woken, by whom, and what one process loads once.

Pure: a front gives each :class:`Waiter` what wakes its thread or task. Who waits registers *before* it asks Redis, so
that no message can come in between unnoticed; who was woken asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf
from typing import Final

MAX_REMEMBERED: Final = 10_000
"""Keys for which it is remembered that they need no refresh just now, or that their loader has failed."""


class Waiter:
    """Somebody who waits for one thing, woken once."""

    __slots__ = ("_callback", "woken")

    def __init__(self) -> None:
        self.woken = False
        self._callback: Callable[[], object] | None = None

    def wake(self) -> None:
        """Wake it, from any thread and under any lock."""
        self.woken = True
        callback = self._callback
        if callback is not None:
            callback()

    def listen(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when it is woken, at once if it was already; perhaps twice. It must not block."""
        self._callback = callback
        if self.woken:
            callback()


class WaiterTable:
    """Who waits for the keys of one shard. Every method requires holding the shard's lock."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[str, list[Waiter]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def register(self, key: str) -> Waiter:
        """Register a waiter for what happens to a key from now on."""
        waiter = Waiter()
        self._waiters.setdefault(key, []).append(waiter)
        return waiter

    def release(self, key: str, waiter: Waiter) -> None:
        """Forget a waiter; a second call does nothing."""
        waiters = self._waiters.get(key, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[key]

    def wake(self, key: str) -> None:
        """Wake who waits for a key."""
        for waiter in self._waiters.get(key, ()):
            waiter.wake()

    def wake_all(self) -> None:
        """Wake everybody."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.wake()


class Collector:
    """The receipts for one script of an acknowledged write (P12). Changed under the shard's lock alone.

    Attributes:
        received: members that have confirmed so far.
        waiter: woken when all who were expected have.
    """

    __slots__ = ("_expected", "received", "waiter")

    def __init__(self) -> None:
        self.received: set[str] = set()
        self.waiter = Waiter()
        self._expected: frozenset[str] | None = None

    @property
    def complete(self) -> bool:
        """Whether it is known who must confirm, and all of them have."""
        return self._expected is not None and self._expected <= self.received

    def expect(self, members: frozenset[str]) -> None:
        """Say who must confirm."""
        self._expected = members
        self._look()

    def add(self, member: str) -> None:
        """Take a receipt in; perhaps before it is known who must confirm."""
        self.received.add(member)
        self._look()

    def _look(self) -> None:
        if self.complete:
            self.waiter.wake()


class Flight:
    """One load under way in this process, of one key.

    Attributes:
        key: the key.
        begun: whether its loader has been called. Who joined before gets what it returns, whatever Redis does with it:
            it was read after they asked. Who joined later looks again (P7 decides whether it is what they may have).
        done: whether it has ended.
        error: what the loader raised, or why it could not be called.
        payload: what the loader returned, in this instance's codec; None if it is not known or there is no such thing.
        nothing: whether the loader said that there is no such thing.
        runner: whoever is just running its loader, as the front names them: no loader may wait for itself.
        home: the event loop whose task leads it, as the front names it; None for a thread. Who blocks that loop must
            not wait for it.
        interruption: what interrupted its thread, such as SystemExit: for the caller alone that had it run in the
            background.
    """

    __slots__ = ("begun", "done", "error", "home", "interruption", "key", "nothing", "payload", "runner", "waiters")

    def __init__(self, key: str, home: object = None) -> None:
        self.key = key
        self.home = home
        self.begun = False
        self.done = False
        self.error: Exception | None = None
        self.payload: bytes | None = None
        self.nothing = False
        self.interruption: BaseException | None = None
        self.runner: object = None
        self.waiters: dict[Waiter, None] = {}


class Flights:
    """The loads under way in this process: one per key, and the refreshes that need not be tried just now."""

    __slots__ = ("_errors", "_flights", "_lock", "_refreshes")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        """Make an empty table; ``lock`` is held for no I/O."""
        self._flights: dict[str, Flight] = {}
        self._refreshes: dict[str, float] = {}
        self._errors: dict[str, tuple[Exception, float]] = {}
        self._lock = lock

    def __len__(self) -> int:
        """Loads under way."""
        return len(self._flights)

    def __contains__(self, key: str) -> bool:
        """Whether a load of a key is under way."""
        return key in self._flights

    def join(self, key: str, home: object = None) -> tuple[Flight, Waiter | None, bool]:
        """Join the flight of a key, or begin one, with its ``home``.

        Returns:
            The flight; a waiter, None for who begins it and must end it; whether it had not begun to load yet.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = Flight(key, home)
                return flight, None, True
            waiter = Waiter()
            flight.waiters[waiter] = None
            return flight, waiter, not flight.begun

    def attend(self, flight: Flight) -> Waiter:
        """Wait for a flight that one has begun and handed to somebody else."""
        with self._lock:
            waiter = Waiter()
            if flight.done:
                waiter.woken = True
            flight.waiters[waiter] = None
            return waiter

    def leave(self, flight: Flight, waiter: Waiter) -> None:
        """Wait no longer."""
        if not flight.done:
            with self._lock:
                flight.waiters.pop(waiter, None)

    def begin_load(self, flight: Flight) -> None:
        """Note that the loader is being called."""
        with self._lock:
            flight.begun = True

    def end(
        self,
        flight: Flight,
        *,
        payload: bytes | None = None,
        nothing: bool = False,
        error: Exception | None = None,
        interruption: BaseException | None = None,
    ) -> None:
        """End a flight and wake who waits for it. A second call does nothing."""
        with self._lock:
            if flight.done:
                return
            flight.payload, flight.nothing, flight.error, flight.done = payload, nothing, error, True
            flight.interruption = interruption
            del self._flights[flight.key]
            waiters = tuple(flight.waiters)
        for waiter in waiters:
            waiter.wake()

    def remember_error(self, key: str, error: Exception, until: float, now: float) -> None:
        """Remember what a loader raised, until a moment of the local clock."""
        with self._lock:
            if len(self._errors) >= MAX_REMEMBERED:
                self._errors = {key: each for key, each in self._errors.items() if each[1] > now}
            self._errors[key] = (error, until)

    def error_of(self, key: str, now: float) -> Exception | None:
        """Return the error that is remembered of a key; None if there is none."""
        found = self._errors.get(key)
        return None if found is None or found[1] <= now else found[0]

    def claim_refresh(self, key: str, now: float) -> bool:
        """Claim the refresh of a key for one caller of this process; :meth:`end_refresh` must follow."""
        if self._refreshes.get(key, -inf) > now:
            return False
        with self._lock:
            if self._refreshes.get(key, -inf) > now:
                return False
            if len(self._refreshes) >= MAX_REMEMBERED:
                self._refreshes = {key: until for key, until in self._refreshes.items() if until > now}
            self._refreshes[key] = inf
            return True

    def end_refresh(self, key: str, not_before: float) -> None:
        """End a claim; nobody here need try again before a moment of the local clock."""
        with self._lock:
            self._refreshes[key] = not_before
