"""One shard as one instance sees it: local tier, position in the stream, horizon, tokens, and the rules between them.

Who may do what. Every public method takes the shard's lock itself and none blocks while holding it, so that checking
and inserting are one step with respect to applying messages (P7). Only the thread that owns the subscriber connection
calls the methods of the stream (``apply``, ``prove``, ``resync``, ``doubt``, ``tick``, ``distrust``); any thread may
call the others. A local hit takes no lock at all: it reads ``shard.tier`` once and then only that object, in the order
horizon, clock, entry (P4).

What must hold, between any two steps:

* I1  an entry older than Redis' value has its message still in front of it in the stream.
* I2  the horizon is a moment such that every write executed before it has been applied here.
* I3  results for one key never go back on one instance.

The interleavings that each rule stands against are tests: ``tests/unit/core/test_shard.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import ClassVar, Final, TypeVar

from coherent_cache.core.entries import Entry, KeptEntry, RemovalCause
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.requests import ReadReply, WriteReply
from coherent_cache.core.states import TRANSITIONS, State, Trigger
from coherent_cache.core.stats import Counters, LagMeter
from coherent_cache.core.tokens import NEWER_THAN_ANYTHING, Token, TokenTable
from coherent_cache.core.waiting import Collector, Waiter, WaiterTable
from coherent_cache.events import (
    EntriesRemoved,
    Event,
    FillRefused,
    HistoryLost,
    InvalidationReceived,
    MessageDamaged,
    MessageGap,
    Resynced,
    StateChanged,
    UnknownFormatSeen,
)
from coherent_cache.versions import Version
from coherent_cache.wire import Kind, Message, SyncReply, WireError, decode_message

T = TypeVar("T")

PAST_EPOCHS: Final = 8
"""Epochs remembered as lost: a late reply that carries one tells nothing new."""

SWEEP_ENTRIES: Final = 2_000
"""Entries looked at per heartbeat for those that have expired."""

UNKNOWN_FORMAT_SECONDS: Final = 60.0
"""Seconds between two reports that something of an unknown format came."""

SUMMARY_SECONDS: Final = 10.0
"""Seconds between two summaries of what left the local tier."""

RECENT_MESSAGES: Final = 128
"""Latest messages that are remembered, to explain what happened to a key."""

RECENT_NAMES: Final = 32
"""Names of one message that are remembered."""

MAX_TAG_FLOORS: Final = 10_000
"""Tag floors kept for fills under way; beyond that all of them are refused instead (review A20)."""


class Shard:
    """One shard as one instance sees it.

    Attributes:
        index: number of the shard.
        tier: the local tier; replaced as a whole by a flush.
        kept: last known values, for calls with ``fail_safe``: kept beyond their time, gone when they are known to be
            outdated. A flush keeps them, for they are served only as stale; from then on any message for their key
            removes them.
        state: see :mod:`coherent_cache.core.states`.
        generation: bumped by each completed resync and each flush; voids older tokens (P6).
        epoch: the history that the tier belongs to; None before the first resync and after a lost history.
        position: seq of the last message applied in order; None together with ``epoch``.
        nonce: that message's nonce.
        server: run id of the server that the synchronised connection leads to; None while there is none (P16).
        lapses_at: when the last proof of freshness (before the first: the first tick) is ``max_staleness`` old. A flush
            takes the tier's horizon, but not this.
        synced: whether messages continue the position; False from a doubt to the next completed resync.
        lag: the propagation meter.
        recent: the latest messages, for explanations: local clock when each came, the message with at most
            ``RECENT_NAMES`` of its names, how many it had, and whether it concerned anything here.
        known_since: local clock since when every member of this epoch and server has been entered in the registry, as
            far as can be told from here (P12); ``inf`` as long as nothing can.
    """

    __slots__ = (
        "_broken_by",
        "_collectors",
        "_counters",
        "_emit",
        "_floor",
        "_lock",
        "_max_staleness",
        "_noted_at",
        "_past_epochs",
        "_summarised",
        "_summary_from",
        "_tag_floors",
        "_tokens",
        "_unknown",
        "_waiters",
        "epoch",
        "generation",
        "index",
        "kept",
        "known_since",
        "lag",
        "lapses_at",
        "nonce",
        "on_doubt",
        "position",
        "recent",
        "server",
        "state",
        "synced",
        "tier",
        "trace",
    )

    hears: ClassVar[bool] = True
    """Whether messages come to it at all."""

    def __init__(
        self,
        index: int,
        tier: LocalTier,
        *,
        max_staleness: float,
        lock: AbstractContextManager[object],
        counters: Counters,
        emit: Callable[[Event], None],
    ) -> None:
        """Make a shard that knows nothing yet.

        Args:
            index: number of the shard.
            tier: an empty local tier.
            max_staleness: seconds that a horizon is good for.
            lock: a re-entrant lock (the garbage collector may run user code at any time); any context manager where
                there is only one thread.
            counters: the instance's counters.
            emit: takes events; must not block.
        """
        self.index = index
        self.tier = tier
        self.state = State.CONNECTING
        self.generation = 0
        self.epoch: bytes | None = None
        self.position: int | None = None
        self.nonce = b""
        self.server: str | None = None
        self.synced = False
        self.lag = LagMeter()
        self.trace = False
        self.on_doubt: Callable[[], None] | None = None
        self.recent: deque[tuple[float, Message, int, bool]] = deque(maxlen=RECENT_MESSAGES)
        self._past_epochs: deque[bytes] = deque(maxlen=PAST_EPOCHS)
        self._tokens = TokenTable()
        self._waiters = WaiterTable()
        self._collectors: dict[bytes, Collector] = {}
        self.kept = tier.sibling()
        self._floor = 0
        self._tag_floors: dict[str, int] = {}
        self._max_staleness = max_staleness
        self._lock = lock
        self._counters = counters
        self._emit = emit
        self.lapses_at = inf
        self.known_since = inf
        self._noted_at = inf
        self._broken_by = "first connection"
        self._summary_from = -inf
        self._unknown: dict[str, tuple[float, int]] = {}
        self._summarised = (0, 0, 0)

    def tell(self, event: Event) -> None:
        """Report what an operation has done here; to be called only while :attr:`trace` is set."""
        self._emit(event)

    # -- what operations call ------------------------------------------------------------------------------------

    def register(self, keys: Collection[str]) -> Token:
        """Register a token for the keys of one command, before it is sent (P7)."""
        with self._lock:
            return self._tokens.register(keys, self.generation)

    def release(self, token: Token) -> None:
        """Forget a token whose command will bring nothing to insert; a second call does nothing."""
        with self._lock:
            self._release(token)

    def absorb(
        self,
        token: Token,
        reply: ReadReply | WriteReply,
        items: Sequence[tuple[str, int, Entry | None]],
        *,
        now: float,
    ) -> None:
        """Take in what a reply says about keys: evict what is older, insert each value if every rule allows it.

        Everything learnt works like a message, whether it may be inserted or not (P7, review A3).

        Args:
            token: the command's token, registered before it was sent; released here.
            reply: the reply.
            items: per key its version and value. The value is None if there is none or it must not be kept. An
                absence seen at clock ``s`` is newer than any value with a version up to ``s``: its version is given
                as ``s + 1``.
            now: local clock in seconds.
        """
        with self._lock:
            try:
                if not self._is_comparable(reply):
                    # Without an order between versions, whatever is held here may be the older one.
                    for key, _, _ in items:
                        self._distrust(key)
                    return
                tier, tokens = self.tier, self._tokens
                forbidden = self._forbidden(token, now)
                entries, alone, kept = tier.entries, tokens.is_alone(token), self.kept
                # Whether the version alone can forbid an insertion: the common case of a bulk read.
                simple = forbidden is None and not token.marks and not self._tag_floors and not kept.entries
                if simple and alone and getattr(reply, "floor", -1) >= self._floor and tier.insert_new(items):
                    return
                for key, seq, entry in items:
                    held = key in entries
                    if held:
                        tier.evict_older(key, seq)
                    # An absence may be the end of its time, which is what a value is kept for.
                    if kept.entries and seq <= reply.seq:
                        kept.evict_older(key, seq)
                    if not alone:
                        tokens.mark(key, seq, but=token)
                    if entry is None:
                        continue
                    if simple and not held and seq > self._floor:
                        tier.insert(key, entry, now)
                        continue
                    refusal = forbidden or self._refusal(token, key, entry)
                    if refusal is None:
                        tier.insert(key, entry, now)
                    else:
                        self._counters.fills_refused += 1
                        if self.trace:
                            self._emit(FillRefused(self.index, key, seq, refusal))
            finally:
                self._release(token)

    def learn_floor(self, reply: WriteReply, kind: Kind, tags: tuple[str, ...]) -> None:
        """Take in the reply of an own ``clear`` or tag invalidation, as if its message had come (P7, P10)."""
        with self._lock:
            if self._is_comparable(reply):
                self._raise_floor(kind, reply.seq, tags)
            else:
                self._distrust_all()

    def await_key(self, key: str) -> Waiter:
        """Register a waiter for what happens to a key, before Redis is asked about it (P11)."""
        with self._lock:
            return self._waiters.register(key)

    def stop_waiting(self, key: str, waiter: Waiter) -> None:
        """Forget a waiter; a second call does nothing."""
        with self._lock:
            self._waiters.release(key, waiter)

    def wake_all(self) -> None:
        """Wake everybody who waits for a key."""
        with self._lock:
            self._waiters.wake_all()

    def collect(self, nonce: bytes) -> Collector:
        """Collect receipts for the write with this nonce, from before it is sent (P12)."""
        with self._lock:
            collector = self._collectors[nonce] = Collector()
            return collector

    def expect(self, collector: Collector, members: frozenset[str]) -> None:
        """Say whose receipts a collector waits for."""
        with self._lock:
            collector.expect(members)

    def stop_collecting(self, nonce: bytes) -> None:
        """Forget a collector; a second call does nothing."""
        with self._lock:
            self._collectors.pop(nonce, None)

    def registered_since(self, epoch: bytes, server: str, now: float) -> float:
        """Return :attr:`known_since` if the shard is fresh and of this epoch and server, else ``inf`` (P12)."""
        with self._lock:
            fresh = now <= self.lapses_at and (epoch, server) == (self.epoch, self.server)
            return self.known_since if fresh else inf

    def leave(self) -> None:
        """Hold nothing and let nothing in any more: this instance ends."""
        with self._lock:
            self.synced = False
            self._new_generation()
            self._replace_tier(RemovalCause.CLEARED, keep_horizon=False)

    def keep(self, key: str, seconds: float, now: float) -> None:
        """Keep what the tier holds of a key as its last known value, some seconds beyond its time."""
        with self._lock:
            entry = self.tier.entries.get(key)
            if entry is not None and not entry.is_expired(now):
                self.kept.insert(key, KeptEntry(entry, seconds), now)

    def last_known(self, key: str, now: float, least: Version | None = None) -> KeptEntry | None:
        """Return the last known value of a key, None if there is none that may be served at ``now``.

        Args:
            key: user key.
            now: local clock in seconds.
            least: it must not be older than this version; one whose own version a flush has forgotten counts as older.
                Another epoch has no order with it (P9).
        """
        with self._lock:
            entry = self.kept.entries.get(key)
            if not isinstance(entry, KeptEntry) or entry.is_expired(now):
                return None
            older = least is not None and least.epoch == self.epoch and entry.seq < least.seq
            return None if older else entry

    def distrust_keys(self, keys: Iterable[str]) -> None:
        """After a write whose outcome is unknown: whatever is here, or on its way here, may be outdated (review A8)."""
        with self._lock:
            for key in keys:
                self._distrust(key)

    def distrust_all(self) -> None:
        """After a ``clear`` or tag invalidation whose outcome is unknown: keep nothing, let nothing under way in."""
        with self._lock:
            self._distrust_all()

    def remove_expired(self, key: str, now: float) -> None:
        """Remove an entry that a reader found expired."""
        with self._lock:
            entry = self.tier.entries.get(key)
            if entry is not None and entry.is_expired(now):
                self.tier.remove(key, RemovalCause.EXPIRED)

    def clear_local(self) -> int:
        """Empty this instance's tier; return how many entries went. Fills under way may still come in: they are new."""
        with self._lock:
            return self._replace_tier(RemovalCause.CLEARED, keep_horizon=True)

    # -- what the owner of the stream calls ------------------------------------------------------------------------

    def apply(self, message: Message, *, now: float) -> bool:
        """Apply a message (P8).

        Before the resync of a new connection is complete, messages evict and mark, but do not move the position: the
        resync's reply covers them (P6).

        Returns:
            False if the stream is broken here and needs a resync.
        """
        with self._lock:
            counters = self._counters
            counters.received += 1
            lag = self.lag.observe(message.time_us, now)
            if message.epoch == self.epoch:
                applied, sound = self._evict(message), self._move(message)
            elif self.epoch is None or message.epoch in self._past_epochs:
                applied, sound = False, True
            else:
                self._forget("a message")
                applied, sound = True, False
            if applied:
                counters.applied += 1
            self._remember(message, applied, now)
            if self.trace:
                self._emit(
                    InvalidationReceived(
                        self.index, message.kind.name.lower(), message.seq, message.origin, message.names, applied,
                        None if lag is None else lag * 1000,
                    )
                )  # fmt: skip
            return sound

    def receive(self, nonce: bytes, member: str) -> None:
        """Take in a member's receipt for a write; one that nobody waits for any more is dropped (P12)."""
        with self._lock:
            collector = self._collectors.get(nonce)
            if collector is not None:
                collector.add(member)

    def owes_receipt(self, message: Message) -> bool:
        """Tell whether the writer of a message that was just applied here wants to know (P12).

        Applied means that nothing older can be served here any more: of the present epoch, it has evicted and marked;
        of another one, it has flushed, or there is nothing that it could concern. Own writes need no receipt; they are
        told by their nonce, for two instances may have one id.
        """
        with self._lock:
            return message.wants_receipts and message.nonce not in self._collectors

    def note_registry(self, *, entered: bool, now: float) -> None:
        """Note whether members could be entered in the registry just now (P12): not while the server's disk is full."""
        with self._lock:
            if not entered:
                self.known_since = inf
            elif self.known_since == inf or now - self._noted_at > self._max_staleness:
                self.known_since = now  # what happened while nothing was heard here is not known
            self._noted_at = now

    def prove(self, reply: SyncReply, *, sent_at: float) -> bool:
        """Take in a heartbeat's reply: move the horizon if the server's clock equals what was applied here (P4).

        Args:
            reply: the reply, with everything that precedes it in the stream applied.
            sent_at: local clock before the heartbeat was sent: the new horizon (its arrival would be wrong).

        Returns:
            False if something is missing: a resync is needed.
        """
        with self._lock:
            if not self.synced or (reply.epoch, reply.seq, reply.nonce) != (self.epoch, self.position, self.nonce):
                return False
            self._advance_horizon(sent_at)
            self._change(Trigger.PROVEN, "heartbeat")
            return True

    def resync(self, reply: SyncReply, *, server: str, sent_at: float, now: float) -> list[Message]:
        """Take in a resync's reply: prove the position and replay what was missed, or flush (P6).

        Everything happens in one critical section, the bump of the generation included: a token registered before
        this moment, also while disconnected, is void (review A2).

        Args:
            reply: the reply; its entries start with the log's entry at this shard's position.
            server: run id of the server at the other end of the stream.
            sent_at: local clock before the request was sent.
            now: local clock.

        Returns:
            The messages that were replayed.
        """
        with self._lock:
            missed = self._missed(reply)
            held = len(self.tier)
            self._new_generation()
            if missed is None:
                first = self.epoch is None and not held
                if self.epoch is not None and self.epoch != reply.epoch:
                    self._past_epochs.append(self.epoch)
                dropped = self._replace_tier(RemovalCause.FLUSHED, keep_horizon=False)
                outcome, replayed = ("first" if first else "flushed"), 0
                self._counters.flushes += not first
            else:
                # Entries above the proven position may stem from a history that a failover discarded (review A5).
                assert self.position is not None
                dropped = self.tier.drop_above(self.position)
                self._forget_versions(above=self.position)
                for message in missed:
                    applied = self._evict(message)
                    self._counters.applied += applied
                    self._remember(message, applied, now)
                    self._counters.received += 1
                replayed = len(missed)
                outcome = "replayed" if replayed else "unbroken"
                self._counters.replays += replayed
            self._counters.resyncs += 1
            if (reply.epoch, server) != (self.epoch, self.server):
                self.known_since = inf
            self.epoch, self.position, self.nonce = reply.epoch, reply.seq, reply.nonce
            if server != self.server:
                self.server = server
                self.lag.reset()
            self.synced = True
            self._advance_horizon(sent_at)
            self._emit(Resynced(self.index, self._broken_by, outcome, reply.seq, replayed, dropped))
            self._change(Trigger.PROVEN, f"resync: {outcome}")
            self.lag.compare(reply.time_us, sent_at, now)
            return missed or []

    def doubt(self, cause: str) -> None:
        """Note that the stream may have lost something: the connection ended, or is to be resynchronised."""
        with self._lock:
            self._note_break(cause)
            self.synced = False
            self._change(Trigger.DOUBTED, cause)

    def suspect(self, cause: str) -> None:
        """Note that a heartbeat is late. The stream is not broken by that, so its answer alone repairs it."""
        with self._lock:
            self._change(Trigger.DOUBTED, cause)

    def distrust(self, reason: str) -> None:
        """Flush: something came that cannot be understood, so anything may be outdated (P8)."""
        with self._lock:
            dropped = self._flush_unread("damaged message")
            self._counters.errors += 1
            self._emit(MessageDamaged(self.index, reason, dropped))
            self._change(Trigger.DOUBTED, "damaged message")

    def distrust_newer(self, reason: str, now: float) -> None:
        """Flush, as :meth:`distrust`: a newer release has written something whose message cannot be understood (P8)."""
        with self._lock:
            self._flush_unread("message of a newer release")
            self.note_unknown("message", reason, now)
            self._change(Trigger.DOUBTED, "message of a newer release")

    def note_unknown(self, what: str, reason: str, now: float) -> None:
        """Note that something of a format came that only newer releases know; tell of it once a minute.

        Args:
            what: ``value`` or ``message``.
            reason: which format.
            now: local clock.
        """
        with self._lock:
            told_at, count = self._unknown.get(what, (-inf, 0))
            if now < told_at + UNKNOWN_FORMAT_SECONDS:
                self._unknown[what] = told_at, count + 1
                return
            self._unknown[what] = now, 0
            self._emit(UnknownFormatSeen(self.index, what, reason, count + 1))

    def sweep(self, now: float) -> None:
        """Remove some of the entries that have expired; called with each heartbeat."""
        with self._lock:
            self.tier.expire_some(now, SWEEP_ENTRIES)
            self.kept.expire_some(now, SWEEP_ENTRIES)
            if self.trace and now >= self._summary_from + SUMMARY_SECONDS:
                self._summarise(now)

    def tick(self, now: float) -> None:
        """Let time pass: notice a lapsed horizon."""
        with self._lock:
            if self.lapses_at == inf:
                self.lapses_at = now + self._max_staleness
            if now > self.lapses_at and self.state is not State.DISCONNECTED:
                self._change(Trigger.LAPSED, "no proof of freshness within max_staleness")

    # -- what anybody may ask --------------------------------------------------------------------------------------

    def state_at(self, now: float) -> State:
        """State at ``now``, right even if the subscriber thread was not running for a while."""
        return State.DISCONNECTED if now > self.lapses_at else self.state

    def look(self, read: Callable[[Shard], T]) -> T:
        """Return what ``read`` finds in this shard at one moment; it must change nothing, and not block."""
        with self._lock:
            return read(self)

    def under_way(self, key: str) -> int:
        """Return how many commands are under way that may bring a value of a key."""
        with self._lock:
            return self._tokens.count(key)

    # -- requires holding the lock ---------------------------------------------------------------------------------

    def _is_comparable(self, reply: ReadReply | WriteReply) -> bool:
        """Tell whether a reply's versions have an order with those held here (P9, P16).

        They have none if it is of another epoch (one that is not known to be past ends this history) or of another
        server: a replica that was promoted hands out numbers again that its predecessor had used.
        """
        if reply.epoch == self.epoch:
            return reply.server == self.server
        if self.epoch is not None and reply.epoch not in self._past_epochs:
            self._forget("a reply")
        return False

    def _distrust(self, key: str) -> None:
        self.tier.evict_older(key, NEWER_THAN_ANYTHING)
        self.kept.evict_older(key, NEWER_THAN_ANYTHING)
        self._tokens.mark(key, NEWER_THAN_ANYTHING)

    def _distrust_all(self) -> None:
        self._replace_tier(RemovalCause.INVALIDATED, keep_horizon=True)
        self._new_generation()

    def _new_generation(self) -> None:
        """Void all tokens; with them goes what was kept for their sake (P6). Who waits for a message asks again."""
        self.generation += 1
        self._waiters.wake_all()
        self._floor = 0
        self._tag_floors.clear()

    def _forget(self, where: str) -> None:
        """Redis lost this history: forget it too, void all tokens, wait for a resync (P9)."""
        assert self.epoch is not None
        self._past_epochs.append(self.epoch)
        self.epoch = self.position = None
        self._note_break(f"another epoch in {where}")
        self.synced = False
        self._new_generation()
        self._counters.flushes += 1
        dropped = self._replace_tier(RemovalCause.FLUSHED, keep_horizon=False)
        self._emit(HistoryLost(self.index, dropped, where))
        self._change(Trigger.FORGOTTEN, f"another epoch in {where}")
        if self.on_doubt is not None:
            self.on_doubt()

    def _release(self, token: Token) -> None:
        self._tokens.release(token)
        if not self._tokens:
            self._tag_floors.clear()

    def _forbidden(self, token: Token, now: float) -> str | None:
        """Say which rule forbids any insertion by a command, None if it is allowed (P5, P6)."""
        if self.state is not State.COHERENT or now > self.tier.valid_until:
            return "not coherent"
        if token.generation != self.generation:
            return "generation"
        return None

    def _refusal(self, token: Token, key: str, entry: Entry) -> str | None:
        """Say which rule forbids the insertion of one value, None if it is allowed (P7, P10)."""
        seq = entry.seq
        if token.marks and token.marks.get(key, 0) > seq:
            return "token marked"
        if seq <= self._floor:
            return "floor"
        if entry.tags and any(self._tag_floors.get(tag, 0) >= seq for tag in entry.tags):
            return "tag floor"
        held = self.tier.entries.get(key)
        if held is not None and held.seq > seq:
            return "newer entry"
        return None

    def _move(self, message: Message) -> bool:
        """Move the position by a message of the present epoch; False if it does not continue it (P6).

        The number alone would not do: a server that was demoted may forward another history to its old subscribers.
        """
        if not self.synced:
            return True
        assert self.position is not None
        if message.seq != self.position + 1 or message.previous != self.nonce:
            self._emit(MessageGap(self.index, self.position + 1, message.seq))
            self._note_break("gap in the stream")
            self.synced = False
            self._change(Trigger.DOUBTED, "gap in the stream")
            return False
        self.position, self.nonce = message.seq, message.nonce
        return True

    def _evict(self, message: Message) -> bool:
        """Evict what a message says is outdated and mark tokens; tell whether anything was concerned."""
        if message.kind in (Kind.TAG, Kind.CLEAR):
            return self._raise_floor(message.kind, message.seq, message.names)
        applied = False
        evict_older, mark, seq = self.tier.evict_older, self._tokens.mark, message.seq
        if self._waiters:
            for key in message.names:
                self._waiters.wake(key)
        if message.kind is Kind.RELEASE:
            return False
        if self.kept.entries:
            for key in message.names:
                self.kept.evict_older(key, seq)
        for key in message.names:
            # Both sides always run: an eviction does not replace a mark.
            evicted, marked = evict_older(key, seq), mark(key, seq)
            applied = applied or evicted or marked
        return applied

    def _remember(self, message: Message, applied: bool, now: float) -> None:  # noqa: FBT001
        names = message.names
        if len(names) > RECENT_NAMES:
            message = message._replace(names=names[:RECENT_NAMES])
        self.recent.append((now, message, len(names), applied))

    def _raise_floor(self, kind: Kind, seq: int, tags: tuple[str, ...]) -> bool:
        if kind is Kind.CLEAR:
            if seq <= self._floor:
                return False
            self._floor = seq
            self._waiters.wake_all()
            return self._replace_tier(RemovalCause.CLEARED, keep_horizon=True) > 0
        removed = 0
        for tag in tags:
            removed += self.tier.remove_tagged(tag, seq)
            self.kept.remove_tagged(tag, seq)
            if self._tokens:
                self._tag_floors[tag] = max(seq, self._tag_floors.get(tag, 0))
        if len(self._tag_floors) > MAX_TAG_FLOORS:
            self._new_generation()
        return removed > 0 or bool(self._tokens)

    def _missed(self, reply: SyncReply) -> list[Message] | None:
        """Return the messages between this shard's position and the reply's, None if that cannot be proven (P6)."""
        if self.epoch != reply.epoch or self.position is None or reply.seq < self.position:
            return None
        if reply.seq == self.position:
            return [] if reply.nonce == self.nonce else None
        try:
            log = [decode_message(entry) for entry in reply.entries]
        except WireError:
            return None
        # Their number first: what was missed may be far more than the log, or the memory, could hold.
        count = reply.seq - self.position + 1
        if len(log) != count or any(
            (message.epoch, message.seq) != (self.epoch, self.position + at) for at, message in enumerate(log)
        ):
            return None
        if log[0].nonce != self.nonce or log[-1].nonce != reply.nonce:
            return None
        return log[1:]

    def _flush_unread(self, cause: str) -> int:
        """Flush because of a message that nobody here can read; return how many entries went."""
        dropped = self._replace_tier(RemovalCause.FLUSHED, keep_horizon=False)
        self._new_generation()
        self._note_break(cause)
        self.synced = False
        self._counters.flushes += 1
        return dropped

    def _note_break(self, cause: str) -> None:
        """Note why the next resync will be needed: what came first counts."""
        if self.synced:
            self._broken_by = cause

    def _summarise(self, now: float) -> None:
        """Tell what left the tier since the last summary, if anything did."""
        counts = self.tier.counts
        removed = counts.removed
        totals = removed[RemovalCause.SIZE], removed[RemovalCause.EXPIRED], counts.rejected_too_large
        evicted, expired, too_large = (new - old for new, old in zip(totals, self._summarised, strict=True))
        if self._summary_from > -inf and (evicted or expired or too_large):
            seconds = now - self._summary_from
            self._emit(EntriesRemoved(self.index, seconds, evicted, expired, too_large, len(self.tier)))
        self._summary_from, self._summarised = now, totals

    def _advance_horizon(self, sent_at: float) -> None:
        if sent_at > self.tier.horizon:
            self.tier.horizon = sent_at
            self.tier.valid_until = self.lapses_at = sent_at + self._max_staleness

    def _replace_tier(self, cause: RemovalCause, *, keep_horizon: bool) -> int:
        """Replace the tier by an empty one; lock-free readers may still finish with the old one (P4)."""
        if cause is not RemovalCause.FLUSHED:
            self.kept.remove_all(cause)
        else:
            self._forget_versions(above=0)
        old = self.tier
        dropped = len(old)
        new = old.replacement(cause)
        if keep_horizon:
            new.horizon, new.valid_until = old.horizon, old.valid_until
        self.tier = new
        return dropped

    def _forget_versions(self, *, above: int) -> None:
        """Numbers above this one may be handed out again: any that is heard of is newer than a last known value."""
        for entry in self.kept.entries.values():
            if entry.seq > above:
                entry.seq = 0

    def _change(self, trigger: Trigger, cause: str) -> None:
        old = self.state
        new = TRANSITIONS[old][trigger]
        if new is not old:
            self.state = new
            self._emit(StateChanged(self.index, old.value, new.value, cause))


class RemoteShard(Shard):
    """A shard of an instance without a local tier: nothing is ever inserted, so nothing learnt needs to be kept."""

    __slots__ = ()
    hears = False

    def register(self, keys: Collection[str]) -> Token:
        """Return a token that stands for nothing."""
        return Token(keys, self.generation)

    def release(self, token: Token) -> None:
        """Do nothing."""

    def absorb(
        self,
        token: Token,
        reply: ReadReply | WriteReply,
        items: Sequence[tuple[str, int, Entry | None]],
        *,
        now: float,
    ) -> None:
        """Do nothing."""

    def await_key(self, key: str) -> Waiter:  # noqa: ARG002
        """Return a waiter that nobody wakes."""
        return Waiter()

    def stop_waiting(self, key: str, waiter: Waiter) -> None:
        """Do nothing."""

    def keep(self, key: str, seconds: float, now: float) -> None:
        """Do nothing."""

    def learn_floor(self, reply: WriteReply, kind: Kind, tags: tuple[str, ...]) -> None:
        """Do nothing."""

    def distrust_keys(self, keys: Iterable[str]) -> None:
        """Do nothing."""

    def distrust_all(self) -> None:
        """Do nothing."""
