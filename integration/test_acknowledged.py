"""Acknowledged writes (P12) with real processes: confirmed by all or by the bound; then nobody serves what is older."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from coherent_cache import CoherentCache
from coherent_cache.core.acknowledging import CLOCK_MARGIN
from coherent_cache.keys import shard_names
from integration.waiting import wait_until

BOUND = 2.0
OPTIONS = {"heartbeat": 0.1, "max_staleness": BOUND}
LONG = 60.0  # seconds that a write may wait: longer than any machine stands still
PATIENCE = 30.0
SLOW_MACHINE = 3.0  # times the bound that a write may take here, though nobody but this process is slow


class Fleet:
    """Readers in processes of their own, and a writer in this one, settled: receipts are proof."""

    def __init__(self, processes, server, namespace, count=3, **options):
        self.options = {"namespace": namespace, **OPTIONS, **options}
        self.names = shard_names(namespace, 0, 0)
        self.plain = server.client()
        self.readers = [
            processes.spawn("read_on", index=index, count=count, url=server.url, key="k", options=self.options)
            for index in range(count)
        ]
        for reader in self.readers:
            reader.wait_message(lambda message: "ready" in message)
        self.cache = CoherentCache(server.url, **self.options)
        assert self.cache.wait_ready(PATIENCE)
        self.settle()

    def close(self):
        self.cache.close()
        self.plain.close()

    def settle(self):
        """Write until all readers confirm by answers."""
        wait_until(lambda: self.told(self.write(0)) == ("answers", self.running), PATIENCE, "all confirm by answers")

    @property
    def running(self):
        return sum(reader.running for reader in self.readers)

    def write(self, value):
        result = self.cache.set("k", value, wait=LONG)
        assert result.acknowledged
        return result

    @staticmethod
    def told(result):
        assert result.confirmed <= result.members
        return result.by, result.confirmed

    def read_by_all(self, value):
        for reader in self.readers:
            if reader.running:
                reader.wait_message(lambda message: message.get("value") == value, timeout=PATIENCE)

    def members(self):
        return {name for name in self.plain.hkeys(self.names.members) if name}


def first_read_after(reader, written):
    """Return what the first read gave that began after a moment of a clock that all processes share."""
    return reader.wait_message(lambda message: message.get("at", 0) > written, timeout=PATIENCE)["value"]


@pytest.fixture
def fleet(processes, redis_server, namespace):
    with closing(Fleet(processes, redis_server, namespace)) as fleet:
        yield fleet


@pytest.fixture(params=["", "?protocol=2"], ids=["resp3", "marks"])
def transport(request):
    return request.param


def test_all_processes_confirm(fleet):
    results = [fleet.write(value) for value in range(1, 101)]
    assert {result.members for result in results} == {3}
    # One may be by the bound, if the machine stood still for so long.
    assert sum(fleet.told(result) == ("answers", 3) for result in results) >= 95
    fleet.read_by_all(100)


def test_receipts_come_far_earlier_than_the_bound(fleet):
    waits = sorted(fleet.write(value).seconds for value in range(1, 51))
    assert waits[len(waits) // 2] < BOUND / 20


def test_when_it_returns_every_process_reads_the_new_value(fleet):
    for value in range(1, 30):
        fleet.write(value)
        written = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for reader in fleet.readers:
            assert first_read_after(reader, written) == value


def test_a_stopped_process_is_waited_for_no_longer_than_the_bound_and_wakes_up_blind(fleet):
    fleet.write(1)
    fleet.read_by_all(1)
    paused = fleet.readers[0]
    paused.pause()
    try:
        result = fleet.write(2)
        written = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    finally:
        paused.resume()
    assert (result.by, result.members, result.confirmed) == ("bound", 3, 2)
    assert BOUND <= result.seconds <= BOUND * (1 + CLOCK_MARGIN) * SLOW_MACHINE
    assert first_read_after(paused, written) == 2, "it serves nothing stale when it wakes"
    fleet.settle()


def test_a_caller_that_waits_for_less_is_told_that_it_is_not_certain(fleet):
    fleet.write(1)
    paused = fleet.readers[0]
    paused.pause()
    try:
        result = fleet.cache.set("k", 2, wait=BOUND / 10)
    finally:
        paused.resume()
    assert (result.by, result.acknowledged, result.members) == ("timeout", False, 3)
    assert result.confirmed < 3


def test_a_process_that_was_killed_is_waited_for_until_it_counts_as_silent(fleet):
    fleet.write(1)
    fleet.readers[0].kill()
    result = fleet.write(2)
    assert (result.by, result.members, result.confirmed) == ("bound", 3, 2)
    fleet.settle()
    assert fleet.write(3).members == 2


def test_a_process_that_ends_leaves_the_registry(fleet):
    assert len(fleet.members()) == 4
    fleet.readers[0].terminate()
    wait_until(lambda: len(fleet.members()) == 3, PATIENCE, "it has left")
    assert fleet.told(fleet.write(1)) == ("answers", 2)


def test_a_lost_registry_makes_writes_wait_and_is_begun_again(fleet):
    fleet.plain.delete(fleet.names.members)
    result = fleet.write(1)
    assert result.seconds > BOUND / 2
    fleet.settle()
    assert len(fleet.members()) == 4


def test_flushall_makes_writes_wait_and_everybody_begins_anew(fleet):
    fleet.write(1)
    fleet.read_by_all(1)
    fleet.plain.flushall()
    result = fleet.write(2)
    assert result.seconds > BOUND / 2
    fleet.read_by_all(2)
    fleet.settle()
    assert len(fleet.members()) == 4


def test_a_registry_of_another_type_is_begun_again(fleet):
    fleet.plain.set(fleet.names.members, "something else")
    assert fleet.write(1).acknowledged
    fleet.settle()


def test_the_registry_is_kept_when_memory_is_full(fleet):
    fleet.plain.config_set("maxmemory", "1")
    try:
        entered = fleet.plain.hgetall(fleet.names.members)
        fleet.plain.delete(fleet.names.members)
        wait_until(lambda: len(fleet.members()) == len(entered) - 1, PATIENCE, "all have entered again")
        assert fleet.cache.delete("k", wait=LONG).acknowledged
    finally:
        fleet.plain.config_set("maxmemory", "0")


def test_members_that_are_gone_for_long_are_forgotten(fleet):
    fleet.plain.hset(fleet.names.members, b"gone:1", b"2000:1")
    assert fleet.told(fleet.write(1)) == ("answers", 3)
    assert b"gone:1" not in fleet.members()


def test_both_transports_confirm(processes, redis_server, namespace, transport):
    with closing(Fleet(processes, redis_server, namespace, count=1)) as fleet:
        other = CoherentCache(redis_server.url + transport, **fleet.options)
        with other:
            assert other.wait_ready(PATIENCE)
            assert other.get("k") == 0
            wait_until(lambda: fleet.told(fleet.write(1)) == ("answers", 2), PATIENCE, "both confirm")
            wait_until(lambda: fleet.told(other.set("k", 2, wait=LONG)) == ("answers", 2), PATIENCE, "both to it")


def test_a_member_that_may_not_publish_stays_coherent_and_confirms_nothing(redis_server, namespace):
    options = {"namespace": namespace, **OPTIONS}
    with redis_server.client() as plain:
        plain.acl_setuser(
            "mute", enabled=True, passwords=["+mute"], keys=["*"], channels=["*"], categories=["+@all"],
            commands=["-publish"],
        )  # fmt: skip
        try:
            url = redis_server.url.replace("redis://", "redis://mute:mute@")
            with CoherentCache(url, **options) as mute, CoherentCache(redis_server.url, **options) as writer:
                assert mute.wait_ready(PATIENCE)
                assert writer.wait_ready(PATIENCE)
                for value in range(3):
                    result = writer.set("k", value, wait=LONG)
                    assert (result.by, result.members, result.confirmed) == ("bound", 1, 0)
                    assert mute.get("k") == value
                assert mute.stats().resyncs < 3, "no connection was given up for a receipt"
                assert mute.state == "coherent"
        finally:
            plain.acl_deluser("mute")
