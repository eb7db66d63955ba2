"""Following the invalidations of a namespace from outside: which come next, which were missed, which are wanted.

Pure: whoever drives it subscribes, reads the log and the clock, and hands in what comes. One :class:`Trail` per shard
knows the position up to which everything was handed on or told to be missing. A message is in the log before it is
published, so whatever the stream lacks is looked for there first, and only what the log lacks too is a :class:`Gap`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from fnmatch import translate
from typing import NamedTuple

from coherent_cache.versions import NONCE_BYTES
from coherent_cache.wire import Kind, Message, WireError, decode_message


class GapCause(StrEnum):
    """Why messages cannot be shown."""

    LOG = "log"  # the log in Redis no longer has them
    HISTORY = "history"  # Redis lost the shard's data: another epoch began
    FORK = "fork"  # Redis went back: a failover or a restart discarded writes, their numbers are used again
    DAMAGED = "damaged"  # bytes that are no message of this release
    OUTPUT = "output"  # whoever reads the output is too slow


class Shown(NamedTuple):
    """A message that is handed on.

    Attributes:
        shard: number of the shard.
        message: the message.
        replayed: whether it was read from the log, not heard live.
    """

    shard: int
    message: Message
    replayed: bool

    @property
    def time_us(self) -> int:
        """Server clock when the write was executed, in microseconds."""
        return self.message.time_us


class Gap(NamedTuple):
    """Messages that were missed and cannot be had any more.

    Attributes:
        shard: number of the shard; None for any.
        cause: why.
        missed: how many; None if that cannot be known.
        after: version of the last message before it; None if there is none.
        before: version of the first one after it; None if none has come yet.
        time_us: server clock by which it was found, in microseconds.
    """

    shard: int | None
    cause: GapCause
    missed: int | None
    after: int | None
    before: int | None
    time_us: int


Record = Shown | Gap


class Clock(NamedTuple):
    """A shard's clock as Redis has it.

    Attributes:
        epoch: the history; None if there is none.
        seq: version of its last write.
        nonce: nonce of that write.
        time_us: server clock after the log was read, in microseconds.
    """

    epoch: bytes | None
    seq: int
    nonce: bytes
    time_us: int


class LogEntry(NamedTuple):
    """An entry of the log: its version, by its id, and the message as bytes."""

    seq: int
    data: bytes


class Trail:
    """The position in one shard's stream up to which everything was handed on, or told to be missing.

    Attributes:
        shard: number of the shard.
        epoch: the history; None if there was none yet.
        seq: version of the last message.
        nonce: that message's nonce; None if it is not known.
    """

    __slots__ = ("_read_us", "epoch", "nonce", "seq", "shard")

    def __init__(self, shard: int) -> None:
        """Begin before the first write of a shard that has none yet."""
        self.shard = shard
        self.epoch: bytes | None = None
        self.seq = 0
        self.nonce: bytes | None = None
        self._read_us = 0

    def start(self, clock: Clock) -> None:
        """Begin behind everything that was written so far."""
        self.epoch, self.seq, self.nonce = clock.epoch, clock.seq, clock.nonce or None
        self._read_us = clock.time_us

    def start_before(self, message: Message) -> None:
        """Begin just before a message of the log."""
        self.epoch, self.seq, self.nonce = message.epoch, message.seq - 1, message.previous

    def hear(self, data: bytes) -> list[Record] | None:
        """Take in what came live.

        Returns:
            What to hand on; None if the log must be read before anything else of this shard: see :meth:`read`. What was
            heard is there too.
        """
        try:
            message = decode_message(data)
        except WireError:
            return None
        if message.epoch != self.epoch:
            return None
        if message.seq <= self.seq and message.time_us <= self._read_us:
            return []  # the log had it
        if message.seq != self.seq + 1 or not self._continues(message):
            return None
        self.seq, self.nonce = message.seq, message.nonce
        return [Shown(self.shard, message, replayed=False)]

    def read(self, clock: Clock, entries: Sequence[LogEntry], *, more: bool) -> list[Record]:
        """Take in the clock, and the log from this position on, that position included.

        Args:
            clock: the clock, read before the log, with the time after that.
            entries: the log's entries, in order.
            more: whether the log may have further entries behind these.
        """
        self._read_us = clock.time_us
        if clock.epoch is None:
            return []  # lost, or never there; if it is begun anew, that has another epoch
        records: list[Record] = []
        if clock.epoch != self.epoch:
            if self.epoch is not None:
                records.append(self._gap(GapCause.HISTORY, None, None, clock.time_us))
            self.epoch, self.seq, self.nonce = clock.epoch, 0, clock.epoch[:NONCE_BYTES]
            return records  # what was read may be from the middle of it
        if clock.seq < self.seq or (clock.seq == self.seq and self.nonce not in (None, clock.nonce)):
            records.append(self._gap(GapCause.FORK, None, None, clock.time_us))
            self.seq, self.nonce = clock.seq, clock.nonce
            return records
        for entry in entries:
            records += self._replay(entry, clock)
        return records if more else [*records, *self._end(clock)]

    def reads_on(self, clock: Clock, *, more: bool) -> bool:
        """Tell whether, after :meth:`read`, the log has to be read on, from the position that is reached now."""
        return clock.epoch is not None and (more or self.seq < clock.seq)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _continues(self, message: Message) -> bool:
        return self.nonce is None or message.previous == self.nonce

    def _replay(self, entry: LogEntry, clock: Clock) -> Iterator[Record]:
        try:
            message = decode_message(entry.data)
        except WireError:
            message = None
        if message is None or (message.epoch, message.seq) != (clock.epoch, entry.seq):
            if entry.seq > self.seq:
                yield from self._skip_to(entry.seq, clock)
                yield self._gap(GapCause.DAMAGED, 1, entry.seq + 1, clock.time_us)
                self.seq, self.nonce = entry.seq, None
            return
        if message.seq < self.seq:
            return
        if message.seq == self.seq:
            if self.nonce not in (None, message.nonce):
                yield self._gap(GapCause.FORK, None, None, clock.time_us)
            self.nonce = message.nonce
            return
        yield from self._skip_to(message.seq, clock)
        if not self._continues(message):
            yield self._gap(GapCause.FORK, None, message.seq, message.time_us)
        self.seq, self.nonce = message.seq, message.nonce
        yield Shown(self.shard, message, replayed=True)

    def _skip_to(self, seq: int, clock: Clock) -> Iterator[Record]:
        """Tell what is missing before a version."""
        if seq > self.seq + 1:
            yield self._gap(GapCause.LOG, seq - self.seq - 1, seq, clock.time_us)
            self.seq, self.nonce = seq - 1, None

    def _end(self, clock: Clock) -> Iterator[Record]:
        """Tell what the log lacks up to the clock."""
        if self.seq < clock.seq:
            yield self._gap(GapCause.LOG, clock.seq - self.seq, None, clock.time_us)
            self.seq, self.nonce = clock.seq, clock.nonce

    def _gap(self, cause: GapCause, missed: int | None, before: int | None, time_us: int) -> Gap:
        return Gap(self.shard, cause, missed, self.seq or None, before, time_us)


class Filter:
    """Which messages are wanted. What is not given excludes nothing."""

    def __init__(
        self,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        origins: Iterable[str] = (),
        kinds: Iterable[str] = (),
    ) -> None:
        """Make a filter of shell patterns, of which one must match.

        Args:
            keys: for keys. A clear concerns every key, so it matches; which keys a tag invalidation concerns is not in
                its message.
            tags: for the tags of tag invalidations; a clear matches as well. With ``keys``, either will do.
            origins: for the names of the instances that wrote.
            kinds: kinds of messages, in small letters.
        """
        self._keys = _pattern(keys)
        self._tags = _pattern(tags)
        self._origins = _pattern(origins)
        self._kinds = frozenset(Kind[kind.upper()] for kind in kinds)

    def admits(self, message: Message) -> bool:
        """Tell whether a message is wanted."""
        if self._kinds and message.kind not in self._kinds:
            return False
        if self._origins is not None and not self._origins.match(message.origin):
            return False
        if self._keys is None and self._tags is None:
            return True
        if message.kind is Kind.CLEAR:
            return True
        pattern = self._tags if message.kind is Kind.TAG else self._keys
        return pattern is not None and any(map(pattern.match, message.names))


def _pattern(globs: Iterable[str]) -> re.Pattern[str] | None:
    together = "|".join(map(translate, globs))
    return re.compile(together) if together else None
