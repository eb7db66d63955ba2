"""Two releases in one namespace: the newer one writes formats that the older one, this one, does not know."""

from __future__ import annotations

import time

import pytest

from coherent_cache import MISSING
from coherent_cache.errors import ForeignValue
from coherent_cache.events import UnknownFormatSeen
from coherent_cache.keys import shard_names
from coherent_cache.remote.connection import pack
from coherent_cache.remote.scripts import ScriptCall, StoreCall

VALUE = shard_names("contract", 0, 0).value
PATIENCE = 10.0
ENVELOPE = (b"\xc1\x01\x98\xc4\x08", b"\xc1\x02\x98\xc4\x08")
MESSAGE = (b"\x01\x99", b"\x02\x99")


def until(predicate):
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def upgraded(cache, *formats):
    """Let a cache write other formats: the lengths are the same, so what is packed stays sound."""
    scripts = cache._runtime._scripts
    call = scripts.call

    def newer(data):
        for old, new in formats:
            data = data.replace(old, new) if isinstance(data, bytes) else data
        return data

    def call_as_newer(request):
        made = call(request)
        if isinstance(made, StoreCall):
            return made._replace(rest=newer(made.rest))
        if isinstance(made, ScriptCall):
            return made._replace(arguments=tuple(map(newer, made.arguments)))
        return made

    scripts.call = call_as_newer
    return cache


def raw(cache, *command):
    pool = cache._runtime._pool
    connection = pool.acquire()
    try:
        return connection.exchange(pack(command), 1)[0]
    finally:
        pool.release(connection, sound=True)


@pytest.fixture
def told():
    return []


@pytest.fixture(params=["raise", "miss"])
def older(request, make, told):
    cache = make(on_foreign=request.param)
    cache.on_event(lambda event: told.append(event) if isinstance(event, UnknownFormatSeen) else None)
    return cache


def test_values_of_a_newer_format_are_misses_and_stay_as_they_are(make, older, told):
    newer = upgraded(make(), ENVELOPE)
    older.set("k", "old")
    assert older.get("k") == "old"
    newer.set("k", "new")
    stored = raw(newer, "GET", VALUE(b"k"))
    assert stored[:2] == b"\xc1\x02"

    until(lambda: older.get("k") is None)
    assert older.get_many(["k", "l"]) == {}
    loads = []
    for _ in range(2):  # loaded for the caller, stored in neither tier
        assert older.get_or_set("k", lambda: loads.append(1) or "loaded") == "loaded"
    assert older.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, "loaded")) == {"k": "loaded"}
    assert len(loads) == 2
    for call in (
        lambda: older.update("k", lambda _: "mine"),
        lambda: older.set("k", "mine", if_version=MISSING),
    ):
        with pytest.raises(ForeignValue):  # a condition that cannot be judged: nothing is written
            call()
    assert raw(newer, "GET", VALUE(b"k")) == stored
    until(lambda: told)
    assert [(event.what, event.reason) for event in told] == [("value", "envelope of format 2, this release knows 1")]


def test_what_the_older_one_writes_replaces_it(make, older):
    newer, reader = upgraded(make(), ENVELOPE), make()
    newer.set_many({"a": 1, "b": 2, "c": 3})
    older.set("a", "old")
    older.delete("b")
    assert raw(newer, "GET", VALUE(b"a"))[:2] == b"\xc1\x01"
    assert reader.get("a") == older.get("a") == "old"
    assert raw(newer, "GET", VALUE(b"b")) is None
    assert older.get("c") is None


def test_messages_of_a_newer_format_leave_nothing_outdated(make, older, told):
    newer = upgraded(make(), MESSAGE)
    older.set("k", 0)
    for number in range(1, 30):
        newer.set("k", number)
        until(lambda number=number: older.get("k") == number)
    newer.invalidate_tags("t")
    newer.delete("k")
    until(lambda: older.get("k") is None)
    assert older.stats().flushes >= 1
    older.set("mine", 1)
    until(lambda: older.get("mine") == 1 and older.state == "coherent")
    until(lambda: told)
    assert {event.what for event in told} == {"message"}
    assert len(told) == 1, "once a minute"


def test_the_lease_of_a_newer_format_is_not_taken_away(make, older):
    newer = upgraded(make(), ENVELOPE)
    seen = []

    def load():
        seen.append(raw(newer, "GET", VALUE(b"k"))[:2])
        assert older.get_or_set("k", lambda: "by the older one") == "by the older one"
        seen.append(raw(newer, "GET", VALUE(b"k"))[:2])
        return "by the newer one"

    assert newer.get_or_set("k", load) == "by the newer one"
    assert seen == [b"\xc1\x02", b"\xc1\x02"]
