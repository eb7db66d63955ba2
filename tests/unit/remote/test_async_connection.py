"""One connection for many tasks, against a server that answers when and what it is told to."""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import redis

from coherent_cache.errors import CacheUnavailable
from coherent_cache.keys import shard_names
from coherent_cache.remote import async_io
from coherent_cache.remote.async_connection import StreamConnection, connect
from coherent_cache.remote.async_io import AsyncIO
from coherent_cache.remote.connection import ConnectionLost, ReplyError
from coherent_cache.remote.rights import Rights
from tests.unit.remote.test_topology import endpoint

PATIENCE = 30.0


class Server:
    """Takes one connection; sends what it is told to."""

    async def __aenter__(self):
        self._connected = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(lambda *streams: self._connected.set_result(streams), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def connection(self, *, timeout=PATIENCE):  # noqa: ASYNC109  # the connection's
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.reader, self.writer = await self._connected
        return StreamConnection(SimpleNamespace(_reader=reader, _writer=writer), "run-id", timeout=timeout)

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def received(self, data):
        assert await self.reader.readexactly(len(data)) == data

    async def __aexit__(self, *_):
        self.writer.close()
        self._server.close()
        await self._server.wait_closed()


def served(**options):
    """Run a test with a server and a connection to it."""

    def decorate(test):
        @functools.wraps(test)
        def run():
            async def main():
                async with asyncio.timeout(PATIENCE), Server() as server:
                    connection = await server.connection(**options)
                    try:
                        await test(server, connection)
                    finally:
                        connection.close()
                        await connection.wait_closed()

            asyncio.run(main())

        del run.__wrapped__  # pytest is to find no fixtures
        return run

    return decorate


async def begin(server, connection, *commands):
    """Send commands, each expecting one reply; return the tasks that wait."""
    tasks = []
    for command in commands:
        tasks.append(asyncio.create_task(connection.exchange(command, 1)))
        await server.received(command)
    return tasks


@served()
async def test_replies_go_to_those_who_asked_in_their_order(server, connection):
    first = asyncio.create_task(connection.exchange(b"two", 2))
    await server.received(b"two")
    (second,) = await begin(server, connection, b"one")
    await server.send(b"+a\r\n$1\r")
    await server.send(b"\nb\r\n-NOSCRIPT no\r\n")
    assert await first == [b"a", b"b"]
    ((error,),) = await asyncio.gather(second)
    assert isinstance(error, ReplyError)
    assert error.code == "NOSCRIPT"
    assert connection.is_usable()


@served()
async def test_who_is_cancelled_disturbs_nobody(server, connection):
    first, second, third = await begin(server, connection, b"1", b"2", b"3")
    second.cancel()
    await asyncio.wait([second])
    await server.send(b":1\r\n:2\r\n:3\r\n")
    assert await asyncio.gather(first, third) == [[1], [3]]
    assert connection.is_usable()
    (fourth,) = await begin(server, connection, b"4")
    await server.send(b":4\r\n")
    assert await fourth == [4]


@served()
async def test_pushes_are_nobodys(server, connection):
    (asked,) = await begin(server, connection, b"1")
    await server.send(b">2\r\n+invalidate\r\n+x\r\n:1\r\n")
    assert await asked == [1]


@served()
async def test_its_end_is_told_to_all_who_wait(server, connection):
    tasks = await begin(server, connection, b"1", b"2")
    tasks[0].cancel()
    server.writer.close()
    with pytest.raises(ConnectionLost, match="closed by the server"):
        await tasks[1]
    assert not connection.is_usable()
    with pytest.raises(ConnectionLost) as raised:
        await connection.exchange(b"3", 1)
    assert not raised.value.sent


@served(timeout=0.05)
async def test_no_answer_in_time_ends_it(server, connection):
    tasks = await begin(server, connection, b"1", b"2")
    for task in tasks:
        with pytest.raises(ConnectionLost, match="no answer in time"):
            await task
    assert not connection.is_usable()


@served(timeout=0.05)
async def test_no_answer_in_time_ends_it_also_if_nobody_waits_any_more(server, connection):
    (task,) = await begin(server, connection, b"1")
    task.cancel()
    await connection.wait_closed()
    assert not connection.is_usable()


@served()
async def test_what_is_no_answer_ends_it(server, connection):
    (task,) = await begin(server, connection, b"1")
    await server.send(b"?what\r\n")
    with pytest.raises(ConnectionLost, match="Protocol error"):
        await task


@pytest.mark.parametrize("turns", [0, 50])
def test_what_nobody_has_asked_for_makes_it_unusable(turns):
    @served()
    async def body(server, connection):
        assert connection.is_usable()
        await server.send(b":1\r\n")
        for _ in range(turns):  # it lies in the socket, or has been read
            await asyncio.sleep(0)
        while connection.is_usable():  # noqa: ASYNC110  # it is on its way
            await asyncio.sleep(0)

    body()


@served()
async def test_one_that_retires_closes_when_the_last_reply_has_come(server, connection):
    (task,) = await begin(server, connection, b"1")
    connection.retire()
    await server.send(b":1\r\n")
    assert await task == [1]
    await connection.wait_closed()


@served()
async def test_one_that_retires_and_is_idle_closes_at_once(server, connection):
    connection.retire()
    connection.close()
    await connection.wait_closed()
    assert await server.reader.read() == b""


def test_memory_has_a_connection_that_answers():
    async def main():
        connection = await connect(endpoint(f"memory://{secrets.token_hex(8)}"), name="me")
        assert await connection.exchange(b"*1\r\n$4\r\nPING\r\n", 1) == [b"PONG"]
        assert connection.is_usable()
        connection.retire()
        connection.close()
        await connection.wait_closed()
        assert not connection.is_usable()
        with pytest.raises(ConnectionLost):
            await connection.exchange(b"*1\r\n$4\r\nPING\r\n", 1)

    asyncio.run(main())


# -- connecting --------------------------------------------------------------------------------------------------------


class Fake:
    """A connection that answers nothing, unless it is told to; ``gate`` holds it up."""

    def __init__(self, server):
        self.server = server
        self.users = 0
        self.retired = False
        self.usable = True
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.lost = ConnectionLost("a fake")

    def is_usable(self):
        return self.usable and not self.retired

    async def exchange(self, _packed, _replies):
        if self.retired:
            raise ConnectionLost("closed", sent=False)
        self.asked += 1
        await asyncio.sleep(0)
        await self.gate.wait()
        raise self.lost

    def retire(self):
        self.retired = True

    close = retire

    async def wait_closed(self):
        pass


class Scripts:
    rights = Rights("ns", shard_names("ns", 0, 0))

    def call(self, request):
        return SimpleNamespace(packed=b"", replies=1)


@pytest.fixture
def made(monkeypatch):
    """Connections that were made; ``gate`` holds their making up."""
    made = SimpleNamespace(connections=[], server="a", gate=asyncio.Event(), error=None, lost=ConnectionLost("a fake"))
    made.gate.set()

    async def connect(_endpoint, *, name):
        await made.gate.wait()
        if made.error is not None:
            raise made.error
        made.connections.append(Fake(made.server))
        made.connections[-1].lost = made.lost
        return made.connections[-1]

    monkeypatch.setattr(async_io, "connect", connect)
    return made


def io(server=lambda: None):
    return AsyncIO(endpoint("redis://h"), Scripts(), lambda: 0.0, name="me", server=server)


async def ask(runner):
    with pytest.raises(CacheUnavailable, match="a fake"):
        await runner.execute([object()])


def test_all_tasks_connect_together_whoever_is_cancelled(made):
    async def main():
        runner = io()
        made.gate.clear()
        tasks = [asyncio.create_task(ask(runner)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        made.gate.set()
        await asyncio.gather(*tasks[1:])
        assert len(made.connections) == 1
        await ask(runner)
        assert len(made.connections) == 1

    asyncio.run(main())


def test_p16_a_connection_to_another_server_than_the_subscribers_is_retired(made):
    async def main():
        leads_to = None
        runner = io(lambda: leads_to)
        await ask(runner)
        leads_to = "a"
        await ask(runner)
        assert len(made.connections) == 1
        leads_to = made.server = "b"
        await ask(runner)
        old, new = made.connections
        assert (old.retired, new.retired) == (True, False)

    asyncio.run(main())


def test_one_that_is_not_usable_is_replaced(made):
    async def main():
        runner = io()
        await ask(runner)
        made.connections[0].usable = False
        await ask(runner)
        assert len(made.connections) == 2

    asyncio.run(main())


def test_each_task_is_told_that_nothing_can_be_connected(made):
    async def main():
        runner = io()
        made.error = OSError("refused")
        errors = await asyncio.gather(*[runner.execute([object()]) for _ in range(3)], return_exceptions=True)
        assert [str(error) for error in errors] == ["cannot connect to Redis at h:6379/0: refused"] * 3
        assert len(set(map(id, errors))) == 3
        assert not any(error.maybe_applied for error in errors)

    asyncio.run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_closing_while_it_connects_tells_those_who_wait(made, turns):
    async def main():
        runner = io()
        made.gate.clear()
        task = asyncio.create_task(runner.execute([object()]))
        for _ in range(turns):  # before it has begun, before the attempt has, in its midst
            await asyncio.sleep(0)
        runner.close()
        with pytest.raises(CacheUnavailable, match="closed"):
            await task
        made.gate.set()
        with pytest.raises(CacheUnavailable, match="closed"):
            await runner.execute([object()])
        await runner.wait_closed()
        assert not made.connections

    asyncio.run(main())


def test_who_is_late_for_a_common_connection_takes_nothing_from_those_who_have_it(made):
    """The subscriber is still on the old primary, the endpoint leads to the new one: each connection is a stranger."""

    async def main():
        runner = io(lambda: "another")

        async def late(turns):
            for _ in range(turns):
                await asyncio.sleep(0)
            return await runner.execute([object()])

        errors = await asyncio.gather(*[late(turns) for turns in range(40)], return_exceptions=True)
        assert all("failed: a fake" in str(error) for error in errors), errors
        assert 1 < len(made.connections) < 40
        assert all(connection.retired for connection in made.connections[:-1])
        assert not made.connections[-1].retired

    asyncio.run(main())


def test_one_that_is_replaced_is_retired_only_when_its_users_have_sent_all_they_have_to(made):
    """Between the answer that tells that the script is not known and its text, nothing is under way."""

    async def main():
        leads_to = "a"
        runner = io(lambda: leads_to)
        await ask(runner)
        (old,) = made.connections
        old.gate = asyncio.Event()
        asked = asyncio.create_task(ask(runner))
        while old.asked < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        leads_to = made.server = "b"
        await ask(runner)
        assert len(made.connections) == 2
        assert not old.retired
        old.gate.set()
        await asked
        assert old.retired

    asyncio.run(main())


def test_what_was_never_sent_was_never_applied(made):
    async def main():
        runner = io()
        made.gate.clear()
        task = asyncio.create_task(runner.execute([object()]))
        await asyncio.sleep(0)
        made.lost = ConnectionLost("closed by the server", sent=False)
        made.gate.set()
        with pytest.raises(CacheUnavailable, match="closed by the server") as raised:
            await task
        assert not raised.value.maybe_applied
        made.connections[0].lost = ConnectionLost("closed by the server")
        with pytest.raises(CacheUnavailable, match="closed by the server") as raised:
            await runner.execute([object()])
        assert raised.value.maybe_applied

    asyncio.run(main())


def test_who_waits_for_a_connection_is_told_if_the_task_that_makes_it_is_cancelled(made):
    async def main():
        runner = io()
        made.gate.clear()
        task = asyncio.create_task(runner.execute([object()]))
        await asyncio.sleep(0)
        (attempt,) = [task for task in asyncio.all_tasks() if task.get_name() == "me:connect"]
        attempt.cancel()
        with pytest.raises(CacheUnavailable, match="cancelled"):
            await task
        made.gate.set()
        await ask(runner)

    asyncio.run(main())


def test_connecting_waits_for_no_job_of_the_application():
    """The loop's executor is full, of jobs that perhaps wait for this connection."""

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        release = threading.Event()
        job = asyncio.get_running_loop().run_in_executor(None, release.wait, PATIENCE)
        try:
            async with asyncio.timeout(PATIENCE / 6):
                with pytest.raises(redis.ConnectionError):
                    await connect(endpoint("unix:///nowhere/at/all"), name="me")
        finally:
            release.set()
            await job

    asyncio.run(main())
