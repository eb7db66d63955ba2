"""Events: one stable name each, a level that loggers know, and fields that fit into a log line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing

import pytest

from coherent_cache import events
from coherent_cache.events import Event

EXAMPLES = {
    "state_changed": (events.StateChanged, "info", {"shard": 1, "old": "coherent", "new": "suspect", "cause": "x"}),
    "resynced": (
        events.Resynced,
        "info",
        {"shard": 1, "cause": "x", "outcome": "replayed", "version": 9, "replayed": 3, "dropped": 1},
    ),
    "history_lost": (events.HistoryLost, "warning", {"shard": 1, "dropped": 5, "cause": "x"}),
    "message_gap": (events.MessageGap, "warning", {"shard": 1, "expected": 5, "received": 9}),
    "invalidation": (
        events.InvalidationReceived,
        "debug",
        {
            "shard": 1,
            "kind": "set",
            "version": 9,
            "origin": "host-1",
            "names": ("a", "b"),
            "applied": True,
            "lag_ms": 0.5,
        },
    ),
    "message_damaged": (events.MessageDamaged, "error", {"shard": 1, "reason": "x", "dropped": 5}),
    "fill_refused": (events.FillRefused, "debug", {"shard": 1, "key": "k", "version": 9, "cause": "x"}),
    "load_failed": (events.LoadFailed, "warning", {"key": "k", "error": "ValueError"}),
    "write_published": (
        events.WritePublished,
        "debug",
        {"shard": 1, "kind": "set", "version": 9, "names": ("a", "b")},
    ),
    "lease_taken": (events.LeaseTaken, "debug", {"shard": 1, "key": "k", "version": 0}),
    "lease_lost": (events.LeaseLost, "debug", {"shard": 1, "key": "k"}),
    "entries_removed": (
        events.EntriesRemoved,
        "debug",
        {"shard": 1, "seconds": 10.0, "evicted": 3, "expired": 2, "too_large": 1, "held": 9},
    ),
    "command_failed": (events.CommandFailed, "warning", {"cause": "x", "maybe_applied": True}),
    "events_suppressed": (events.EventsSuppressed, "info", {"of": "resynced", "count": 3, "seconds": 1.0}),
    "events_dropped": (events.EventsDropped, "warning", {"count": 3}),
    "lease_voided": (events.LeaseVoided, "debug", {"shard": 1, "key": "k"}),
    "stale_served": (events.StaleServed, "warning", {"key": "k", "cause": "x"}),
    "subscriber_connected": (events.SubscriberConnected, "info", {"server": "abc", "transport": "resp3", "away": 0.5}),
    "rights_missing": (events.RightsMissing, "error", {"rights": ("+xrange",)}),
    "subscriber_lost": (events.SubscriberLost, "warning", {"cause": "x", "retry_in": 0.5}),
    "unknown_format": (events.UnknownFormatSeen, "warning", {"shard": 0, "what": "value", "reason": "x", "count": 1}),
    "foreign_value": (events.ForeignValueSeen, "warning", {"key": "k", "reason": "x"}),
    "internal_error": (events.InternalError, "error", {"where": "x", "error": "ValueError", "text": "x"}),
}
CASES = [pytest.param(name, *example, id=name) for name, example in EXAMPLES.items()]


def kinds() -> set[type[Event]]:
    return set(events.catalogue())


def test_the_catalogue_has_every_event():
    classes = {member for _, member in inspect.getmembers(events, inspect.isclass) if issubclass(member, Event)}

    assert classes - {Event} == kinds()


def test_every_event_has_an_example_here():
    assert {example[0] for example in EXAMPLES.values()} == kinds()


def test_names_are_unique():
    assert len({kind.name for kind in kinds()}) == len(kinds())


@pytest.mark.parametrize(("name", "kind", "level", "values"), CASES)
def test_name_and_level_are_stable(name, kind, level, values):
    # Dashboards and alerts are made of these: a change breaks them.
    assert kind.name == name
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert kind.level == level
    assert level in typing.get_args(events.Level)


@pytest.mark.parametrize(("name", "kind", "level", "values"), CASES)
def test_as_dict_has_the_fields_and_nothing_else(name, kind, level, values):
    event = kind(**values)

    assert event.as_dict() == values
    assert list(event.as_dict()) == [field.name for field in dataclasses.fields(kind)]
    assert json.loads(json.dumps(event.as_dict())) == json.loads(json.dumps(values))


@pytest.mark.parametrize(("name", "kind", "level", "values"), CASES)
def test_events_are_frozen_slotted_comparable_values(name, kind, level, values):
    event = kind(**values)

    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, field, "changed")
    assert not hasattr(event, "__dict__")
    assert event == kind(**values)
    assert hash(event) == hash(kind(**values))


@pytest.mark.parametrize(("name", "kind", "level", "values"), CASES)
def test_every_field_is_required_and_documented(name, kind, level, values):
    documented = set(re.findall(r"^ {8}(\w+):", kind.__doc__, re.MULTILINE))

    assert documented == set(values)
    for field in values:
        with pytest.raises(TypeError):
            kind(**{other: value for other, value in values.items() if other != field})


@pytest.mark.parametrize("kind", sorted(kinds(), key=lambda kind: kind.name))
def test_no_field_collides_with_what_loggers_add(kind):
    reserved = {
        "event",
        "level",
        "name",
        "timestamp",
        "logger",
        "exc_info",
        "stack_info",
        "extra",
        "instance",
        "namespace",
    }

    assert reserved.isdisjoint(field.name for field in dataclasses.fields(kind))


def test_no_event_holds_a_value():
    for kind in kinds():
        assert {"value", "payload", "data"}.isdisjoint(field.name for field in dataclasses.fields(kind))


def test_a_delay_may_be_unknown():
    values = EXAMPLES["invalidation"][2] | {"lag_ms": None}

    assert events.InvalidationReceived(**values).as_dict()["lag_ms"] is None
