"""The hub: takes events without blocking, delivers them in their order, drops the oldest rather than grow."""

from __future__ import annotations

import logging

import pytest

from coherent_cache import events
from coherent_cache.event_hub import LOOK_AGAIN_SECONDS, MAX_PENDING_EVENTS, EventHub
from coherent_cache.logs import LINES_PER_WINDOW, LOGGER_NAME, EventLog

FIRST = events.HistoryLost(shard=0, dropped=1, cause="x")
SECOND = events.HistoryLost(shard=1, dropped=2, cause="x")


@pytest.fixture
def seen():
    return []


@pytest.fixture
def hub(clock, seen):
    return EventHub(EventLog(clock=clock), {1: seen.append}, clock=clock)


def test_events_are_delivered_in_their_order_when_somebody_drains(hub, seen):
    assert not hub.waiting
    hub.emit(FIRST)
    hub.emit(SECOND)
    assert hub.waiting
    assert seen == []
    hub.drain()
    assert seen == [FIRST, SECOND]
    assert not hub.waiting


def test_the_oldest_are_dropped_and_counted(hub, seen):
    for _ in range(MAX_PENDING_EVENTS):
        hub.emit(FIRST)
    for _ in range(3):
        hub.emit(SECOND)
    hub.drain()
    assert seen[0] == events.EventsDropped(3)
    assert seen[1:] == [FIRST] * (MAX_PENDING_EVENTS - 3) + [SECOND] * 3
    hub.emit(FIRST)
    hub.drain()
    assert seen[-1] == FIRST
    assert len(seen) == MAX_PENDING_EVENTS + 2


def test_callbacks_get_every_event_of_a_storm_and_the_summary(hub, seen, clock, caplog):
    caplog.set_level(logging.INFO, LOGGER_NAME)
    for _ in range(LINES_PER_WINDOW + 5):
        hub.emit(FIRST)
    hub.drain()
    assert seen == [FIRST] * (LINES_PER_WINDOW + 5)
    assert len(caplog.records) == LINES_PER_WINDOW
    assert not hub.waiting

    clock.now += 2 * LOOK_AGAIN_SECONDS
    assert hub.waiting, "the summary is due, though no event came"
    hub.drain()
    assert seen[-1] == events.EventsSuppressed("history_lost", 5, 1.0)
    assert "events_suppressed" in caplog.records[-1].message


def test_a_summary_is_not_lost_at_the_end(hub, seen, caplog):
    caplog.set_level(logging.INFO, LOGGER_NAME)
    for _ in range(LINES_PER_WINDOW + 5):
        hub.emit(FIRST)
    hub.close()
    assert seen[-1] == events.EventsSuppressed("history_lost", 5, 1.0)


def test_whether_events_per_message_are_wanted_is_looked_up_now_and_then(hub, seen, clock, caplog):
    wanted = []
    hub.on_traces = wanted.append
    hub._callbacks.clear()
    caplog.set_level(logging.INFO, LOGGER_NAME)
    for level in (logging.INFO, logging.DEBUG, logging.INFO):
        caplog.set_level(level, LOGGER_NAME)
        hub.drain()
        clock.now += LOOK_AGAIN_SECONDS
        hub.drain()
    hub._callbacks[1] = seen.append
    clock.now += LOOK_AGAIN_SECONDS
    hub.drain()
    assert wanted == [False, True, False, True]


def test_a_callback_that_raises_is_logged_and_others_are_called(hub, seen, caplog):
    caplog.set_level(logging.INFO, LOGGER_NAME)
    hub._callbacks[0] = lambda _: 1 / 0
    hub._callbacks[2] = seen.append
    hub.emit(FIRST)
    hub.drain()
    assert seen == [FIRST, FIRST]
    (record,) = [record for record in caplog.records if "internal_error" in record.message]
    assert "ZeroDivisionError" in record.message


def test_a_callback_may_emit_drain_and_close(hub, seen):
    def again(event):
        if event is FIRST:
            hub.emit(SECOND)
        hub.drain()
        hub.close()

    hub._callbacks[2] = again
    hub.emit(FIRST)
    hub.drain()
    assert seen == [FIRST, SECOND]
