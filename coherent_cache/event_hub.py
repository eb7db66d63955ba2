"""Where events go: taken under locks without blocking, delivered later to the log and to callbacks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from coherent_cache.events import Event, EventsDropped, InternalError
from coherent_cache.logs import EventLog

MAX_PENDING_EVENTS: Final = 10_000
"""Events kept until they are delivered; beyond that the oldest are dropped, the cache itself never waits."""

LOOK_AGAIN_SECONDS: Final = 1.0
"""Seconds between two looks at whether anybody wants events per message: a log's level may change at any time."""


class EventHub:
    """Takes the events of one instance, delivers them to a log and to callbacks.

    Whoever comes by looks at :attr:`waiting` and calls :meth:`drain`: the subscriber's thread several times a second,
    every operation at its end. No local hit does.
    """

    def __init__(
        self,
        log: EventLog,
        callbacks: dict[int, Callable[[Event], None]],
        *,
        clock: Callable[[], float],
    ) -> None:
        """Combine the parts.

        Args:
            log: the log.
            callbacks: who else gets events; shared, and may change at any time.
            clock: local clock in seconds.
        """
        self._log = log
        self._callbacks = callbacks
        self._clock = clock
        self._pending: deque[Event] = deque(maxlen=MAX_PENDING_EVENTS)
        self._dropped = 0
        self._draining = threading.Lock()
        self._look_at = clock() + LOOK_AGAIN_SECONDS
        self.on_traces: Callable[[bool], None] | None = None
        """Told now and then whether anybody wants the events that come per message."""

    def emit(self, event: Event, /) -> None:
        """Take an event, without blocking."""
        if len(self._pending) == MAX_PENDING_EVENTS:
            self._dropped += 1
        self._pending.append(event)

    @property
    def waiting(self) -> bool:
        """Whether there is anything to do: events to deliver, or to look after the log."""
        return bool(self._pending) or self._clock() >= self._look_at

    def drain(self) -> None:
        """Deliver what was taken, in its order. A callback's exception is logged and goes no further.

        One thread at a time delivers; others leave it to that one, which looks again before it goes.
        """
        while self.waiting and self._draining.acquire(blocking=False):
            try:
                if self._clock() >= self._look_at:
                    self._look_at = self._clock() + LOOK_AGAIN_SECONDS
                    self._summarise(self._clock())
                    if self.on_traces is not None:
                        self.on_traces(self.traces())
                while self._pending:
                    event = self._pending.popleft()
                    if self._dropped:
                        dropped, self._dropped = self._dropped, 0
                        self._deliver(EventsDropped(dropped))
                    self._deliver(event)
            finally:
                self._draining.release()

    def close(self) -> None:
        """Deliver what there is, and the log's summaries; if a callback calls this, who called the callback goes on."""
        self.drain()
        if self._draining.acquire(blocking=False):
            try:
                self._summarise(None)
            finally:
                self._draining.release()

    def traces(self) -> bool:
        """Tell whether anybody wants the events that come per message."""
        return bool(self._callbacks) or self._log.traces()

    def _summarise(self, now: float | None) -> None:
        for event in self._log.summarise(now):
            self._call_back(event)

    def _deliver(self, event: Event) -> None:
        for summary in self._log.write(event):
            self._call_back(summary)
        self._call_back(event)

    def _call_back(self, event: Event) -> None:
        for callback in tuple(self._callbacks.values()):
            try:
                callback(event)
            except Exception as error:  # noqa: BLE001  # user code must not end the subscriber
                self._log.write(InternalError("an on_event callback", type(error).__name__, str(error)))
