"""``memory://``: one server per name in this process, reached by plain redis-py connections."""

from __future__ import annotations

import inspect
import itertools
import os
import sys
import threading
import warnings

import pytest
import redis

from coherent_cache.errors import ConfigError
from coherent_cache.remote import memory
from coherent_cache.remote.memory import memory_connection

NAMES = map("server-{}".format, itertools.count())


@pytest.fixture
def name():
    return next(NAMES)


@pytest.fixture
def connect():
    opened = []

    def open_one(name, **options):
        cls, kwargs = memory_connection(name)
        opened.append(cls(**kwargs, **options))
        opened[-1].connect()
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.disconnect()


def ask(connection, *command):
    connection.send_command(*command)
    return connection.read_response()


def test_connections_of_one_name_share_their_data(connect, name):
    first, second = connect(name), connect(name)
    assert ask(first, "SET", "k", b"\x00\xff") == b"OK"
    assert ask(second, "GET", "k") == b"\x00\xff", "bytes, not decoded"


def test_connections_of_other_names_do_not(connect, name):
    ask(connect(name), "SET", "k", "v")
    assert ask(connect(name + "x"), "GET", "k") is None


def test_scripts_work(connect, name):
    connection = connect(name)
    script = "redis.call('SET', KEYS[1], ARGV[1], 'PX', 60000); return {redis.call('PTTL', KEYS[1]), ARGV[1]}"
    ttl, value = ask(connection, "EVAL", script, 1, "k", "v")
    assert 0 < ttl <= 60_000
    assert value == b"v"
    assert ask(connect(name), "GET", "k") == b"v"


def test_messages_reach_another_connection(connect, name):
    subscriber, publisher = connect(name), connect(name)
    subscriber.send_command("SUBSCRIBE", "channel")
    assert list(subscriber.read_response(push_request=True))[:2] == [b"subscribe", b"channel"]
    assert ask(publisher, "PUBLISH", "channel", b"\x01\xff") == 1
    assert subscriber.can_read(1)
    assert list(subscriber.read_response(push_request=True)) == [b"message", b"channel", b"\x01\xff"]
    assert not subscriber.can_read(0)


def test_the_arguments_are_for_connections_and_may_be_extended(connect, name):
    cls, kwargs = memory_connection(name)
    assert issubclass(cls, redis.Connection)
    assert kwargs["decode_responses"] is False
    pool_only = set(inspect.signature(redis.ConnectionPool.__init__).parameters)
    assert not pool_only & set(kwargs)
    assert "connection_pool" not in kwargs
    connection = connect(name, socket_timeout=None, socket_connect_timeout=None, client_name="me")
    assert connection.get_protocol() == 3
    assert ask(connection, "PING") == b"PONG"


def test_a_pool_takes_them_too(name):
    cls, kwargs = memory_connection(name)
    with redis.Redis(connection_pool=redis.ConnectionPool(connection_class=cls, **kwargs)) as client:
        client.set("k", "v")
        assert client.get("k") == b"v"


def test_every_call_gives_a_dict_of_its_own(name):
    _, kwargs = memory_connection(name)
    kwargs.clear()
    assert memory_connection(name)[1]["db"] == 0


def test_threads_that_ask_at_once_get_one_server(name, monkeypatch):
    fakeredis = pytest.importorskip("fakeredis")
    entered = threading.Barrier(8)
    made = []

    class Slow(fakeredis.FakeServer):
        def __init__(self, **options):
            super().__init__(**options)
            made.append(self)
            threading.Event().wait(0.05)  # widens the window in which an unguarded registry would make a second one

    monkeypatch.setattr(fakeredis, "FakeServer", Slow)
    got = []

    def work():
        entered.wait()
        got.append(memory_connection(name)[1]["server"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(server) for server in got}) == 1
    assert len(made) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_without_servers_and_without_a_held_lock(name):
    memory_connection(name)
    # The thread that holds the lock does not exist in the child.
    with memory._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, Python 3.12
        child = os.fork()
        if child == 0:
            status = 3
            try:
                if not memory._servers and memory._lock.acquire(blocking=False):
                    memory._lock.release()
                    status = 0 if memory_connection(name) else 4
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert name in memory._servers


@pytest.mark.parametrize("missing", ["fakeredis", "lupa"])
def test_what_is_missing_is_named_at_the_call(monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"^url: memory:// needs fakeredis.*coherent-cache\[memory\]") as caught:
        memory_connection(name)
    assert caught.value.option == "url"
