"""Every event of the catalogue happens: each is provoked on a cache, as a user would see it, by one function here."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from coherent_cache import events
from coherent_cache.core import shard as shard_module
from coherent_cache.core.session import Session
from coherent_cache.errors import CacheUnavailable, ForeignValue
from coherent_cache.event_hub import MAX_PENDING_EVENTS
from coherent_cache.keys import shard_names
from coherent_cache.logs import LINES_PER_WINDOW, LOGGER_NAME
from coherent_cache.remote import memory
from coherent_cache.remote.connection import pack
from coherent_cache.remote.sync_io import SyncIO
from coherent_cache.wire import Kind, Message, encode_message
from tests.contract.fronts import after_answers

NAMES = shard_names("contract", 0, 0)
PATIENCE = 10.0


def outage():
    raise KeyError("the database is away")


class Stage:
    """A cache, a peer, and what the cache reports."""

    def __init__(self, make, url, monkeypatch):
        self.make, self.url, self.monkeypatch = make, url, monkeypatch
        self.seen = []
        self.options = {"heartbeat": 60.0, "max_staleness": 600.0}
        self.peer = make(**self.options)
        self.cache = None

    def begin(self, **options):
        self.cache = self.make(**self.options | options)
        self.cache.on_event(self.seen.append)
        return self.cache

    def of(self, kind):
        return [event for event in self.seen if type(event) is kind]

    def until(self, predicate):
        deadline = time.monotonic() + PATIENCE
        while not predicate():
            assert time.monotonic() < deadline, f"in vain; seen at last: {self.seen[-20:]}"
            self.cache._runtime.events.drain()
            time.sleep(0.002)

    def until_seen(self, kind):
        self.until(lambda: self.of(kind))

    def raw(self, *command):
        pool = self.peer._runtime._pool
        connection = pool.acquire()
        try:
            return connection.exchange(pack(command), 1)[0]
        finally:
            pool.release(connection, sound=True)

    def publish_after(self, steps):
        epoch, seq = self.raw("HMGET", NAMES.clock, "epoch", "seq")
        message = Message(Kind.SET, epoch, int(seq) + steps, b"n" * 8, b"p" * 8, 0, "a-stranger", ("k",))
        self.raw("PUBLISH", NAMES.channel, encode_message(message))

    def cut(self):
        self.cache._runtime._subscriber._link.close()


@pytest.fixture
def stage(make, url, monkeypatch):
    return Stage(make, url, monkeypatch)


def write(stage):
    stage.begin().set("k", 1)


def reconnect(stage):
    stage.begin().set("k", 1)
    stage.cut()
    stage.cache.set("k", 2)


def history(stage):
    stage.begin().set("k", 1)
    stage.raw("FLUSHALL")
    stage.peer.set("k", 2)


def gap(stage):
    stage.begin().set("k", 1)
    stage.publish_after(5)


def damage(stage):
    stage.begin().set("k", 1)
    stage.raw("PUBLISH", NAMES.channel, b"\x01damaged")


def late_fill(stage):
    stage.peer.set("k", 1)
    cache = stage.begin()

    def a_newer_one_is_heard():
        before = cache.stats().invalidations_received
        stage.peer.set("k", 2)
        stage.until(lambda: cache.stats().invalidations_received > before)

    after_answers(cache, stage.monkeypatch, a_newer_one_is_heard)
    assert cache.get("k") == 1


def failing_load(stage):
    with pytest.raises(KeyError):
        stage.begin().get_or_set("k", outage)


def load(stage):
    stage.begin().get_or_set("k", lambda: 1)


def load_while_deleted(stage):
    def loader():
        stage.peer.delete("k")
        return 1

    stage.begin().get_or_set("k", loader)


def long_load_while_deleted(stage):
    def loader():
        stage.peer.delete("k")
        stage.until_seen(events.LeaseLost)
        return 1

    stage.begin(lease=0.1).get_or_set("k", loader)


def stale(stage):
    cache = stage.begin()
    cache.get_or_set("k", lambda: "old", ttl=0.05, fail_safe=100)
    stage.until(lambda: cache.get("k") is None)
    assert cache.get_or_set("k", outage, fail_safe=100) == "old"


def crowd(stage):
    stage.monkeypatch.setattr(shard_module, "SUMMARY_SECONDS", 0.0)
    cache = stage.begin(heartbeat=0.02, max_entries=2)
    stage.until(lambda: cache._shard._summary_from > 0)
    cache.set_many({"a": 1, "b": 2, "c": 3})


def away(stage):
    stage.begin()
    server = memory._servers[stage.url.removeprefix("memory://")]
    stage.monkeypatch.setattr(server, "connected", False)
    stage.cache._runtime._pool.server = "another"  # so that no idle connection is used
    with pytest.raises(CacheUnavailable):
        stage.cache.get("k")
    stage.monkeypatch.setattr(server, "connected", True)


def foreign(stage):
    cache = stage.begin()
    stage.raw("SET", NAMES.value(b"k"), "somebody else's")
    with pytest.raises(ForeignValue):
        cache.get("k")


def upgrade(stage):
    cache = stage.begin()
    stage.raw("SET", NAMES.value(b"k"), b"\xc1\x02...")
    assert cache.get("k") is None


def limited(stage):
    stage.monkeypatch.setattr(SyncIO, "lacking_rights", lambda _: ("+xrange",))
    stage.begin().set("k", 1)
    stage.cache._runtime._subscriber._rights = None
    stage.cut()


def bug(stage):
    stage.begin()
    tick = Session.tick

    def fails_once(session, now):
        if session._origin == stage.peer.instance_id:
            return tick(session, now)
        stage.monkeypatch.setattr(Session, "tick", tick)
        raise RuntimeError("a bug")

    stage.monkeypatch.setattr(Session, "tick", fails_once)
    stage.cache._runtime._subscriber.wake()


def storm(stage):
    logging.getLogger(LOGGER_NAME).setLevel(logging.WARNING)
    cache = stage.begin()
    for _ in range(LINES_PER_WINDOW + 1):
        with pytest.raises(KeyError):
            cache.get_or_set("k", outage)
    cache.close()


def flood(stage):
    hub = stage.begin()._runtime.events
    with hub._draining:
        for number in range(MAX_PENDING_EVENTS + 2):
            hub.emit(events.LeaseVoided(0, str(number)))


PROVOKED_BY = {
    events.WritePublished: (write, {"kind": "set", "names": ("k",), "version": 1}),
    events.StateChanged: (reconnect, {"old": "coherent", "new": "suspect"}),
    events.Resynced: (reconnect, {"cause": "connection ended"}),
    events.HistoryLost: (history, {"cause": "a message"}),
    events.MessageGap: (gap, {"expected": 2, "received": 6}),
    events.InvalidationReceived: (write, {"kind": "set", "version": 1, "names": ("k",)}),
    events.MessageDamaged: (damage, {"shard": 0, "dropped": 1}),
    events.FillRefused: (late_fill, {"key": "k", "version": 1, "cause": "token marked"}),
    events.LoadFailed: (failing_load, {"key": "k", "error": "KeyError"}),
    events.LeaseTaken: (load, {"key": "k", "version": 0}),
    events.LeaseLost: (long_load_while_deleted, {"shard": 0, "key": "k"}),
    events.LeaseVoided: (load_while_deleted, {"shard": 0, "key": "k"}),
    events.StaleServed: (stale, {"key": "k", "cause": "KeyError"}),
    events.SubscriberConnected: (reconnect, {"transport": "marks"}),
    events.SubscriberLost: (reconnect, {}),
    events.EntriesRemoved: (crowd, {"evicted": 1, "expired": 0, "too_large": 0, "held": 2}),
    events.CommandFailed: (away, {"maybe_applied": False}),
    events.ForeignValueSeen: (foreign, {"key": "k", "reason": "not an envelope"}),
    events.UnknownFormatSeen: (upgrade, {"what": "value", "count": 1}),
    events.RightsMissing: (limited, {"rights": ("+xrange",)}),
    events.InternalError: (bug, {"where": "subscriber", "error": "RuntimeError", "text": "a bug"}),
    events.EventsSuppressed: (storm, {"of": "load_failed", "count": 1}),
    events.EventsDropped: (flood, {}),
}


@pytest.mark.parametrize("kind", events.catalogue(), ids=lambda kind: kind.name)
def test_every_event_of_the_catalogue_happens(stage, kind):
    provoke, expected = PROVOKED_BY[kind]

    provoke(stage)

    stage.until(lambda: any(event.as_dict() | expected == event.as_dict() for event in stage.of(kind)))


def test_a_reconnection_tells_how_long_and_why(stage):
    reconnect(stage)
    stage.until(lambda: any((event.away or 0) > 0 for event in stage.of(events.SubscriberConnected)))
    assert stage.of(events.Resynced)[-1].cause == "connection ended"


def test_the_first_connection_was_never_away(front, url):
    seen = []
    with front(url, namespace="contract") as cache:
        cache.on_event(seen.append)
        assert cache.wait_ready(5)
    (connected,) = [event for event in seen if type(event) is events.SubscriberConnected]
    assert connected.away is None
    (resynced,) = [event for event in seen if type(event) is events.Resynced]
    assert resynced.cause == "first connection"


def test_fills_and_floors_are_published_writes(stage):
    cache = stage.begin()
    cache.get_or_set("k", lambda: 1)
    cache.delete("k")
    cache.invalidate_tags("red")
    cache.clear()
    cache.set("k", 2)
    cache.touch("k", 60)
    cache.touch("absent", 60)
    with cache.batch() as batch:
        batch.set("a", 1)
        batch.delete("b")
    published = [(event.kind, event.version, event.names) for event in stage.of(events.WritePublished)]
    assert published == [
        ("set", 1, ("k",)), ("delete", 2, ("k",)), ("tag", 3, ("red",)), ("clear", 4, ()), ("set", 5, ("k",)),
        ("touch", 6, ("k",)), ("batch", 7, ("a", "b")),
    ]  # fmt: skip


def test_a_cache_without_a_local_tier_reports_its_writes(stage):
    stage.begin(local_enabled=False).set("k", 1)
    assert stage.of(events.WritePublished) == [events.WritePublished(0, "set", 1, ("k",))]


def test_events_hold_no_password(front):
    seen = []
    with front("redis://user:secret-password@127.0.0.1:1/0", namespace="contract", timeout=0.2) as cache:
        cache.on_event(seen.append)
        with pytest.raises(CacheUnavailable):
            cache.get("k")
    assert any(type(event) is events.CommandFailed for event in seen)
    assert "secret" not in str(seen)


@pytest.mark.parametrize("front", ["sync"], indirect=True)
def test_a_hit_does_nothing_about_events(stage):
    """Count what a hit calls: with a log at DEBUG and a callback, exactly what it calls without both."""
    cache = stage.begin()
    cache.set("k", 1)
    logging.getLogger(LOGGER_NAME).setLevel(logging.DEBUG)
    stage.until(lambda: not cache._runtime.events.waiting)
    called = []

    def profile(frame, event, argument):
        if event == "call":
            called.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")

    sys.setprofile(profile)
    try:
        for _ in range(100):
            cache.get("k")
    finally:
        sys.setprofile(None)
    assert len(called) == 100, set(called)
    assert all(name.endswith("cache.py:get") for name in called)


@pytest.fixture(autouse=True)
def _level():
    logger = logging.getLogger(LOGGER_NAME)
    level = logger.level
    yield
    logger.setLevel(level)
