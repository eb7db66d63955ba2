"""The mapping for cachetools' decorators: what they store, whom they share it with, and what they do with errors."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from operator import attrgetter

import cachetools
import cachetools.keys
import pytest

from coherent_cache import ConfigError, UnstableArgument
from coherent_cache.contrib.cachetools import CoherentMapping


@pytest.fixture
def mapping(coherent_cache_memory):
    return CoherentMapping(coherent_cache_memory, "prices")


@pytest.fixture
def calls():
    return []


def price_of(calls, **options):
    @cachetools.cached(**options)
    def price(product, currency="EUR"):
        """Tell the price."""
        calls.append((product, currency))
        return {"product": product, "currency": currency}

    return price


OPTIONS = {
    "plain": dict,
    "lock": lambda: {"lock": threading.Lock()},
    "condition": lambda: {"condition": threading.Condition()},
    "info": lambda: {"info": True},
    "lock and info": lambda: {"lock": threading.RLock(), "info": True},
    "condition and info": lambda: {"condition": threading.Condition(), "info": True},
    "typed": lambda: {"key": cachetools.keys.typedkey},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_function_is_called_once_in_the_fleet(name, mapping, calls, coherent_cache_factory):
    peer = CoherentMapping(coherent_cache_factory(), "prices")
    here = price_of(calls, cache=mapping, **OPTIONS[name]())
    there = price_of(calls, cache=peer, **OPTIONS[name]())
    assert here(7) == {"product": 7, "currency": "EUR"}
    assert here(7) == there(7)
    assert here(7, currency="USD") == there(7, currency="USD")
    assert calls == [(7, "EUR"), (7, "USD")]
    there.cache_clear()
    while here.cache_key(7) in mapping:  # until the message is there
        pass
    assert here(8)
    assert here.__doc__ == "Tell the price."
    assert len(calls) == 3


def test_info(mapping, calls):
    price = price_of(calls, cache=mapping, info=True)
    for product in (1, 2, 1, 1):
        price(product)
    assert price.cache_info() == (2, 2, None, 2)


def test_a_condition_calls_the_function_once(mapping):
    started, calls, results = threading.Event(), [], []

    @cachetools.cached(cache=mapping, condition=threading.Condition())
    def slow(number):
        calls.append(number)
        started.wait(60)
        return number

    threads = [threading.Thread(target=lambda: results.append(slow(7))) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.set()
    for thread in threads:
        thread.join()
    assert (calls, results) == ([7], [7, 7, 7, 7])


def test_with_a_lock_the_first_result_stays(mapping, coherent_cache_factory):
    peer = CoherentMapping(coherent_cache_factory(), "prices")

    @cachetools.cached(cache=mapping, lock=threading.Lock())
    def slow(number):
        peer[cachetools.keys.hashkey(number)] = "first"
        return "second"

    assert slow(7) == "first"
    assert slow(7) == "first"


class City:
    def __init__(self, cache, name):
        self.cache = cache
        self.name = name
        self.calls = 0

    @cachetools.cachedmethod(attrgetter("cache"))
    def shared(self, product):
        self.calls += 1
        return [self.name, product]

    @cachetools.cachedmethod(attrgetter("cache"), key=lambda self, product: (self.name, product))
    def own(self, product):
        self.calls += 1
        return [self.name, product]


def test_methods(mapping):
    paris, rome = City(mapping, "Paris"), City(mapping, "Rome")
    assert paris.shared(1) == rome.shared(1) == ["Paris", 1]  # as cachetools has it: self is no part of the key
    assert paris.own(1) == ["Paris", 1]
    assert rome.own(1) == rome.own(1) == ["Rome", 1]
    assert (paris.calls, rome.calls) == (2, 1)


@dataclass(frozen=True)
class Point:
    x: int


@pytest.mark.parametrize(
    "key", [(1, "a"), ("a", 1, cachetools.keys._HashedTuple, ("k", 2)), (Point(1),), "text", 7, ()]
)
def test_a_mapping(mapping, key):
    assert key not in mapping
    with pytest.raises(KeyError):
        mapping[key]
    with pytest.raises(KeyError):
        del mapping[key]
    mapping[key] = None
    assert key in mapping
    assert mapping[key] is None
    assert mapping.get(key, 1) is None
    assert mapping.setdefault(key, 1) is None
    assert len(mapping) == 1
    assert mapping.pop(key) is None
    assert mapping.pop(key, "gone") == "gone"
    assert mapping.setdefault(key, 2) == mapping[key] == 2
    assert mapping


def test_equal_arguments_of_other_types_are_other_keys(mapping):
    mapping[(1,)], mapping[(1.0,)], mapping[(True,)], mapping[("1",)], mapping[1] = range(5)
    assert [mapping[key] for key in ((1,), (1.0,), (True,), ("1",), 1)] == [0, 1, 2, 3, 4]


def test_older_cachetools_have_keys_of_their_own_class(mapping):
    class HashedTuple(tuple):
        __slots__ = ()

    mapping[HashedTuple((1, 2))] = 3
    assert mapping[(1, 2)] == 3


def test_long_keys_have_a_digest(mapping):
    mapping[("x" * 5000,)] = 1
    assert mapping[("x" * 5000,)] == 1
    assert ("x" * 4999,) not in mapping
    assert len(mapping.key(("x" * 5000,))) < 100


def test_clearing_leaves_other_mappings_alone(mapping, coherent_cache_memory):
    other = CoherentMapping(coherent_cache_memory, "others", tags=["all"])
    mapping[1], other[1] = "a", "b"
    mapping.clear()
    assert 1 not in mapping
    assert other[1] == "b"
    coherent_cache_memory.invalidate_tags("all")
    assert 1 not in other


def test_time_to_live(coherent_cache_memory):
    forever = CoherentMapping(coherent_cache_memory, "forever", ttl=None)
    forever[1] = 1
    assert coherent_cache_memory.get_entry(forever.key(1)).expires_in is None
    assert forever.setdefault(2, 2) == 2
    assert coherent_cache_memory.get_entry(forever.key(2)).expires_in is None


@pytest.mark.parametrize("options", [{}, {"lock": threading.Lock()}])
@pytest.mark.coherent_cache(max_value_bytes=100)
def test_a_value_that_is_too_large_is_returned_and_not_stored(mapping, options):
    @cachetools.cached(cache=mapping, **options)
    def large(size):
        return "x" * size

    assert large(1000) == "x" * 1000
    assert (1000,) not in mapping


def test_an_argument_without_a_stable_text_is_an_error(mapping, calls):
    with pytest.raises(UnstableArgument, match="prices"):
        price_of(calls, cache=mapping)(object())
    assert not calls


def test_what_cannot_be(mapping, coherent_cache_memory):
    with pytest.raises(TypeError, match="cannot be iterated"):
        list(mapping)
    for name in ("", "x" * 121, 7):
        with pytest.raises(ConfigError, match="name"):
            CoherentMapping(coherent_cache_memory, name)
    with pytest.raises(ConfigError, match="tags"):
        CoherentMapping(coherent_cache_memory, "name", tags="tag")
    with pytest.raises(ConfigError, match="ttl"):
        CoherentMapping(coherent_cache_memory, "name", ttl=-1)
    assert mapping != CoherentMapping(coherent_cache_memory, "prices")
    assert len({mapping, mapping}) == 1
    assert "prices" in repr(mapping)
