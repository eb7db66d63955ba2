"""The simulated network: subscriber connections and command connections, each in order, none in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final, NamedTuple

from coherent_cache.core.instance import Instance
from coherent_cache.core.questions import MAX_QUESTION_KEYS, QUESTION_ID_BYTES, Ask, Question, encode_question
from coherent_cache.core.session import Command, Receipt, Report, Response, Subscribe, Sync
from coherent_cache.errors import CacheUnavailable
from coherent_cache.testing.simulation.loop import Loop, Owner
from coherent_cache.testing.simulation.server import Refused, Server
from coherent_cache.wire import encode_receipt

LOST: Final = 1000.0
"""A delay from which on a packet never arrives."""

RESET: Final = 0.001
"""Seconds until a connection that does not exist any more is answered with a reset."""


QUESTION: Final = encode_question(Question(bytes(QUESTION_ID_BYTES), Ask.SAMPLE, most=MAX_QUESTION_KEYS))
"""What operators ask: all that can be told."""


class Item(NamedTuple):
    """Something that a server sent to a subscriber.

    Attributes:
        kind: ``confirmed``, ``message``, ``receipt``, ``question`` or ``answer``.
        shard: the shard.
        data: the bytes.
        taint: for an answer, how often the stream had been damaged in silence when the server gave it.
    """

    kind: str
    shard: int
    data: bytes
    taint: int = 0


class Weather:
    """How long packets take.

    Attributes:
        slow: how many of a hundred take long.
        fixed: seconds that all take; None for random ones.
    """

    __slots__ = ("fixed", "slow")

    def __init__(self, slow: float, fixed: float | None = None) -> None:
        self.slow = slow
        self.fixed = fixed

    def delay(self, rng: Random) -> float:
        """Draw a delay in seconds."""
        if self.fixed is not None:
            return self.fixed
        draw = rng.random()
        if draw < 0.75:
            return 0.0005 + draw * 0.02
        if draw < 1 - self.slow:
            return rng.uniform(0.01, 0.25)
        return rng.uniform(0.2, 2.0)


class Link:
    """A subscriber connection: ordered both ways.

    Attributes:
        server: the server at the other end.
        instance: whose it is.
        origin: its id.
        open: whether the client holds it open.
        arrived: what the client can read.
        pending: what is on its way to the client.
        current: what the client is just applying.
        ended: whether the client can see that it ended.
        drop: one of how many messages vanishes in silence; 0 for none.
        taints: per shard, how often a message vanished.
        proven: per shard, the count of ``taints`` up to which a resync made up for it.
        buffer_limit: messages on their way after which the server closes it.
        stalled_until: until when nothing gets through, in either direction.
    """

    def __init__(
        self,
        loop: Loop,
        server: Server,
        weather: Weather,
        rng: Random,
        *,
        wake: Callable[[], None],
        buffer_limit: int,
        instance: Instance,
    ) -> None:
        """Open a connection of an instance to a server."""
        self.server = server
        self.instance = instance
        self.origin = instance.instance_id
        self.open = True
        self.arrived: deque[Item] = deque()
        self.pending: deque[Item] = deque()
        self.current: Item | None = None
        self.ended = False
        self.drop = 0
        self.taints = [0 for _ in server.data]
        self.proven = [0 for _ in server.data]
        self.buffer_limit = buffer_limit
        self.stalled_until = 0.0
        self._cut = False
        self._loop = loop
        self._weather = weather
        self._rng = rng
        # Reports and questions have delays of their own: they must not decide how long other packets take.
        self._aside = Random(0)  # noqa: S311  # simulation
        self._wake = wake
        self._last_down = 0.0
        self._last_up = 0.0

    # -- the server's end ------------------------------------------------------------------------------------------

    def push(self, kind: str, shard: int, data: bytes) -> None:
        """Send something to the client."""
        if self._cut:
            return
        if kind == "message" and self.drop and self._rng.randrange(self.drop) == 0:
            self.taint(shard)
            return
        if len(self.pending) >= self.buffer_limit:
            self.cut(self._weather.delay(self._rng))
            return
        self.pending.append(Item(kind, shard, data, self.taints[shard]))
        rng = self._aside if kind == "question" else self._rng
        arrival = max(self._loop.now + self._weather.delay(rng), self._last_down, self.stalled_until)
        self._last_down = arrival
        self._loop.at(arrival, None, self._arrive)

    def taint(self, shard: int) -> None:
        """Note that a message of a shard will never come, and nobody can see it."""
        self.taints[shard] += 1

    def _arrive(self) -> None:
        if self._cut or not self.pending:
            return
        if self.stalled_until > self._loop.now:
            self._loop.at(self.stalled_until, None, self._arrive)
            return
        self.arrived.append(self.pending.popleft())
        self._wake()

    def _receive(self, command: Command) -> None:
        server = self.server
        if self._cut:
            return
        if not server.alive:
            self.cut(RESET)
        elif server.stalled_until > self._loop.now:
            self._loop.at(server.stalled_until, None, self._receive, command)
        elif isinstance(command, Subscribe):
            server.links.append(self)
            for shard in command.shards:
                self.push("confirmed", shard, b"")
        else:
            self.run(command, server)

    def run(self, command: Sync | Receipt | Report | Response, server: Server) -> None:
        """Let a server run a command of this connection's owner."""
        instance = self.instance
        if isinstance(command, Receipt):
            receipt = encode_receipt(command.nonce, instance.member)
            server.publish_receipt(command.shard, command.origin, receipt)
            return
        if isinstance(command, Report):
            # No other process reads it. In its place an operator asks, so that questions come in between messages.
            if self in server.links:
                self.push("question", 0, QUESTION)
            return
        if isinstance(command, Response):
            return
        bound_ms = round(instance.settings.longest_age * 1000)
        answer = server.sync(command.shard, command.token, command.seq, member=instance.member, bound_ms=bound_ms)
        if self in server.links:
            self.push("answer", command.shard, answer)

    # -- the client's end ------------------------------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """Send a command to the server."""
        rng = self._aside if isinstance(command, Report | Response) else self._rng
        arrival = max(self._loop.now + self._weather.delay(rng), self._last_up, self.stalled_until)
        self._last_up = arrival
        self._loop.at(arrival, None, self._receive, command)

    def close(self) -> None:
        """Close it."""
        self.open = False
        self.cut(LOST)

    # -- faults ----------------------------------------------------------------------------------------------------

    def cut(self, notice_after: float) -> None:
        """End it: what is on its way is lost. The client learns it after a while, or never."""
        if not self._cut:
            self._cut = True
            self.pending.clear()
            if self in self.server.links:
                self.server.links.remove(self)
            if notice_after < LOST:
                self._loop.at(self._loop.now + notice_after, None, self._notice)

    def _notice(self) -> None:
        self.ended = True
        if self.open:
            self._wake()

    @property
    def sound(self) -> bool:
        """Whether the connection still exists at both ends."""
        return self.open and not self._cut

    def on_its_way(self) -> list[Item]:
        """Return everything that the server has sent and the client has not applied."""
        return [*([self.current] if self.current else ()), *self.arrived, *self.pending]


class Connection:
    """A command connection.

    Attributes:
        server: the server at the other end.
        cut: whether it has ended.
        noticed: whether the client can see that.
    """

    __slots__ = ("cut", "noticed", "server")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cut = False
        self.noticed = False


class Pool:
    """The command connections of one process.

    Attributes:
        idle: those that nobody uses.
        all: those that have not been cut.
        server: server that the subscriber is connected to: idle connections to others are not used any more (P16).
    """

    def __init__(self, route: Callable[[], Server | None]) -> None:
        """Make an empty pool; ``route`` tells where a new connection leads."""
        self._route = route
        self.idle: deque[Connection] = deque()
        self.all: list[Connection] = []
        self.server: Server | None = None

    def acquire(self) -> Connection | None:
        """Take an idle connection or a new one; None if there is no server to connect to."""
        while self.idle:
            connection = self.idle.popleft()
            if not connection.noticed and self.server in (None, connection.server):
                return connection
        server = self._route()
        if server is None or not server.alive:
            return None
        connection = Connection(server)
        self.all.append(connection)
        return connection

    def forget(self) -> None:
        """Use no idle connection any more."""
        self.idle.clear()

    def cut_all(self, server: Server | None, *, noticed: bool) -> None:
        """Cut the connections to one server, or all of them."""
        for connection in self.all:
            if server is None or connection.server is server:
                connection.cut = True
                connection.noticed = noticed
        self.all = [connection for connection in self.all if not connection.cut]


class Exchange:
    """One round trip on a command connection: executed 0 or 1 times, now or later, whatever the caller learns."""

    __slots__ = ("_connection", "_deadline", "_delays", "_done", "_loop", "_over", "_owner", "_pool", "_work", "writes")

    def __init__(
        self,
        loop: Loop,
        owner: Owner,
        pool: Pool,
        *,
        work: Callable[[Server], Any],
        done: Callable[[Any, str], None],
        writes: bool,
        delays: tuple[float, float],
    ) -> None:
        """Prepare a round trip.

        Args:
            loop: virtual time.
            owner: the process.
            pool: its connections.
            work: what the server does; may raise Refused.
            done: takes what came of it (an exception, if it failed) and the run id of the server.
            writes: whether the command may change something.
            delays: seconds there and back.
        """
        self._loop = loop
        self._owner = owner
        self._pool = pool
        self._work = work
        self._done = done
        self._delays = delays
        self._over = False
        self.writes = writes

    def start(self, timeout: float) -> None:
        """Send the command."""
        loop = self._loop
        connection = self._pool.acquire()
        if connection is None:
            loop.at(loop.now + RESET, self._owner, self._done, CacheUnavailable("cannot connect"), "")
            return
        self._connection = connection
        self._deadline = loop.now + timeout
        arrival = loop.now + self._delays[0]
        if self._delays[0] < LOST:
            loop.flying += self.writes
            loop.at(arrival, None, self._execute)
        if arrival > self._deadline:
            loop.at(self._deadline, self._owner, self._fail, "no answer in time")

    def abandon(self) -> None:
        """Stop waiting; the connection is closed. What was sent may still be executed."""
        self._over = True

    def _execute(self) -> None:
        loop, connection = self._loop, self._connection
        server = connection.server
        if not connection.cut and server.alive and server.stalled_until > loop.now:
            loop.at(server.stalled_until, None, self._execute)
            if loop.now <= self._deadline < server.stalled_until:
                loop.at(self._deadline, self._owner, self._fail, "no answer in time")
            return
        loop.flying -= self.writes
        if connection.cut or not server.alive:
            loop.at(loop.now + RESET, self._owner, self._fail, "connection reset")
            return
        try:
            outcome = self._work(server)
        except Refused as error:
            outcome = CacheUnavailable(str(error), maybe_applied=self.writes and error.maybe_applied)
        arrival = loop.now + self._delays[1]
        if arrival > self._deadline:
            loop.at(self._deadline, self._owner, self._fail, "no answer in time")
        else:
            loop.at(arrival, self._owner, self._reply, outcome)

    def _reply(self, outcome: Any) -> None:
        if self._connection.cut:
            self._fail("connection lost before the answer")
        elif not self._over:
            self._over = True
            self._pool.idle.append(self._connection)
            self._done(outcome, self._connection.server.run_id)

    def _fail(self, text: str) -> None:
        if not self._over:
            self._over = True
            self._connection.noticed = True
            self._done(CacheUnavailable(text, maybe_applied=self.writes), self._connection.server.run_id)
