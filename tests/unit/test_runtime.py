"""The runtime at its edges: a signal in the wrong moment, no more threads, the end of a child."""

from __future__ import annotations

import threading
import time
from unittest.mock import Mock

import pytest

from coherent_cache import CoherentCache, runtime
from coherent_cache.core.requests import LeaveRequest
from coherent_cache.errors import CacheUnavailable
from coherent_cache.loads import Background

READY = 20.0  # seconds until an instance must be coherent


@pytest.fixture
def cache(request):
    with CoherentCache(f"memory://{request.node.name}", namespace="runtime") as made:
        yield made


def test_a_signal_handler_closes_what_its_thread_is_starting(cache, monkeypatch):
    subscriber = cache._runtime._subscriber
    begin = subscriber.start

    def interrupted():
        cache.close()
        return begin()

    monkeypatch.setattr(subscriber, "start", interrupted)
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.get("key")
    subscriber._thread.join()


def test_a_signal_handler_stops_what_its_thread_puts_into_the_background():
    background = Background("test")

    class Interrupted(set):
        def add(self, thread):
            background.stop(0)
            super().add(thread)

    background._threads = Interrupted()
    ran = threading.Event()
    assert background.run(ran.set)
    assert ran.wait(READY)
    assert not background.run(ran.set)


@pytest.fixture
def no_more_threads(monkeypatch):
    """Let no thread be started until the block is left, as when the interpreter ends (Python 3.12)."""

    def refuse(thread):
        raise RuntimeError("can't start new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        yield patched


def test_without_a_thread_redis_is_asked(cache, no_more_threads):
    version = cache.set("key", "value")
    assert cache.get("key") == "value"
    assert cache.get_or_set("loaded", lambda: 1) == 1
    assert (cache.get_entry("key").tier, cache.get_entry("key").version) == ("redis", version)
    assert cache.wait_ready(READY) is False
    no_more_threads.undo()
    assert cache.get("key") == "value"  # the next call tries again
    assert cache.wait_ready(READY)


def test_the_end_of_a_child_waits_for_its_threads(cache, monkeypatch):
    """Multiprocessing calls what is registered there before the child waits for threads that are not daemons."""
    monkeypatch.setattr(runtime, "_runtimes", [cache._holder])
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread(), threading.Thread()])
    runtime._close_all()
    cache.set("key", 1)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread(), threading.Thread(daemon=True)])
    runtime._close_all()
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.set("key", 2)


def test_who_connects_while_it_is_closed_leaves_all_the_same(cache, monkeypatch):
    """A close that begins before there is a connection may end after a member was entered by one (P12)."""
    subscriber, io, sent = cache._runtime._subscriber, cache._runtime._io, []
    endpoint, stop, execute = subscriber._endpoint, subscriber.stop, io.execute
    closing = threading.Event()

    class Late:
        def __getattr__(self, name):
            return getattr(endpoint, name)

        def connect(self, **options):
            assert closing.wait(READY)
            return endpoint.connect(**options)

    def stop_late(timeout):
        closing.set()
        assert subscriber.wait(lambda: cache.state == "coherent", READY)
        return stop(timeout)

    monkeypatch.setattr(subscriber, "_endpoint", Late())
    monkeypatch.setattr(subscriber, "stop", stop_late)
    cache.set("key", 1)
    monkeypatch.setattr(io, "execute", lambda requests: sent.extend(requests) or execute(requests))
    cache.close()
    assert [type(request) for request in sent] == [LeaveRequest]


def test_what_an_interrupted_close_has_left_the_next_one_does(cache, monkeypatch):
    cache.set("key", 1)
    subscriber = cache._runtime._subscriber
    with monkeypatch.context() as patched:
        patched.setattr(subscriber, "stop", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.close()
    cache.close()
    assert not subscriber._thread.is_alive()
    assert cache._runtime._pool._closed


def test_close_wakes_who_waits_until_it_is_ready():
    cache = CoherentCache("redis://127.0.0.1:1/0", namespace="runtime", timeout=0.2)
    told = []

    def wait():
        with pytest.raises(CacheUnavailable, match="closed") as raised:
            cache.wait_ready(10 * READY)
        told.append(raised.value)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while not cache._runtime._subscriber._settled._waiters:
        time.sleep(0.001)
    cache.close()
    waiting.join(READY)
    assert told
