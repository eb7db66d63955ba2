"""A process' subscriber thread, step by step: the loop of ``remote/subscriber.py`` around the real ``Session``."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from coherent_cache.core.reporting import ProcessFacts, Reporter
from coherent_cache.core.session import Command, Receipt, Report, Response, Session, Subscribe, Sync
from coherent_cache.errors import CacheUnavailable
from coherent_cache.testing.simulation.network import Exchange, Link

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.process import Process

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
LONGEST_WAIT: Final = 1.0


class SubscriberThread:
    """The thread that owns the subscriber connection.

    Attributes:
        link: the present connection; None while there is none.
        session: its session.
    """

    def __init__(self, process: Process, rng: Random, *, marks: bool, buffer_limit: int) -> None:
        """Make a thread that does not run yet.

        Args:
            process: the process it belongs to.
            rng: for pauses and the network.
            marks: whether heartbeats are scripts on a command connection that publish their answer.
            buffer_limit: messages on their way after which the server gives a connection up.
        """
        self.link: Link | None = None
        self.session: Session | None = None
        self._process = process
        self._world = process.world
        self._loop = process.world.loop
        self._rng = rng
        self._marks = marks
        self._buffer_limit = buffer_limit
        self._reporter = Reporter(process.core, ProcessFacts("", process.name, 0, 0.0, 0.0))
        self._pause = FIRST_PAUSE
        self._established = False
        self._replays = True
        self._pausing = True
        self._shortest = 0.0
        self._next_tick = 0.0
        self._busy = False
        self._again = False
        self._due: float | None = None
        for shard in process.core.shards:
            shard.on_doubt = self.wake

    def start(self) -> None:
        """Start the thread."""
        self._loop.at(self._loop.now, self._process, self._connect)

    def wake(self) -> None:
        """Let the thread look for what has come in."""
        self._schedule(self._loop.now + (0.0 if self._rng.random() < 0.8 else self._rng.uniform(0, 0.05)))

    def _schedule(self, time: float) -> None:
        if self._due is None or time < self._due:
            self._due = time
            self._loop.at(time, self._process, self._wake_up, time)

    def _wake_up(self, time: float) -> None:
        if self._due == time:
            self._due = None
            self._step()

    # -- one connection --------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self._pausing:
            return
        self._pausing = False
        process = self._process
        self._established = False
        server = process.route()
        if server is None or not server.alive:
            self._end("cannot connect")
            return
        if self._world.trace is not None:
            self._world.note(process.name, f"subscriber connects to {server.run_id}")
        link_rng = Random(self._rng.random())  # noqa: S311  # simulation
        self.link = Link(
            self._loop,
            server,
            self._world.weather,
            link_rng,
            wake=self.wake,
            buffer_limit=self._buffer_limit,
            instance=process.core,
        )
        settings = process.settings
        self.session = Session(
            process.core.shards,
            server=server.run_id,
            origin=process.name,
            heartbeat=settings.heartbeat,
            patience=max(2 * settings.heartbeat, settings.max_staleness / 2),
            replay_limit=settings.replay_limit if self._replays else 0,
            now=process.local(),
            reporter=self._reporter,
        )
        process.pool.server = server
        self._next_tick = 0.0
        self._step()

    def _step(self) -> None:
        """Run the loop's body once."""
        link, session = self.link, self.session
        if link is None or session is None:
            return
        if self._busy:
            self._again = True
            return
        self._busy = True
        process = self._process
        now = process.local()
        batch = len(link.arrived)
        ended = link.ended
        plain = True
        for _ in range(batch):
            link.current = item = link.arrived.popleft()
            plain = plain and item.kind == "message"
            if item.kind == "message":
                session.message(item.shard, item.data, now)
            elif item.kind == "confirmed":
                session.confirmed(item.shard, now)
            elif item.kind == "receipt":
                session.receipt(item.shard, item.data)
            elif item.kind == "question":
                session.question(item.data, now)
            else:
                process.answering = item.taint
                session.answer(item.shard, item.data, now)
            link.current = None
        if ended and not batch:
            self._end("closed by the server")
            return
        if batch and plain and now < self._next_tick and not session.outgoing:
            self._finish()
            return
        session.tick(process.local())
        self._send_outgoing()

    def _send_outgoing(self) -> None:
        link, session = self.link, self.session
        assert link is not None
        assert session is not None
        while session.outgoing:
            command = session.outgoing.popleft()
            if self._world.trace is not None:
                self._world.note(self._process.name, _describe(command))
            if isinstance(command, Subscribe) or not self._marks:
                link.send(command)
            else:
                self._run_elsewhere(link, command)
                return
        if session.failure is not None:
            self._end(session.failure)
            return
        self._next_tick = session.next_tick()
        self._finish()

    def _finish(self) -> None:
        self._busy = False
        link = self.link
        assert link is not None
        if self._again or link.arrived or link.ended:
            self._again = False
            self._schedule(self._loop.now)
        else:
            due = self._process.to_global(self._next_tick)
            self._schedule(max(self._loop.now, min(due, self._loop.now + LONGEST_WAIT)))

    def _run_elsewhere(self, link: Link, command: Sync | Receipt | Report | Response) -> None:
        """Run it on a command connection; a script publishes its answer to this connection alone. Blocks."""

        def done(outcome: Any, run_id: str) -> None:
            if self.link is not link:
                return
            if not isinstance(command, Sync):
                self._send_outgoing()
            elif isinstance(outcome, CacheUnavailable):
                self._end(f"cannot ask: {outcome}")
            elif run_id != link.server.run_id:
                self._end("commands and messages come from different servers")
            else:
                self._send_outgoing()

        weather, rng = self._world.weather, self._rng
        delays = (weather.delay(rng), weather.delay(rng))
        exchange = Exchange(
            self._loop,
            self._process,
            self._process.pool,
            work=partial(link.run, command),
            done=done,
            writes=False,
            delays=delays,
        )
        exchange.start(self._process.settings.timeout)

    def _end(self, cause: str) -> None:
        """Give the connection up, and try again after a pause."""
        process = self._process
        if self._world.trace is not None:
            self._world.note(process.name, f"subscriber connection ends: {cause}")
        link, session = self.link, self.session
        self.link = self.session = None
        process.pool.server = None
        if session is not None:
            self._established = session.established
            if session.replaying:
                self._replays = False
            elif session.established:
                self._replays = True
            session.lost("connection ended")
        if link is not None:
            link.close()
        self._pause = FIRST_PAUSE if self._established else min(LONGEST_PAUSE, self._pause * 2)
        delay = self._pause * self._rng.uniform(0.5, 1.0)
        for shard in process.core.shards:
            shard.doubt(cause)
            shard.tick(process.local())
        self._busy = self._again = False
        self._pausing = True
        self._shortest = self._loop.now + min(delay, FIRST_PAUSE)
        self._loop.at(self._loop.now + delay, process, self._connect)

    def nudge(self) -> None:
        """Somebody reaches Redis: end the pause, but for its shortest part."""
        if self._pausing:
            self._loop.at(max(self._loop.now, self._shortest), self._process, self._connect)

    @property
    def settled(self) -> bool:
        """Whether it is connected, synchronised, and nothing is on its way."""
        link, session = self.link, self.session
        return link is not None and session is not None and session.established and not link.on_its_way()


def _describe(command: Command) -> str:
    if isinstance(command, Subscribe):
        return "sends SUBSCRIBE"
    if isinstance(command, Receipt):
        return f"sends {command.origin} a receipt"
    if isinstance(command, Report):
        return "reports itself"
    if isinstance(command, Response):
        return "answers a question"
    return "sends heartbeat" if command.seq is None else f"sends resync from {command.seq}"
