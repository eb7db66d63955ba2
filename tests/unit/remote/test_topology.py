"""A URL or a client becomes an endpoint: nothing is retried, nothing is decoded, no password is shown."""

from __future__ import annotations

import gc
import itertools
import socket
from types import SimpleNamespace
from weakref import WeakSet

import fakeredis
import pytest
import redis
import redis.asyncio
import redis.sentinel
from redis.backoff import ExponentialBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from coherent_cache.config import Settings
from coherent_cache.errors import ConfigError
from coherent_cache.remote import topology
from coherent_cache.remote.topology import Endpoint, resolve, server_of

SETTINGS = Settings(namespace="shop", timeout=1.5)
SECRET = "hunter2"
NUMBERS = itertools.count()


def endpoint(source) -> Endpoint:
    return resolve(source, SETTINGS)


def refusal(source) -> str:
    with pytest.raises(ConfigError) as caught:
        endpoint(source)
    assert caught.value.option == "url"
    assert caught.value.__cause__ is None
    return str(caught.value)


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "kind", "description", "database", "some"),
    [
        ("redis://", Connection, "localhost:6379/0", 0, {}),
        ("redis:///", Connection, "localhost:6379/0", 0, {}),
        ("redis://h", Connection, "h:6379/0", 0, {"host": "h"}),
        ("redis://h:7000", Connection, "h:7000/0", 0, {"host": "h", "port": 7000}),
        ("redis://h:7000/3", Connection, "h:7000/3", 3, {"db": 3}),
        ("redis://h?db=4", Connection, "h:6379/4", 4, {"db": 4}),
        ("redis://h/3?db=4", Connection, "h:6379/4", 4, {"db": 4}),
        ("redis://[::1]:7000/1", Connection, "::1:7000/1", 1, {"host": "::1"}),
        ("redis://:hunter2@h/0", Connection, "h:6379/0", 0, {"password": SECRET}),
        ("redis://me:hunter2@h/0", Connection, "h:6379/0", 0, {"username": "me", "password": SECRET}),
        ("redis://me:p%40%3A%2F@h/0", Connection, "h:6379/0", 0, {"password": "p@:/"}),
        ("rediss://h:7000/1", SSLConnection, "h:7000/1", 1, {"host": "h"}),
        (
            "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem",
            SSLConnection,
            "h:6379/0",
            0,
            {"ssl_cert_reqs": "none", "ssl_ca_certs": "/ca.pem"},
        ),
        ("unix:///run/redis.sock", UnixDomainSocketConnection, "/run/redis.sock/0", 0, {"path": "/run/redis.sock"}),
        ("unix://me:hunter2@/run/redis.sock?db=2", UnixDomainSocketConnection, "/run/redis.sock/2", 2, {"db": 2}),
    ],
)
def test_every_form_of_url(url, kind, description, database, some):
    found = endpoint(url)

    assert found.connection_class is kind
    assert (found.description, found.database, found.note) == (description, database, "")
    assert some.items() <= found.kwargs.items()
    assert SECRET not in found.description
    connection = found.make(name="me")  # redis-py takes all of the arguments
    assert type(connection) is kind
    assert connection.client_name == "me"


@pytest.mark.parametrize(("url", "protocol"), [("redis://h", 3), ("redis://h?protocol=2", 2), ("unix:///s", 3)])
def test_the_protocol_is_resp3_unless_another_is_asked_for(url, protocol):
    found = endpoint(url)

    assert found.kwargs["protocol"] == protocol
    assert found.make(name="me", protocol=2).protocol == 2
    assert found.kwargs["protocol"] == protocol


def test_timeouts_of_the_url_are_kept():
    found = endpoint("redis://h?socket_timeout=0.5&socket_connect_timeout=7.5")

    assert (found.kwargs["socket_timeout"], found.kwargs["socket_connect_timeout"]) == (0.5, 7.5)


@pytest.mark.parametrize("url", ["redis://h", "redis://h?socket_timeout=5&socket_connect_timeout=5", "unix:///s"])
def test_without_a_choice_the_timeout_option_counts(url):
    # redis-py's own default of 5 s cannot be told from a choice of 5 s.
    found = endpoint(url)

    assert (found.kwargs["socket_timeout"], found.kwargs["socket_connect_timeout"]) == (1.5, 1.5)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "this is no known scheme; use redis://host:port/db"),
        ("http://h", "'http' is no known scheme"),
        ("REDIS://h", "'REDIS' is no known scheme"),
        ("valkey://h", "'valkey' is no known scheme"),
        ("localhost:6379", "this is no known scheme"),
        ("//localhost:6379", "this is no known scheme"),
        ("redis", "malformed URL"),
        ("redis://[::1", "malformed URL"),
        ("redis://h:port", "malformed URL"),
        ("redis://h:99999", "Port out of range 0-65535"),
        ("redis://h?db=first", "Invalid value for 'db'"),
        ("redis://h?socket_timeout=long", "Invalid value for 'socket_timeout'"),
        ("redis://h?protocol=three", "Invalid value for 'protocol'"),
        ("redis://h?protocol=4", "protocol must be 2 or 3"),
        ("unix://", "needs the path of a socket: unix:///path/to/socket"),
        ("redis+sentinel://h:1,h:2", "must be redis+sentinel://[user:password@]host:port,host:port/service"),
        ("redis+cluster://h:7000", r"redis+cluster:// is not supported yet; give a single server's"),
    ],
)
def test_a_bad_url_is_refused_with_the_reason(url, says):
    assert says in refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hunter2@h:port/0",
        "redis://me:hunter2@h:99999",
        "redis://me:hunter2@[h",
        "redis://me:hunter2@h?db=first",
        "redis://h?password=hunter2&db=first",
        "redis://\u2100:hunter2@h",  # NFKC: Python's own message shows all of it
        "redis://me:hunt?er2@h",
        "redis+sentinel://:hunter2@h",
        "redis+cluster://:hunter2@h",
        "http://:hunter2@h",
        "unix://:hunter2@",
        ":hunter2@localhost:6379",
        "me:hunter2@localhost:6379/0",
        "redis:/:hunter2@h",
        "hunter2",
        "redis://:hunter2@h/first",
    ],
)
def test_no_error_shows_the_password(url):
    text = refusal(url)

    assert SECRET not in text
    assert "hunt" not in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/first",
        "redis://h/1/2",
        "redis://h/-1",
        "redis://h?db=-1",
    ],
)
def test_a_database_that_is_no_number_is_refused(url):
    # redis-py ignores or joins what is no number, and would use another database.
    refusal(url)


def test_the_refusal_of_a_database_says_what_is_expected():
    assert "the number of a database" in refusal("redis://h/first")


@pytest.mark.parametrize(("url", "database"), [("redis://h/", 0), ("redis://h/3/", 3), ("redis://h/15", 15)])
def test_a_database_that_is_a_number_is_taken(url, database):
    assert endpoint(url).database == database


def test_an_endpoint_does_not_show_the_password_in_tracebacks_that_show_locals():
    assert SECRET not in repr(endpoint("redis://:hunter2@h"))


# --- memory:// and embedded:// ---


def test_caches_of_one_memory_name_share_a_server():
    name = f"topology-{next(NUMBERS)}"
    first, second = endpoint(f"memory://{name}"), endpoint(f"memory://{name}")
    other = endpoint(f"memory://{name}-other")

    assert first.kwargs["server"] is second.kwargs["server"]
    assert first.kwargs["server"] is not other.kwargs["server"]
    assert (first.description, first.database, first.kwargs["protocol"]) == (f"memory://{name}", 0, 2)


def test_memory_without_a_name_is_the_default_one():
    assert endpoint("memory://").description == "memory://default"


def test_an_embedded_server_is_asked_for_by_its_name(monkeypatch):
    names = []

    def embedded_url(name):
        names.append(name)
        return SimpleNamespace(url="unix:///run/private.sock", kind="redis-server", version="7.0.15")

    monkeypatch.setattr(topology, "embedded_url", embedded_url)

    found = endpoint("embedded://tests")
    assert found.connection_class is UnixDomainSocketConnection
    assert found.kwargs["path"] == "/run/private.sock"
    assert (found.description, found.note) == ("embedded://tests", "redis-server 7.0.15")

    assert endpoint("embedded://").description == "embedded://default"
    assert names == ["tests", "default"]


# --- clients ---


def client(**options) -> redis.Redis:
    return redis.Redis(host="h", **options)


@pytest.mark.parametrize(
    ("source", "kind", "description", "some"),
    [
        (client(port=7000, db=3), Connection, "h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        (client(username="me", password=SECRET), Connection, "h:6379/0", {"username": "me", "password": SECRET}),
        (client(ssl=True, ssl_ca_certs="/ca.pem"), SSLConnection, "h:6379/0", {"ssl_ca_certs": "/ca.pem"}),
        (redis.Redis(unix_socket_path="/s", db=2), UnixDomainSocketConnection, "/s/2", {"path": "/s"}),
        (redis.Redis.from_url("redis://h:7000/1"), Connection, "h:7000/1", {"port": 7000}),
        (redis.StrictRedis(host="h"), Connection, "h:6379/0", {}),
        (redis.Redis(connection_pool=redis.BlockingConnectionPool(host="h")), Connection, "h:6379/0", {}),
        (redis.Redis(connection_pool=redis.ConnectionPool()), Connection, "localhost:6379/0", {}),
        (redis.asyncio.Redis(host="h", db=3), Connection, "h:6379/3", {"host": "h", "db": 3}),
        (redis.asyncio.Redis(host="h", ssl=True, ssl_ca_certs="/ca.pem"), SSLConnection, "h:6379/0", {}),
        (redis.asyncio.Redis(unix_socket_path="/s", password=SECRET), UnixDomainSocketConnection, "/s/0", {}),
        (redis.asyncio.Redis.from_url("redis://h:7000/1"), Connection, "h:7000/1", {"port": 7000}),
        (
            fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), host="h"),
            fakeredis.FakeRedisConnection,
            "h:6379/0",
            {},
        ),
    ],
)
def test_every_kind_of_client(source, kind, description, some):
    found = endpoint(source)

    assert found.connection_class is kind
    assert found.description == description
    assert some.items() <= found.kwargs.items()
    assert type(found.make(name="me")) is kind


def test_the_clients_own_pool_is_left_alone():
    pool = redis.ConnectionPool(host="h", decode_responses=True, socket_timeout=9)
    before = dict(pool.connection_kwargs)

    endpoint(redis.Redis(connection_pool=pool)).make(name="me")

    assert pool.connection_kwargs == before


@pytest.mark.parametrize(
    ("options", "timeouts"),
    [
        ({}, (1.5, 1.5)),
        ({"socket_timeout": None, "socket_connect_timeout": None}, (1.5, 1.5)),
        ({"socket_timeout": 0.25}, (0.25, 1.5)),
        ({"socket_connect_timeout": 9}, (1.5, 9)),
    ],
)
def test_timeouts_of_a_client_are_kept(options, timeouts):
    # None would wait for ever: the option `timeout` counts.
    found = endpoint(client(**options))

    assert (found.kwargs["socket_timeout"], found.kwargs["socket_connect_timeout"]) == timeouts


@pytest.mark.parametrize("protocol", [2, 3, "2", "3"])
def test_the_protocol_of_a_client_is_kept(protocol):
    assert endpoint(client(protocol=protocol)).kwargs["protocol"] == int(protocol)


def test_a_credential_provider_is_kept():
    provider = redis.UsernamePasswordCredentialProvider("me", SECRET)

    assert endpoint(client(credential_provider=provider)).kwargs["credential_provider"] is provider


@pytest.mark.parametrize(
    "source",
    [
        "redis://h?health_check_interval=30&retry_on_timeout=true&max_connections=5&client_name=other",
        client(
            decode_responses=True,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(), 6),
            retry_on_error=[TimeoutError],
            client_name="other",
            encoding="latin-1",
        ),
    ],
)
def test_nothing_is_done_behind_our_back(source):
    # A8: redis-py's default executed one timed-out script six times.
    found = endpoint(source)
    connection = found.make(name="me")

    assert found.kwargs["retry"].get_retries() == 0
    assert connection.retry.get_retries() == 0
    assert connection.health_check_interval == 0
    assert connection.client_name == "me"
    assert found.kwargs["decode_responses"] is False
    assert not found.kwargs.keys() & {"retry_on_error", "retry_on_timeout", "max_connections", "encoding"}


def test_maintenance_notifications_are_off():
    assert endpoint("redis://h").kwargs["maint_notifications_config"].enabled is False


def test_an_older_redis_py_is_not_told_of_maintenance_notifications(monkeypatch):
    monkeypatch.setattr(topology, "MaintNotificationsConfig", None)

    assert "maint_notifications_config" not in endpoint("redis://h").kwargs


def sentinel() -> redis.sentinel.Sentinel:
    return redis.sentinel.Sentinel([("h", 26379)], password=SECRET)


class Strange(redis.asyncio.Connection):
    pass


async def introduce(connection):
    pass


def asynchronous(**options):
    return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(host="h", **options))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (sentinel().slave_for("service"), "replicas, which are never read; take the Sentinel's master_for()"),
        (object.__new__(redis.RedisCluster), "Redis Cluster is not supported yet; give a single server's URL"),
        (asynchronous(connection_class=Strange), "there is no counterpart for threads of the client's Strange"),
        (asynchronous(redis_connect_func=introduce), "redis_connect_func is a coroutine function"),
        (object.__new__(redis.asyncio.RedisCluster), "Redis Cluster is not supported yet"),
        (sentinel(), "not redis.sentinel.Sentinel"),
        (redis.ConnectionPool(host="h"), "not redis.connection.ConnectionPool"),
        (object(), "not builtins.object"),
        (None, "not builtins.NoneType"),
        (b"redis://h", "not builtins.bytes"),
        (6379, "not builtins.int"),
    ],
)
def test_another_source_is_refused_with_the_remedy(source, says):
    text = refusal(source)

    assert text.startswith("url: ")
    assert says in text
    assert SECRET not in text


# --- fakeredis ---


@pytest.mark.parametrize("kind", [fakeredis.FakeRedis, fakeredis.FakeStrictRedis])
@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"protocol": 3}, {"decode_responses": True}, {"db": 2}])
def test_a_fakeredis_client_and_the_endpoint_see_the_same_data(kind, options):
    source = kind(server=fakeredis.FakeServer(), **options)
    source.set("key", "value")

    connection = endpoint(source).connect(name="me")
    connection.send_command("GET", "key")

    assert connection.read_response(disable_decoding=True) == b"value"
    connection.disconnect()
    source.close()


def test_fakeredis_clients_of_one_server_lead_to_one_server():
    server, other = fakeredis.FakeServer(), fakeredis.FakeServer()
    sources = [fakeredis.FakeRedis(server=one) for one in (server, server, other)]

    connections = [endpoint(source).connect(name="me") for source in sources]

    first, second, third = map(server_of, connections)
    assert first == second
    assert first != third
    for connection in connections:
        connection.disconnect()


# --- the handshake ---


class Line:
    """Stands for a connected connection of redis-py."""

    def __init__(self, answer):
        self.answer = answer
        self.done = []

    def on_connect(self):
        self.done.append("on_connect")

    def send_command(self, *command):
        self.done.append(command)

    def read_response(self, **options):
        assert options == {"disable_decoding": True}
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


INFO = b"# Server\r\nredis_version:7.0.15\r\nrun_id:0123abc\r\ntcp_port:6379\r\n"


@pytest.mark.parametrize("answer", [INFO, bytearray(INFO)])
def test_p16_each_connection_learns_which_server_it_leads_to(answer):
    line = Line(answer)

    endpoint("redis://h").kwargs["redis_connect_func"](line)

    assert line.done == ["on_connect", ("INFO", "server")]
    assert server_of(line) == "0123abc"


def test_a_users_own_connect_function_takes_the_place_of_the_usual_handshake():
    line = Line(INFO)
    source = client(redis_connect_func=lambda connection: connection.done.append("own"))

    endpoint(source).kwargs["redis_connect_func"](line)

    assert line.done == ["own", ("INFO", "server")]


def test_a_user_without_the_right_to_info_is_told_what_to_grant():
    line = Line(redis.exceptions.NoPermissionError("this user has no permissions to run the 'info' command"))

    with pytest.raises(redis.exceptions.NoPermissionError, match=r"ACL SETUSER <user> \+info"):
        endpoint("redis://h").kwargs["redis_connect_func"](line)


def test_a_server_without_info_is_known_by_its_identity():
    line = Line(redis.ResponseError("unknown command 'info'"))
    line._server = object()

    endpoint("redis://h").kwargs["redis_connect_func"](line)

    assert server_of(line) == f"no-info:{id(line._server)}"


def test_another_error_of_info_is_passed_on():
    line = Line(redis.ResponseError("LOADING Redis is loading the dataset in memory"))

    with pytest.raises(redis.ResponseError, match="LOADING"):
        endpoint("redis://h").kwargs["redis_connect_func"](line)


def test_a_proxy_that_hides_its_servers_cannot_be_used():
    with pytest.raises(redis.ResponseError, match="shows no run_id; a proxy that hides which server answers"):
        endpoint("redis://h").kwargs["redis_connect_func"](Line(b"# Server\r\nredis_version:7.0.15\r\n"))


class Wired:
    def __init__(self, sock=None):
        if sock is not None:
            self._sock = sock


def test_p13_a_forked_child_closes_its_copies_without_a_shutdown(monkeypatch):
    # A copy that stays open keeps the connection open when the parent dies. `ours` is the parent's own copy.
    copy, peer = socket.socketpair()
    ours = copy.dup()
    connections = [Wired(copy), Wired(), Wired(object())]
    monkeypatch.setattr(topology, "_made", WeakSet(connections))

    topology._close_inherited_sockets()

    assert copy.fileno() == -1
    ours.send(b"still connected")
    assert peer.recv(99) == b"still connected"
    assert len(topology._made) == 0
    ours.close()
    peer.close()


def test_p13_every_connection_is_known_to_a_forked_child_as_long_as_it_lives(monkeypatch):
    monkeypatch.setattr(topology, "_made", WeakSet())

    connection = endpoint("redis://h").make(name="me")
    assert list(topology._made) == [connection]

    del connection
    gc.collect()
    assert list(topology._made) == []


def test_connect_makes_a_connected_connection_with_a_name():
    done = []

    class Fake:
        def __init__(self, **kwargs):
            done.append(kwargs)

        def connect(self):
            done.append("connected")

    found = Endpoint(Fake, {"protocol": 3, "db": 0}, 0, "h:6379/0")

    assert isinstance(found.connect(name="me"), Fake)
    assert done == [{"protocol": 3, "db": 0, "client_name": "me"}, "connected"]
    assert found.kwargs == {"protocol": 3, "db": 0}


# -- event loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("redis://h", redis.asyncio.Connection),
        ("rediss://h?ssl_check_hostname=no", redis.asyncio.SSLConnection),
        ("unix:///s", redis.asyncio.UnixDomainSocketConnection),
        (redis.asyncio.Redis(host="h"), redis.asyncio.Connection),
    ],
)
def test_each_class_has_a_counterpart_for_event_loops(source, kind):
    found = endpoint(source)
    found.check_asynchronous()

    connection = found.make_asynchronous(name="me")

    assert type(connection) is kind
    assert (connection.client_name, connection.protocol, connection.retry.get_retries()) == ("me", 3, 0)
    assert connection.redis_connect_func is None


def test_memory_needs_no_counterpart():
    endpoint("memory://x").check_asynchronous()


class Own(Connection):
    pass


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Own)), "no counterpart of Own"),
        (client(redis_connect_func=lambda _: None), "redis_connect_func cannot serve threads and event loops alike"),
        (client(ssl=True, ssl_validate_ocsp_stapled=True), "redis.asyncio knows no option ssl_validate_ocsp_stapled"),
    ],
)
def test_what_event_loops_cannot_connect_to_is_refused(source, says):
    with pytest.raises(ConfigError, match=says):
        endpoint(source).check_asynchronous()
