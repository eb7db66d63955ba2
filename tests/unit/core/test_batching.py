"""A batch is one version and one message per shard, is told of key by key, and leaves nothing behind when it fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from coherent_cache.core import batching
from coherent_cache.core.operations import MISSING
from coherent_cache.core.requests import MAX_BYTES_PER_SCRIPT, MAX_KEYS_PER_SCRIPT
from coherent_cache.errors import CacheUnavailable, ConfigError, InvalidKey, SerializationError, ValueTooLarge
from coherent_cache.keys import shard_of
from coherent_cache.serializers import make_codec
from coherent_cache.wire import Kind, decode_message
from tests.unit.core.model import ABSENT


@pytest.fixture
def world(new_world):
    return new_world()


def messages(world, shard=0):
    return [decode_message(data) for _, data in world.server.shards[shard].log]


def test_a_batch_is_one_version_and_one_message(world):
    a, b = world
    a.store({"x": 1, "y": 2}).run()
    a.settle()
    items = []
    a.batch({"x": MISSING, "new": "n", "y": 3, "nothing": MISSING}, items).run()
    assert [(m.kind, m.seq, m.names) for m in messages(world)[1:]] == [(Kind.BATCH, 2, ("new", "y", "x", "nothing"))]
    assert {item.version.seq for item in items} == {2}
    assert {item.key: (item.action, item.existed, item.error) for item in items} == {
        "x": ("delete", True, None),
        "new": ("set", False, None),
        "y": ("set", False, None),
        "nothing": ("delete", False, None),
    }
    b.settle()
    assert [b.get(key) for key in ("x", "y", "new", "nothing")] == [ABSENT, 3, "n", ABSENT]


def test_what_a_batch_stores_is_kept_locally_and_what_it_deletes_goes(world):
    a, _ = world
    a.store({"x": 1, "y": 2}).run()
    a.settle()
    a.batch({"x": MISSING, "y": [3]}, ttl=5.0, tags=["t"]).run()
    assert (a.hit("x"), a.hit("y")) == (ABSENT, [3])
    assert a.held("y").tags == ("t",)
    world.clock.now += 5.0
    assert a.hit("y") is ABSENT
    assert a.tokens() == 0


@pytest.mark.parametrize(("ttl", "local_ttl", "seconds"), [(None, None, 1e9), (None, 2.0, 2.0), (1.0, 2.0, 1.0)])
def test_the_local_tier_keeps_it_no_longer_than_allowed(new_world, ttl, local_ttl, seconds):
    world = new_world(local_ttl=local_ttl)
    a, _ = world
    a.batch({"k": 1}, ttl=ttl).run()
    assert a.held("k").expires_at >= world.clock.now + seconds
    assert not a.held("k").is_expired(world.clock.now + seconds - 0.001)


def test_a_peers_message_during_a_batch_wins(world):
    a, b = world
    flight = a.batch({"k": "mine", "gone": MISSING}).execute()
    b.store({"k": "theirs", "gone": "there"}).run()
    a.settle()
    flight.finish()
    assert (a.hit("k"), a.hit("gone")) == (ABSENT, ABSENT)
    assert (a.get("k"), a.get("gone")) == ("theirs", "there")


def test_nothing_of_the_callers_own_is_shared(new_world):
    world = new_world(copy_values=False)
    a, _ = world
    mine = ["a"]
    a.batch({"k": mine}).run()
    mine.append("b")
    assert a.hit("k") == ["a"]


def test_without_a_local_tier_nothing_is_kept(new_world):
    world = new_world(local_enabled=False)
    a, b = world
    a.batch({"k": 1, "gone": MISSING}).run()
    assert a.held("k") is None
    assert b.get("k") == 1


@pytest.mark.parametrize(
    ("key", "value", "options", "error"),
    [
        ("", 1, {}, InvalidKey),
        (5, 1, {}, InvalidKey),
        ([], 1, {}, InvalidKey),
        ("k", object(), {}, SerializationError),
        ("k", "x" * 100, {}, ValueTooLarge),
        ("k", 1, {"tags": "t"}, ConfigError),
    ],
)
def test_bad_input_is_refused_when_it_is_collected(new_world, key, value, options, error):
    world = new_world(max_value_bytes=50)
    with pytest.raises(error):
        batching.collect(world.members[0].instance, key, value, **{"ttl": None, "tags": ()} | options)


def test_a_value_that_cannot_be_decoded_again_is_refused_when_it_is_collected(new_world):
    world = new_world(copy_values=False)
    a, _ = world
    a.instance.codec = make_codec(SimpleNamespace(dumps=lambda _: b"x", loads=lambda data: data.index(b"y")))
    with pytest.raises(SerializationError):
        batching.collect(a.instance, "k", 1, ttl=None, tags=())


# --- parts ---


def test_a_large_batch_goes_in_parts_of_few_keys(world):
    a, _ = world
    keys = [f"k{number}" for number in range(2 * MAX_KEYS_PER_SCRIPT + 1)]
    items = []
    flight = a.batch({key: MISSING if number % 2 else number for number, key in enumerate(keys)}, items)
    sizes = []
    while not flight.done:
        (request,) = flight.requests
        sizes.append((len(request.keys), len(request.ttls_ms)))
        flight.finish()
    # What is stored comes first.
    assert sizes == [(MAX_KEYS_PER_SCRIPT, MAX_KEYS_PER_SCRIPT), (MAX_KEYS_PER_SCRIPT, 1), (1, 0)]
    assert {item.key for item in items} == set(keys)
    assert [item.version.seq for item in items] == sorted(item.version.seq for item in items)


def test_a_large_batch_goes_in_parts_of_few_bytes(new_world):
    world = new_world(max_value_bytes=MAX_BYTES_PER_SCRIPT)
    a, _ = world
    half = "x" * (MAX_BYTES_PER_SCRIPT // 2)
    flight = a.batch({"a": half, "b": half, "gone": MISSING})
    assert [request.keys for request in flight.requests] == [("a",)]
    flight.finish()
    assert [request.keys for request in flight.requests] == [("b", "gone")]
    flight.finish()
    assert flight.done


def test_each_shard_gets_its_own_part(new_world):
    world = new_world(shards=3)
    a, b = world
    keys = [f"k{number}" for number in range(30)]
    a.batch(dict.fromkeys(keys, 1) | {"k7": MISSING}).run()
    for shard in range(3):
        (message,) = messages(world, shard)
        assert set(message.names) == {key for key in keys if shard_of(key.encode(), 3) == shard}
    b.settle()
    assert [b.get(key) for key in ("k6", "k7", "k8")] == [1, ABSENT, 1]


# --- failures ---


def outcome(items):
    return {item.key: (item.version and item.version.seq, item.error and item.error.maybe_applied) for item in items}


@pytest.mark.parametrize("maybe_applied", [False, True])
def test_a_part_that_redis_refuses_is_told_key_by_key(world, maybe_applied):
    a, _ = world
    keys = [f"k{number}" for number in range(3 * MAX_KEYS_PER_SCRIPT)]
    items = []
    flight = a.batch(dict.fromkeys(keys, 1), items)
    flight.finish()
    error = CacheUnavailable("refused", maybe_applied=maybe_applied)
    with pytest.raises(CacheUnavailable) as caught:
        flight.fail(error)

    assert caught.value is error
    assert error.applied_keys == tuple(keys[:MAX_KEYS_PER_SCRIPT])
    assert outcome(items) == {
        **dict.fromkeys(keys[:MAX_KEYS_PER_SCRIPT], (1, None)),
        **dict.fromkeys(keys[MAX_KEYS_PER_SCRIPT : 2 * MAX_KEYS_PER_SCRIPT], (None, maybe_applied)),
        **dict.fromkeys(keys[2 * MAX_KEYS_PER_SCRIPT :], (None, False)),
    }
    assert "not sent" in str(items[-1].error)
    assert "not sent" not in str(items[MAX_KEYS_PER_SCRIPT].error)
    assert len(messages(world)) == 1
    assert a.tokens() == 0


def test_a_part_whose_outcome_is_unknown_is_distrusted(world):
    a, _ = world
    a.store({"x": "old", "y": "old"}).run()
    a.settle()
    with pytest.raises(CacheUnavailable):
        a.batch({"x": "new", "y": MISSING}).execute().fail(CacheUnavailable("lost", maybe_applied=True))
    assert (a.hit("x"), a.hit("y")) == (ABSENT, ABSENT)


def test_a_part_that_is_known_to_be_refused_leaves_the_local_tier_alone(world):
    a, _ = world
    a.store({"x": "old", "y": "old"}).run()
    a.settle()
    with pytest.raises(CacheUnavailable):
        a.batch({"x": "new", "y": MISSING}).fail(CacheUnavailable("OOM"))
    assert (a.hit("x"), a.hit("y")) == ("old", "old")


def test_an_interrupted_batch_tells_what_it_knows(world):
    a, _ = world
    keys = [f"k{number}" for number in range(MAX_KEYS_PER_SCRIPT + 1)]
    items = []
    flight = a.batch(dict.fromkeys(keys, 1), items)
    flight.finish()
    with pytest.raises(KeyboardInterrupt):
        flight.fail(KeyboardInterrupt())
    assert [item.key for item in items] == keys[:MAX_KEYS_PER_SCRIPT]
    assert a.tokens() == 0
