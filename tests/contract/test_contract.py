"""What every front does, as a user sees it. One Redis (fakeredis) per test, no sleeps."""

from __future__ import annotations

import datetime as dt
import decimal
import threading
import time
import uuid

import pytest

from coherent_cache import (
    MISSING,
    Acknowledgement,
    CacheStats,
    CacheUnavailable,
    ConfigError,
    ForeignValue,
    InvalidKey,
    SerializationError,
    UnstableArgument,
    ValueTooLarge,
    Version,
    VersionConflict,
)


def eventually(predicate, description, timeout=5.0):
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, description
        threading.Event().wait(0.005)


# -- reading and writing -----------------------------------------------------------------------------------------------


def test_absent_key_gives_the_default(cache):
    assert cache.get("k") is None
    assert cache.get("k", 7) == 7
    assert cache.get_entry("k") is None
    assert "k" not in cache


def test_set_returns_growing_versions_of_one_epoch(cache):
    first, second = cache.set("a", 1), cache.set("b", 2)
    assert isinstance(first, Version)
    assert first < second
    assert first.epoch == second.epoch


def test_own_write_is_read_from_the_local_tier(cache):
    version = cache.set("k", "v")
    entry = cache.get_entry("k")
    assert (entry.value, entry.version, entry.tier) == ("v", version, "local")
    assert cache.stats().misses == 0


def test_peer_reads_from_redis_then_locally(make):
    writer, reader = make(), make()
    version = writer.set("k", "v", ttl=100)
    first = reader.get_entry("k")
    assert (first.value, first.version, first.tier) == ("v", version, "redis")
    assert 99 < first.expires_in <= 100
    assert reader.get_entry("k").tier == "local"


def test_peer_write_evicts(make):
    writer, reader = make(), make()
    writer.set("k", 1)
    assert reader.get("k") == 1
    writer.set("k", 2)
    eventually(lambda: reader.get("k") == 2, "the peer's write arrives")


def test_peer_delete_evicts(make):
    writer, reader = make(), make()
    writer.set("k", 1)
    assert reader.get("k") == 1
    assert writer.delete("k") is True
    assert writer.delete("k") is False
    eventually(lambda: reader.get("k") is None, "the peer's delete arrives")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**70), 1.5, "text", b"bytes", [1, [2]], (1, (2,)), {"a": {1: None}}, {1, 2}, frozenset("ab"),
        dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), dt.date(2026, 1, 2), dt.timedelta(microseconds=1),
        decimal.Decimal("1.10"), uuid.UUID(int=5),
    ],
)  # fmt: skip
def test_values_keep_value_and_type_in_both_tiers(make, value):
    writer, reader = make(), make()
    writer.set("k", value)
    for cache in (writer, reader, reader):
        got = cache.get("k", MISSING)
        assert got == value
        assert type(got) is type(value)


def test_none_is_a_value(make):
    writer, reader = make(), make()
    writer.set("k", None)
    assert "k" in reader
    assert reader.get("k", 1) is None


def test_get_many_returns_what_is_there_once(make):
    writer, reader = make(), make()
    writer.set_many({"a": 1, "b": 2})
    reader.get("a")
    assert reader.get_many(["a", "b", "c", "b"]) == {"a": 1, "b": 2}
    stats = reader.stats()
    assert (stats.hits, stats.misses, stats.redis_hits) == (1, 3, 2)
    assert reader.get_many([]) == {}


def test_set_many_gives_one_version_per_message(cache):
    versions = cache.set_many({"a": 1, "b": 2})
    assert versions["a"] == versions["b"]
    assert cache.set_many({}) == {}
    assert cache.get_many(["a", "b"]) == {"a": 1, "b": 2}


def test_bulk_over_a_script_s_limit(make):
    writer, reader = make(), make()
    items = {f"k{number}": number for number in range(2500)}
    assert len(set(writer.set_many(items).values())) == 3
    assert reader.get_many(items) == items
    assert writer.delete_many([*items, "nobody"]) == 2500
    eventually(lambda: reader.get_many(items) == {}, "all are gone")


def test_touch_changes_the_time_to_live_and_the_version(make):
    writer, reader = make(), make()
    version = writer.set("k", 1, ttl=1000)
    reader.get("k")
    assert writer.touch("k", 10) is True
    eventually(lambda: reader.get_entry("k").version > version, "the touch arrives")
    assert reader.get_entry("k").expires_in <= 10
    assert writer.touch("nobody", 10) is False
    assert writer.touch("k", None) is True
    assert writer.get_entry("k").expires_in is None


def test_expired_values_are_absent(make):
    cache, peer = make(), make()
    cache.set("k", 1, ttl=0.05)
    peer.get("k")
    eventually(lambda: cache.get("k") is None and peer.get("k") is None, "it expires in both tiers")


def test_local_ttl_bounds_the_local_tier_alone(make):
    cache = make(local_ttl=0.05)
    cache.set("k", 1, ttl=100)
    assert cache.get_entry("k").expires_in <= 0.05
    eventually(lambda: cache.get_entry("k").tier == "redis", "the local entry expires, the value does not")


# -- compare and set ---------------------------------------------------------------------------------------------------


def test_if_version_stores_only_over_that_version(make):
    cache, peer = make(), make()
    version = cache.set("k", 1)
    newer = peer.set("k", 2, if_version=version)
    with pytest.raises(VersionConflict) as caught:
        cache.set("k", 3, if_version=version)
    assert (caught.value.key, caught.value.expected, caught.value.current) == ("k", version, newer)
    assert cache.get("k") == 2, "the refusal told that the local value is outdated"


def test_if_version_missing_stores_only_if_absent(cache):
    version = cache.set("k", 1, if_version=MISSING)
    with pytest.raises(VersionConflict) as caught:
        cache.set("k", 2, if_version=MISSING)
    assert (caught.value.expected, caught.value.current) == (None, version)
    cache.delete("k")
    cache.set("k", 3, if_version=MISSING)
    assert cache.get("k") == 3


def test_if_version_of_an_absent_key_conflicts(cache):
    version = cache.set("k", 1)
    cache.delete("k")
    with pytest.raises(VersionConflict) as caught:
        cache.set("k", 2, if_version=version)
    assert caught.value.current is None


def test_delete_if_version(cache):
    version = cache.set("k", 1)
    newer = cache.set("k", 2)
    with pytest.raises(VersionConflict):
        cache.delete("k", if_version=version)
    assert cache.delete("k", if_version=newer) is True


def test_update_is_atomic_under_contention(make):
    caches = [make(), make()]

    def count(cache):
        for _ in range(50):
            cache.update("n", lambda present: present + 1, default=0)

    threads = [threading.Thread(target=count, args=(cache,)) for cache in caches * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caches[0].get("n", max_staleness=0) == 200  # the last message of the other one may still be on its way


def test_update_returns_the_new_value_and_deletes_on_missing(cache):
    assert cache.update("k", lambda present: (present, 1)) == (None, 1)
    assert cache.update("k", lambda _: MISSING) is MISSING
    assert "k" not in cache
    assert cache.update("k", lambda _: MISSING) is MISSING


def test_update_lets_the_function_s_error_through(cache):
    cache.set("k", 1)
    with pytest.raises(ZeroDivisionError):
        cache.update("k", lambda present: present / 0)
    assert cache.get("k") == 1


# -- floors ------------------------------------------------------------------------------------------------------------


def test_clear_reaches_everybody_and_does_not_reach_later_writes(make):
    cache, peer = make(), make()
    cache.set_many({"a": 1, "b": 2})
    peer.get_many(["a", "b"])
    version = cache.clear()
    assert cache.get("a") is None
    eventually(lambda: peer.get_many(["a", "b"]) == {}, "the clear arrives")
    assert peer.set("a", 3) > version
    assert cache.get("a") == 3
    assert make().get("b") is None, "an instance that did not hear the clear agrees"


def test_tags_reach_those_that_carry_one(make):
    cache, peer = make(), make()
    cache.set("a", 1, tags=["x", "y"])
    cache.set("b", 2, tags=("y",))
    cache.set("c", 3)
    assert peer.get_many(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}
    cache.invalidate_tags("x")
    assert cache.get_many(["a", "b", "c"]) == {"b": 2, "c": 3}
    eventually(lambda: peer.get("a") is None, "the invalidation arrives")
    assert make().get_many(["a", "b", "c"]) == {"b": 2, "c": 3}
    cache.set("a", 4, tags=["x"])
    assert make().get("a") == 4


# -- as a mapping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front", ["sync"], indirect=True)
def test_mapping_access(cache):
    cache["k"] = 1
    assert cache["k"] == 1
    assert "k" in cache
    del cache["k"]
    with pytest.raises(KeyError):
        cache["k"]
    with pytest.raises(KeyError):
        del cache["k"]


# -- the local tier ----------------------------------------------------------------------------------------------------


def test_copies_isolate_callers(make):
    cache, peer = make(), make()
    value = {"a": [1]}
    cache.set("k", value)
    value["a"].append("changed by the writer after set")
    for reader in (cache, peer, peer):
        got = reader.get("k")
        assert got == {"a": [1]}
        got["a"].append("changed by a reader")
    assert cache.get_many(["k"])["k"] is not cache.get("k")


def test_copy_values_false_shares_one_object_but_never_the_writer_s(make):
    cache = make(copy_values=False)
    value = {"a": [1]}
    cache.set("k", value)
    value["a"].append(2)
    assert cache.get("k") == {"a": [1]}
    assert cache.get("k") is cache.get("k")


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "random"])
def test_limits_hold_for_every_policy(make, policy):
    cache = make(policy=policy, max_entries=10)
    for number in range(50):
        cache.set(f"k{number}", number)
        cache.get(f"k{number % 7}")
    stats = cache.stats()
    assert stats.size == 10
    assert stats.evictions == stats.removals["size"] > 0


def test_lru_keeps_what_is_used(make):
    cache = make(max_entries=2)
    cache.set("a", 1)
    cache.set("b", 2)
    cache.get("a")
    cache.set("c", 3)
    assert [cache.get_entry(key).tier for key in ("a", "c", "b")] == ["local", "local", "redis"]


def test_max_bytes_bounds_the_estimate(make):
    cache = make(max_bytes=50_000)
    for number in range(100):
        cache.set(f"k{number}", "x" * 1000)
    assert 0 < cache.stats().bytes <= 50_000


def test_warm_loads_and_counts(make):
    writer, reader = make(), make()
    writer.set_many({"a": 1, "b": 2})
    assert reader.warm(["a", "b", "c"]) == 2
    assert reader.get_entry("a").tier == "local"


def test_clear_local_empties_this_instance_alone(make):
    cache, peer = make(), make()
    cache.set_many({"a": 1, "b": 2})
    peer.get_many(["a", "b"])
    assert cache.clear_local() == 2
    assert peer.get_entry("a").tier == "local"
    assert cache.get_entry("a").tier == "redis"


def test_without_a_local_tier_it_is_a_plain_remote_cache(make):
    cache = make(local_enabled=False)
    version = cache.set("k", {"a": 1})
    entry = cache.get_entry("k")
    assert (entry.value, entry.version, entry.tier) == ({"a": 1}, version, "redis")
    assert cache.get_many(["k"]) == {"k": {"a": 1}}
    assert cache.warm(["k"]) == 0
    stats = cache.stats()
    assert (stats.enabled, stats.size, stats.hits) == (False, 0, 0)
    assert (cache.state, cache.staleness_bound()) == ("coherent", 0.0)


def test_several_shards(make):
    cache, peer = make(shards=4), make(shards=4)
    items = {f"k{number}": number for number in range(100)}
    cache.set_many(items)
    assert peer.get_many(items) == items
    assert {peer.get_entry(key).tier for key in items} == {"local"}
    cache.clear()
    eventually(lambda: peer.get_many(items) == {}, "the clear reaches all shards")


# -- what is known about it --------------------------------------------------------------------------------------------


def test_stats_count(make):
    cache, peer = make(), make()
    cache.set("k", 1)
    for _ in range(3):
        peer.get("k")
    peer.get("nobody")
    stats = peer.stats()
    assert isinstance(stats, CacheStats)
    assert (stats.hits, stats.misses, stats.redis_hits, stats.total_requests) == (2, 2, 1, 4)
    assert stats.hit_rate == 0.5
    assert stats.as_dict()["hits"] == 2
    assert (stats.enabled, stats.size, stats.max_entries, stats.state) == (True, 1, 10_000, "coherent")
    eventually(lambda: peer.stats().invalidations_received == 1, "the set's message arrives")


def test_state_and_bound(cache):
    assert cache.state == "coherent"
    assert 0 <= cache.staleness_bound() <= 2.0


def test_events_reach_callbacks_until_they_are_taken_off(make):
    cache, peer = make(), make()
    seen = []
    stop = cache.on_event(seen.append)
    peer.set("k", 1)
    eventually(lambda: any(event.name == "invalidation" for event in seen), "the event comes")
    (event,) = (event for event in seen if event.name == "invalidation")
    assert (event.kind, event.names, event.origin) == ("set", ("k",), peer.instance_id)
    stop()
    del seen[:]
    peer.set("k", 2)
    eventually(lambda: cache.stats().invalidations_received == 2, "the second message comes")
    assert not seen


def test_a_callback_that_raises_harms_nobody(make):
    cache, peer = make(), make()
    cache.on_event(lambda _: 1 / 0)
    peer.set("k", 1)
    eventually(lambda: cache.stats().invalidations_received == 1, "the message is applied all the same")
    assert cache.state == "coherent"


def test_instance_id_is_shown(make):
    cache = make(instance_id="worker-1")
    assert cache.instance_id == "worker-1"
    assert "contract" in repr(cache)


def test_close_is_final_and_idempotent(cache):
    cache.set("k", 1)
    cache.close()
    cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.get("k")
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.set("k", 1)
    assert "closed" in repr(cache)


def test_context_manager_closes(make):
    with make() as cache:
        cache.set("k", 1)
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.get("k")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, 1, b"k", None, [], "\ud800"])
def test_bad_keys_are_refused_everywhere(cache, key):
    operations = [
        lambda: cache.get(key),
        lambda: cache.get_entry(key),
        lambda: cache.get_many(["fine", key]),
        lambda: cache.set(key, 1),
        lambda: cache.delete(key),
        lambda: cache.delete_many(["fine", key]),
        lambda: cache.touch(key, 1),
        lambda: cache.update(key, lambda _: 1),
        lambda: cache.warm([key]),
        lambda: key in cache,
        lambda: cache[key],
    ]
    if isinstance(key, str):
        operations.append(lambda: cache.set_many({"fine": 1, key: 1}))
    for operation in operations:
        with pytest.raises(InvalidKey):
            operation()
    assert cache.get_many(["fine"]) == {}


def test_the_longest_key_is_fine(make):
    writer, reader = make(), make()
    key = "é" * 512
    writer.set(key, 1)
    assert reader.get(key) == 1


@pytest.mark.parametrize("value", [object(), bytearray(b"x"), {"a": {object()}}, "\ud800", lambda: 1])
def test_unserialisable_values_are_refused_before_anything_is_sent(cache, value):
    version = cache.set("k", 1)
    with pytest.raises(SerializationError, match="k"):
        cache.set("k", value)
    with pytest.raises(SerializationError):
        cache.set_many({"fine": 1, "k": value})
    assert cache.get_entry("k").version == version
    assert "fine" not in cache


def test_oversized_values_are_refused(make):
    cache = make(max_value_bytes=100)
    cache.set("k", "x" * 90)
    with pytest.raises(ValueTooLarge) as caught:
        cache.set("k", "x" * 101)
    assert (caught.value.key, caught.value.limit) == ("k", 100)
    assert cache.get("k") == "x" * 90


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "1", True])
def test_bad_ttls_are_refused(cache, ttl):
    with pytest.raises(ConfigError, match="ttl"):
        cache.set("k", 1, ttl=ttl)
    with pytest.raises(ConfigError, match="ttl"):
        cache.touch("k", ttl)
    assert "k" not in cache


@pytest.mark.parametrize("tags", ["x", [1], [""], ["x" * 256], 5])
def test_bad_tags_are_refused(cache, tags):
    with pytest.raises(ConfigError, match="tag"):
        cache.set("k", 1, tags=tags)
    with pytest.raises(ConfigError):
        cache.invalidate_tags()


@pytest.mark.parametrize("keys", ["text", b"bytes", 5])
def test_one_key_where_several_are_wanted(cache, keys):
    for operation in (cache.get_many, cache.delete_many, cache.warm):
        with pytest.raises(ConfigError, match="keys"):
            operation(keys)
    with pytest.raises(ConfigError, match="mapping"):
        cache.set_many([("a", 1)])


def test_bad_if_version(cache):
    with pytest.raises(ConfigError, match="if_version"):
        cache.set("k", 1, if_version=5)


def test_foreign_values_raise_or_miss(make):
    cache, lenient = make(), make(on_foreign="miss")
    cache.set("k", 1)
    connection = cache._runtime._pool.acquire()
    name = cache._runtime._io._scripts.names[0].value(b"k")
    for raw in (b"somebody else's", b"\xc1\x01damaged", b"\xc1"):
        command = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(raw), raw)
        assert connection.exchange(command, 1) == [b"OK"]
        cache.clear_local()
        with pytest.raises(ForeignValue, match="'k'") as caught:
            cache.get("k")
        assert raw.decode("latin-1") not in str(caught.value)
        with pytest.raises(ForeignValue):
            cache.get_many(["k", "other"])
        with pytest.raises(ForeignValue):
            cache.set("k", 2, if_version=MISSING)
        assert lenient.get("k", "none") == "none"
    cache._runtime._pool.release(connection, sound=True)
    cache.set("k", 3)
    assert lenient.get("k") == 3


def test_another_serializer_s_values(make):
    packed, texts = make(), make(serializer="json")
    packed.set("k", {"a": 1})
    assert texts.get("k") == {"a": 1}
    texts.set("k", {"a": 2})
    eventually(lambda: packed.get("k") == {"a": 2}, "msgpack reads json")
    with pytest.warns(UserWarning, match="pickle"):
        pickled = make(serializer="pickle")
    pickled.set("k", {"a": 3})
    eventually(lambda: _refused(packed) is not None, "the message arrives")
    assert "pickle" in _refused(packed), "pickle is never unpickled uninvited"


def _refused(cache):
    try:
        cache.get("k")
    except SerializationError as error:
        return str(error)
    return None


# -- compression and schema --------------------------------------------------------------------------------------------

LARGE = {"text": "again and again " * 500, "numbers": list(range(300))}


def stored(cache, key):
    """What Redis holds under a key."""
    connection = cache._runtime._pool.acquire()
    name = cache._runtime._io._scripts.names[0].value(key.encode())
    (data,) = connection.exchange(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name), 1)
    cache._runtime._pool.release(connection, sound=True)
    return data


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_large_values_are_compressed_in_redis_and_read_by_all(make, serializer):
    writer, plain = make(compress="zlib", serializer=serializer), make()
    writer.set_many({"large": LARGE, "small": [1, 2]}, tags=["t"])
    assert len(stored(writer, "large")) < 1500 < len(str(LARGE))
    for cache in (writer, plain, make(serializer="json"), make(compress="zlib", local_enabled=False)):
        assert cache.get_many(["large", "small"]) == {"large": LARGE, "small": [1, 2]}
        assert cache.get("large") == LARGE
    assert plain.get_entry("large").tier == "local"
    plain.set("large", LARGE)
    assert len(stored(plain, "large")) > 8000
    eventually(lambda: writer.get_entry("large").version > writer.get_entry("small").version, "the message arrives")
    assert writer.get("large") == LARGE


def test_what_compression_is_not_worth_is_stored_as_it_is(make):
    cache = make(compress="zlib", compress_above=100)
    for payload in (b"x" * 98, bytes(range(256))):  # with its head not above the bound; without any pattern
        cache.set("k", payload)
        assert payload in stored(cache, "k")
    cache.set("k", b"x" * 99)
    assert b"x" * 99 not in stored(cache, "k")
    assert cache.touch("k", 60) is True
    cache.clear_local()
    assert cache.get("k") == b"x" * 99


def test_the_limit_of_a_value_is_that_of_what_it_is_uncompressed(make):
    writer, reader = make(compress="zlib"), make(max_value_bytes=1000)
    writer.set("k", "x" * 5000)
    with pytest.raises(SerializationError, match="max_value_bytes") as caught:
        reader.get("k")
    assert caught.value.key == "k"
    with pytest.raises(ValueTooLarge):
        make(compress="zlib", max_value_bytes=1000).set("k", "x" * 5000)


def test_values_of_another_schema_are_absent(make):
    old, new = make(), make(schema=3)
    first = old.set("k", "old", tags=["t"])
    assert new.get("k") is None
    assert new.get_entry("k") is None
    assert "k" not in new
    assert new.get_many(["k"]) == {}
    assert new.touch("k", 60) is False
    with pytest.raises(VersionConflict):
        new.set("k", "new", if_version=first)
    version = new.set("k", "new", if_version=MISSING)
    eventually(lambda: old.get("k") is None, "the message arrives")
    assert new.get_entry("k").version == version
    new.clear_local()
    assert new.get_entry("k").version == version
    assert make(schema=3).get("k") == "new"
    assert make(schema=4).get("k") is None


def test_a_write_replaces_the_value_of_another_schema(make):
    old, new = make(schema=2), make(schema=3)
    old.set_many(dict.fromkeys("abcd", "old"))
    assert new.delete("a") is False, "it was absent"
    assert new.update("b", lambda value: (value, "new")) == (None, "new")
    assert new.set("c", "new") > old.get_entry("d").version
    assert new.delete_many(["c", "d"]) == 1
    eventually(lambda: old.get_many(list("abcd")) == {}, "the messages arrive")


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_writes_everything_at_its_end(make):
    writer, reader = make(), make()
    writer.set_many({"a": 1, "b": 2})
    assert reader.get_many(["a", "b"]) == {"a": 1, "b": 2}
    with writer.batch() as batch:
        batch.set("a", 10, ttl=100, tags=["t"])
        batch.set("c", [3])
        batch.delete("b")
        batch.delete("nobody")
        assert len(batch) == 4
        assert batch.result.items == ()
        assert writer.get("a") == 1, "nothing is sent before the end"
    assert {item.key: (item.action, item.existed) for item in batch.result.items} == {
        "a": ("set", False),
        "c": ("set", False),
        "b": ("delete", True),
        "nobody": ("delete", False),
    }
    assert batch.result.failed == ()
    (version,) = set(batch.result.versions.values())
    assert writer.get_entry("a").version == version
    assert 99 < writer.get_entry("a").expires_in <= 100
    eventually(lambda: reader.get_many(["a", "b", "c"]) == {"a": 10, "c": [3]}, "the message arrives")
    reader.invalidate_tags("t")
    eventually(lambda: "a" not in writer, "the tag was stored")


def test_an_exception_in_a_batch_sends_nothing(cache):
    cache.set("a", 1)
    batch = cache.batch()

    def fail():
        with batch:
            batch.set("a", 2)
            batch.delete("b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert batch.result.items == ()
    cache.clear_local()
    assert cache.get("a") == 1


def test_the_last_write_to_a_key_counts(cache):
    value = [1]
    with cache.batch() as batch:
        batch.set("a", "first")
        batch.delete("a")
        batch.set("b", 1)
        batch.delete("b")
        batch.set("a", value)
        value.append(2)
    assert cache.get_many(["a", "b"]) == {"a": [1]}
    assert [(item.key, item.action) for item in batch.result.items] == [("a", "set"), ("b", "delete")]


def test_bad_input_to_a_batch_is_refused_at_once_and_the_rest_goes_on(cache):
    with cache.batch() as batch:
        batch.set("good", 1)
        for key, value, options, error in (
            ("", 1, {}, InvalidKey),
            (5, 1, {}, InvalidKey),
            ("k", object(), {}, SerializationError),
            ("k", 1, {"ttl": 0}, ConfigError),
            ("k", 1, {"tags": "t"}, ConfigError),
        ):
            with pytest.raises(error):
                batch.set(key, value, **options)
        with pytest.raises(InvalidKey):
            batch.delete("")
    assert list(batch.result.versions) == ["good"]


def test_a_batch_is_used_once_inside_its_block(cache):
    batch = cache.batch()
    with pytest.raises(ConfigError, match="with block"):
        batch.set("a", 1)
    with batch:
        pass
    assert batch.result.items == ()
    with pytest.raises(ConfigError, match="with block"):
        batch.delete("a")
    with pytest.raises(ConfigError, match="another"):
        batch.__enter__()


def test_a_batch_over_several_shards(make):
    writer, reader = make(shards=4), make(shards=4)
    writer.set("gone", 1)
    with writer.batch() as batch:
        for number in range(2500):
            batch.set(f"k{number}", number)
        batch.delete("gone")
    assert len(batch.result.versions) == 2501
    assert len(reader.get_many([f"k{number}" for number in range(2500)])) == 2500
    assert reader.get("gone") is None


def test_a_batch_that_cannot_be_sent_tells_of_each_key(make):
    cache = make()
    cache.close()
    batch = cache.batch().__enter__()
    batch.set("a", 1)
    batch.delete("b")
    with pytest.raises(CacheUnavailable) as caught:
        batch.__exit__(None, None, None)
    assert {item.key: item.error for item in batch.result.failed} == {"a": caught.value, "b": caught.value}
    assert batch.result.versions == {}


# -- cached functions --------------------------------------------------------------------------------------------------

SOURCE = {}


def looked_up(product, city="Bonn"):
    SOURCE.setdefault("calls", []).append((product, city))
    return SOURCE.get(product)


@pytest.fixture(autouse=True)
def source():
    SOURCE.clear()
    yield SOURCE
    SOURCE.clear()


def test_a_cached_function_is_called_once_in_the_fleet(make, source):
    here, there = (make().cached(ttl=100, tags=["products", "product:{product}"])(looked_up) for _ in range(2))
    source[7] = {"price": 1}
    assert here(7) == there(product=7, city="Bonn") == here(7) == {"price": 1}
    assert here(8) is there(8) is None, "None is a value"
    assert source["calls"] == [(7, "Bonn"), (8, "Bonn")]
    assert here.key(7) == there.key(7) == f'{__name__}.looked_up(product=7,city="Bonn")'
    assert here.uncached(9) is None


def test_a_cached_function_is_invalidated_by_its_arguments_and_its_tags(make, source):
    cache, peer = make(), make()
    here, there = (each.cached(tags=["product:{product}"])(looked_up) for each in (cache, peer))
    for change in (lambda: there.invalidate(7), lambda: peer.invalidate_tags("product:7"), peer.clear):
        source[7] = "old"
        assert here(7) == there(7) == "old"
        source[7] = "new"
        change()
        eventually(lambda: here(7) == "new", "the message arrives")
        there.invalidate(7)
        eventually(lambda: cache.get(here.key(7)) is None, "the message arrives")
    assert there.invalidate(7) is False


def test_a_refresh_stores_what_the_function_returns_now(make, source):
    cache, peer = make(), make()
    here, there = (each.cached(ttl=100, tags=["t"])(looked_up) for each in (cache, peer))
    source[7] = "old"
    assert here.refresh(7) == there(7) == "old"
    source[7] = "new"
    assert here(7) == "old"
    assert here.refresh(7) == here(7) == "new"
    eventually(lambda: there(7) == "new", "the message arrives")
    assert len(source["calls"]) == 2
    assert 99 < cache.get_entry(here.key(7)).expires_in <= 100
    peer.invalidate_tags("t")
    eventually(lambda: here.key(7) not in cache, "the tag was stored")


@pytest.mark.parametrize("present", [True, False])
def test_a_refresh_that_overlaps_an_invalidation_stores_nothing_old(make, source, present):
    cache, peer = make(), make()

    def read_slowly(product):
        source["reads"] += 1
        seen = source[product]
        if source["reads"] == 1:
            source[product] = "new"
            peer.delete("slow:7")
        return seen

    slow = cache.cached(key="slow:{product}")(read_slowly)
    if present:
        cache.set("slow:7", "older")
    source.update({7: "old", "reads": 0})
    assert slow.refresh(7) in ("old", "new")
    assert peer.get("slow:7") in (None, "new")
    eventually(lambda: slow(7) == "new", "the message arrives")


def test_what_a_cached_function_raises_is_not_stored(cache, source):
    cached = cache.cached(key="k")(lambda: source["missing"])
    for _ in range(2):
        with pytest.raises(KeyError):
            cached()
    with pytest.raises(KeyError):
        cached.refresh()
    source["missing"] = 1
    assert cached() == 1
    del source["missing"]
    with pytest.raises(KeyError):
        cached.refresh()
    assert cached() == 1, "what was there stays"


def test_options_of_a_cached_function_are_checked_when_it_is_decorated(cache):
    for options, says in (
        ({"ttl": 0}, "ttl"),
        ({"jitter": 2}, "jitter"),
        ({"hard_timeout": -1}, "hard_timeout"),
        ({"key": "{price}"}, "no parameter"),
    ):
        with pytest.raises(ConfigError, match=says):
            cache.cached(**options)(looked_up)
    with pytest.raises(TypeError):
        cache.cached(tll=5)
    with pytest.raises(UnstableArgument, match="'product'"):
        cache.cached()(looked_up)(object())


# -- loads of compressed values and other schemas ----------------------------------------------------------------------


def test_what_is_loaded_is_compressed_as_what_is_set(make):
    cache, peer = make(compress="zlib"), make()
    assert cache.get_or_set("k", lambda: LARGE) == LARGE
    assert len(stored(cache, "k")) < 1500
    assert peer.get_or_set("k", lambda: 0) == peer.get("k") == LARGE
    assert cache.get_or_set_many(["k", "l"], lambda keys: dict.fromkeys(keys, LARGE)) == {"k": LARGE, "l": LARGE}
    assert len(stored(cache, "l")) < 1500


def test_what_another_schema_has_loaded_is_loaded_again(make):
    old, new = make(), make(schema=3)
    assert old.get_or_set("k", lambda: "old") == "old"
    assert new.get_or_set("k", lambda: "new") == new.get_or_set("k", lambda: "again") == "new"
    assert make(schema=3).get_or_set("k", lambda: "again") == "new"
    assert new.get_or_set("nothing", lambda: MISSING, negative_ttl=100, default=1) == 1
    assert make(schema=3).get_or_set("nothing", lambda: 0 / 0, negative_ttl=100, default=2) == 2
    eventually(lambda: old.get_or_set("k", lambda: "old again") == "old again", "the message arrives")


# -- acknowledged writes -----------------------------------------------------------------------------------------------

SETTLED = {"max_staleness": 0.3, "heartbeat": 0.05}
"""So that the time in which a new registry proves nothing is soon over."""

WRITES = {
    "set": lambda cache, **wait: cache.set("k", 2, **wait),
    "delete": lambda cache, **wait: cache.delete("k", **wait),
    "clear": lambda cache, **wait: cache.clear(**wait),
    "invalidate_tags": lambda cache, **wait: cache.invalidate_tags("t", **wait),
}


@pytest.fixture
def fleet(make):
    """Three caches, of which the first has found out who the others are."""
    caches = [make(**SETTLED) for _ in range(3)]
    assert caches[0].set("warm", 1, wait=30).acknowledged
    return caches


@pytest.mark.parametrize("write", WRITES)
def test_p12_when_an_acknowledged_write_returns_no_peer_serves_an_older_value(fleet, write):
    writer, *readers = fleet
    for _ in range(20):
        assert writer.set("k", 1, tags=["t"], wait=30).acknowledged
        assert [reader.get("k") for reader in readers] == [1, 1]
        result = WRITES[write](writer, wait=30)
        assert [reader.get("k") for reader in readers] == [2 if write == "set" else None] * 2
        assert result.acknowledged


@pytest.mark.parametrize("write", WRITES)
def test_p12_it_tells_who_has_confirmed(fleet, write):
    writer, *_ = fleet
    version = writer.set("k", 1, tags=["t"])
    eventually(lambda: _by_answers(WRITES[write](writer, wait=30)), "all confirm by answers")
    result = WRITES[write](writer, wait=30)
    assert isinstance(result, Acknowledgement)
    assert result.version > version
    assert 0 <= result.seconds < 30
    assert result.existed is (False if write == "delete" else None)


def _by_answers(result):
    assert result.acknowledged
    return (result.by, result.members, result.confirmed) == ("answers", 2, 2)


def test_p12_two_caches_of_one_id_are_two_members(make):
    writer, *_ = [make(instance_id="web", **SETTLED) for _ in range(3)]
    eventually(lambda: _by_answers(writer.set("k", 1, wait=30)), "both others confirm")


def test_p12_who_is_closed_is_not_waited_for(fleet):
    writer, other, gone = fleet
    gone.close()
    eventually(lambda: writer.set("k", 1, wait=30).members == 1, "it has left")
    assert not gone._runtime.instance.shards[0].tier.entries
    assert other.get("k") == 1


def test_p12_without_a_local_tier_a_writer_waits_for_the_bound(fleet, make):
    result = make(local_enabled=False, **SETTLED).set("k", 1, wait=30)
    assert result.by == "bound"
    assert result.seconds >= SETTLED["max_staleness"]


def test_p12_the_caller_may_wait_for_less(make):
    """A cache that has only just begun does not know whether there are others."""
    result = make(max_staleness=600).set("k", 1, wait=0.001)
    assert (result.by, result.acknowledged) == ("timeout", False)


def test_p12_several_shards_are_waited_for(make):
    writer, reader = make(shards=3, **SETTLED), make(shards=3, **SETTLED)
    for key in "abcdefgh":
        writer.set(key, 1)
        assert reader.get(key) == 1
    assert writer.clear(wait=30).acknowledged
    assert [reader.get(key) for key in "abcdefgh"] == [None] * 8


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("wait", [0, -1, True, "1", float("nan"), float("inf")])
def test_p12_a_wait_is_seconds(cache, write, wait):
    before = cache.set("k", 1, tags=["t"])
    with pytest.raises(ConfigError, match="wait"):
        WRITES[write](cache, wait=wait)
    assert cache.get_entry("k").version == before


def test_p12_a_condition_that_does_not_hold_is_told_as_ever(cache):
    cache.set("k", 1)
    with pytest.raises(VersionConflict):
        cache.set("k", 2, if_version=MISSING, wait=1)
    assert cache.get("k") == 1


@pytest.mark.parametrize("there", [True, False])
def test_p12_an_acknowledged_delete_tells_whether_the_value_was_there(cache, there):
    if there:
        cache.set("k", 1)
    assert cache.delete("k", wait=0.001).existed is there
