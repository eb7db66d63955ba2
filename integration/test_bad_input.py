"""Bad input, bad data, bad servers: a named error, before anything is sent where that can be, and nothing is lost."""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
import threading
import time
import traceback
from contextlib import contextmanager

import pytest

from coherent_cache import CoherentCache
from coherent_cache.cache import MISSING
from coherent_cache.errors import (
    CacheUnavailable,
    CoherentCacheError,
    ConfigError,
    ForeignValue,
    InvalidKey,
    NamespaceMismatch,
    SerializationError,
    ValueTooLarge,
    VersionConflict,
)
from coherent_cache.keys import shard_names
from integration.waiting import wait_until

PATIENCE = 20.0
SILENT = {"heartbeat": 100.0, "max_staleness": 1000.0}  # no heartbeat while commands are counted


@pytest.fixture
def make(namespace):
    made = []

    def make_cache(url, **options):
        made.append(CoherentCache(url, **{"namespace": namespace, "timeout": 10.0} | options))
        return made[-1]

    yield make_cache
    for cache in made:
        cache.close()


@pytest.fixture
def names(namespace):
    return shard_names(namespace, 0, 0)


def dump(server):
    """All data of a server."""
    with server.client() as plain:
        return {key: plain.dump(key) for key in plain.scan_iter(count=1000)}


def commands(server):
    """How many commands the server has executed, by name, but for those of this count."""
    with server.client() as plain:
        counts = {name: stats["calls"] for name, stats in plain.info("commandstats").items()}
    ours = {"cmdstat_info", "cmdstat_hello", "cmdstat_select", "cmdstat_client|setname", "cmdstat_client|setinfo"}
    return {name: count for name, count in counts.items() if name not in ours}


@contextmanager
def nothing_sent(server):
    before = commands(server)
    yield
    assert commands(server) == before


# -- calls -------------------------------------------------------------------------------------------------------------

BAD_KEYS = {
    "None": None, "int": 1, "bytes": b"key", "empty": "", "too-long": "x" * 1025, "too-long-in-utf-8": "é" * 513,
    "lone-surrogate": "\ud800", "list": ["key"], "tuple": ("key",), "bool": True, "float": 1.5,
}  # fmt: skip

KEY_CALLS = {
    "get": lambda cache, key: cache.get(key),
    "get_entry": lambda cache, key: cache.get_entry(key),
    "get_many": lambda cache, key: cache.get_many(["good", key]),
    "warm": lambda cache, key: cache.warm(["good", key]),
    "contains": lambda cache, key: key in cache,
    "getitem": lambda cache, key: cache[key],
    "set": lambda cache, key: cache.set(key, 1),
    "setitem": lambda cache, key: cache.__setitem__(key, 1),
    "delete": lambda cache, key: cache.delete(key),
    "delitem": lambda cache, key: cache.__delitem__(key),
    "delete_many": lambda cache, key: cache.delete_many(["good", key]),
    "touch": lambda cache, key: cache.touch(key, 5),
    "update": lambda cache, key: cache.update(key, lambda value: value),
}


class Opaque:
    """A value that no safe serializer takes."""


def endless():
    value = []
    value.append(value)
    return value


BAD_CALLS = {
    "set_many-key": (InvalidKey, lambda cache: cache.set_many({"good": 1, "": 2})),
    "set_many-list": (ConfigError, lambda cache: cache.set_many([("a", 1)])),
    "set_many-value": (SerializationError, lambda cache: cache.set_many({"good": 1, "bad": Opaque()})),
    "set_many-huge": (ValueTooLarge, lambda cache: cache.set_many({"good": 1, "bad": b"x" * 1000})),
    "get_many-str": (ConfigError, lambda cache: cache.get_many("good")),
    "get_many-int": (ConfigError, lambda cache: cache.get_many(5)),
    "delete_many-bytes": (ConfigError, lambda cache: cache.delete_many(b"good")),
    "warm-str": (ConfigError, lambda cache: cache.warm("good")),
    "value-object": (SerializationError, lambda cache: cache.set("good", Opaque())),
    "value-function": (SerializationError, lambda cache: cache.set("good", endless)),
    "value-nested": (SerializationError, lambda cache: cache.set("good", {"a": [1, Opaque()]})),
    "value-endless": (SerializationError, lambda cache: cache.set("good", endless())),
    "value-surrogate": (SerializationError, lambda cache: cache.set("good", "\ud800")),
    "value-subclass": (SerializationError, lambda cache: cache.set("good", type("S", (str,), {})("x"))),
    "value-huge": (ValueTooLarge, lambda cache: cache.set("good", b"x" * 1000)),
    "ttl-zero": (ConfigError, lambda cache: cache.set("good", 1, ttl=0)),
    "ttl-negative": (ConfigError, lambda cache: cache.set("good", 1, ttl=-1)),
    "ttl-str": (ConfigError, lambda cache: cache.set("good", 1, ttl="5")),
    "ttl-bool": (ConfigError, lambda cache: cache.set("good", 1, ttl=True)),
    "ttl-nan": (ConfigError, lambda cache: cache.set("good", 1, ttl=float("nan"))),
    "ttl-endless": (ConfigError, lambda cache: cache.set("good", 1, ttl=float("inf"))),
    "ttl-century": (ConfigError, lambda cache: cache.set_many({"good": 1}, ttl=3.2e9)),
    "touch-ttl": (ConfigError, lambda cache: cache.touch("good", 0)),
    "update-ttl": (ConfigError, lambda cache: cache.update("good", lambda _: 1, ttl=0)),
    "tags-str": (ConfigError, lambda cache: cache.set("good", 1, tags="red")),
    "tags-int": (ConfigError, lambda cache: cache.set("good", 1, tags=5)),
    "tags-of-int": (ConfigError, lambda cache: cache.set("good", 1, tags=[1])),
    "tags-empty": (ConfigError, lambda cache: cache.set("good", 1, tags=[""])),
    "tags-long": (ConfigError, lambda cache: cache.set("good", 1, tags=["x" * 256])),
    "tags-surrogate": (ConfigError, lambda cache: cache.set("good", 1, tags=["\ud800"])),
    "tags-many": (ConfigError, lambda cache: cache.set("good", 1, tags=map(str, range(1001)))),
    "tags-unhashable": (ConfigError, lambda cache: cache.set("good", 1, tags=[["red"]])),
    "tags-of-update": (ConfigError, lambda cache: cache.update("good", lambda _: 1, tags="red")),
    "no-tag": (ConfigError, lambda cache: cache.invalidate_tags()),
    "bad-tag": (ConfigError, lambda cache: cache.invalidate_tags("red", 5)),
    "tag-list": (ConfigError, lambda cache: cache.invalidate_tags(["red"])),
    "if_version-int": (ConfigError, lambda cache: cache.set("good", 1, if_version=5)),
    "if_version-str": (ConfigError, lambda cache: cache.set("good", 1, if_version="0" * 32 + ":1")),
    "delete-if_version": (ConfigError, lambda cache: cache.delete("good", if_version=5)),
}


@pytest.fixture(params=["", "?protocol=2"], ids=["resp3", "marks"])
def quiet_cache(request, redis_server, make):
    cache = make(redis_server.url + request.param, max_value_bytes=500, **SILENT)
    assert cache.wait_ready(PATIENCE)
    cache.set("good", "before", tags=["red"])
    assert cache.get("good") == "before"
    return cache


@pytest.mark.parametrize("call", KEY_CALLS)
def test_bad_keys(redis_server, quiet_cache, call):
    data = dump(redis_server)
    with nothing_sent(redis_server):
        for name, key in BAD_KEYS.items():
            with pytest.raises(InvalidKey) as caught:
                KEY_CALLS[call](quiet_cache, key)
            assert isinstance(caught.value, ValueError), name
    assert dump(redis_server) == data
    assert quiet_cache.get_entry("good").tier == "local"


def test_bad_calls(redis_server, quiet_cache):
    data = dump(redis_server)
    with nothing_sent(redis_server):
        for name, (error, call) in BAD_CALLS.items():
            try:
                call(quiet_cache)
            except CoherentCacheError as raised:
                assert type(raised) is error, name  # noqa: PT017
                assert "before" not in str(raised)  # noqa: PT017  # no value in a message
            else:
                pytest.fail(f"{name}: nothing was raised")
    assert dump(redis_server) == data
    entry = quiet_cache.get_entry("good")
    assert (entry.value, entry.tier) == ("before", "local")


def test_the_largest_good_input_is_good(redis_server, make):
    cache = make(redis_server.url)
    key, tags = "é" * 512, [f"{number}".rjust(255, "t") for number in range(1000)]
    value = b"x" * (1024 * 1024 - 5)
    cache.set(key, value, ttl=315_360_000, tags=tags)
    remote = make(redis_server.url, local_enabled=False)
    assert remote.get(key) == value
    cache.invalidate_tags(tags[999])
    assert remote.get(key) is None
    cache.set("soon", 1, ttl=0.001)
    wait_until(lambda: remote.get("soon") is None, PATIENCE, "it expires")


def test_a_failing_update_changes_nothing(redis_server, quiet_cache):
    def fail(value):
        raise RuntimeError(value)

    with pytest.raises(RuntimeError, match="before"):
        quiet_cache.update("good", fail)
    with pytest.raises(SerializationError):
        quiet_cache.update("good", lambda _: Opaque())
    assert quiet_cache.get("good") == "before"


# -- options and URLs --------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ("namespace", ["", "a b", "a/b", "{a}", "ä", "x" * 65, None, 5, b"a"]),
    ("shards", [0, -1, 1025, 1.0, "1", True]),
    ("max_entries", [0, -1, "10", 1.5, 10**10]),
    ("max_bytes", [0, -1, 1.5, "1"]),
    ("policy", ["LRU", "arc", None]),
    ("ttl", [0, -1, "1", float("nan"), float("inf"), True]),
    ("local_ttl", [0, -1, "1", float("nan")]),
    ("local_enabled", [1, "yes", None]),
    ("copy_values", [0, None]),
    ("serializer", ["yaml", None, 5, object()]),
    ("heartbeat", [0, -1, 0.001, "1", float("nan"), 3601]),
    ("max_staleness", [0, 2.9, "5", float("nan"), float("inf")]),
    ("on_disconnect", ["ignore", None]),
    ("stale_limit", [-1, "60", float("nan")]),
    ("on_foreign", ["ignore", None]),
    ("max_value_bytes", [0, -1, 2**30, 1.5]),
    ("timeout", [0, -1, "2", float("nan"), 601]),
    ("max_connections", [0, -1, 1.5]),
    ("log_length", [0, -1, 1.5]),
    ("replay_limit", [-1, 60_001, 1.5]),
    ("instance_id", ["", "a b", "x" * 121, 5, "ä"]),
]


def test_bad_options(redis_server, namespace):
    with nothing_sent(redis_server):
        for option, values in BAD_OPTIONS:
            for value in values:
                with pytest.raises(ConfigError) as caught:
                    CoherentCache(redis_server.url, **{"namespace": namespace} | {option: value})
                assert caught.value.option == option, value


SECRET = "s3cret" + secrets.token_hex(4)

BAD_URLS = [
    "", "localhost", "localhost:6379", "http://localhost", f"redis:/x:{SECRET}@localhost", "//localhost",
    f"redis://:{SECRET}@localhost:port/0", f"redis://:{SECRET}@localhost:99999/0", f"redis://x:{SECRET}@[::1/0",
    f"redis://:{SECRET}@localhost:6379/first", f"redis://:{SECRET}@localhost:6379/-1",
    f"redis://:{SECRET}@localhost/0?protocol=4", f"redis://:{SECRET}@localhost/0?socket_timeout=soon",
    f"unix://:{SECRET}@", f"redis+cluster://:{SECRET}@localhost", f"redis+sentinel://:{SECRET}@a,b", "redis+x://a",
    None, 5, b"redis://localhost", object(), ["redis://localhost"],
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS, ids=map(str, range(len(BAD_URLS))))
def test_bad_urls(namespace, url):
    with pytest.raises(ConfigError) as caught:
        CoherentCache(url, namespace=namespace)
    assert caught.value.option == "url"
    assert SECRET not in "".join(traceback.format_exception(caught.value, chain=True))


# -- what is in Redis already ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("created", "opened"), [(1, 2), (2, 1), (4, 8), (8, 4)])
@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
def test_another_number_of_shards_touches_nothing(redis_server, make, created, opened, query):
    first = make(redis_server.url, shards=created, **SILENT)
    assert first.wait_ready(PATIENCE)
    first.set_many({str(number): number for number in range(20)})
    data = dump(redis_server)
    second = make(redis_server.url + query, shards=opened, heartbeat=0.1, max_staleness=1.0)
    with pytest.raises(NamespaceMismatch) as caught:
        second.wait_ready(PATIENCE)
    assert (caught.value.found, caught.value.expected) == (f"1/{created}", f"1/{opened}")
    for call in (
        lambda: second.get("1"),
        lambda: second.get_many(["1", "2", "3"]),
        lambda: second.set("1", 1),
        lambda: second.delete("1"),
        lambda: second.touch("1", 5),
        lambda: second.update("1", lambda _: 1),
        second.clear,
        lambda: second.invalidate_tags("red"),
    ):
        with pytest.raises(NamespaceMismatch):
            call()
    assert dump(redis_server) == data
    with pytest.raises(NamespaceMismatch):
        make(redis_server.url, shards=opened, local_enabled=False).wait_ready(PATIENCE)
    assert dump(redis_server) == data
    assert first.get("1") == 1


def foreign_values(good):
    """Bytes that may lie under one of our keys, by what they are."""
    damaged = bytearray(good)
    damaged[10] ^= 1
    return {
        "text": b"hello",
        "nothing": b"",
        "random": b"\x00" + os.urandom(199),
        "msgpack": b"\x81\xa1a\x01",
        "truncated": good[:40],
        "without-end": good[:-1],
        "overlong": good + b"x",
        "another key's": bytes(damaged),
    }


@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
def test_foreign_values(redis_server, make, names, query):
    strict, lenient = make(redis_server.url + query), make(redis_server.url + query, on_foreign="miss")
    strict.set("a", [1, 2, 3], tags=["red"])
    name = names.value(b"a")
    with redis_server.client() as plain:
        for what, data in foreign_values(plain.get(name)).items():
            plain.set(name, data)
            for each in (strict, lenient):
                each.clear_local()
            with pytest.raises(ForeignValue) as caught:
                strict.get("a")
            assert caught.value.key == "a"
            assert lenient.get("a") is None, what
            assert lenient.get_many(["a", "b"]) == {}
            with pytest.raises(ForeignValue):
                strict.get_many(["a", "b"])
            for each in (strict, lenient) if data else ():  # what cannot be compared is not overwritten
                # Scripts look at the header alone: where that is sound, they see a version.
                with pytest.raises((ForeignValue, VersionConflict)):
                    each.set("a", 1, if_version=MISSING)
                with pytest.raises((ForeignValue, VersionConflict)):
                    each.update("a", lambda _: 1)
            assert plain.get(name) == data
        lenient.set("a", "ours again")
        assert strict.get("a") == "ours again"
        plain.set(name, b"hello")
        assert strict.delete("a")
        assert not plain.exists(name)


@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
def test_a_newer_release_s_values(redis_server, make, names, query):
    strict, lenient = make(redis_server.url + query), make(redis_server.url + query, on_foreign="miss")
    strict.set("a", [1, 2, 3])
    name = names.value(b"a")
    with redis_server.client() as plain:
        good = plain.get(name)
        newer = good[:1] + b"\x02" + good[2:]
        plain.set(name, newer)
        for each in (strict, lenient):
            each.clear_local()
            assert each.get("a", "a miss") == "a miss"
            assert each.get_many(["a", "b"]) == {}
            with pytest.raises(ForeignValue):
                each.set("a", 1, if_version=MISSING)
            with pytest.raises(ForeignValue):
                each.update("a", lambda _: 1)
            assert each.get_or_set("a", lambda: "loaded") == "loaded"
        assert plain.get(name) == newer
        strict.set("a", "ours again")
        assert lenient.get("a") == "ours again"


@pytest.mark.parametrize("kind", ["list", "hash", "stream"])
def test_values_of_another_type(redis_server, make, names, kind):
    cache, lenient = make(redis_server.url), make(redis_server.url, on_foreign="miss")
    name = names.value(b"a")
    with redis_server.client() as plain:

        def put():
            plain.delete(name)
            {"list": lambda: plain.rpush(name, "x"), "hash": lambda: plain.hset(name, "x", 1),
             "stream": lambda: plain.xadd(name, {"x": 1})}[kind]()  # fmt: skip

        put()
        with pytest.raises(ForeignValue):
            cache.get("a")
        assert lenient.get("a") is None
        assert cache.get_many(["a", "b"]) == {}  # MGET does not tell: it is as if nothing was there
        with pytest.raises(ForeignValue):
            cache.touch("a", 5)
        with pytest.raises(ForeignValue):
            cache.set("a", 1, if_version=MISSING)
        assert plain.type(name).decode() == kind
        cache.set("a", 1)
        assert lenient.get("a") == 1
        put()
        assert cache.delete("a")
        assert not plain.exists(name)


@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
def test_a_clock_of_another_type(redis_server, make, names, query):
    with redis_server.client() as plain:
        plain.set(names.clock, "mine")
        cache = make(redis_server.url + query, heartbeat=0.1, max_staleness=30.0)
        for call in (lambda: cache.get("a"), lambda: cache.get_many(["a", "b"]), lambda: cache.set("a", 1),
                     lambda: cache.delete("a"), cache.clear):  # fmt: skip
            with pytest.raises(CacheUnavailable):
                call()
        assert not cache.wait_ready(1.0)
        assert cache.stats().size == 0
        assert plain.get(names.clock) == b"mine"
        assert plain.dbsize() == 1
        plain.delete(names.clock)
        wait_until(lambda: cache.wait_ready(0.1), PATIENCE, "it goes on once the clock may be made")
        cache.set("a", 1)
        assert cache.get_entry("a").tier == "local"


class Evil:
    """Unpickled, it runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_what_others_pickled_is_never_unpickled(redis_server, make, tmp_path):
    proof = tmp_path / "was here"
    with pytest.warns(Warning, match="pickle"):
        writer = make(redis_server.url, serializer="pickle", local_enabled=False)
    writer.set("a", Evil(proof))
    for serializer in ("msgpack", "json"):
        reader = make(redis_server.url, serializer=serializer)
        with pytest.raises(SerializationError) as caught:
            reader.get("a")
        assert caught.value.key == "a"
        with pytest.raises(SerializationError):
            reader.get_many(["a", "b"])
        with pytest.raises(SerializationError):
            reader.update("a", lambda value: value)
        assert "a" in reader._settings.namespace  # the instance is alive
        reader.set("b", 1)
        assert reader.get("b") == 1
    assert not proof.exists()
    assert pickle.loads(pickle.dumps(Evil(proof))) is None  # as it does where it is
    assert proof.exists()
    proof.rmdir()
    writer.get("a")  # asked for, and warned about
    assert proof.exists()


# -- what Redis refuses ------------------------------------------------------------------------------------------------


def with_user(url, user, password):
    return url.replace("redis://", f"redis://{user}:{password}@", 1)


@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
def test_a_wrong_password_is_shown_nowhere(redis_server, make, names, caplog, query):
    caplog.set_level(logging.DEBUG)
    events = []
    with redis_server.client() as plain:
        plain.acl_setuser("bob", enabled=True, passwords=["+right" + SECRET], keys=["*"], channels=["*"],
                          categories=["+@all"])  # fmt: skip
        try:
            good = make(with_user(redis_server.url, "bob", "right" + SECRET) + query)
            good.set("a", 1)
            assert good.wait_ready(PATIENCE)
            bad = make(with_user(redis_server.url, "bob", "wrong" + SECRET) + query)
            bad.on_event(events.append)
            shown = []
            for call in (lambda: bad.get("a"), lambda: bad.set("a", 2)):
                with pytest.raises(CacheUnavailable) as caught:
                    call()
                assert not caught.value.maybe_applied
                shown.append("".join(traceback.format_exception(caught.value)))
            assert not bad.wait_ready(0.3)
            wait_until(lambda: events, PATIENCE, "the subscriber reports")
            for cache in (good, bad):
                shown += [repr(cache), cache.server, repr(cache.stats()), repr(cache._endpoint), repr(cache._settings)]
            assert good.get("a") == 1
        finally:
            for cache in (good, bad):
                cache.close()
            plain.acl_deluser("bob")
    assert SECRET not in "\n".join([*shown, caplog.text, repr(events)])


@pytest.mark.parametrize(
    ("missing", "reads"),
    [("-info", False), ("-publish", True), ("-@scripting", True), ("-set", True)],
)
def test_a_user_without_rights(redis_server, make, missing, reads):
    with redis_server.client() as plain:
        plain.acl_setuser("eve", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=[missing],
                          categories=["+@all"])  # fmt: skip
        try:
            eve = make(with_user(redis_server.url, "eve", "x"), heartbeat=0.1, max_staleness=1.0)
            owner = make(redis_server.url)
            owner.set("a", 1)
            with pytest.raises(CacheUnavailable) as caught:
                eve.set("a", 2)
            assert "eve" not in str(caught.value) or "right" in str(caught.value)
            assert owner.get("a") == 1
            assert "a" not in eve._runtime.instance.shards[0].tier.entries
            if reads:
                assert eve.get("a") == 1
        finally:
            eve.close()
            plain.acl_deluser("eve")


def test_memory_is_full(fresh_server, make):
    """I18, A7b: what Redis refuses is not shown as written, and what makes room works."""
    cache, peer = make(fresh_server.url, max_staleness=30.0), make(fresh_server.url, max_staleness=30.0)
    remote = make(fresh_server.url, local_enabled=False)
    with fresh_server.client() as plain:
        cache.set_many({f"old-{number}": "x" * 500 for number in range(100)}, tags=["red"])
        assert peer.wait_ready(PATIENCE)
        assert peer.warm(["old-1", "old-2"]) == 2
        plain.config_set("maxmemory-policy", "noeviction")
        plain.config_set("maxmemory", 1)
        for call in (
            lambda: cache.set("new", "y"),
            lambda: cache.set_many({"new": "y", "newer": "y"}),
            lambda: cache.set("old-1", "y"),
            lambda: cache.touch("old-1", 50),
            lambda: cache.update("old-1", lambda _: "y"),
            lambda: cache.set("new", "y", if_version=MISSING),
        ):
            with pytest.raises(CacheUnavailable) as caught:
                call()
            assert not caught.value.maybe_applied
            assert "OOM" in str(caught.value)
        assert not {"new", "newer"} & set(cache._runtime.instance.shards[0].tier.entries)
        assert cache.get("new") is None
        assert [each.get("old-1") for each in (cache, peer, remote)] == ["x" * 500] * 3
        assert remote.get_many(["old-1", "old-2", "new"]) == dict.fromkeys(["old-1", "old-2"], "x" * 500)
        assert cache.delete("old-1")
        wait_until(lambda: peer.get("old-1") is None, PATIENCE, "the peer hears of the delete")
        assert cache.delete_many(["old-2", "old-3"]) == 2
        cache.invalidate_tags("red")
        wait_until(lambda: peer.get("old-4") is None, PATIENCE, "the peer hears of the tag")
        cache.clear()
        assert remote.get("old-5") is None
        before = cache.stats().resyncs
        plain.config_set("maxmemory", 0)
        cache.set("new", "z")
        wait_until(lambda: peer.get("new") == "z", PATIENCE, "writes go on")
        assert cache.stats().resyncs == before


def test_a_server_that_is_no_redis(make):
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve():
        listener.settimeout(0.05)
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        cache = make(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=60.0)
        began = time.monotonic()
        with pytest.raises(CacheUnavailable) as caught:
            cache.set("a", 1)
        assert not caught.value.maybe_applied
        assert time.monotonic() - began < PATIENCE
        assert not cache.wait_ready(0.2)
        cache.close()
    finally:
        stop.set()
        thread.join()
        listener.close()
