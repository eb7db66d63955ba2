"""The background thread: owns the subscriber connection, drives its session, makes it again, never dies silently.

It alone reads the connection, in stream order (P3); what anything means is the session's business
(:mod:`coherent_cache.core.session`). Any exception, expected or not, ends the connection, is reported, and is followed
by another attempt after a jittered pause.

Two transports. ``resp3``: heartbeats and resyncs are scripts run on the subscriber connection itself, and their
answers arrive in stream order. ``marks``, for servers and proxies that allow no commands there (RESP2, fakeredis): the
script runs on a command connection and *publishes* its answer on a channel that only this connection listens to, so
that it arrives in stream order as well (review R8b).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Final, Protocol

import redis
from redis.connection import AbstractConnection

from coherent_cache.config import Settings
from coherent_cache.core.reporting import Reporter
from coherent_cache.core.session import Command, Receipt, Report, Response, Session, Subscribe, Sync
from coherent_cache.core.shard import Shard
from coherent_cache.core.stats import Counters
from coherent_cache.core.waiting import Waiter
from coherent_cache.errors import CacheUnavailable, CoherentCacheError, NamespaceMismatch, NotPermitted
from coherent_cache.events import Event, InternalError, RightsMissing, SubscriberConnected, SubscriberLost
from coherent_cache.remote.connection import ReplyError, pack
from coherent_cache.remote.link import Item, Link, LinkLost, open_link
from coherent_cache.remote.rights import is_denial
from coherent_cache.remote.scripts import Scripts
from coherent_cache.remote.sentinel import MasterWatch
from coherent_cache.remote.sync_io import ConnectionPool, SyncIO
from coherent_cache.remote.topology import Endpoint, patience_of

FIRST_PAUSE: Final = 0.05
"""Seconds before the first new attempt to connect; doubled for each further one."""

LONGEST_PAUSE: Final = 2.0
"""Most seconds between two attempts to connect."""

LONGEST_WAIT: Final = 1.0
"""Most seconds that the thread sleeps if nothing is due."""

ECHO_PAUSE: Final = 0.001
"""Seconds to sleep after a batch that held only echoes of this instance's own writes.

Without it, each write of a busy writer would wake this thread, and the two would hand the interpreter lock to and fro.
"""

LONGEST_ECHO_PAUSE: Final = 0.008
"""Most seconds of that: each pause that some echoes came in doubles the next one, any message of a peer ends that.

A wake-up costs a writer as much as four writes, so it should serve more of them than that.
"""

ECHOES_PER_PAUSE: Final = 4
"""Echoes of one batch from which the next pause is longer."""

_UNNAMED: Final = "(ERR)"
"""Part of the cause if a heartbeat's deletion fails and Redis gives no code for it: in 7.0, a right that lacks."""

_NOT_WHILE_SUBSCRIBED: Final = "allowed in this context"


class EventSink(Protocol):
    """Where events go."""

    def emit(self, event: Event, /) -> None:
        """Take an event, without blocking."""

    def drain(self) -> None:
        """Deliver what was taken."""

    @property
    def waiting(self) -> bool:
        """Whether there is anything to deliver."""


class Subscriber:
    """The background thread of one instance in one process."""

    def __init__(
        self,
        shards: Sequence[Shard],
        settings: Settings,
        *,
        endpoint: Endpoint,
        scripts: Scripts,
        io: SyncIO,
        pool: ConnectionPool,
        name: str,
        clock: Callable[[], float],
        rng: Random,
        counters: Counters,
        events: EventSink,
        reporter: Reporter | None = None,
    ) -> None:
        """Combine the parts; :meth:`start` starts the thread.

        Args:
            shards: the shards to keep coherent.
            settings: the instance's settings.
            endpoint: where to connect to.
            scripts: the instance's scripts.
            io: runs scripts on command connections, for the ``marks`` transport.
            pool: the command connections, which are to lead to the same server.
            name: client name of the connection.
            clock: local clock in seconds.
            rng: for the jitter of pauses.
            counters: the instance's counters.
            events: takes events, and delivers them when no lock is held.
            reporter: makes reports and answers questions; None if this instance tells nothing of itself.
        """
        self._shards = shards
        self._settings = settings
        self._endpoint = endpoint
        self._scripts = scripts
        self._io = io
        self._pool = pool
        self._name = name
        self._clock = clock
        self._rng = rng
        self._counters = counters
        self._events = events
        self._emit = events.emit
        self._reporter = reporter
        self._inline = endpoint.kwargs["protocol"] == 3
        self._protocol: int | None = None
        self._stopping = threading.Event()
        self._nudged = threading.Event()
        self._link: Link | None = None
        self._established = False
        self._lost_at: float | None = None
        self._replays = True
        self._thread: threading.Thread | None = None
        self._settled = threading.Condition()
        self._watchers: set[Waiter] = set()
        self.parted = False
        """Whether it was connected when it was told to stop."""
        self.pausing = False
        """Whether the thread waits before another attempt to connect."""
        self.fatal: CoherentCacheError | None = None
        """Why there will never be a connection, e.g. a namespace of other settings; None as long as there may be."""
        self.refused: NotPermitted | None = None
        """What this connection needs and the user may not do; None if nothing, or if it was repaired."""
        self._rights: tuple[str, ...] | None = None if endpoint.has_user else ()
        self._longest_pause = LONGEST_PAUSE
        self._patience: float | None = None
        self._watch: MasterWatch | None = None
        self._moved: str | None = None
        if endpoint.sentinels is not None:
            # So that a failover costs two heartbeats at most, once the sentinels know of it: one for an attempt that
            # was begun too early, one until the next.
            self._patience = patience_of(settings)
            self._longest_pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, settings.heartbeat))
            self._watch = MasterWatch(
                endpoint.sentinels, interval=settings.max_staleness, moved=self._move_on, name=f"{name}:sentinels"
            )
        for shard in shards:
            shard.on_doubt = self.wake

    # -- for other threads -----------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start the thread; return whether that could be done. If :meth:`stop` was called before, it ends at once."""
        thread = threading.Thread(target=self._run, name=f"coherent-cache {self._name}", daemon=True)
        try:
            thread.start()
            if self._watch is not None:
                self._watch.start()
        except RuntimeError:  # no more threads
            return False
        self._thread = thread
        return True

    def stop(self, timeout: float) -> bool:
        """End the thread; return whether it ended within ``timeout`` seconds."""
        self._stopping.set()
        self.wake()
        self._wake_watchers()
        if self._watch is not None:
            self._watch.stop(timeout)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            return not thread.is_alive()
        return True

    def wake(self) -> None:
        """Let the thread look at once whether a shard needs a resync, or end its pause: Redis answers again."""
        self._nudged.set()
        link = self._link
        if link is not None:
            link.wake()

    def _move_on(self, cause: str) -> None:
        """Give the connection up: it leads to a server that is the master no more."""
        self._moved = cause
        self.wake()

    def wait(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``predicate`` holds, looked at whenever something changed; return whether it does.

        False at once if it never will: for a reason that is kept, or because of :meth:`stop`.
        """
        with self._settled:
            return self._settled.wait_for(lambda: predicate() or self._hopeless(), timeout) and predicate()

    def _hopeless(self) -> bool:
        return self.fatal is not None or self.refused is not None or self._stopping.is_set()

    def watch(self) -> Waiter:
        """Return a waiter that is woken when something changed; :meth:`ignore` must follow."""
        waiter = Waiter()
        with self._settled:
            self._watchers.add(waiter)
        return waiter

    def ignore(self, waiter: Waiter) -> None:
        """Forget a waiter."""
        with self._settled:
            self._watchers.discard(waiter)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            self._established = False
            try:
                self._serve()
                self.parted = True
                cause = "stopped"
            except LinkLost as error:
                cause = str(error)
            except NamespaceMismatch as error:
                self.fatal = error
                cause = str(error)
            except (redis.RedisError, OSError, CoherentCacheError) as error:
                cause = f"cannot connect: {error}"
                self._counters.errors += 1
                if isinstance(error, redis.ResponseError) and "HELLO" in str(error):
                    self._protocol, self._inline = 2, False
            except BaseException as error:  # noqa: BLE001  # the thread must not die silently, whatever happens
                cause = f"internal error: {type(error).__name__}"
                self._counters.errors += 1
                self._emit(InternalError("subscriber", type(error).__name__, str(error)))
            if self._stopping.is_set():
                break
            if is_denial(cause) or _UNNAMED in cause:
                cause = self._explain(cause)
            pause = FIRST_PAUSE if self._established else min(self._longest_pause, pause * 2)
            delay = pause * self._rng.uniform(0.5, 1.0)
            for shard in self._shards:
                shard.doubt(cause)
                shard.tick(self._clock())
            if self._lost_at is None:
                self._lost_at = self._clock()
            self._emit(SubscriberLost(cause, delay))
            self._settle()
            self._pause(delay)
        self._settle()

    def _explain(self, cause: str) -> str:
        """Find out whether a right lacks, and which one; return the cause with what was found out."""
        self._rights = self._scripts.rights.named(cause) or self._io.lacking_rights()
        if not self._rights:
            return cause
        self.refused = NotPermitted(cause, self._rights)
        return str(self.refused)

    def _check_rights(self) -> None:
        """Ask for the rights of a user of its own, until it has all of them; tell what lacks.

        Some make themselves felt late: without XRANGE nothing fails, but each short loss of the connection flushes.
        """
        before, self._rights = self._rights, self._io.lacking_rights()
        if self._rights and self._rights != before:
            self._emit(RightsMissing(self._rights))

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt: the shortest pause in any case, the rest until somebody reaches Redis."""
        self._nudged.clear()
        self.pausing = True
        shortest = min(seconds, FIRST_PAUSE)
        if not self._stopping.wait(shortest):
            self._nudged.wait(seconds - shortest)
        self.pausing = False

    def _serve(self) -> None:
        """Serve one connection until the thread is to stop; raises if it ends earlier."""
        connection = self._connect()
        link = open_link(connection)
        mark = b"%s:%s" % (self._scripts.names[0].channel, os.urandom(8).hex().encode("ascii"))
        channels = {self._scripts.names[shard.index].channel: shard.index for shard in self._shards}
        marks = {b"%s:%d" % (mark, shard.index): shard.index for shard in self._shards}
        receipts = {self._scripts.names[at].receipts(self._scripts.origin): at for at in channels.values()}
        session = Session(
            self._shards,
            server=link.server,
            origin=self._scripts.origin,
            heartbeat=self._settings.heartbeat,
            patience=max(2 * self._settings.heartbeat, self._settings.max_staleness / 2),
            replay_limit=self._settings.replay_limit if self._replays else 0,
            now=self._clock(),
            reporter=self._reporter,
        )
        wire = _Wire(link, session, self._scripts, self._io, channels, receipts, {} if self._inline else marks)
        self._link = link
        # From here on, not only from the resync on: a mark that is asked for through an idle connection to an old
        # primary would come from there for ever.
        self._pool.server = link.server
        try:
            next_tick = pause = 0.0
            while not self._stopping.is_set():
                items = link.receive(min(next_tick - self._clock(), LONGEST_WAIT), likely=pause > 0)
                now = self._clock()
                foreign, plain = session.foreign, True
                for item in items:
                    plain &= wire.dispatch(item, now)
                pause = _echo_pause(items, pause, hurried=session.foreign != foreign)
                if pause:
                    time.sleep(pause)
                if items and plain and now < next_tick and not (session.outgoing or self._events.waiting):
                    # Invalidations in time, the common case: nothing is due. An answer moves what is due next.
                    continue
                session.tick(self._clock())
                wire.send_outgoing()
                failure = session.failure or self._moved
                if failure is not None:
                    raise LinkLost(failure)
                next_tick = session.next_tick()
                if session.established and not self._established:
                    self._established = True
                    self.fatal = self.refused = None
                    self._report_connection(link.server)
                # Every change that anybody waits for makes an event.
                if self._events.waiting:
                    self._settle()
        except _NeedsMarks:
            self._inline = False
            raise LinkLost("the server allows no commands on a subscriber connection: using marks") from None
        finally:
            self._link = None
            self._pool.server = None
            # Also if it ended between the last answer and the moment at which the loop would have looked.
            self._established = session.established
            if session.replaying:
                # Perhaps the server ended it because what was missed did not fit into its output buffer: then a replay
                # would be asked for again and again. Without one, the next resync flushes if anything was missed.
                self._replays = False
            elif session.established:
                self._replays = True
            session.lost("connection ended")
            link.close()

    def _connect(self) -> AbstractConnection:
        """Connect, and check what can be checked before anything is subscribed to."""
        self._moved = None
        connection = self._endpoint.connect(name=self._name, protocol=self._protocol, within=self._patience)
        if self._watch is not None:
            self._watch.address = connection.host, connection.port  # type: ignore[attr-defined]
        if len(self._shards) > 1:
            self._check_namespace(connection)
        if self._rights != ():
            self._check_rights()
        return connection

    def _check_namespace(self, connection: AbstractConnection) -> None:
        """Compare the settings with shard 0's, which every number of shards has, before another shard is touched.

        Raises:
            NamespaceMismatch: the namespace was created with other settings.
        """
        connection.send_command("HGET", self._scripts.names[0].clock, "config")
        error = self._scripts.mismatch(connection.read_response(disable_decoding=True))
        if error is not None:
            connection.disconnect()
            raise error

    def _report_connection(self, server: str) -> None:
        away = None if self._lost_at is None else self._clock() - self._lost_at
        self._lost_at = None
        self._emit(SubscriberConnected(server, "resp3" if self._inline else "marks", away))

    def _settle(self) -> None:
        self._wake_watchers()
        self._events.drain()

    def _wake_watchers(self) -> None:
        with self._settled:
            self._settled.notify_all()
            for waiter in self._watchers:
                waiter.wake()


_Aside = Receipt | Report | Response
"""What no proof of freshness depends on."""

_ANSWERED_BY: Final = {Sync: bytes, Receipt: int, Report: bytes, Response: int}
"""Types of answers. To how many subscribers a message went says nothing about who has read it."""


def _echo_pause(items: Sequence[Item], last: float, *, hurried: bool) -> float:
    """Return the seconds to sleep after a batch, 0.0 for not at all.

    Args:
        items: the batch.
        last: what it was after the batch before.
        hurried: whether a peer waits for anything in it.
    """
    if hurried or not items or items[-1].kind != "message":
        return 0.0
    return min(2 * last, LONGEST_ECHO_PAUSE) if last and len(items) >= ECHOES_PER_PAUSE else ECHO_PAUSE


class _NeedsMarks(Exception):
    """The server allows no commands on a subscriber connection."""


class _Wire:
    """Translates between a session and a link."""

    def __init__(
        self,
        link: Link,
        session: Session,
        scripts: Scripts,
        io: SyncIO,
        channels: dict[bytes, int],
        receipts: dict[bytes, int],
        marks: dict[bytes, int],
    ) -> None:
        self._link = link
        self._session = session
        self._scripts = scripts
        self._io = io
        self._channels = channels
        self._receipts = receipts
        self._marks = marks
        self._mark_of = {shard: channel for channel, shard in marks.items()}
        self._questions = b"" if session.silent else scripts.names[0].questions
        self._asked: deque[tuple[Sync | _Aside, bool]] = deque()

    def send_outgoing(self) -> None:
        """Send what the session wants sent."""
        while self._session.outgoing:
            command: Command = self._session.outgoing.popleft()
            if isinstance(command, Subscribe):
                # The others first: a shard counts as confirmed with its own channel.
                questions = (self._questions,) if self._questions else ()
                self._link.send(pack((b"SUBSCRIBE", *questions, *self._marks, *self._receipts, *self._channels)))
            elif not isinstance(command, Sync):
                self._send_aside(command)
            elif self._marks:
                self._ask_for_mark(command)
            else:
                self._ask_inline(command, text=False)

    def dispatch(self, item: Item, now: float) -> bool:
        """Hand something that came in to the session; tell whether it was an invalidation."""
        kind, channel, data = item
        if kind == "message":
            shard = self._channels.get(channel)
            if shard is not None:
                self._session.message(shard, data, now)
                return True
            if channel in self._receipts:
                self._session.receipt(self._receipts[channel], data)
                return True
            self._dispatch_other(item, now)
            return False
        match kind:
            case "subscribe":
                if channel in self._channels:
                    self._session.confirmed(self._channels[channel], now)
            case "unsubscribe":
                self._session.unsubscribed()
            case "reply" | "error" if not self._asked:
                raise LinkLost(f"unexpected {kind}: {data!r:.100}")
            case "reply":
                command, _ = self._asked.popleft()
                if type(data) is not _ANSWERED_BY[type(command)]:
                    raise LinkLost("a command of the subscriber was answered by something else")
                if isinstance(command, Sync) and isinstance(data, bytes):
                    self._session.answer(command.shard, data, now)
            case _:
                self._refused(*self._asked.popleft(), data)
        return False

    def _dispatch_other(self, item: Item, now: float) -> None:
        """Hand in what is no invalidation: an answer that came as a mark, or an operator's question."""
        if item.channel in self._marks:
            self._session.answer(self._marks[item.channel], item.data, now)
        elif item.channel == self._questions:
            self._session.question(item.data, now)

    def _refused(self, command: Sync | _Aside, text_sent: bool, error: ReplyError) -> None:  # noqa: FBT001
        if _NOT_WHILE_SUBSCRIBED in str(error):
            raise _NeedsMarks
        if not isinstance(command, Sync):
            return  # the writer waits a little longer, the operator sees a little less
        if error.code == "NOSCRIPT" and not text_sent:
            self._ask_inline(command, text=True)
        else:
            raise self._scripts.error(error) or LinkLost(f"Redis refused the heartbeat: {error}")

    def _ask_inline(self, command: Sync, *, text: bool) -> None:
        call = self._scripts.sync(command)
        self._asked.append((command, text))
        self._link.send(call.packed_with_text() if text else call.packed)

    def _send_aside(self, command: _Aside) -> None:
        """Send what others would like to know. If a receipt fails, its writer waits a little longer (P12)."""
        match command:
            case Receipt():
                call = self._scripts.receipt(command)
            case Report():
                call = self._scripts.report(command)
            case Response():
                call = self._scripts.response(command)
        if self._marks:
            with suppress(CacheUnavailable):
                self._io.ask(call)
        else:
            self._asked.append((command, False))
            self._link.send(call.packed)

    def _ask_for_mark(self, command: Sync) -> None:
        answer, server = self._io.ask(self._scripts.sync(command, self._mark_of[command.shard]))
        if isinstance(answer, ReplyError):
            raise self._scripts.error(answer) or LinkLost(f"Redis refused the heartbeat: {answer}")
        if server != self._link.server:
            raise LinkLost("commands and messages come from different servers")
