"""Whatever ends, stops, delays or lies between a cache and its Redis: the bound holds, and it goes on by itself."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from coherent_cache import CoherentCache
from coherent_cache.core.session import Session
from coherent_cache.errors import CacheUnavailable, NotCoherent
from coherent_cache.events import (
    HistoryLost,
    MessageDamaged,
    MessageGap,
    Resynced,
    StateChanged,
    SubscriberLost,
    UnknownFormatSeen,
)
from coherent_cache.keys import shard_names
from coherent_cache.testing import FaultProxy
from coherent_cache.testing.fault_proxy import SUBSCRIBERS, commands
from integration.history import SET, Read, Write, load, violations
from integration.waiting import wait_until

HEARTBEAT = 0.1
AMPLE = 30.0  # seconds: max_staleness where none is tested, so that a machine that stands still is no fault
BOUND = 2.0  # seconds: max_staleness where the bound is what is tested
TIMEOUT = 1.0  # seconds that one round trip may take, where that is what is tested
TIGHT = {"max_staleness": BOUND, "timeout": TIMEOUT}
SLACK = 2.0  # seconds that a loaded machine may take more
PATIENCE = 20.0  # seconds until something must have happened that has no bound of its own

SYNC_AT_ONCE = {"repl-diskless-sync-delay": "0"}
KEYS = [f"key-{number}" for number in range(40)]

both_transports = pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])


@pytest.fixture
def proxy(fault_proxy):
    return fault_proxy


@pytest.fixture
def make(namespace):
    """Give a maker of caches, all of one namespace; they are closed after the test."""
    made = []

    def make_cache(url, **options):
        defaults = {"namespace": namespace, "heartbeat": HEARTBEAT, "max_staleness": AMPLE, "timeout": AMPLE / 3}
        made.append(CoherentCache(url, **defaults | options))
        return made[-1]

    yield make_cache
    for cache in made:
        cache.close()


@pytest.fixture
def names(namespace):
    return shard_names(namespace, 0, 0)


def coherent(*caches):
    """Wait until they are, and until the events that led there have been delivered: that comes a moment later."""
    for cache in caches:
        wait_until(lambda cache=cache: cache.wait_ready(0.1), PATIENCE, "the instance is coherent")
        events = cache._runtime.events
        wait_until(lambda events=events: not (events.waiting or events._draining.locked()), PATIENCE, "all is reported")


def until_state(cache, *states):
    wait_until(lambda: cache.state in states, PATIENCE, f"the state is {' or '.join(states)}")


def wait_for_beats(cache, count):
    """Wait until so many further heartbeats have proved freshness."""
    for _ in range(count):
        horizon = cache._runtime.instance.shards[0].tier.horizon
        wait_until(
            lambda horizon=horizon: cache._runtime.instance.shards[0].tier.horizon > horizon, PATIENCE, "a heartbeat"
        )


def listen(cache, *kinds):
    events = []
    cache.on_event(lambda event: events.append(event) if isinstance(event, kinds) else None)
    return events


def held(cache):
    """Keys in the local tier."""
    return {key for shard in cache._runtime.instance.shards for key in shard.tier.entries}


def run_id(server):
    return server.info()["run_id"]


def warmed(reader, writer, keys=KEYS):
    """Let the reader hold the keys, all with the value "old"."""
    writer.set_many(dict.fromkeys(keys, "old"))
    coherent(reader)
    assert reader.warm(keys) == len(keys)
    return reader


def cut_by_server(server, cache):
    """Let the server close the cache's subscriber connection; tell whether there was one."""
    with server.client() as plain:
        wanted = f"coherent-cache:{cache.instance_id}:subscriber"
        found = [client["id"] for client in plain.client_list() if client["name"] == wanted]
        return sum(plain.client_kill_filter(_id=identity) for identity in found)


class Observed:
    """What the test itself wrote and read, for the checker: writes through one cache, reads through another."""

    def __init__(self, writer, reader):
        self.writer, self.reader = writer, reader
        self.writes, self.reads = [], []

    def write(self, key, value):
        began = time.monotonic()
        version = self.writer.set(key, value)
        self.writes.append(Write(0, key, SET, version.seq, None, began, time.monotonic()))

    def read(self, key):
        began = time.monotonic()
        entry = self.reader.get_entry(key)
        ended = time.monotonic()
        self.reads.append(
            Read(1, key, entry is not None, entry and entry.version.seq, None, entry and entry.tier,
                 entry and entry.age_bound, began, ended)
        )  # fmt: skip
        return entry

    def assert_contract(self, max_staleness):
        faults = violations(self.writes, self.reads, max_staleness=max_staleness)
        assert not faults, "\n".join(faults[:10])


class TestShortCut:
    @both_transports
    def test_only_the_keys_written_meanwhile_go(self, redis_server, proxy, make, query):
        writer, reader = make(redis_server.url), make(proxy.url + query)
        warmed(reader, writer)
        before = reader.stats()
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "suspect", "disconnected")
        for key in KEYS[:7]:
            writer.set(key, "new")
        writer.delete(KEYS[7])
        proxy.heal()
        coherent(reader)
        after = reader.stats()
        assert after.replays - before.replays == 8
        assert after.removals["invalidated"] - before.removals["invalidated"] == 8
        assert after.flushes == before.flushes
        assert held(reader) == set(KEYS[8:])
        assert [reader.get_entry(key).tier for key in KEYS[8:]] == ["local"] * len(KEYS[8:])
        assert [reader.get(key) for key in KEYS[:8]] == ["new"] * 7 + [None]

    def test_nothing_missed_nothing_lost(self, redis_server, make):
        writer, reader = make(redis_server.url), make(redis_server.url)
        warmed(reader, writer)
        events = listen(reader, Resynced, SubscriberLost)
        assert cut_by_server(redis_server, reader) == 1
        assert all(reader.get_entry(key).tier == "local" for key in KEYS)
        wait_until(lambda: len(events) == 2, PATIENCE, "the connection is lost and made again")
        assert isinstance(events[0], SubscriberLost)
        assert (events[1].outcome, events[1].dropped) == ("unbroken", 0)
        assert held(reader) == set(KEYS)

    def test_cut_again_and_again_it_comes_back_at_once(self, redis_server, make):
        """A pause grows only while connecting fails."""
        cache = make(redis_server.url)
        coherent(cache)
        events = listen(cache, SubscriberLost)
        for count in range(1, 9):
            wait_until(lambda: cut_by_server(redis_server, cache), PATIENCE, "there is a subscriber")
            wait_until(lambda count=count: len(events) == count, PATIENCE, "it is noticed")
            coherent(cache)
        assert max(event.retry_in for event in events) < 0.2

    def test_past_the_bound_the_tier_is_not_served_but_kept(self, redis_server, proxy, make):
        writer, reader = make(redis_server.url), make(proxy.url, max_staleness=BOUND)
        warmed(reader, writer)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "disconnected")
        writer.set(KEYS[0], "new")
        assert [reader.get_entry(key).tier for key in KEYS[:2]] == ["redis", "redis"]
        assert [reader.get(key) for key in KEYS[:2]] == ["new", "old"]
        proxy.heal()
        coherent(reader)
        assert reader.stats().flushes == 0
        assert all(reader.get_entry(key).tier == "local" for key in KEYS[2:])

    def test_a_connection_that_ends_before_it_asks_for_a_replay_costs_nothing(
        self, redis_server, proxy, make, monkeypatch
    ):
        """Only a replay that did not come may have been too large."""
        writer, reader = make(redis_server.url), make(proxy.url, max_staleness=BOUND)
        warmed(reader, writer)
        events = listen(reader, Resynced, SubscriberLost)
        confirmed, dropped = Session.confirmed, []

        def drop_the_first(session, shard, now):
            confirmed(session, shard, now) if dropped else dropped.append(shard)

        monkeypatch.setattr(Session, "confirmed", drop_the_first)
        proxy.cut(where=SUBSCRIBERS)
        wait_until(lambda: dropped, PATIENCE, "the confirmation is dropped")
        writer.delete(KEYS[0])
        wait_until(lambda: isinstance(events[-1], Resynced), PATIENCE, "the connection after that is synchronised")
        assert "not confirmed" in events[1].cause, events
        assert events[-1].outcome == "replayed", events
        assert held(reader) == set(KEYS[1:])

    @pytest.mark.parametrize(("missed", "outcome"), [(5, "replayed"), (6, "flushed")])
    def test_more_missed_than_the_replay_limit(self, redis_server, proxy, make, missed, outcome):
        writer, reader = make(redis_server.url), make(proxy.url, replay_limit=5)
        warmed(reader, writer)
        events = listen(reader, Resynced)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "suspect", "disconnected")
        for key in KEYS[:missed]:
            writer.set(key, "new")
        proxy.heal()
        coherent(reader)
        assert [event.outcome for event in events] == [outcome]
        assert held(reader) == (set() if outcome == "flushed" else set(KEYS[missed:]))
        assert [reader.get(key) for key in KEYS[:missed]] == ["new"] * missed

    def test_a_log_trimmed_by_others(self, redis_server, proxy, make):
        """Another instance keeps a shorter log: what was missed is within the limit, and gone."""
        writer, reader = make(redis_server.url, log_length=5, replay_limit=5), make(proxy.url)
        warmed(reader, writer)
        events = listen(reader, Resynced)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "suspect", "disconnected")
        for number in range(500):
            writer.set(KEYS[number % 10], number)
        proxy.heal()
        coherent(reader)
        assert [event.outcome for event in events] == ["flushed"], events
        assert reader.get(KEYS[9]) == 499

    @pytest.mark.parametrize("missed", ["tag", "clear"])
    def test_missed_floors_are_replayed(self, redis_server, proxy, make, missed):
        writer, reader = make(redis_server.url), make(proxy.url)
        writer.set_many({"a": 1, "b": 2}, tags=["red"])
        writer.set("c", 3)
        coherent(reader)
        assert reader.warm(["a", "b", "c"]) == 3
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "suspect", "disconnected")
        writer.clear() if missed == "clear" else writer.invalidate_tags("red")
        proxy.heal()
        coherent(reader)
        assert held(reader) == (set() if missed == "clear" else {"c"})
        assert reader.get_many(["a", "b", "c"]) == ({} if missed == "clear" else {"c": 3})
        assert reader.stats().flushes == 0


class TestFillsUnderWay:
    """P7: a value that was read before it changed comes late, and must not be kept."""

    @pytest.fixture
    def slow_read(self, redis_server, proxy, make):
        """Give a reader, and a thread of it that has read the old value and not got it yet."""
        threads = []

        def start(reader, writer):
            writer.set("a", "old")
            pool = reader._runtime._pool
            for connection in [pool.acquire() for _ in range(2)]:
                pool.release(connection, sound=True)
            coherent(reader)
            proxy.hold(direction="to_client", where=commands)
            before = executed()
            results = []
            threads.append(threading.Thread(target=lambda: results.append(reader.get("a"))))
            threads[0].start()
            wait_until(lambda: executed() > before, PATIENCE, "Redis has answered")
            return threads[0], results

        def executed():
            with redis_server.client() as plain:
                return plain.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"]

        yield start
        proxy.heal()
        for thread in threads:
            thread.join(PATIENCE)

    def test_a_message_came_first(self, redis_server, proxy, make, slow_read):
        """I1, the race that most caches with two tiers lose."""
        reader, writer = make(proxy.url, timeout=PATIENCE), make(redis_server.url)
        thread, results = slow_read(reader, writer)
        received = reader.stats().invalidations_received
        writer.set("a", "new")
        wait_until(lambda: reader.stats().invalidations_received > received, PATIENCE, "the message has come")
        proxy.heal(where=commands)
        thread.join(PATIENCE)
        assert results == ["old"]
        assert "a" not in held(reader)
        assert reader.stats().fills_refused == 1
        assert reader.get("a") == "new"

    @pytest.mark.parametrize("replay_limit", [0, 100], ids=["flushed", "replayed"])
    def test_a_resync_came_first(self, redis_server, proxy, make, slow_read, replay_limit):
        """A2: the message itself was missed."""
        reader = make(proxy.url, timeout=PATIENCE, replay_limit=replay_limit)
        writer = make(redis_server.url)
        thread, results = slow_read(reader, writer)
        events = listen(reader, Resynced)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "suspect", "disconnected")
        writer.set("a", "new")
        proxy.heal(where=SUBSCRIBERS)
        coherent(reader)
        assert [event.outcome for event in events] == ["replayed" if replay_limit else "flushed"]
        proxy.heal(where=commands)
        thread.join(PATIENCE)
        assert results == ["old"]
        assert "a" not in held(reader)
        assert reader.get("a") == "new"

    def test_an_own_write_came_first(self, redis_server, proxy, make, slow_read):
        """I2: the same on one instance."""
        reader, writer = make(proxy.url, timeout=PATIENCE), make(redis_server.url)
        thread, results = slow_read(reader, writer)
        # Own writes go through the held connections as well: they are done, and their answers come after the read's.
        own = threading.Thread(target=lambda: reader.set("a", "own"))
        own.start()
        wait_until(lambda: writer.get("a") == "own", PATIENCE, "Redis has done it")
        proxy.heal(where=commands)
        for each in (thread, own):
            each.join(PATIENCE)
        assert results == ["old"]
        assert reader.get("a") == "own"


class TestHeartbeat:
    @both_transports
    def test_it_beats_as_often_as_it_was_told(self, redis_server, make, query):
        cache = make(redis_server.url + query)
        coherent(cache)
        began = time.monotonic()
        wait_for_beats(cache, 10)
        # Not faster; and not as seldom as the thread wakes up anyway, once a second.
        assert 8 * HEARTBEAT < time.monotonic() - began < 6.0

    @both_transports
    def test_it_is_ready_at_once(self, redis_server, make, query):
        """It does not wait for the first heartbeat."""
        assert make(redis_server.url + query, heartbeat=60.0, max_staleness=180.0).wait_ready(PATIENCE)


class TestLyingStreams:
    """The connection is up, and something is missing all the same."""

    @both_transports
    def test_silent_loss_is_noticed_by_the_next_heartbeat(self, redis_server, make, names, query):
        cache = make(redis_server.url + query)
        warmed(cache, cache)
        events = listen(cache, Resynced)
        with redis_server.client() as plain:
            plain.hincrby(names.clock, "seq", 1)  # a write whose message never came
        wait_until(lambda: events, PATIENCE, "the loss is noticed")
        assert events[0].outcome == "flushed"
        assert not held(cache)
        coherent(cache)
        assert cache.warm(KEYS) == len(KEYS)

    @pytest.mark.parametrize(
        ("bytes_sent", "told"),
        [
            (b"", MessageDamaged),
            (b"\xff\xfe", UnknownFormatSeen),
            (b"\x02\x90", UnknownFormatSeen),
            (b"\x01\x98\x01", MessageDamaged),
        ],
    )
    def test_what_cannot_be_understood_flushes(self, redis_server, make, names, bytes_sent, told):
        cache = make(redis_server.url)
        warmed(cache, cache)
        events = listen(cache, told)
        with redis_server.client() as plain:
            assert plain.publish(names.channel, bytes_sent) == 1
        wait_until(lambda: events, PATIENCE, "it is reported")
        coherent(cache)
        assert not held(cache)
        assert cache.warm(KEYS) == len(KEYS)

    @pytest.mark.parametrize(
        ("query", "direction"),
        [
            pytest.param("", "both", id="resp3-both"),
            pytest.param("", "to_client", id="resp3-to-client"),
            pytest.param("", "to_server", id="resp3-to-server"),
            pytest.param("?protocol=2", "both", id="marks-both"),
        ],
    )
    def test_a_black_hole(self, redis_server, proxy, make, query, direction):
        """I6: packets vanish, nobody closes anything. The bound holds, and Redis is asked from then on."""
        writer, reader = make(redis_server.url), make(proxy.url + query, **TIGHT)
        warmed(reader, writer)
        observed = Observed(writer, reader)
        proxy.hold(direction=direction, where=SUBSCRIBERS)
        held_at = time.monotonic()
        number = 0
        while time.monotonic() < held_at + BOUND + 0.3:
            observed.write("hot", number := number + 1)
            observed.read("hot")
            observed.read(KEYS[0])
            time.sleep(0.01)
        assert reader.state == "disconnected"
        observed.assert_contract(BOUND)
        tiers = [read.tier for read in observed.reads if read.key == KEYS[0]]
        assert (tiers[0], tiers[-1]) == ("local", "redis")
        proxy.heal()
        coherent(reader)
        writer.set(KEYS[0], "new")
        wait_until(lambda: reader.get(KEYS[0]) == "new", PATIENCE, "invalidations arrive")

    def test_a_black_hole_in_front_of_everything(self, proxy, make):
        cache = make(proxy.url, **TIGHT)
        coherent(cache)
        cache.set("a", 1)
        proxy.hold()
        for call in (lambda: cache.get("absent"), lambda: cache.set("a", 2), lambda: cache.get("absent")):
            began = time.monotonic()
            with pytest.raises(CacheUnavailable):
                call()
            assert time.monotonic() - began < TIMEOUT + SLACK
        until_state(cache, "disconnected")
        began = time.monotonic()
        cache.close()
        assert time.monotonic() - began < TIMEOUT + 1 + SLACK

    def test_what_a_black_hole_swallowed_may_still_arrive(self, redis_server, proxy, make):
        """A write without an answer is neither shown as done nor as not done: Redis is asked."""
        cache, remote = make(proxy.url, **TIGHT), make(redis_server.url, local_enabled=False)
        coherent(cache)
        cache.set("a", "old")
        proxy.hold()
        with pytest.raises(CacheUnavailable) as caught:
            cache.set("a", "new")
        assert caught.value.maybe_applied
        assert "a" not in held(cache)
        assert remote.get("a") == "old"
        proxy.heal()
        coherent(cache)
        wait_until(lambda: remote.get("a") == "new", PATIENCE, "the network delivers it after all")
        wait_until(lambda: cache.get("a") == "new", PATIENCE, "the instance sees that")

    def test_a_long_way(self, redis_server, proxy, make):
        """The horizon is the moment at which a heartbeat was sent, not that of its answer."""
        writer, reader = make(redis_server.url), make(proxy.url)
        warmed(reader, writer)
        observed = Observed(writer, reader)
        proxy.delay(0.15, where=SUBSCRIBERS)
        wait_for_beats(reader, 3)
        local = []
        until = time.monotonic() + PATIENCE
        while len(local) < 50:
            assert time.monotonic() < until, "there are local hits"
            observed.write("hot", len(observed.writes))
            for _ in range(10):
                observed.read("hot")
                time.sleep(0.005)
            local = [read for read in observed.reads if read.tier == "local"]
        observed.assert_contract(AMPLE)
        assert min(read.age for read in local) >= 0.15
        assert reader.stats().resyncs == 1


class TestLostHistory:
    @both_transports
    def test_flushall(self, redis_server, make, query):
        """I12: a foreign FLUSHALL is found by the next heartbeat, and life goes on."""
        cache, peer = make(redis_server.url + query), make(redis_server.url)
        warmed(cache, peer)
        events = listen(cache, HistoryLost, Resynced)
        redis_server.flush()
        wait_until(lambda: cache.get(KEYS[0]) is None, PATIENCE, "the loss is noticed")
        wait_until(lambda: events, PATIENCE, "the loss is reported")
        assert not held(cache)
        coherent(cache, peer)
        peer.set(KEYS[0], "new")  # under a lower number than before
        assert cache.get(KEYS[0]) == "new"
        assert cache.warm(KEYS) == 1

    def test_flushall_seen_by_an_own_read_first(self, redis_server, make):
        """P9: whatever shows the new epoch first ends the old one: the next look at another key asks Redis."""
        cache = make(redis_server.url, heartbeat=5.0)
        other = make(redis_server.url, heartbeat=5.0)
        warmed(cache, other)
        redis_server.flush()
        other.set("another", 1)  # its message tells
        wait_until(lambda: not held(cache), PATIENCE, "the tier is flushed")
        assert cache.get(KEYS[0]) is None

    def test_the_clock_alone_is_lost(self, redis_server, make, names):
        """What outlived its clock is dead: nobody knows which floors it had."""
        cache, remote = make(redis_server.url), make(redis_server.url, local_enabled=False)
        warmed(cache, cache)
        events = listen(cache, HistoryLost, Resynced)
        with redis_server.client() as plain:
            assert plain.delete(names.clock) == 1
            wait_until(lambda: events, PATIENCE, "the loss is noticed")
            coherent(cache)
            assert plain.exists(names.value(KEYS[0].encode()))
        assert cache.get(KEYS[0]) is None
        assert remote.get(KEYS[0]) is None
        cache.set(KEYS[0], "new")
        assert [each.get(KEYS[0]) for each in (cache, remote)] == ["new", "new"]
        assert cache.get(KEYS[1]) is None

    def test_the_log_alone_is_lost(self, redis_server, proxy, make, names):
        """It is only a help: nothing happens, until a resync finds its anchor missing."""
        writer, reader = make(redis_server.url), make(proxy.url)
        warmed(reader, writer)
        events = listen(reader, Resynced, HistoryLost)
        with redis_server.client() as plain:
            assert plain.delete(names.log) == 1
        wait_for_beats(reader, 3)
        writer.set(KEYS[0], "new")
        wait_until(lambda: KEYS[0] not in held(reader), PATIENCE, "invalidations go on")
        assert not events
        assert held(reader) == set(KEYS[1:])
        with redis_server.client() as plain:
            assert plain.delete(names.log) == 1
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "suspect", "disconnected")
        writer.set(KEYS[1], "new")
        proxy.heal()
        coherent(reader)
        assert [event.outcome for event in events] == ["flushed"], events
        assert reader.get(KEYS[1]) == "new"

    @both_transports
    def test_a_restart_that_keeps_the_data_keeps_the_tier(self, fresh_server, make, query):
        cache = make(fresh_server.url + query)
        warmed(cache, cache)
        events = listen(cache, Resynced)
        fresh_server.restart(keep_data=True)
        wait_until(lambda: events, PATIENCE, "the instance is back")
        coherent(cache)
        assert {event.outcome for event in events} == {"unbroken"}
        assert held(cache) == set(KEYS)
        assert cache.get_entry(KEYS[0]).tier == "local"
        cache.set(KEYS[0], "new")
        assert cache.get_entry(KEYS[0]).value == "new"

    @both_transports
    def test_a_restart_without_data(self, fresh_server, make, query):
        """I19: counters begin again, and no old version wins against a new one."""
        cache, peer = make(fresh_server.url + query), make(fresh_server.url)
        warmed(cache, peer)
        for _ in range(20):
            cache.set(KEYS[0], "old")
        assert cache.get_entry(KEYS[0]).version.seq == 21
        fresh_server.restart(keep_data=False)
        coherent(peer)
        assert peer.set(KEYS[0], "new").seq < 21
        wait_until(lambda: cache.get(KEYS[0]) == "new", PATIENCE, "the restart is noticed")
        coherent(cache)
        assert [cache.get(key) for key in KEYS[1:]] == [None] * len(KEYS[1:])


class TestPauses:
    @both_transports
    def test_a_frozen_server(self, fresh_server, make, query):
        """Hits until the bound, errors within the time-out after it, and everything works again afterwards."""
        cache = make(fresh_server.url + query, **TIGHT)
        warmed(cache, cache)
        events = listen(cache, StateChanged)
        fresh_server.pause()
        frozen_at = time.monotonic()
        last_hit = None
        try:
            while time.monotonic() < frozen_at + BOUND + SLACK:
                began = time.monotonic()
                try:
                    entry = cache.get_entry(KEYS[0])
                except CacheUnavailable as error:
                    assert time.monotonic() - began < TIMEOUT + SLACK
                    assert not error.maybe_applied  # noqa: PT017
                    continue
                assert entry.tier == "local"
                assert entry.age_bound <= BOUND
                last_hit = began
                time.sleep(0.005)
            assert last_hit is not None
            assert last_hit - frozen_at <= BOUND
            until_state(cache, "disconnected")
            began = time.monotonic()
            with pytest.raises(CacheUnavailable):
                cache.set(KEYS[0], "new")
            assert time.monotonic() - began < TIMEOUT + SLACK
        finally:
            fresh_server.resume()
        coherent(cache)
        assert cache.get(KEYS[1]) == "old"
        cache.set(KEYS[0], "newer")
        assert cache.get(KEYS[0]) == "newer"
        states = [event.new for event in events]
        assert states[states.index("disconnected") - 1] == "suspect", events
        assert states[-1] == "coherent"

    @both_transports
    def test_a_process_that_was_stopped_past_the_bound(self, redis_server, make, namespace, processes, tmp_path, query):
        """P13: it wakes up with a horizon that has run out, and serves nothing that it held."""
        writer = make(redis_server.url)
        observed = Observed(writer, None)
        for key in KEYS[:5]:
            observed.write(key, "old")
        worker = watcher(processes, redis_server.url + query, namespace, tmp_path, max_staleness=BOUND)
        worker.pause()
        paused_at = time.monotonic()
        for key in KEYS[:5]:
            observed.write(key, "new")
        wait_until(lambda: time.monotonic() > paused_at + BOUND + 0.2, PATIENCE, "the bound has passed")
        worker.resume()
        after = finish_watcher(worker, tmp_path)
        assert_watched(observed, tmp_path, max_staleness=BOUND)
        assert after["stats"]["flushes"] <= 1, after["stats"]

    def test_a_reader_cut_by_the_output_buffer_limit(self, server_factory, make, namespace, processes, tmp_path):
        """I5: the server cuts a subscriber that does not read; what was in its buffers is lost."""
        server = server_factory(config={"client-output-buffer-limit": "pubsub 1mb 1mb 0"})
        writer = make(server.url)
        coherent(writer)
        observed = Observed(writer, None)
        for key in KEYS[:5]:
            observed.write(key, "old")
        worker = watcher(processes, server.url, namespace, tmp_path, max_staleness=AMPLE)
        name = f"coherent-cache:{worker.messages[0]['ready']}:subscriber"
        worker.pause()
        with server.client() as plain:

            def write_much_until_it_is_cut():
                writer.delete_many(f"{number}-{'x' * 1000}" for number in range(100))
                return all(client["name"] != name for client in plain.client_list())

            wait_until(write_much_until_it_is_cut, 60, "the server cuts the reader", interval=0.001)
        for key in KEYS[:5]:
            observed.write(key, "new")
        worker.resume()
        after = finish_watcher(worker, tmp_path)
        assert_watched(observed, tmp_path, max_staleness=AMPLE)
        assert after["stats"]["resyncs"] == 2, after["stats"]
        assert after["stats"]["flushes"] == 1, after["stats"]
        assert writer.stats().resyncs == 1, "those who read are not cut"

    @both_transports
    def test_a_replay_that_does_not_fit_into_the_output_buffer(self, server_factory, make, query):
        """Asked for again and again it would end each connection: the second resync goes without."""
        server = server_factory(config={"client-output-buffer-limit": "pubsub 300kb 300kb 0"})
        writer = make(server.url)
        with FaultProxy(server.url) as proxy:
            reader = warmed(make(proxy.url + query), writer)
            events = listen(reader, Resynced)
            proxy.refuse(where=SUBSCRIBERS, cut=True)
            until_state(reader, "suspect", "disconnected")
            for _ in range(6):
                writer.delete_many(f"{number}-{'x' * 1000}" for number in range(100))
            writer.set(KEYS[0], "new")
            proxy.heal()
            coherent(reader)
            assert [event.outcome for event in events] == ["flushed"], events
            assert reader.get(KEYS[0]) == "new"
            assert reader.warm(KEYS) == len(KEYS)
            # The time after that it is a replay again.
            proxy.refuse(where=SUBSCRIBERS, cut=True)
            until_state(reader, "suspect", "disconnected")
            writer.set(KEYS[0], "newer")
            proxy.heal()
            coherent(reader)
            assert events[-1].outcome == "replayed", events
            assert held(reader) == set(KEYS[1:])
            reader.close()


def watcher(processes, url, namespace, folder, *, max_staleness):
    """Start a process that reads the first five keys all the time; return it once it holds them."""
    options = {"namespace": namespace, "heartbeat": HEARTBEAT, "max_staleness": max_staleness}
    worker = processes.spawn("watch", index=1, url=url, options=options, keys=KEYS[:5], folder=str(folder))
    worker.wait_message(lambda message: "ready" in message)
    worker.wait_message(lambda message: message.get("round") == 20)
    return worker


def finish_watcher(worker, folder):
    """Let it read its keys for a while yet, and end."""
    rounds = max((message.get("round", 0) for message in worker.messages), default=0)
    worker.wait_message(lambda message: message.get("round", 0) >= rounds + 100)
    (folder / "stop").touch()
    return worker.result()


def assert_watched(observed, folder, *, max_staleness):
    writes, reads = load([folder / "history-1"])
    observed.reads = reads
    observed.writes += writes
    observed.assert_contract(max_staleness)
    newest = {write.key: write.seq for write in observed.writes}
    assert {read.key: read.seq for read in reads} == newest, "the last reads show the last writes"
    tiers = [read.tier for read in reads]
    assert tiers[0] == tiers[-1] == "local"
    assert "redis" in tiers


class TestPolicies:
    def test_bypass_asks_redis(self, redis_server, proxy, make):
        writer, reader = make(redis_server.url), make(proxy.url, on_disconnect="bypass", **TIGHT)
        warmed(reader, writer)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "disconnected")
        for number in range(3):
            writer.set(KEYS[0], number)
            entry = reader.get_entry(KEYS[0])
            assert (entry.value, entry.tier) == (number, "redis")
        assert reader.staleness_bound() == 0.0
        before = reader.stats()
        assert reader.get_many(KEYS[1:3]) == dict.fromkeys(KEYS[1:3], "old")
        reader.set("own", 1)
        assert reader.get("own") == 1
        after = reader.stats()
        assert after.hits == before.hits
        assert "own" not in held(reader)

    def test_serve_stale_has_a_limit(self, redis_server, proxy, make):
        limit = BOUND + 4.0
        writer = make(redis_server.url)
        reader = make(proxy.url, on_disconnect="serve_stale", stale_limit=limit, **TIGHT)
        warmed(reader, writer)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "disconnected")
        writer.set(KEYS[0], "new")
        assert reader.get(KEYS[0]) == "old"
        entry = reader.get_entry(KEYS[0])
        assert (entry.value, entry.tier) == ("old", "local")
        assert BOUND < entry.age_bound <= limit
        assert reader.get_many(KEYS[:2]) == {KEYS[0]: "old", KEYS[1]: "old"}
        reader.set(KEYS[1], "own")  # own writes are read, in any state
        assert reader.get(KEYS[1]) == "own"
        assert not reader.delete("never there")
        wait_until(lambda: reader.get(KEYS[0]) == "new", limit + SLACK, "the limit is reached")
        assert reader._runtime.instance.horizon_age(time.clock_gettime(time.CLOCK_BOOTTIME)) >= limit

    def test_fail_raises(self, redis_server, proxy, make):
        writer, reader = make(redis_server.url), make(proxy.url, on_disconnect="fail", **TIGHT)
        warmed(reader, writer)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        until_state(reader, "disconnected")
        reads = (
            lambda: reader.get(KEYS[0]),
            lambda: reader.get_entry("absent"),
            lambda: reader.get_many(KEYS[:2]),
            lambda: KEYS[0] in reader,
            lambda: reader[KEYS[0]],
        )
        for read in reads:
            with pytest.raises(NotCoherent) as caught:
                read()
            assert BOUND < caught.value.horizon_age < 60
        reader.set(KEYS[0], "new")  # writes go to Redis as always
        assert writer.get(KEYS[0]) == "new"
        proxy.heal()
        coherent(reader)
        assert reader.get(KEYS[0]) == "new"

    @pytest.mark.parametrize("policy", ["bypass", "serve_stale", "fail"])
    def test_before_the_first_connection_everybody_asks_redis(self, redis_server, proxy, make, policy):
        make(redis_server.url).set("a", 1)
        proxy.refuse(where=SUBSCRIBERS, cut=True)
        cache = make(proxy.url, on_disconnect=policy, **TIGHT)
        assert (cache.state, cache.get("a"), cache.state) == ("connecting", 1, "connecting")
        assert cache.get_entry("a").tier == "redis"
        assert not held(cache)
        until_state(cache, "disconnected")
        if policy == "fail":
            with pytest.raises(NotCoherent) as caught:
                cache.get("a")
            assert caught.value.horizon_age == float("inf")
        else:
            assert cache.get("a") == 1
        proxy.heal()
        coherent(cache)
        assert cache.get("a") == 1


class TestRedisAway:
    def test_reads_and_writes_fail_fast(self, fresh_server, make):
        cache = make(fresh_server.url, **TIGHT)
        warmed(cache, cache)
        fresh_server.kill()
        calls = (
            lambda: cache.get("absent"),
            lambda: cache.get_many(["absent", "absent too"]),
            lambda: cache.set(KEYS[0], "new"),
            lambda: cache.set_many({KEYS[0]: "new"}),
            lambda: cache.delete(KEYS[0]),
            lambda: cache.touch(KEYS[0], 5),
            lambda: cache.update(KEYS[0], lambda _: "new"),
            lambda: cache.invalidate_tags("tag"),
            cache.clear,
        )
        for call in calls:
            began = time.monotonic()
            with pytest.raises(CacheUnavailable) as caught:
                call()
            assert time.monotonic() - began < SLACK
            assert not caught.value.maybe_applied
        until_state(cache, "disconnected")
        with pytest.raises(CacheUnavailable):
            cache.get(KEYS[0])
        fresh_server.restart(keep_data=False)
        coherent(cache)
        assert cache.get_many(KEYS) == {}
        cache.set(KEYS[0], "newest")
        assert cache.get_entry(KEYS[0]).tier == "local"

    def test_a_refused_write_leaves_the_old_value(self, fresh_server, make):
        """I18: what Redis did not take is not shown as if it had."""
        cache = make(fresh_server.url)
        warmed(cache, cache)
        fresh_server.kill()
        with pytest.raises(CacheUnavailable):
            cache.set(KEYS[0], "new")
        with pytest.raises(CacheUnavailable):
            cache.delete(KEYS[1])
        assert [cache.get(key) for key in KEYS[:2]] == ["old", "old"]  # definitely not written: still true

    def test_connections_closed_while_idle_are_no_error(self, redis_server, make):
        cache = make(redis_server.url)
        coherent(cache)
        pool = cache._runtime._pool
        with redis_server.client() as plain:
            for number in range(3):
                idle = pool.acquire()
                pool.release(idle, sound=True)
                assert plain.client_kill_filter(_type="normal", skipme=True) > 0
                wait_until(lambda idle=idle: not idle.is_quiet(), PATIENCE, "the close has come")
                cache.set("a", number)
                assert cache.get("absent") is None

    def test_kill_in_the_middle_of_writes(self, server_factory, make):
        """Every acknowledged write is there, and none that was said not to have happened."""
        server = server_factory(durable=True)
        cache = make(server.url)
        coherent(cache)
        acknowledged, refused = {}, []

        def write(thread, kill):
            failures = number = 0
            while failures < 4:
                number += 1
                key = f"{kill}-{thread}-{number}"
                try:
                    cache.set(key, number, ttl=None)
                except CacheUnavailable as error:
                    failures += 1
                    if not error.maybe_applied:
                        refused.append(key)
                else:
                    acknowledged[key] = number

        for kill in range(3):
            before = len(acknowledged)
            threads = [threading.Thread(target=write, args=(thread, kill)) for thread in range(4)]
            for thread in threads:
                thread.start()
            wait_until(lambda before=before: len(acknowledged) > before + 100, PATIENCE, "the writers are busy")
            server.kill()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
            server.restart(keep_data=True)
        coherent(cache)
        assert len(refused) >= 12
        remote = make(server.url, local_enabled=False)
        assert remote.get_many(acknowledged) == acknowledged
        assert cache.get_many(acknowledged) == acknowledged
        assert remote.get_many(refused) == {}


class TestFailover:
    @both_transports
    def test_a_demoted_primary_proves_nothing(self, fresh_server, make, query):
        """A1: it keeps its connections and answers every PING, and so does its heartbeat."""
        cache = make(fresh_server.url + query, **TIGHT)
        warmed(cache, cache)
        with fresh_server.client() as plain:
            plain.replicaof("127.0.0.1", 1)  # nobody is there
            demoted_at = time.monotonic()
            while (entry := cache.get_entry(KEYS[0])).tier == "local":
                assert time.monotonic() - demoted_at < BOUND + HEARTBEAT + SLACK
                time.sleep(0.005)
            assert entry.value == "old"
            until_state(cache, "disconnected")
            with pytest.raises(CacheUnavailable) as caught:
                cache.set(KEYS[0], "new")
            assert not caught.value.maybe_applied
            assert cache.get(KEYS[0]) == "old"
            plain.replicaof("NO", "ONE")
        coherent(cache)
        cache.set(KEYS[0], "new")
        assert cache.get_entry(KEYS[0]).tier == "local"

    @pytest.mark.parametrize("writes", [0, 3, 5, 8])
    def test_to_a_replica_that_lagged(self, server_factory, make, writes):
        """A4, A5: the new primary hands out the same numbers again; what only the old one had is forgotten."""
        old, new = server_factory(), server_factory()
        with FaultProxy(old.url) as proxy:
            cache, peer = make(proxy.url), make(old.url)
            warmed(cache, peer)
            copy_data(old, new)
            for key in KEYS[:4]:
                peer.set(key, "lost")
            cache.set(KEYS[4], "lost")
            wait_until(lambda: not held(cache) & set(KEYS[:4]), PATIENCE, "the messages have come")
            assert cache.get_many(KEYS[:5]) == dict.fromkeys(KEYS[:5], "lost")
            assert held(cache) == set(KEYS)

            after = make(new.url)
            for key in KEYS[-writes:] if writes else []:
                after.set(key, "new")
            proxy.upstream = new.url
            proxy.cut()
            wait_until(lambda: connected_to(cache) == run_id(new), PATIENCE, "the instance follows")
            coherent(cache)
            expected = dict.fromkeys(KEYS, "old") | dict.fromkeys(KEYS[-writes:] if writes else [], "new")
            assert {key: cache.get(key) for key in KEYS} == expected
            after.set(KEYS[0], "newer")
            wait_until(lambda: cache.get(KEYS[0]) == "newer", PATIENCE, "invalidations come from the new primary")
            cache.close()

    def test_a_demoted_primary_forwards_another_history(self, server_factory, make):
        """P6: its numbers fit onto what was applied here, the writes do not: found by the simulator ("chain")."""
        old, new = server_factory(config=SYNC_AT_ONCE), server_factory(config=SYNC_AT_ONCE)
        if old.kind == "container":
            pytest.skip("containers do not see each other's loopback interface")
        reader, before = make(old.url, heartbeat=AMPLE / 4), make(old.url)
        warmed(reader, before)
        copy_data(old, new)
        before.set(KEYS[1], "lost")
        wait_until(lambda: KEYS[1] not in held(reader), PATIENCE, "the message has come")
        after = make(new.url)
        after.set(KEYS[0], "new")  # under the number of the write that is lost
        gaps = listen(reader, MessageGap)
        with old.client() as plain:
            plain.replicaof("127.0.0.1", new.port)
            wait_until(lambda: plain.info("replication")["master_link_status"] == "up", PATIENCE, "it follows")
            after.set(KEYS[2], "new")
            wait_until(lambda: gaps, PATIENCE, "the message has been forwarded, and is no continuation")
            assert gaps[0].expected == gaps[0].received, "by its number it would be one"
            plain.replicaof("NO", "ONE")
        coherent(reader)
        assert reader.get_many(KEYS[:3]) == {KEYS[0]: "new", KEYS[1]: "old", KEYS[2]: "new"}

    @both_transports
    def test_connections_to_the_old_primary_are_given_up(self, server_factory, make, query):
        """P16: it lives on and goes on answering those who still have a connection."""
        old, new = server_factory(), server_factory()
        with FaultProxy(old.url) as proxy:
            cache = make(proxy.url + query)
            warmed(cache, cache)
            copy_data(old, new)
            proxy.upstream = new.url
            proxy.cut(where=SUBSCRIBERS)
            wait_until(lambda: connected_to(cache) == run_id(new), PATIENCE, "the subscriber follows")
            coherent(cache)
            make(new.url).set(KEYS[0], "new")
            wait_until(lambda: cache.get(KEYS[0]) == "new", PATIENCE, "reads come from the new primary")
            assert cache.get_entry(KEYS[0]).tier == "local"
            cache.close()

    def test_answers_of_another_server_are_never_kept(self, server_factory, make):
        """P16: the subscriber is on one server, commands still reach the other one."""
        old, new = server_factory(), server_factory()
        with FaultProxy(old.url) as proxy:
            cache = make(proxy.url)
            warmed(cache, cache)
            copy_data(old, new)
            proxy.upstream = new.url
            proxy.cut(where=SUBSCRIBERS)
            wait_until(lambda: connected_to(cache) == run_id(new), PATIENCE, "the subscriber follows")
            coherent(cache)
            assert held(cache) == set(KEYS)
            proxy.upstream = old.url  # from here on for commands
            make(new.url).set(KEYS[0], "new")
            wait_until(lambda: KEYS[0] not in held(cache), PATIENCE, "the message has come")
            for _ in range(3):
                assert cache.get_entry(KEYS[0]).tier == "redis"
                assert KEYS[0] not in held(cache)
            cache.set(KEYS[1], "own")  # on the wrong server: the value held before has to go all the same
            assert KEYS[1] not in held(cache)
            assert cache.get(KEYS[1]) == "own"
            cache.close()


def connected_to(cache):
    """Run id of the server that the subscriber is synchronised with."""
    return cache._runtime.instance.shards[0].server


def copy_data(source, target):
    """Make the target what a replica of the source is at this moment."""
    with source.client() as old, target.client() as new:
        for key in old.scan_iter(count=1000):
            with suppress(TypeError):
                new.restore(key, max(0, old.pttl(key)), old.dump(key), replace=True)
