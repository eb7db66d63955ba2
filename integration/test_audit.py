"""An audit finds what is outdated, and nothing else."""

from __future__ import annotations

import json
import random
import threading
import time
from contextlib import contextmanager

import pytest

from coherent_cache import CacheUnavailable, CoherentCache
from coherent_cache.auditor import ContinuousAudit
from coherent_cache.cli import main as cli
from coherent_cache.core.entries import make_entry
from coherent_cache.keys import shard_names
from coherent_cache.testing import Fleet
from integration.waiting import wait_until

PATIENCE = 20.0
OPTIONS = {"heartbeat": 0.1, "max_staleness": 3.0}  # who is disconnected for a moment serves nothing then


def read(cache, keys):
    for key in keys:
        cache.get(key)


def plant(cache, key, seq):
    """Put an entry of a version into the local tier, as no rule of the protocol would."""
    shard = cache._runtime.instance.shard_of(key.encode())
    with shard._lock:
        shard.tier.insert(key, make_entry("planted", seq, 100), 0.0)


def position(cache):
    return cache._runtime.instance.shards[0].position or 0


@pytest.fixture
def fleet(redis_server, namespace):
    with Fleet(2, redis_server.url, namespace=namespace, **OPTIONS) as fleet:
        yield fleet


@pytest.fixture
def auditor(redis_server, namespace):
    with CoherentCache(redis_server.url, namespace=namespace, local_enabled=False) as cache:
        yield cache


def test_a_fleet_at_rest_is_coherent(fleet, auditor):
    keys = [f"key-{number}" for number in range(1500)]
    auditor.set_many(dict.fromkeys(keys, 1))
    fleet.run(read, keys)

    report = auditor.audit(keys)
    assert (report.asked, report.answered, report.keys, report.checked) == (2, 2, 1500, 3000)
    assert (report.behind, report.beyond, report.undecided, report.not_served) == (0, 0, 0, 0)
    sampled = auditor.audit(sample=100)
    assert (sampled.checked, sampled.coherent) == (200, True)


@pytest.mark.slow
def test_an_entry_that_was_planted_behind_the_protocols_back_is_found(
    fleet, auditor, redis_server, namespace, capsys, monkeypatch
):
    old = auditor.set("planted", 1)
    auditor.set_many({"planted": 2, "sound": 1})
    ahead = auditor.set("ahead", 1)
    gone = auditor.set("deleted", 1)
    auditor.delete("deleted")
    fleet.run(read, ["planted", "sound"])
    wait_until(lambda: min(fleet.run(position)) > gone.seq, PATIENCE, "no message comes any more")
    fleet[1].run(plant, "planted", old.seq)
    fleet[0].run(plant, "deleted", gone.seq)
    fleet[0].run(plant, "ahead", ahead.seq + 1000)
    fleet[0].run(plant, "never written", 1)

    report = auditor.audit()
    assert not report.coherent
    assert {(each.key, each.held, each.doubt) for each in report.offenders} == {
        ("planted", old.seq, "outdated"), ("deleted", gone.seq, "outdated"), ("ahead", ahead.seq + 1000, "ahead"),
    }  # fmt: skip
    assert (report.gone, report.beyond, report.stale) == (1, 3, {0.1: 3, 1.0: 3, 10.0: 3})
    (planted,) = [each for each in report.offenders if each.key == "planted"]
    assert planted.instance == fleet[1].run(name)
    assert planted.least == old.seq + 1
    assert planted.stale_for >= report.bound > OPTIONS["max_staleness"]
    assert [each["seq"] for each in planted.recent if each["certain"]] == [old.seq + 1, old.seq]

    arguments = ("--url", redis_server.url, "--namespace", namespace)
    monkeypatch.setattr("coherent_cache.auditor.CONSISTENCY_AT", (0.1, 1.0))
    assert cli.main(["audit", "--key", "planted", *arguments]) == 1
    out = capsys.readouterr().out
    assert f"{planted.instance} holds 'planted' at version {old.seq}" in out
    assert "NOT COHERENT: 1 entries" in out
    assert cli.main(["audit", "--key", "sound", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["checked"] == 2


def name(cache):
    return cache.instance_id


@contextmanager
def running(function, threads):
    stopping = threading.Event()
    workers = [threading.Thread(target=function, args=(stopping, number)) for number in range(threads)]
    for each in workers:
        each.start()
    try:
        yield
    finally:
        stopping.set()
        for each in workers:
            each.join()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_fleet_under_load_gives_no_false_alarm(redis_server, namespace, shards):
    """Writes, deletions, touches, tags, clears, expiry, evictions by Redis and by the local tier, other programs."""
    options = {"namespace": namespace, "heartbeat": 0.1, "max_staleness": 30.0, "shards": shards, "max_entries": 150}
    caches = [CoherentCache(redis_server.url, **options) for _ in range(3)]
    keys = [f"key-{number}" for number in range(200)]
    names = [shard_names(namespace, shard, 0) for shard in range(shards)]

    def work(stopping, number):
        rng, cache = random.Random(number), caches[number % 3]
        with redis_server.client() as plain:
            while not stopping.is_set():
                key, draw = rng.choice(keys), rng.random()
                if draw < 0.3:
                    cache.set(key, draw, ttl=rng.choice([0.05, 0.5, 60]), tags=rng.choice([(), ("t",)]))
                elif draw < 0.35:
                    cache.delete(key)
                elif draw < 0.4:
                    cache.touch(key, 30)
                elif draw < 0.405:
                    cache.invalidate_tags("t")
                elif draw < 0.407:
                    cache.clear()
                elif draw < 0.43:
                    plain.delete(*[each.value(key.encode()) for each in names])
                else:
                    cache.get(key)

    try:
        for cache in caches:
            assert cache.wait_ready(PATIENCE)
        with running(work, 6):
            wait_until(lambda: caches[0].audit(sample=1000).checked, PATIENCE, "something is held")
            reports = [caches[0].audit(keys if number % 2 else None, sample=1000) for number in range(4)]
        assert all(report.coherent for report in reports)
        assert sum(report.checked for report in reports) > 100
        assert all(report.stale[10.0] == 0 for report in reports)
    finally:
        for cache in caches:
            cache.close()


def test_an_audit_goes_on_over_a_lost_history(redis_server, fleet, auditor):
    auditor.set("a", 1)
    fleet.run(read, ["a"])
    redis_server.flush()

    report = auditor.audit(["a"])
    assert report.coherent


def test_who_is_suspended_is_not_waited_for_long(fleet, auditor):
    auditor.set("a", 1)
    fleet.run(read, ["a"])
    fleet[0].pause()
    try:
        report = auditor.audit(["a"])
        assert (report.asked, report.answered, report.coherent) == (2, 1, True)
    finally:
        fleet[0].resume()


def test_continuous(fleet, auditor):
    auditor.set("a", 1)
    fleet.run(read, ["a"])
    with ContinuousAudit(auditor, every=0.01) as audits:
        wait_until(lambda: audits.runs >= 2, PATIENCE, "two audits have run")
        assert audits.numbers()["checked"] == 2
        assert audits.numbers()["consistency_1s"] == 1.0
    runs = audits.runs
    time.sleep(0.05)
    assert audits.runs == runs


def test_continuous_without_redis_counts_failures():
    with CoherentCache("redis://127.0.0.1:1", namespace="n", local_enabled=False) as cache:
        with pytest.raises(CacheUnavailable):
            cache.audit()
        with ContinuousAudit(cache, every=0.01) as audits:
            wait_until(lambda: audits.failures >= 2, PATIENCE, "it goes on")
            assert (audits.last, audits.numbers()["runs"]) == (None, 0)


def test_on_the_command_line_again_and_again(fleet, auditor, redis_server, namespace, capsys, tmp_path):
    auditor.set("a", 1)
    fleet.run(read, ["a"])
    keys = tmp_path / "keys"
    keys.write_text("a\n\nb\n")
    arguments = ["audit", "--url", redis_server.url, "--namespace", namespace]

    assert cli.main([*arguments, "--keys-file", str(keys), "--every", "0", "--count", "2", "--json"]) == 0
    assert [json.loads(line)["checked"] for line in capsys.readouterr().out.splitlines()] == [2, 2]
    assert cli.main(arguments) == 0
    assert "2 of 2 instances answered; 2 entries of 1 keys" in capsys.readouterr().out
    assert cli.main([*arguments, "--key", "nobody has it"]) == 0
    assert "nothing was compared" in capsys.readouterr().out
    assert cli.main([*arguments[:-1], f"{namespace}-none"]) == 1
    assert "nobody to ask" in capsys.readouterr().err
