"""The fault proxy between two plain sockets: both ends are in the test's hands, so every byte can be told."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from coherent_cache.errors import ConfigError
from coherent_cache.testing import fault_proxy
from coherent_cache.testing.fault_proxy import (
    SUBSCRIBERS,
    FaultProxy,
    Framer,
    ProxiedConnection,
    _name_in,
    _Target,
    commands,
)

SOON = 20.0  # seconds within which everything must have happened
NOTHING = 0.05  # seconds in which nothing must come


def command(*words: str | bytes) -> bytes:
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


class Peers:
    """A server, and clients through a proxy to it."""

    def __init__(self, **options):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(SOON)
        self.sockets = [self.listener]
        self.proxy = FaultProxy(f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0", **options)

    def connect(self, name: str | None = None):
        """Return both ends of a connection: the client's and the server's."""
        client = self.dial()
        server, _ = self.listener.accept()
        server.settimeout(SOON)
        self.sockets.append(server)
        if name is not None:
            hello = command("CLIENT", "SETNAME", name)
            client.sendall(hello)
            assert receive(server, len(hello)) == hello
        return client, server

    def dial(self):
        client = socket.create_connection(("127.0.0.1", self.proxy.port), SOON)
        self.sockets.append(client)
        return client

    def close(self):
        for each in self.sockets:
            each.close()
        self.proxy.close()


def receive(sock, number):
    data = b""
    while len(data) < number:
        more = sock.recv(number - len(data))
        if not more:
            break
        data += more
    return data


def is_silent(sock, seconds=NOTHING):
    return not select.select([sock], [], [], seconds)[0]


def is_closed(sock):
    """Wait for the end of a connection; whatever comes before it is an error."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def is_reset(peers):
    """Tell whether a new connection is reset, be it before the client knows that it is connected."""
    try:
        return is_closed(peers.dial())
    except ConnectionResetError:
        return True


@pytest.fixture
def peers():
    made = Peers(seed=1)
    yield made
    made.close()


# --- without a fault ---


def test_bytes_go_both_ways_and_are_counted(peers):
    client, server = peers.connect()

    client.sendall(command("PING"))
    assert receive(server, 14) == command("PING")
    answer = b"+PONG\r\n>2\r\n+invalidate\r\n*0\r\n"
    server.sendall(answer)
    assert receive(client, len(answer)) == answer

    (connection,) = peers.proxy.connections()
    assert connection.number == 1
    assert connection.is_open
    assert connection.upstream == f"127.0.0.1:{peers.listener.getsockname()[1]}"
    assert (connection.to_server.received, connection.to_server.delivered, connection.to_server.frames) == (14, 14, 1)
    assert (connection.to_client.delivered, connection.to_client.frames, connection.to_client.pushes) == (28, 1, 1)
    assert connection.to_client.lost == 0


def test_much_data_arrives_complete_although_nobody_reads_at_first(peers):
    client, server = peers.connect()
    data = os.urandom(8 * 1024 * 1024)
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()

    assert receive(server, len(data)) == data
    sender.join(SOON)
    assert not sender.is_alive()


@pytest.mark.parametrize("end", ["client", "server"])
def test_closing_one_end_closes_the_other(peers, end):
    client, server = peers.connect()
    first, second = (client, server) if end == "client" else (server, client)

    first.sendall(b"+bye\r\n")
    first.close()

    assert receive(second, 6) == b"+bye\r\n"
    assert is_closed(second)
    second.close()
    wait(lambda: not peers.proxy.connections())
    (connection,) = peers.proxy.connections(closed=True)
    assert not connection.is_open


def test_names_are_learnt_and_forgotten(peers):
    client, server = peers.connect()

    assert names(peers.proxy) == [""]
    for words, name in [
        (("CLIENT", "SETNAME", "worker-1"), "worker-1"),
        (("hello", "3", "auth", "default", "SETNAME", "setname", "worker-2"), "worker-2"),
        (("CLIENT", "SETNAME"), "worker-2"),
        (("SET", "CLIENT", "SETNAME"), "worker-2"),
        (("RESET",), ""),
    ]:
        sent = command(*words)
        client.sendall(sent)
        assert receive(server, len(sent)) == sent
        assert names(peers.proxy) == [name]


def test_a_server_that_is_away_shows_as_a_reset(peers):
    peers.listener.close()

    assert is_reset(peers)
    assert peers.proxy.refused == 1
    assert peers.proxy.connections() == []


def test_unix_sockets(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "redis"))
        listener.listen()
        listener.settimeout(SOON)
        with FaultProxy(f"unix://user:secret@{tmp_path}/redis?db=2&protocol=3") as proxy:
            assert proxy.url == f"redis://user:secret@127.0.0.1:{proxy.port}?db=2&protocol=3"
            with socket.create_connection(("127.0.0.1", proxy.port), SOON) as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"PING\r\n")
                    assert receive(server, 6) == b"PING\r\n"
                    assert proxy.connections()[0].upstream == f"{tmp_path}/redis"


# --- faults ---


def test_a_delay_keeps_the_order_and_ends_at_once(peers):
    client, server = peers.connect()

    with peers.proxy.delay(0.1, jitter=0.1, direction="to_server"):
        start = time.monotonic()
        for number in range(10):
            client.sendall(b"%d" % number)
        assert receive(server, 10) == b"0123456789"
        assert time.monotonic() - start >= 0.1

    with peers.proxy.delay(60, direction="to_server"):
        client.sendall(b"late")
        server.sendall(b"back")
        assert receive(client, 4) == b"back"
        assert is_silent(server)
    assert receive(server, 4) == b"late"


def test_one_reply_is_delayed_and_what_follows_waits_behind_it(peers):
    client, server = peers.connect()

    fault = peers.proxy.delay_reply(2, 0.1)
    start = time.monotonic()
    server.sendall(b"+first\r\n>1\r\n+push\r\n$2\r\n")  # a push is no reply
    assert receive(client, 19) == b"+first\r\n>1\r\n+push\r\n"
    assert fault.active
    server.sendall(b"-2\r\n+third\r\n")

    assert receive(client, 16) == b"$2\r\n-2\r\n+third\r\n"
    assert time.monotonic() - start >= 0.1
    assert not fault.active


def test_a_reply_that_has_begun_before_the_fault_does_not_count(peers):
    client, server = peers.connect()
    server.sendall(b"*2\r\n+a\r\n")
    assert receive(client, 8) == b"*2\r\n+a\r\n"

    peers.proxy.lose(1, of="reply")
    server.sendall(b"+b\r\n+lost\r\n+c\r\n")

    assert receive(client, 8) == b"+b\r\n+c\r\n"
    assert peers.proxy.connections()[0].to_client.lost == 7


def test_the_beginning_of_a_reply_that_was_kept_back_is_released(peers):
    client, server = peers.connect()

    with peers.proxy.lose(1, of="push"):
        server.sendall(b"$10\r\n01234")
        assert is_silent(client)
    assert receive(client, 10) == b"$10\r\n01234"
    peers.proxy.lose(1, of="reply")
    server.sendall(b"56789\r\n+lost\r\n+kept\r\n")
    assert receive(client, 14) == b"56789\r\n+kept\r\n"


@pytest.mark.parametrize(
    "push", [b">3\r\n$7\r\nmessage\r\n+c\r\n+1\r\n", b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\n1\r\n"]
)
def test_pushes_are_lost_one_by_one(peers, push):
    client, server = peers.connect()

    with peers.proxy.lose():
        server.sendall(push + b"+kept\r\n" + push)
        assert receive(client, 7) == b"+kept\r\n"
    server.sendall(push)
    assert receive(client, len(push)) == push
    assert peers.proxy.connections()[0].to_client.pushes == 3


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_hold_keeps_everything_even_the_end(peers, direction):
    client, server = peers.connect()
    sender, receiver = (client, server) if direction == "to_server" else (server, client)

    with peers.proxy.hold(direction=direction):
        sender.sendall(b"one")
        sender.sendall(b"two")
        sender.close()
        assert is_silent(receiver)
    assert receive(receiver, 6) == b"onetwo"
    assert is_closed(receiver)


def test_a_full_buffer_makes_the_sender_wait():
    peers = Peers(buffer_bytes=100_000)
    try:
        client, server = peers.connect()
        client.setblocking(False)
        with peers.proxy.hold():
            sent = 0
            while select.select([], [client], [], 0.2)[1]:
                sent += client.send(bytes(100_000))
                assert sent < 50_000_000  # what the kernel's buffers may hold, and more
        assert receive(server, sent) == bytes(sent)
    finally:
        peers.close()


def test_a_black_hole_swallows_everything_and_the_connection_does_not_survive_it(peers):
    client, server = peers.connect()
    untouched = peers.connect()

    with peers.proxy.black_hole(direction="to_client", where=lambda each: each.number == 1):
        server.sendall(b"vanishes")
        client.sendall(b"arrives")
        assert receive(server, 7) == b"arrives"
        server.close()
        assert is_silent(client)
        (first, _) = peers.proxy.connections()
        assert (first.to_client.received, first.to_client.delivered, first.to_client.lost) == (8, 0, 8)
    assert is_closed(client)
    untouched[1].sendall(b"well")
    assert receive(untouched[0], 4) == b"well"


def test_what_was_on_its_way_falls_into_a_black_hole_too(peers):
    client, server = peers.connect()
    peers.proxy.delay(60)
    client.sendall(b"never")
    wait(lambda: peers.proxy.connections()[0].to_server.received == 5)

    peers.proxy.black_hole()

    assert peers.proxy.connections()[0].to_server.lost == 5
    peers.proxy.heal()
    assert is_closed(server)


def test_throttle(peers):
    client, server = peers.connect()

    with peers.proxy.throttle(50_000, direction="to_server"):
        start = time.monotonic()
        client.sendall(bytes(10_000))
        assert receive(server, 10_000) == bytes(10_000)
        assert time.monotonic() - start >= 0.15
    client.sendall(bytes(1_000_000))
    assert receive(server, 1_000_000) == bytes(1_000_000)


@pytest.mark.parametrize("number", [0, 1, 7])
def test_cut_after_delivers_that_many_bytes_and_no_more(peers, number):
    client, server = peers.connect()
    client.sendall(b"before")
    assert receive(server, 6) == b"before"

    peers.proxy.cut_after(number, direction="to_server")
    server.sendall(b"the other way")
    assert receive(client, 13) == b"the other way"
    if number:
        client.sendall(b"0123456789")
        assert receive(server, 20) == b"0123456789"[:number]
    else:
        client.sendall(b"0")
        assert is_closed(server)
    assert is_closed(client)


def test_cut_after_counts_per_connection(peers):
    first, second = peers.connect(), peers.connect()

    peers.proxy.cut_after(3)
    first[0].sendall(b"ab")
    second[0].sendall(b"abc")

    assert receive(first[1], 2) == b"ab"
    assert receive(second[1], 4) == b"abc"
    first[0].sendall(b"cd")
    assert receive(first[1], 2) == b"c"


@pytest.mark.parametrize("reset", [False, True])
def test_cut_closes_the_connections_of_that_name_on_both_sides(peers, reset):
    cache, subscriber = peers.connect("cache"), peers.connect("cache:subscriber")

    assert peers.proxy.cut(where="*:subscriber", reset=reset) == 1

    assert is_closed(subscriber[0])
    assert is_closed(subscriber[1])
    cache[0].sendall(b"still there")
    assert receive(cache[1], 11) == b"still there"
    assert peers.proxy.cut() == 1
    assert peers.proxy.cut() == 0


def test_refuse_resets_new_connections_and_leaves_the_old_ones(peers):
    client, server = peers.connect()

    with peers.proxy.refuse():
        assert is_reset(peers)
    client.sendall(b"old")
    assert receive(server, 3) == b"old"
    peers.connect()
    assert peers.proxy.refused == 1


def test_refuse_by_name_waits_for_the_name(peers):
    old = peers.connect("a:subscriber")

    with peers.proxy.refuse(where="*:subscriber"):
        new, _ = peers.connect()
        new.sendall(command("CLIENT", "SETNAME", "b:subscriber"))
        assert is_closed(new)
        peers.connect("b")
    assert names(peers.proxy) == ["a:subscriber", "b"]
    old[0].sendall(b"old")
    assert receive(old[1], 3) == b"old"


def test_a_new_upstream_is_for_new_connections(peers):
    client, server = peers.connect()
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"redis://127.0.0.1:{other.getsockname()[1]}"
        peers.proxy.upstream = url
        assert peers.proxy.upstream == url
        new = peers.dial()
        accepted, _ = other.accept()
        with accepted:
            new.sendall(b"new")
            assert receive(accepted, 3) == b"new"
            client.sendall(b"old")
            assert receive(server, 3) == b"old"


def test_refuse_closes_those_that_are_open_if_asked(peers):
    pairs = {name: peers.connect(name) for name in ("gone", "stays")}
    nameless, server = peers.connect()
    with peers.proxy.refuse(where="gone", cut=True):
        assert all(map(is_closed, pairs["gone"]))
        nameless.sendall(command("CLIENT", "SETNAME", "gone"))  # it was there before, and nobody knew
        assert is_closed(nameless)
        assert is_closed(server)
        client, server = pairs["stays"]
        client.sendall(b"PING\r\n")
        assert receive(server, 6) == b"PING\r\n"
    with peers.proxy.refuse(cut=True):
        assert all(map(is_closed, pairs["stays"]))
        assert is_reset(peers)
    peers.connect("gone")


def test_heal_ends_what_was_made_with_the_same_selection(peers):
    faults = {where: peers.proxy.hold(where=where) for where in ("a", commands, None)}
    peers.proxy.heal(where=commands)
    assert [fault.active for fault in faults.values()] == [True, False, True]
    peers.proxy.heal(where="b")
    assert [fault.active for fault in faults.values()] == [True, False, True]
    peers.proxy.heal()
    assert not any(fault.active for fault in faults.values())


def test_what_caches_call_their_connections(peers):
    for name in ("coherent-cache:i:subscriber", "coherent-cache:i", "another:subscriber", None):
        peers.connect(name)
    assert [each.number for each in peers.proxy.connections(where=SUBSCRIBERS)] == [1]
    assert [each.number for each in peers.proxy.connections(where=commands)] == [2]


def test_heal_ends_everything(peers):
    client, server = peers.connect()
    faults = [peers.proxy.hold(), peers.proxy.refuse(), peers.proxy.throttle(1), peers.proxy.delay(60)]
    client.sendall(b"0123456789")
    assert is_silent(server)

    peers.proxy.heal()

    assert receive(server, 10) == b"0123456789"
    assert not any(fault.active for fault in faults)
    for fault in faults:
        fault.end()  # a second end does nothing


def test_faults_add_up(peers):
    client, server = peers.connect()
    with peers.proxy.delay(0.05), peers.proxy.delay(0.05):
        start = time.monotonic()
        client.sendall(b"x")
        assert receive(server, 1) == b"x"
        assert time.monotonic() - start >= 0.1


# --- misuse, threads, the end ---


@pytest.mark.parametrize(
    "url", ["rediss://localhost", "memory://x", "localhost:6379", "redis://localhost:no", "unix://", "", None, 7,
            "redis://no-such-host.invalid:1"]
)  # fmt: skip
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError, match="upstream"):
        FaultProxy(url)


def test_the_url_keeps_user_password_database_and_options():
    target = _Target.of("redis://me:p%40ss@localhost:1234/3?protocol=2")

    assert target.url_through(99) == "redis://me:p%40ss@127.0.0.1:99/3?protocol=2"
    assert "p%40ss" not in target.label


@pytest.mark.parametrize(
    "fault",
    [
        lambda proxy: proxy.hold(direction="up"),
        lambda proxy: proxy.hold(where=7),
        lambda proxy: proxy.cut(where=7),
        lambda proxy: proxy.connections(where=7),
        lambda proxy: proxy.delay(-1),
        lambda proxy: proxy.delay(float("nan")),
        lambda proxy: proxy.delay(1, jitter=-1),
        lambda proxy: proxy.delay_reply(0, 1),
        lambda proxy: proxy.delay_reply(1, 1, of="message"),
        lambda proxy: proxy.lose(0),
        lambda proxy: proxy.throttle(0),
        lambda proxy: proxy.cut_after(-1),
    ],
)
def test_impossible_faults_are_refused(peers, fault):
    with pytest.raises(ConfigError):
        fault(peers.proxy)


def test_a_selector_that_raises_is_reported_and_ends_nothing(peers):
    client, server = peers.connect()

    def broken(connection: ProxiedConnection):
        raise LookupError(connection.name)

    peers.proxy.hold(where=broken)
    client.sendall(b"goes through")
    assert receive(server, 12) == b"goes through"
    with pytest.raises(LookupError):
        peers.proxy.heal()
    with pytest.raises(LookupError):
        peers.proxy.cut(where=broken)
    peers.proxy.connections()


def test_many_threads_may_use_it(peers):
    client, server = peers.connect()
    errors = []

    def work():
        try:
            for _ in range(50):
                with peers.proxy.delay(0.001, direction="to_server"), peers.proxy.hold(where="nobody"):
                    peers.proxy.connections()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    client.sendall(bytes(100_000))
    assert receive(server, 100_000) == bytes(100_000)
    for thread in threads:
        thread.join(SOON)
    assert errors == []


def test_a_selector_may_ask_the_proxy(peers):
    client, server = peers.connect()
    with peers.proxy.hold(where=lambda _: len(peers.proxy.connections()) > 1):
        client.sendall(b"alone")
        assert receive(server, 5) == b"alone"


def test_closing_leaves_no_thread_and_no_socket():
    before = open_files()
    peers = Peers()
    client, server = peers.connect("a")
    peers.proxy.hold()
    client.sendall(b"held")
    peers.proxy.close()

    assert is_closed(client)
    assert is_closed(server)
    peers.proxy.close()  # a second time does nothing
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", peers.proxy.port), SOON)
    with pytest.raises(RuntimeError, match="closed"):
        peers.proxy.hold()
    assert not [thread for thread in threading.enumerate() if thread.name == f"fault proxy {peers.proxy.port}"]
    peers.close()
    assert open_files() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_holds_nothing_open(peers):
    client, server = peers.connect()
    go, done = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done)
        client.close()
        server.close()
        peers.listener.close()
        os.read(go, 1)
        os._exit(0)
    try:
        peers.proxy.cut()
        assert is_closed(client)
        peers.proxy.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", peers.proxy.port), SOON)
    finally:
        os.close(done)
        os.close(go)
        os.waitpid(child, 0)


# --- the framer ---

VALUES = [
    b"+OK\r\n",
    b":-5\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"$5\r\na\r\nb\n\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"*2\r\n*1\r\n$1\r\na\r\n:1\r\n",
    b"_\r\n",
    b",1.5\r\n",
    b"#t\r\n",
    b"(12345678901234567890\r\n",
    b"=6\r\ntxt:ab\r\n",
    b"!3\r\nERR\r\n",
    b"~2\r\n+a\r\n+b\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n+c\r\n",
    b"|1\r\n+ttl\r\n:5\r\n+OK\r\n",
    b">2\r\n+a\r\n%0\r\n",
    b"PING now\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_the_framer_finds_the_ends_however_the_stream_is_cut(size):
    stream = b"".join(VALUES)
    framer = Framer()
    found, rest = [], b""
    for at in range(0, len(stream), size):
        piece, start = stream[at : at + size], 0
        for end, head in framer.feed(piece):
            value = rest + piece[start:end]
            assert head == value
            found.append(value)
            rest, start = b"", end
        rest += piece[start:]
        assert framer.inside == bool(rest)
    assert found == VALUES
    assert framer.sound


def test_the_framer_shows_only_the_beginning_of_long_values():
    framer = Framer()
    value = b"$100000\r\n" + bytes(100_000) + b"\r\n"

    assert framer.feed(value + b"+next\r\n") == [
        (len(value), value[: fault_proxy.HEAD_BYTES]),
        (len(value) + 7, b"+next\r\n"),
    ]


@pytest.mark.parametrize("data", [b"$x\r\n", b"*?\r\n", b"+" + bytes(100_000)])
def test_the_framer_gives_up_on_what_is_no_resp(data):
    framer = Framer()

    assert framer.feed(data) == []
    assert not framer.sound
    assert framer.feed(b"+OK\r\n") == []


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"CLIENT SETNAME inline\r\n", "inline"),
        (command("HELLO", "3"), None),
        (command("HELLO"), None),
        (command("HELLO", "3", "SETNAME"), None),
        (command("HELLO", "3", "AUTH", "u", "p", "SETNAME", "n"), "n"),
        (command("GET", "x"), None),
        (command("CLIENT", "SETNAME", "x" * 5000)[:4096], None),
        (b"*2\r\n:1\r\n:2\r\n", None),
        (b"*3\r\n$6\r\nCLIENT", None),
        (b"*1\r\n$99", None),
    ],
)
def test_names_in_commands(head, name):
    assert _name_in(head) == name


def open_files():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else None


def names(proxy):
    return [connection.name for connection in proxy.connections()]


def wait(predicate):
    deadline = time.monotonic() + SOON
    while not predicate():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.005)
