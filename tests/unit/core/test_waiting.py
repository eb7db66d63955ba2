"""Waiters and flights: woken once, at the right moment; nothing is left behind."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import Mock

import pytest

from coherent_cache.core import waiting
from coherent_cache.core.waiting import Flights, Waiter, WaiterTable


@pytest.fixture
def flights():
    return Flights(nullcontext())


def test_a_waiter_calls_whoever_listens_before_or_after_it_was_woken():
    early, late = Mock(), Mock()
    waiter = Waiter()
    waiter.listen(early)
    early.assert_not_called()
    waiter.wake()
    early.assert_called_once_with()
    waiter.listen(late)
    late.assert_called_once_with()
    silent = Waiter()
    silent.wake()
    assert silent.woken


def test_the_table_wakes_who_waits_for_a_key_or_everybody():
    table = WaiterTable()
    first, second, other = table.register("k"), table.register("k"), table.register("l")
    table.wake("k")
    table.wake("nobody's")
    assert [each.woken for each in (first, second, other)] == [True, True, False]
    table.wake_all()
    assert other.woken
    table.release("k", first)
    table.release("k", first)
    assert table
    table.release("k", second)
    table.release("l", other)
    assert not table


def test_a_flight_has_one_leader_and_wakes_its_followers_at_its_end(flights):
    flight, leads, early = flights.join("k")
    assert (leads, early, len(flights)) == (None, True, 1)
    same, waiter, early = flights.join("k")
    assert same is flight
    assert early
    flights.begin_load(flight)
    _, late, early = flights.join("k")
    assert not early
    flights.end(flight, payload=b"value")
    assert waiter.woken
    assert late.woken
    assert (flight.done, flight.payload, len(flights)) == (True, b"value", 0)
    flights.end(flight, error=ValueError())
    assert flight.error is None, "the first end counts"
    assert flights.join("k")[0] is not flight


def test_who_attends_a_flight_that_has_ended_does_not_wait(flights):
    flight, _, _ = flights.join("k")
    assert not flights.attend(flight).woken
    flights.end(flight, nothing=True)
    assert flights.attend(flight).woken
    assert flight.nothing


def test_who_leaves_a_flight_is_forgotten(flights):
    flight, _, _ = flights.join("k", "a loop")
    _, first, _ = flights.join("k", "another")
    _, second, _ = flights.join("k")
    assert flight.home == "a loop", "of who leads it"
    for _ in range(2):
        flights.leave(flight, first)
        assert list(flight.waiters) == [second]
    flights.end(flight)
    assert (first.woken, second.woken) == (False, True)
    flights.leave(flight, second)


def test_one_refresh_at_a_time_and_none_before_its_moment(flights):
    assert flights.claim_refresh("k", 10.0)
    assert not flights.claim_refresh("k", 10.0)
    flights.end_refresh("k", 20.0)
    assert not flights.claim_refresh("k", 19.0)
    assert flights.claim_refresh("l", 19.0)
    assert flights.claim_refresh("k", 20.0)


def test_a_refresh_that_another_thread_has_just_claimed(flights):
    class Meddling:
        """A lock that somebody else takes first."""

        def __enter__(self):
            flights._refreshes["k"] = 99.0

        def __exit__(self, *_):
            pass

    flights._lock = Meddling()
    assert not flights.claim_refresh("k", 10.0)


def test_an_error_is_remembered_until_its_moment(flights):
    error = ValueError()
    flights.remember_error("k", error, until=20.0, now=10.0)
    assert flights.error_of("k", 19.0) is error
    assert flights.error_of("k", 20.0) is None
    assert flights.error_of("l", 10.0) is None


def test_what_is_over_is_forgotten_when_there_is_much(flights, monkeypatch):
    monkeypatch.setattr(waiting, "MAX_REMEMBERED", 2)
    for number in range(5):
        assert flights.claim_refresh(f"k{number}", 10.0 + number)
        flights.end_refresh(f"k{number}", 10.5 + number)
        flights.remember_error(f"k{number}", ValueError(), 10.5 + number, 10.0 + number)
    assert len(flights._refreshes) <= 2
    assert len(flights._errors) <= 2
