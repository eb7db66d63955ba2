"""The fault proxy that users get, in front of a real Redis: what each fault does to a client and to a cache."""

from __future__ import annotations

import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from coherent_cache import CacheUnavailable, CoherentCache
from coherent_cache.remote.embedded import embedded_server
from coherent_cache.testing.fault_proxy import SUBSCRIBERS, FaultProxy
from integration.waiting import wait_until

SOON = 20.0  # seconds within which everything must have happened
MAX_STALENESS = 3.0  # seconds: more than a loaded machine stands still
PLAIN = {"retry": Retry(NoBackoff(), 0), "socket_timeout": SOON, "protocol": 3}


@pytest.fixture
def proxy(fault_proxy):
    return fault_proxy


@pytest.fixture
def plain(proxy):
    with redis.Redis.from_url(proxy.url, client_name="plain", **PLAIN) as client:
        yield client


@pytest.fixture
def make(namespace):
    """Make caches that notice things soon; all are closed at the end."""
    caches = []

    def make(url, **options):
        options = {"heartbeat": 0.1, "max_staleness": MAX_STALENESS, "timeout": 5.0} | options
        caches.append(CoherentCache(url, namespace=namespace, **options))
        assert caches[-1].wait_ready(SOON)
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


@pytest.fixture
def pair(make, proxy, redis_server):
    """Give a cache behind the proxy, and one that is not."""
    return make(proxy.url), make(redis_server.url)


def wait_state(cache, state):
    wait_until(lambda: cache.state == state, SOON, f"the cache is {state}")


# --- any client ---


def test_a_client_does_not_notice_it(proxy, plain, redis_server):
    plain.set("key", b"x" * 1_000_000)

    assert plain.get("key") == b"x" * 1_000_000
    assert redis_server.client().get("key") == b"x" * 1_000_000
    (connection,) = proxy.connections(where="plain")
    assert connection.name == "plain"
    # The handshake's commands come first: HELLO, CLIENT SETNAME, CLIENT SETINFO, ...
    assert connection.to_server.frames == connection.to_client.frames >= 3
    assert connection.to_server.delivered == connection.to_server.received > 1_000_000
    assert connection.to_client.lost == 0


def test_a_late_reply(proxy, plain):
    plain.set("key", "1")
    proxy.delay_reply(2, 1.0, where="plain")

    quick = timed(lambda: plain.get("key"))
    slow = timed(lambda: plain.get("key"))

    assert slow >= 1.0 > quick


def test_a_pubsub_message_is_no_reply(proxy, plain, redis_server):
    with plain.pubsub() as pubsub:
        pubsub.subscribe("channel")
        assert pubsub.get_message(timeout=SOON)["type"] == "subscribe"
        proxy.lose(1)
        with redis_server.client() as direct:
            for number in range(3):
                direct.publish("channel", number)
        assert [pubsub.get_message(timeout=SOON)["data"] for _ in range(2)] == [b"1", b"2"]
        assert proxy.connections(where=lambda each: each.to_client.pushes > 0)[0].to_client.lost > 0


def test_a_reply_in_the_middle_of_which_the_connection_is_cut(proxy, plain):
    plain.set("key", b"x" * 100_000)
    proxy.cut_after(1000, direction="to_client")

    with pytest.raises(redis.ConnectionError):
        plain.get("key")
    (connection,) = proxy.connections(where="plain", closed=True)[-1:]
    assert not connection.is_open


def test_a_throttled_client(proxy, plain):
    plain.set("key", b"x" * 50_000)
    with proxy.throttle(200_000, direction="to_client"):
        assert timed(lambda: plain.get("key")) >= 0.2


def test_a_unix_socket():
    with (
        embedded_server("fault-proxy") as server,
        FaultProxy(server.url) as proxy,
        redis.Redis.from_url(proxy.url, **PLAIN) as client,
    ):
        assert client.ping()


# --- a cache ---


def test_only_the_subscriber_is_held(proxy, pair):
    cache, peer = pair
    cache.set("key", 1)

    with proxy.hold(where=SUBSCRIBERS):
        peer.set("key", 2)
        assert cache.get("key") == 1  # bounded staleness: nothing can be known yet
        wait_state(cache, "disconnected")
        assert cache.get("key") == 2  # commands go through
    wait_state(cache, "coherent")
    wait_until(lambda: cache.get("key") == 2, SOON, "the missed message is applied")


@pytest.mark.parametrize("direction", ["to_server", "to_client", "both"])
def test_a_black_hole_around_the_subscriber(proxy, pair, direction):
    cache, peer = pair
    cache.set("key", 1)

    with proxy.black_hole(where=SUBSCRIBERS, direction=direction):
        peer.set("key", 2)
        wait_state(cache, "disconnected")
        assert cache.get("key") == 2
    wait_state(cache, "coherent")
    assert cache.get("key") == 2


def test_a_subscriber_that_is_cut_comes_back(proxy, pair):
    cache, peer = pair
    cache.set_many({"key": 1, "other": 1})

    with proxy.refuse(where=SUBSCRIBERS):
        assert proxy.cut(where=SUBSCRIBERS) == 1
        peer.set("key", 2)
    wait_until(lambda: cache.stats().resyncs >= 2, SOON, "a resync")
    wait_state(cache, "coherent")
    assert cache.get("key") == 2
    assert cache.stats().replays == 1  # and "other" stayed warm
    assert cache.stats().flushes == 0


def test_a_message_that_is_lost_without_a_trace_is_missed_by_the_heartbeat(proxy, pair):
    cache, peer = pair
    cache.set("key", 1)
    wait_until(lambda: cache.stats().invalidations_received >= 1, SOON, "the own message has come")

    with proxy.lose(1, where=SUBSCRIBERS) as fault:
        peer.set("key", 2)
        wait_until(lambda: not fault.active, SOON, "the message is lost")
    wait_until(lambda: cache.get("key") == 2, SOON, "it is noticed")
    assert cache.stats().replays == 1


def test_a_write_whose_answer_is_late_may_have_happened(proxy, make, redis_server):
    cache, peer = make(proxy.url, timeout=2.0), make(redis_server.url)
    cache.set("key", 1)

    proxy.delay_reply(1, 30, where=f"coherent-cache:{cache.instance_id}")
    with pytest.raises(CacheUnavailable) as caught:
        cache.set("key", 2)

    assert caught.value.maybe_applied
    assert peer.get("key") == 2  # it has
    assert cache.get("key") == 2  # and the old entry is not served


def test_redis_cannot_be_reached(proxy, make):
    cache = make(proxy.url)
    cache.set("key", 1)

    with proxy.refuse():
        proxy.cut()
        with pytest.raises(CacheUnavailable):
            cache.set("key", 2)
        assert cache.get("key") == 1  # within the bound: served locally
    assert cache.get("key") == 1
    wait_state(cache, "coherent")
    cache.set("key", 3)
    assert cache.get("key") == 3


def test_a_slow_network(proxy, pair):
    cache, peer = pair
    with proxy.delay(0.05, jitter=0.05):
        for number in range(3):
            peer.set("key", number)
            wait_until(lambda wanted=number: cache.get("key") == wanted, SOON, "the write is seen")
        assert cache.state == "coherent"


def test_failover_to_another_server(proxy, make, server_factory, redis_server):
    other = server_factory()
    cache = make(proxy.url)
    cache.set("key", 1)
    proxy.upstream = other.url
    assert cache.get("key") == 1  # open connections stay

    proxy.cut()

    wait_until(lambda: cache.stats().flushes == 1, SOON, "the new server's history is another one")
    wait_state(cache, "coherent")
    assert cache.get("key") is None  # what Redis lost is lost
    assert {each.upstream for each in proxy.connections()} == {each_of(other)}


def each_of(server):
    return server.url.removeprefix("redis://").partition("/")[0]


def timed(function):
    start = time.monotonic()
    function()
    return time.monotonic() - start
