"""The subscriber's side of one connection: which command to send when, and what each answer means (rules P3-P6).

Pure: whoever drives it owns the connection, reports what comes in *in stream order*, and sends what :attr:`outgoing`
holds after each call. A session lives as long as its connection; a new connection gets a new session.

One connection, one order: subscribe to every channel; when all subscriptions are confirmed, resynchronise each shard;
then send a heartbeat per shard every ``heartbeat`` seconds, and with some of them a report for operators. A heartbeat
that shows a difference turns into a resync. At most one question per shard is on its way. An answer that is late makes
its shards suspect; one that is later still ends the connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from coherent_cache.core.reporting import Reporter
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.wire import (
    Message,
    SyncReply,
    UnknownFormat,
    WireError,
    decode_message,
    decode_receipt,
    decode_sync_reply,
)

SUSPECT_AT: Final = 0.5
"""Part of the patience after which an unanswered question makes its shard suspect."""

WRITABLE_STATUSES: Final = frozenset({"", "MISCONF", "OOM"})
"""Answers to the probing write that a primary gives: a full disk or memory makes no value stale. Enough for a
heartbeat; a resync needs a server that accepts writes."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to the channels of these shards."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """Ask for a shard's clock, and from position ``seq`` on for its log.

    Attributes:
        shard: number of the shard.
        token: to be given back by the answer.
        seq: position to replay from; None for the clock alone.
    """

    shard: int
    token: bytes
    seq: int | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """Tell the writer of a message that it was applied here (P12).

    Attributes:
        shard: number of the shard.
        origin: the instance that wrote.
        nonce: the message's.
    """

    shard: int
    origin: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """Leave this instance's report in Redis.

    Attributes:
        data: the report.
        expiry_ms: milliseconds after which it is gone.
    """

    data: bytes
    expiry_ms: int


@dataclass(frozen=True, slots=True)
class Response:
    """Answer a question to this instance.

    Attributes:
        question: the question's id.
        data: the answer.
    """

    question: bytes
    data: bytes


Command = Subscribe | Sync | Receipt | Report | Response


@dataclass(slots=True)
class _Question:
    token: bytes
    sent_at: float
    resync: bool
    suspected: bool = False


class Session:
    """One connection of the subscriber, from SUBSCRIBE on.

    Attributes:
        outgoing: commands to send, oldest first; the driver removes them.
        failure: why the connection must be given up; None as long as it is sound.
        foreign: messages so far that are in a hurry: all but the echoes of own writes. Those are applied like all the
            others (P7), but what they say is known already; unless receipts for them are about to come.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        server: str,
        origin: str,
        heartbeat: float,
        patience: float,
        replay_limit: int,
        now: float,
        reporter: Reporter | None = None,
    ) -> None:
        """Begin on a fresh connection.

        Args:
            shards: the shards that this connection serves.
            server: run id of the server at the other end.
            origin: this instance's id, as its own messages carry it.
            heartbeat: seconds between heartbeats.
            patience: seconds after which an unanswered question ends the connection.
            replay_limit: missed messages up to which a resync replays.
            now: local clock in seconds.
            reporter: makes reports and answers questions; None if this instance tells nothing of itself.
        """
        self.failure: str | None = None
        self.outgoing: deque[Command] = deque([Subscribe(tuple(shard.index for shard in shards))])
        self._shards = {shard.index: shard for shard in shards}
        self.foreign = 0
        self._server = server
        self._origin = origin
        self._heartbeat = heartbeat
        self._patience = patience
        self._replay_limit = replay_limit
        self._unconfirmed = set(self._shards)
        self._questions: dict[int, _Question] = {}
        self._next_beat = dict.fromkeys(self._shards, inf)
        self._confirm_by = now + patience
        self._counter = 0
        self._reporter = reporter
        self._report_due = -inf
        self._dropped = False

    # -- what the driver reports, in stream order ------------------------------------------------------------------

    def confirmed(self, shard: int, now: float) -> None:
        """A subscription was confirmed. The clock may be asked only after that (review A17)."""
        self._unconfirmed.discard(shard)
        if not self._unconfirmed:
            for index in self._shards:
                self._ask(index, now, resync=True)

    def message(self, shard: int, data: bytes, now: float) -> None:
        """A message came on the channel of a shard. Whatever cannot be understood flushes the shard (P8)."""
        held = self._shards[shard]
        try:
            message = decode_message(data)
            sound = held.apply(message, now=now)
            if message.wants_receipts:
                self.foreign += 1
                self._confirm(held, message)
            elif message.origin != self._origin:
                self.foreign += 1
        except UnknownFormat as error:
            held.distrust_newer(str(error), now)
            sound = False
        except WireError as error:
            held.distrust(str(error))
            sound = False
        if not sound:
            self.resynchronise(shard, now)

    def receipt(self, shard: int, data: bytes) -> None:
        """A member has applied a write of this instance. What cannot be understood is dropped: the writer waits."""
        self.foreign += 1
        try:
            nonce, member = decode_receipt(data)
        except WireError:
            return
        self._shards[shard].receive(nonce, member)

    def question(self, data: bytes, now: float) -> None:
        """An operator's question to the instances came. It is answered, and changes nothing."""
        self.foreign += 1
        if self._reporter is not None:
            answered = self._reporter.answer(data, now)
            if answered is not None:
                self.outgoing.append(Response(*answered))

    def answer(self, shard: int, data: bytes, now: float) -> None:
        """An answer came: to the shard's question on its way, or to one that was given up."""
        question = self._questions.get(shard)
        try:
            reply = decode_sync_reply(data)
        except WireError as error:
            self.failure = f"damaged sync reply: {error}"
            return
        if question is None or reply.token != question.token:
            return
        del self._questions[shard]
        # Who begins to serve must have been entered, or an acknowledged write would not know of it (P12).
        if reply.status and (question.resync or reply.status not in WRITABLE_STATUSES):
            self.failure = f"the server accepts no writes ({reply.status})"
            return
        self._learn(self._shards[shard], reply, question, now)

    def unsubscribed(self) -> None:
        """The server ended a subscription by itself, e.g. because a slot moved."""
        self.failure = "the server ended a subscription"

    def resynchronise(self, shard: int, now: float) -> None:
        """Ask for a resync of a shard, unless one is on its way. An ordinary heartbeat on its way is superseded."""
        question = self._questions.get(shard)
        if not self._unconfirmed and (question is None or not question.resync):
            self._ask(shard, now, resync=True)

    def tick(self, now: float) -> None:
        """Let time pass: send what is due, suspect and give up what is late."""
        if self._unconfirmed and now >= self._confirm_by:
            self.failure = "a subscription was not confirmed in time"
        for index, shard in self._shards.items():
            question = self._questions.get(index)
            if question is None:
                if not shard.synced and not self._unconfirmed:
                    self._ask(index, now, resync=True)
                elif now >= self._next_beat[index]:
                    self._ask(index, now, resync=False)
                    shard.sweep(now)
            elif now >= question.sent_at + self._patience:
                self.failure = "a heartbeat was not answered in time"
            elif now >= question.sent_at + SUSPECT_AT * self._patience and not question.suspected:
                question.suspected = True
                shard.suspect("late heartbeat")
            shard.tick(now)
        if self._reporter is not None and now >= self._report_due and self.established:
            self.outgoing.append(Report(self._reporter.report(now), self._reporter.expiry_ms))
            # A little earlier than due: it then goes with a heartbeat, and wakes nobody by itself.
            self._report_due = now + self._reporter.interval - 0.5 * self._heartbeat

    def lost(self, cause: str) -> None:
        """The connection ended, or is being ended. Idempotent."""
        if not self._dropped:
            self._dropped = True
            for shard in self._shards.values():
                shard.doubt(cause)

    # -- what the driver asks --------------------------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Whether this instance tells nothing of itself: questions need not come at all."""
        return self._reporter is None

    @property
    def established(self) -> bool:
        """Whether every shard has been synchronised on this connection."""
        return not self._unconfirmed and all(beat < inf for beat in self._next_beat.values())

    @property
    def replaying(self) -> bool:
        """Whether an answer is on its way that may contain a replay."""
        return self._replay_limit > 0 and any(question.resync for question in self._questions.values())

    def next_tick(self) -> float:
        """Local clock at which :meth:`tick` has something to do next."""
        due = self._confirm_by if self._unconfirmed else inf
        for index in self._shards:
            question = self._questions.get(index)
            if question is None:
                due = min(due, self._next_beat[index])
            else:
                part = 1.0 if question.suspected else SUSPECT_AT
                due = min(due, question.sent_at + part * self._patience)
        for shard in self._shards.values():
            if shard.state is not State.DISCONNECTED:
                due = min(due, shard.lapses_at + 0.001)
        return due

    # -- inside ----------------------------------------------------------------------------------------------------

    def _ask(self, index: int, now: float, *, resync: bool) -> None:
        self._counter += 1
        token = self._counter.to_bytes(8, "big")
        shard = self._shards[index]
        replay_from = shard.position if resync and self._replay_limit else None
        self._questions[index] = _Question(token, now, resync)
        self.outgoing.append(Sync(index, token, replay_from))

    def _learn(self, shard: Shard, reply: SyncReply, question: _Question, now: float) -> None:
        if question.resync:
            for message in shard.resync(reply, server=self._server, sent_at=question.sent_at, now=now):
                self._confirm(shard, message)
        elif shard.prove(reply, sent_at=question.sent_at):
            shard.lag.compare(reply.time_us, question.sent_at, now)
        else:
            shard.doubt("the server's clock differs from what was applied here")
            self._ask(shard.index, now, resync=True)
            return
        shard.note_registry(entered=not reply.status, now=now)
        self._next_beat[shard.index] = question.sent_at + self._heartbeat

    def _confirm(self, shard: Shard, message: Message) -> None:
        if shard.owes_receipt(message):
            self.outgoing.append(Receipt(shard.index, message.origin, message.nonce))
