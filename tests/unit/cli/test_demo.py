"""The parts of the demo that judge: they must be able to find something."""

from __future__ import annotations

import secrets
import threading

import pytest

from coherent_cache import CacheUnavailable, CoherentCache
from coherent_cache.cli.demo import _summary
from coherent_cache.cli.demo_database import Database
from coherent_cache.cli.demo_view import describe, duration, several
from coherent_cache.cli.demo_worker import MAX_STALENESS, Plan, Sample, Tally, Worker, shared_clock


@pytest.fixture
def database(tmp_path):
    with Database.create(tmp_path / "items.db", 10) as database:
        yield database


@pytest.fixture
def cache():
    with CoherentCache(f"memory://demo-{secrets.token_hex(4)}", namespace="demo", local_enabled=False) as cache:
        yield cache


@pytest.fixture
def worker(cache, database, tmp_path):
    plan = Plan(
        number=1, url="", namespace="", instance_id="", database=str(tmp_path / "items.db"), items=10, seed=1, ttl=60.0
    )
    return Worker(plan, cache, database)


# -- the database ------------------------------------------------------------------------------------------------------


def test_a_change_makes_the_next_version(database):
    before = database.read(3)
    assert before["version"] == 1
    after = database.change(3)
    assert after["version"] == 2
    assert after["payload"] != before["payload"]
    assert database.read(3) == after
    assert database.read(4)["version"] == 1


def test_all_connections_see_the_same(database, tmp_path):
    with Database(tmp_path / "items.db") as other:
        changed = database.change(1)
        assert other.read(1) == changed
        other.note_published(1, 2, 10.0)
    assert database.outdated_at(1, 1) == 10.0


def test_the_first_newer_version_counts(database):
    assert database.outdated_at(1, 1) is None
    database.note_published(1, 4, 30.0)
    database.note_published(1, 3, 20.0)
    database.note_published(1, 3, 25.0)  # again: the first time counts
    database.note_published(2, 9, 5.0)
    assert database.outdated_at(1, 1) == 20.0
    assert database.outdated_at(1, 3) == 30.0
    assert database.outdated_at(1, 4) is None


# -- the judge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "started", "staleness", "stale"),
    [
        (2, 1000.0, 0.0, 0),  # the newest
        (1, 99.0, 0.0, 0),  # read before it was replaced
        (1, 100.0 + MAX_STALENESS / 2, MAX_STALENESS / 2, 0),
        (1, 100.0 + MAX_STALENESS, MAX_STALENESS, 0),
        (1, 100.5 + MAX_STALENESS, 0.5 + MAX_STALENESS, 1),
    ],
)
def test_a_read_is_judged_by_when_its_row_was_replaced(database, version, started, staleness, stale):
    database.note_published(1, 2, 100.0)
    tally = Tally()
    tally.check(Sample(1, version, started), database)
    assert (tally.checked, tally.stale, tally.worst) == (1, stale, pytest.approx(staleness))


def run_for(worker, reads):
    ending = threading.Event()

    def report():
        if worker.tally.reads >= reads:
            ending.set()

    worker.work(ending, report)


def test_an_honest_worker_has_nothing_to_hide(worker):
    run_for(worker, 100)
    assert worker.tally.reads >= 100
    assert worker.samples
    assert (worker.tally.stale, worker.tally.backward, worker.tally.unavailable) == (0, 0, 0)


def test_a_read_that_goes_backward_is_counted(worker, cache, database):
    worker._read(1)
    worker._change(1)
    worker._read(1)
    assert worker.tally.backward == 0
    cache.set("item:1", {"id": 1, "version": 1, "payload": "old"})
    worker._read(1)
    assert worker.tally.backward == 1


def test_a_worker_reads_at_least_what_it_published(worker, cache):
    worker._change(1)
    cache.set("item:1", {"id": 1, "version": 1, "payload": "old"})
    worker._read(1)
    assert worker.tally.backward == 1


# -- no stale row gets stuck -------------------------------------------------------------------------------------------


def test_a_fill_never_replaces_a_newer_row(worker, cache, database):
    """The classic race: the fill read the database before the change, and stores after it."""
    old = database.read(1)
    worker._change(1)
    worker._publish(old)
    assert cache.get("item:1")["version"] == 2


def test_a_fill_sees_a_change_between_its_reading_and_its_storing(worker, cache, database, monkeypatch):
    read, changed = database.read, []

    def read_then_somebody_changes(number):
        row = read(number)
        if not changed:
            changed.append(True)
            worker._change(number)
        return row

    monkeypatch.setattr(database, "read", read_then_somebody_changes)
    assert worker._fill(1)["version"] == 2
    assert cache.get("item:1")["version"] == 2


def test_a_fill_mends_what_it_stored_when_the_newer_row_was_lost_again(worker, cache, database, monkeypatch):
    read, changed = database.read, []

    def read_then_somebody_changes_and_redis_forgets(number):
        row = read(number)
        if not changed:
            changed.append(True)
            worker._change(number)
            cache.clear()
        return row

    monkeypatch.setattr(database, "read", read_then_somebody_changes_and_redis_forgets)
    assert worker._fill(1)["version"] == 2
    assert cache.get("item:1")["version"] == 2


def test_what_redis_did_not_take_is_published_later(worker, cache, database, monkeypatch):
    def away(*_, **__):
        raise CacheUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "update", away)
        patch.setattr(cache, "get", away)
        worker._change(1)
        worker._read(1)
    assert (worker.tally.writes, worker.tally.published, worker.tally.unavailable) == (1, 0, 1)
    assert database.outdated_at(1, 1) is None, "nobody was promised to see it yet"
    worker._publish_again(shared_clock() - 10)
    assert cache.get("item:1") is None, "it is not due yet"
    worker._publish_again(shared_clock() + 10)
    assert cache.get("item:1")["version"] == 2
    assert worker.tally.published == 1
    assert database.outdated_at(1, 1) is not None


# -- words -------------------------------------------------------------------------------------------------------------


def test_words():
    assert several(1, "row") == "1 row"
    assert several(1000, "row") == "1,000 rows"
    assert duration(0.0123) == "12.3 ms"
    assert duration(1.5) == "1.50 s"
    event = {"at": 1.0, "name": "message_gap", "shard": 0, "expected": 1, "received": 3}
    assert describe(event) == "message_gap: shard 0, expected 1, received 3"
    assert describe({"name": "resynced", "outcome": "replayed", "replayed": 1}) == "resynced: replayed 1 missed message"
    assert describe({"name": "resynced", "outcome": "new", "replayed": 0}) == "resynced: new"


def test_the_summary_of_a_demo_in_which_nothing_happened():
    report = {
        "reads": 0, "seconds": 1.0, "reads_per_second": 0.0, "reads_per_second_asked": 1, "hit_rate": 0.0, "writes": 0,
        "unavailable": 0, "propagation": {"samples": 0}, "faults": [], "checked": 0, "stale": 0, "backward": 0,
        "max_staleness": 1.0, "worst_staleness": 0.0, "problems": ["not one read was checked"],
    }  # fmt: skip
    assert list(_summary(report))[-1] == "VERDICT: NOT COHERENT: not one read was checked"
