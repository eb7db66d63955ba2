"""A key explained: what Redis has, what each instance has, and why the next read does what it does."""

from __future__ import annotations

import asyncio
import json

import pytest

from coherent_cache import AsyncCoherentCache, CoherentCache, InvalidKey
from coherent_cache.cli import main as cli
from coherent_cache.core.explaining import Next
from coherent_cache.core.stored import Presence
from coherent_cache.keys import shard_names
from integration.waiting import wait_until

PATIENCE = 20.0


@pytest.fixture
def make(redis_server, namespace):
    made = []

    def make_cache(**options):
        defaults = {"namespace": namespace, "heartbeat": 0.1, "max_staleness": 10.0}
        made.append(CoherentCache(redis_server.url, **defaults | options))
        assert made[-1].wait_ready(PATIENCE)
        return made[-1]

    yield make_cache
    for cache in made:
        cache.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_key_from_its_birth_to_its_end(make, shards):
    one, two = make(shards=shards, instance_id="one"), make(shards=shards, instance_id="two")

    def look():
        found = one.explain("k")
        return found, {each.instance: each for each in found.instances}

    found, on = look()
    assert found.stored.presence is Presence.ABSENT
    assert {each.next for each in on.values()} == {Next.REDIS}

    version = one.set("k", 1, tags=("t",))
    wait_until(lambda: two.stats().invalidations_received, PATIENCE, "the message comes")
    found, on = look()
    assert (found.stored.presence, found.stored.seq) == (Presence.VALUE, version.seq)
    assert (on["one"].next, on["one"].held.tags, on["two"].next) == (Next.LOCAL, ("t",), Next.REDIS)
    assert "that is what Redis has" in on["one"].why
    assert [(each["kind"], each["origin"]) for each in found.log] == [("set", "one")]

    assert two.get("k") == 1
    assert look()[1]["two"].next is Next.LOCAL
    one.invalidate_tags("t")
    wait_until(lambda: look()[1]["two"].held is None, PATIENCE, "the tag's message comes")
    found, on = look()
    assert found.stored.presence is Presence.DEAD
    assert "perhaps since a tag" in on["two"].why
    two.clear()
    assert "was cleared at version" in one.explain("k").in_redis


def test_a_load_under_way_and_a_refresh(make):
    cache, seen = make(), []

    def load():
        seen.append(cache.explain("k"))
        return 1

    cache.get_or_set("k", load)
    assert seen[0].stored.presence is Presence.LEASE
    assert seen[0].instances[0].loading


def test_foreign_bytes_and_who_does_not_answer(make, redis_server, namespace):
    cache = make()
    with redis_server.client() as plain:
        plain.set(shard_names(namespace, 0, 0).value(b"k"), b"other", px=60_000)
        plain.lpush(shard_names(namespace, 0, 0).value(b"list"), b"other")
    found = cache.explain("k")
    assert found.stored.presence is Presence.FOREIGN
    assert 0 < found.stored.expires_in <= 60
    assert cache.explain("list").stored.presence is Presence.FOREIGN
    with pytest.raises(InvalidKey):
        cache.explain("")


def test_on_the_command_line(make, redis_server, namespace, capsys):
    cache = make(instance_id="one")
    cache.set("k", 1, tags=("t",))
    arguments = ["--url", redis_server.url, "--namespace", namespace]

    assert cli.main(["explain", "k", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Redis has version 1, for " in out
    assert "one (coherent): the next read is served from there: it holds version 1" in out
    assert "  tags: t" in out
    assert cli.main(["explain", "k", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["instances"][0]["held"]["version"] == 1

    assert cli.main(["explain", "k", *arguments[:-1], f"{namespace}-none"]) == 1
    assert "nothing is there" in capsys.readouterr().err
    assert cli.main(["explain", "", *arguments]) == 2
    assert cli.main(["explain", "k", "--url", "redis://127.0.0.1:1", "--namespace", "n"]) == 3


def test_on_an_event_loop(redis_server, namespace):
    async def main():
        async with AsyncCoherentCache(redis_server.url, namespace=namespace, instance_id="one") as cache:
            assert await cache.wait_ready(PATIENCE)
            version = await cache.set("k", 1)
            return version, await cache.explain("k")

    version, found = asyncio.run(main())
    assert found.stored.seq == version.seq
    assert [(each.instance, each.next) for each in found.instances] == [("one", Next.LOCAL)]
