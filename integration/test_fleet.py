"""Instances report themselves and answer questions: on both transports, as little as a user may, and never for long."""

from __future__ import annotations

import pytest

from coherent_cache import CacheUnavailable, CoherentCache, NamespaceMismatch
from coherent_cache.core.questions import Ask, holdings_of_body
from coherent_cache.keys import shard_names
from coherent_cache.testing import Fleet
from integration.waiting import wait_until

PATIENCE = 20.0
HEARTBEAT = 0.1

both_transports = pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])


@pytest.fixture
def make(namespace):
    """Give a maker of caches, all of one namespace, ready at once; they are closed after the test."""
    made = []

    def make_cache(url, **options):
        made.append(
            CoherentCache(url, **{"namespace": namespace, "heartbeat": HEARTBEAT, "max_staleness": 10.0} | options)
        )
        assert made[-1].wait_ready(PATIENCE)
        return made[-1]

    yield make_cache
    for cache in made:
        cache.close()


def reported(cache, *others):
    """Wait until just these instances report themselves; return the status."""
    names = {cache.instance_id, *(other.instance_id for other in others)}

    def found():
        status = cache.fleet()
        return status if {each.instance for each in status.instances} == names else None

    return wait_until(found, PATIENCE, "these instances report themselves, and no others")


@both_transports
def test_instances_report_themselves_until_they_close(redis_server, make, query):
    url = redis_server.url + query
    one, two = make(url), make(url, shards=1)
    one.set("a", 1)
    assert two.get("a") == 1

    status = wait_until(
        lambda: (found := reported(one, two)).totals.entries == 2 and found, PATIENCE, "both report their entry"
    )
    assert {each.state for each in status.instances} == {"coherent"}
    assert status.silent == ()
    assert status.totals.hits == sum(cache.stats().hits for cache in (one, two))

    two.close()
    assert [each.instance for each in one.fleet().instances] == [one.instance_id]


@both_transports
def test_who_does_not_want_to_is_silent(redis_server, make, query):
    url = redis_server.url + query
    loud, mute = make(url), make(url, report=False)

    status = reported(loud)
    assert [member.partition(":")[0] for member in status.silent] == [mute.instance_id]
    with loud._runtime.inquiry() as inquiry:
        assert inquiry.ask(Ask.STATUS, timeout=PATIENCE).asked == 1


@pytest.mark.parametrize("shards", [1, 3])
@both_transports
def test_questions_are_answered_by_all(redis_server, make, query, shards):
    url = redis_server.url + query
    caches = [make(url, shards=shards) for _ in range(3)]
    written = caches[0].set_many({f"key-{number}": number for number in range(20)})
    for cache in caches:
        cache.warm(written)

    with caches[0]._runtime.inquiry() as inquiry:
        members = {cache._runtime.instance.member for cache in caches}
        for kind, options in ((Ask.SAMPLE, {"most": 100}), (Ask.VERSIONS, {"keys": list(written)})):
            found = inquiry.ask(kind, timeout=PATIENCE, **options)
            assert {answer.member for answer in found.answers} == members
            for answer in found.answers:
                held = holdings_of_body(answer.body)
                assert {entry.key: entry.seq for entry in held.entries} == {k: v.seq for k, v in written.items()}
        (one,) = inquiry.ask(Ask.STATUS, timeout=PATIENCE, to=[caches[1]._runtime.instance.member]).answers
        assert one.member == caches[1]._runtime.instance.member
        assert inquiry.ask(Ask.STATUS, timeout=0.3, to=["nobody"]).answers == ()


@both_transports
def test_whatever_comes_as_a_question_is_counted_and_nothing_else(redis_server, namespace, make, query):
    cache = make(redis_server.url + query)
    cache.set("a", 1)
    before = cache.stats()
    with redis_server.client() as plain:
        for data in (b"", b"\x00", b"\x01", b"\x01\xc1", b"\x01\x90", b"x" * 100_000):
            assert plain.publish(shard_names(namespace, 0, 0).questions, data) == 1
    wait_until(lambda: cache.stats().errors == before.errors + 6, PATIENCE, "all of them are counted")

    assert cache.stats().resyncs == before.resyncs
    assert cache.get_entry("a").tier == "local"


def test_a_user_who_may_use_the_namespace_alone_reports_and_answers(redis_server, namespace, make):
    with redis_server.client() as plain:
        pattern = f"cc:{{{namespace}/*"
        plain.acl_setuser(
            "worker", enabled=True, passwords=["+secret"], keys=[pattern], channels=[pattern],
            categories=["+@all", "-@admin", "-@dangerous"], commands=["+info"],
        )  # fmt: skip
        try:
            url = redis_server.url.replace("redis://", "redis://worker:secret@", 1)
            one, two = make(url), make(url)
            reported(one, two)
            with one._runtime.inquiry() as inquiry:
                assert len(inquiry.ask(Ask.STATUS, timeout=PATIENCE).answers) == 2
        finally:
            plain.acl_deluser("worker")


def test_what_is_reported_is_no_value(redis_server, namespace, make):
    cache = make(redis_server.url)
    cache.set("a", 1)
    reported(cache)
    cache.clear()

    assert cache.get("a") is None
    assert reported(cache).totals.instances == 1
    with redis_server.client() as plain:
        names = shard_names(namespace, 0, 0)
        (key,) = plain.keys(names.reports + b"*")
        assert 0 < plain.pttl(key) <= 1000
        cache.close()
        wait_until(lambda: not plain.exists(key), PATIENCE, "the report is gone")


def test_a_full_memory_costs_the_report_and_nothing_else(fresh_server, make):
    cache = make(fresh_server.url)
    cache.set("a", 1)
    reported(cache)
    with fresh_server.client() as plain:
        plain.config_set("maxmemory", 1)
        wait_until(lambda: cache.fleet().instances == (), PATIENCE, "the report is gone")
        assert (cache.state, cache.get_entry("a").tier) == ("coherent", "local")
        assert len(cache.fleet().silent) == 1
        plain.config_set("maxmemory", 0)
    reported(cache)


def test_an_instance_that_is_killed_disappears(redis_server, namespace):
    options = {"namespace": namespace, "heartbeat": 0.2, "max_staleness": 1.0}
    with (
        Fleet(2, redis_server.url, **options) as fleet,
        CoherentCache(redis_server.url, namespace=namespace, local_enabled=False) as onlooker,
    ):
        wait_until(lambda: onlooker.fleet().totals.instances == 2, PATIENCE, "both report themselves")
        fleet[0].kill()
        wait_until(lambda: onlooker.fleet().totals.instances == 1, PATIENCE, "the killed one is gone")
        assert onlooker.fleet().instances[0].pid == fleet[1].pid
        wait_until(lambda: onlooker.fleet().silent == (), PATIENCE, "nor is it missed any more")


def test_looking_on_needs_redis_and_the_right_settings(redis_server, namespace, make):
    cache = make(redis_server.url, shards=2)
    cache.set("a", 1)
    remote = {"namespace": namespace, "local_enabled": False}
    with CoherentCache(redis_server.url, shards=3, **remote) as other, pytest.raises(NamespaceMismatch):
        other.fleet()
    with CoherentCache("redis://127.0.0.1:1", **remote) as away, pytest.raises(CacheUnavailable):
        away.fleet()
    with CoherentCache(redis_server.url, **remote | {"namespace": f"{namespace}-none"}) as nowhere:
        assert not nowhere.fleet().exists
