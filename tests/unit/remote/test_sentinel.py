"""Sentinels: whom is asked, who is believed, and when a connection is left."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel
from redis.connection import Connection, SSLConnection

from coherent_cache.config import Settings
from coherent_cache.errors import ConfigError
from coherent_cache.remote import sentinel as module
from coherent_cache.remote.sentinel import MasterWatch, Sentinels
from coherent_cache.remote.topology import resolve, run_id_of

A, B, C = ("a", 1), ("b", 2), ("c", 3)


def state(port, epoch, **changes):
    return {
        "ip": "m", "port": port, "is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 2,
        "config-epoch": epoch,
    } | changes  # fmt: skip


class Fleet:
    """What each sentinel knows."""

    def __init__(self):
        self.knows = {}
        self.asked = []
        self.options = []

    def masters(self, address):
        self.asked.append(address)
        answer = self.knows[address]
        if isinstance(answer, Exception):
            raise answer
        return {"svc": answer} if answer else {}


@pytest.fixture
def fleet(monkeypatch):
    known = Fleet()

    class FakePool(redis.ConnectionPool):
        def __init__(self, connection_class, **kwargs):
            known.options.append((connection_class, kwargs))
            super().__init__(connection_class, host=kwargs["host"], port=kwargs["port"])

    def masters(client):
        kwargs = client.connection_pool.connection_kwargs
        return known.masters((kwargs["host"], kwargs["port"]))

    monkeypatch.setattr(module.redis, "ConnectionPool", FakePool)
    monkeypatch.setattr(redis.Redis, "sentinel_masters", masters)
    return known


@pytest.fixture
def sentinels(fleet):
    return Sentinels("svc", (A, B, C), connection_class=Connection, kwargs={"password": "x"}, timeout=0.5)


def test_the_first_that_can_tell_is_asked_first_next_time(fleet, sentinels):
    fleet.knows = {A: redis.ConnectionError("away"), B: state(7, 1), C: state(7, 1)}
    assert sentinels.locate() == ("m", 7)
    assert fleet.asked == [A, B]
    assert sentinels.locate() == ("m", 7)
    assert fleet.asked == [A, B, B]


def test_who_has_not_heard_of_the_last_failover_is_not_believed(fleet, sentinels):
    fleet.knows = {A: state(8, 2), B: state(7, 1), C: state(8, 2)}
    assert sentinels.locate() == ("m", 8)
    fleet.knows[A] = redis.TimeoutError("hangs")
    assert sentinels.locate() == ("m", 8)
    assert fleet.asked[-3:] == [A, B, C]
    fleet.knows[C] = state(9, 1)
    with pytest.raises(redis.ConnectionError, match="b:2 has not heard of the last failover"):
        sentinels.locate()


@pytest.mark.parametrize(
    ("knows", "says"),
    [
        (state(7, 1, is_sdown=True), "a:1 holds it for down"),
        (state(7, 1, is_odown=True), "a:1 holds it for down"),
        (None, "a:1 knows no such service"),
        (redis.AuthenticationError("invalid password"), "a:1: invalid password"),
    ],
)
def test_it_is_told_why_nobody_names_a_master(fleet, sentinels, knows, says):
    fleet.knows = {A: knows, B: redis.ConnectionError("away"), C: redis.ConnectionError("away")}
    with pytest.raises(redis.ConnectionError, match=says):
        sentinels.locate()


def test_a_sentinel_that_sees_too_few_others_is_not_believed(fleet):
    alone = Sentinels("svc", (A,), connection_class=Connection, kwargs={}, timeout=0.5, min_other_sentinels=3)
    fleet.knows = {A: state(7, 1)}
    with pytest.raises(redis.ConnectionError, match="holds it for down"):
        alone.locate()


class Known:
    def __init__(self, answer):
        self.answer = answer

    def locate(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("address", "answer", "moves"),
    [
        (("m", 7), ("m", 8), True),
        (("m", 7), ("m", 7), False),
        (None, ("m", 8), False),
        (("m", 7), redis.ConnectionError("nobody knows"), False),
    ],
)
def test_p16_a_connection_to_an_old_master_is_left(address, answer, moves):
    told = []
    watch = MasterWatch(Known(answer), interval=1000, moved=told.append, name="-")
    watch.address = address
    watch.look()
    assert told == (["the sentinels name another master, m:8"] if moves else [])


def test_the_watch_ends_at_once():
    watch = MasterWatch(Known(("m", 7)), interval=1000, moved=lambda _: None, name="-")
    watch.start()
    watch.stop(10)
    assert not watch._thread.is_alive()


# -- where they are told ---------------------------------------------------------------------------------------------


def found(source):
    return resolve(source, Settings(namespace="x", timeout=2.0, heartbeat=1.0))


def test_a_url_names_sentinels_service_database_and_both_kinds_of_credentials():
    endpoint = found("redis+sentinel://bob:p%40ss@h1,h2:2,[::1]:3/my%20service/4?sentinel_password=own&protocol=2")
    assert endpoint.sentinels.addresses == (("h1", 26379), ("h2", 2), ("::1", 3))
    assert endpoint.sentinels.service == "my service"
    assert (endpoint.database, endpoint.kwargs["username"], endpoint.kwargs["password"]) == (4, "bob", "p@ss")
    assert endpoint.kwargs["protocol"] == 2
    assert endpoint.sentinels._kwargs["password"] == "own"
    assert endpoint.sentinels._kwargs.get("username") is None
    assert endpoint.sentinels._kwargs["socket_timeout"] == 1.0, "a heartbeat at most"
    assert "p@ss" not in endpoint.description
    assert "own" not in repr(endpoint)


def test_with_tls_the_sentinels_are_asked_with_tls_too():
    endpoint = found("rediss+sentinel://h1/svc?ssl_ca_certs=/ca")
    assert endpoint.connection_class is SSLConnection
    assert endpoint.sentinels._class is SSLConnection
    assert endpoint.sentinels._kwargs["ssl_ca_certs"] == "/ca"


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://", "redis+sentinel://h1", "redis+sentinel://h1/", "redis+sentinel:///svc",
        "redis+sentinel://h1:x/svc", "redis+sentinel://h1,,h2/svc", "redis+sentinel://h1/svc/x",
        "redis+sentinel://u:secret@h1:99999/svc",
    ],
)  # fmt: skip
def test_bad_urls_are_told_without_their_passwords(url):
    with pytest.raises(ConfigError) as caught:
        found(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("package", [redis, redis.asyncio])
def test_a_client_that_a_sentinel_made_is_taken_with_its_options(package):
    manager = package.sentinel.Sentinel(
        [("h1", 1), ("h2", 2)], min_other_sentinels=1, sentinel_kwargs={"password": "own"}, password="theirs", db=3
    )
    endpoint = found(manager.master_for("svc"))
    assert endpoint.sentinels.addresses == (("h1", 1), ("h2", 2))
    assert (endpoint.sentinels.service, endpoint.sentinels._min_other_sentinels) == ("svc", 1)
    assert endpoint.sentinels._kwargs["password"] == "own"
    assert (endpoint.kwargs["password"], endpoint.database, endpoint.connection_class) == ("theirs", 3, Connection)


def test_replicas_are_refused():
    client = redis.sentinel.Sentinel([("h1", 1)]).slave_for("svc")
    with pytest.raises(ConfigError, match="never read"):
        found(client)


def test_each_connection_leads_where_the_sentinels_say(fleet):
    endpoint = found("redis+sentinel://a:1/svc")
    fleet.knows = {A: state(7, 1)}
    first = endpoint.make(name="me")
    fleet.knows = {A: state(8, 2)}
    second = endpoint.make(name="me")
    assert [(each.host, each.port) for each in (first, second)] == [("m", 7), ("m", 8)]
    other = endpoint.make_asynchronous(name="me", address=("m", 9))
    assert (other.host, other.port) == ("m", 9)


def test_a_server_that_is_no_master_is_refused():
    info = b"# Server\r\nrun_id:0123abc\r\n# Replication\r\nrole:%b\r\n"
    assert run_id_of(info % b"master", master=True) == "0123abc"
    assert run_id_of(info % b"slave", master=False) == "0123abc"
    with pytest.raises(redis.ConnectionError, match="no master"):
        run_id_of(info % b"slave", master=True)
