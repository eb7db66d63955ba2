"""Follows the invalidations of a namespace from outside: no instance, no member, nothing is written.

Two connections. One is subscribed, one reads the log and the clock: what was written before the subscription, while a
connection was lost, or was missed. Which messages those are is :mod:`coherent_cache.core.tailing`'s business.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from itertools import islice
from math import inf
from random import Random
from types import TracebackType
from typing import Any, Final, NamedTuple

import redis

from coherent_cache.core.tailing import Clock, Filter, Gap, GapCause, LogEntry, Record, Trail
from coherent_cache.errors import CacheUnavailable, NamespaceMismatch
from coherent_cache.keys import ShardNames, shard_names
from coherent_cache.remote.connection import CommandConnection, ConnectionLost, ReplyError, connect, pack
from coherent_cache.remote.link import Link, LinkLost, SocketLink, open_link
from coherent_cache.remote.topology import Endpoint
from coherent_cache.wire import FORMAT, Message, WireError, decode_message

PAGE: Final = 500
"""Entries of a log that are read at once."""

POLL_SECONDS: Final = 0.2
"""Seconds after which whoever follows gets a chance to stop, if nothing comes."""

PING_SECONDS: Final = 2.0
"""Seconds between two questions whether the subscribed connection is still alive."""

SILENCE_SECONDS: Final = 6.0
"""Seconds without any sign of life after which it is given up."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
"""Seconds between two attempts to connect: they are doubled, from the first to the longest."""


class Notice(NamedTuple):
    """Something about the connection that whoever looks on should know.

    Attributes:
        text: what, in words.
    """

    text: str


class Tail:
    """Follows one namespace. Not safe to share between threads."""

    def __init__(self, endpoint: Endpoint, namespace: str, *, shards: int | None = None) -> None:
        """Prepare; nothing is connected yet.

        Args:
            endpoint: where Redis is.
            namespace: the namespace.
            shards: how many shards it has; None to find out.
        """
        self._endpoint = endpoint
        self._namespace = namespace
        self._shards = shards
        self._names: tuple[ShardNames, ...] = ()
        self._trails: tuple[Trail, ...] = ()
        self._channels: dict[bytes, int] = {}
        self._commands: CommandConnection | None = None
        self._link: Link | None = None

    @property
    def shards(self) -> int:
        """How many shards the namespace has; 0 before it was found."""
        return len(self._trails)

    def __enter__(self) -> Tail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        commands, self._commands = self._commands, None
        if commands is not None:
            commands.close()

    # -- the beginning ---------------------------------------------------------------------------------------------

    def find(self) -> bool:
        """Look for the namespace; tell whether anything was ever written or read in it.

        Raises:
            CacheUnavailable: Redis is away or refuses.
            NamespaceMismatch: it has another number of shards than was said, or another format.
        """
        with self._unavailable():
            config = self._config() or self._config_of_any_shard()
        if config is None:
            return False
        self._names = tuple(
            shard_names(self._namespace, index, self._endpoint.database) for index in range(self._shards_of(config))
        )
        self._trails = tuple(map(Trail, range(len(self._names))))
        self._channels = {names.channel: index for index, names in enumerate(self._names)}
        return True

    def begin_now(self) -> None:
        """Begin behind everything that was written so far.

        Raises:
            CacheUnavailable: Redis is away or refuses.
        """
        with self._unavailable():
            for trail in self._trails:
                trail.start(self._clock(trail.shard))

    def begin_since(self, seconds: float) -> list[Gap]:
        """Begin with the first message of the last so many seconds; return where the log does not reach back so far.

        Raises:
            CacheUnavailable: Redis is away or refuses.
        """
        gaps = []
        with self._unavailable():
            for trail in self._trails:
                clock = self._clock(trail.shard)
                trail.start(clock)
                first = self._first_since(trail.shard, clock.time_us - int(seconds * 1e6))
                if first is None:
                    continue
                message, is_oldest = first
                if message.epoch == clock.epoch:
                    trail.start_before(message)
                    if is_oldest and message.seq > 1:
                        gaps.append(_reach(trail.shard, message))
        return gaps

    def begin_with_last(self, count: int, wanted: Filter) -> list[Gap]:
        """Begin with the last so many messages that are wanted; return where the log does not have so many.

        Raises:
            CacheUnavailable: Redis is away or refuses.
        """
        with self._unavailable():
            for trail in self._trails:
                trail.start(self._clock(trail.shard))
            backwards = [self._backwards(trail) for trail in self._trails]
            newest_first = merge(*backwards, key=lambda message: -message[1].time_us)
            found = list(islice((each for each in newest_first if wanted.admits(each[1])), count))
            for shard, message in found:  # the last one of each shard is its oldest
                self._trails[shard].start_before(message)
            if len(found) == count:
                return []
            firsts = [(trail.shard, self._first(trail.shard)) for trail in self._trails]
        return [_reach(shard, first) for shard, first in firsts if first is not None and first.seq > 1]

    # -- following -------------------------------------------------------------------------------------------------

    def follow(self, *, live: bool = True) -> Iterator[list[Record | Notice]]:
        """Yield what comes, in pieces, at least an empty one every now and then; for ever, unless ``live`` is False.

        A lost connection is a notice; then it is made again, and what was missed is read from the log.

        Args:
            live: False to end when what the log has is yielded.

        Raises:
            CacheUnavailable: Redis is away or refuses, before anything was yielded.
            NamespaceMismatch: the namespace was begun anew with another number of shards.
        """
        begun, pause, told = False, FIRST_PAUSE, ""
        while True:
            try:
                for piece in self._serve(live=live, again=begun):
                    begun, pause, told = True, FIRST_PAUSE, ""
                    yield piece
            except (redis.RedisError, OSError, ConnectionLost, LinkLost, ReplyError) as error:
                self.close()
                if not begun:
                    raise self._unavailable_because(error) from error
                text = f"lost the connection to Redis at {self._endpoint.description} ({error}); trying again"
                yield [Notice(text)] if text != told else []
                told = text
            else:
                return
            ends = time.monotonic() + pause * _random.uniform(0.5, 1.0)
            pause = min(LONGEST_PAUSE, 2 * pause)
            while (left := ends - time.monotonic()) > 0:
                time.sleep(min(left, POLL_SECONDS))
                yield []

    def _serve(self, *, live: bool, again: bool) -> Iterator[list[Record | Notice]]:
        """Yield what comes over one pair of connections."""
        config = self._config()
        if config is not None and self._shards_of(config) != len(self._trails):
            raise NamespaceMismatch(self._namespace, config.decode("ascii", "replace"), self._own_config())
        everything = range(len(self._trails))
        # Most of what was missed before the subscription: what comes live meanwhile would have to be kept somewhere.
        yield from self._catch_up(everything)
        if not live:
            return
        link = self._link = open_link(self._endpoint.connect(name=_NAME))
        link.send(pack((b"SUBSCRIBE", *self._channels)))
        yield from self._await_subscriptions(link)
        if self._connected().server != link.server:
            raise LinkLost("log and messages come from different servers")
        if again:
            yield [Notice("connected again")]
        yield from self._catch_up(everything)
        yield from self._listen(link)

    def _await_subscriptions(self, link: Link) -> Iterator[list[Record | Notice]]:
        open_channels, ends = set(self._channels), time.monotonic() + SILENCE_SECONDS
        while open_channels:
            for item in link.receive(POLL_SECONDS):
                if item.kind == "subscribe":
                    open_channels.discard(item.channel)
                elif item.kind == "error":
                    raise item.data
            if time.monotonic() > ends:
                raise LinkLost("a subscription was not confirmed in time")
            yield []

    def _listen(self, link: Link) -> Iterator[list[Record | Notice]]:
        heard_at = pinged_at = time.monotonic()
        while True:
            items = link.receive(POLL_SECONDS)
            now = time.monotonic()
            if items:
                heard_at = now
            elif now > heard_at + SILENCE_SECONDS:
                raise LinkLost("no answer in time")
            if isinstance(link, SocketLink) and now > max(heard_at, pinged_at) + PING_SECONDS:
                pinged_at = now
                link.send(_PING)
            records: list[Record | Notice] = []
            broken: set[int] = set()
            for item in items:
                if item.kind == "unsubscribe":
                    raise LinkLost("the server ended a subscription")
                shard = self._channels.get(item.channel) if item.kind == "message" else None
                if shard is None or shard in broken:
                    continue  # the log has it
                heard = self._trails[shard].hear(item.data)
                if heard is None:
                    broken.add(shard)
                else:
                    records += heard
            yield records
            if broken:
                yield from self._catch_up(broken)

    def _catch_up(self, shards: Collection[int]) -> Iterator[list[Record | Notice]]:
        """Yield what the log has beyond the positions, ordered by time as far as it is known; a page at a time."""
        unread: dict[int, deque[Record]] = {shard: deque() for shard in shards}
        open_shards = set(shards)
        try:
            while open_shards:
                for shard in [shard for shard in open_shards if not unread[shard]]:
                    clock, entries = self._read(shard)
                    trail, more = self._trails[shard], len(entries) == PAGE
                    unread[shard] += trail.read(clock, entries, more=more)
                    if not trail.reads_on(clock, more=more):
                        open_shards.discard(shard)
                # What the open shards will still bring is not older than what they have brought.
                yield _taken(unread.values(), min((_newest(unread[shard]) for shard in open_shards), default=inf))
        except Exception:
            # The trails are past them: if the connection is lost here, they come before that is told.
            yield _taken(unread.values(), inf)
            raise
        yield _taken(unread.values(), inf)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _connected(self) -> CommandConnection:
        if self._commands is None or not self._commands.is_quiet():
            if self._commands is not None:
                self._commands.close()
            self._commands = connect(self._endpoint, name=_NAME)
        return self._commands

    def _ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands in one round trip.

        Raises:
            ReplyError, ConnectionLost, redis.RedisError, OSError: what may go wrong.
        """
        replies = self._connected().exchange(b"".join(map(pack, commands)), len(commands))
        for reply in replies:
            if isinstance(reply, ReplyError) and reply.code != "WRONGTYPE":  # a log of another type is no log
                raise reply
        return replies

    def _config(self) -> bytes | None:
        names = shard_names(self._namespace, 0, self._endpoint.database)
        (config,) = self._ask(("HGET", names.clock, "config"))
        return config if isinstance(config, bytes) else None

    def _config_of_any_shard(self) -> bytes | None:
        """Look for another shard than the first that was written. Takes a look at every key, but harms nobody."""
        pattern, cursor = f"cc:{{{self._namespace}/*}}:clock", b"0"
        while True:
            try:
                ((cursor, found),) = self._ask(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
            except ReplyError as error:
                if error.code == "NOPERM":  # caches do not need this right
                    return None
                raise
            for name in found:
                (config,) = self._ask(("HGET", name, "config"))
                if isinstance(config, bytes):
                    return config
            if cursor == b"0":
                return None

    def _shards_of(self, config: bytes) -> int:
        known, _, shards = config.decode("ascii", "replace").partition("/")
        if known != str(FORMAT) or not shards.isdigit() or int(shards) != (self._shards or int(shards)):
            raise NamespaceMismatch(self._namespace, config.decode("ascii", "replace"), self._own_config())
        return int(shards)

    def _own_config(self) -> str:
        return f"{FORMAT}/{self._shards or len(self._trails) or 1}"

    def _clock(self, shard: int) -> Clock:
        clock, stamp = self._ask(_read_clock(self._names[shard]), _TIME)
        return _clock_of(clock, stamp)

    def _read(self, shard: int) -> tuple[Clock, list[LogEntry]]:
        """Read the clock, then the log from the shard's position on, then the time."""
        names, trail = self._names[shard], self._trails[shard]
        clock, log, stamp = self._ask(
            _read_clock(names), ("XRANGE", names.log, f"{trail.seq}-0", "+", "COUNT", PAGE), _TIME
        )
        return _clock_of(clock, stamp), _entries_of(log)

    def _first(self, shard: int) -> Message | None:
        """Return the oldest message that a log has."""
        (log,) = self._ask(("XRANGE", self._names[shard].log, "-", "+", "COUNT", 1))
        return next(_messages_of(_entries_of(log)), None)

    def _first_since(self, shard: int, time_us: int) -> tuple[Message, bool] | None:
        """Return the first message of a log from some time on, and whether it is the log's oldest; by bisection."""
        oldest = self._first(shard)
        if oldest is None or oldest.time_us >= time_us:
            return None if oldest is None else (oldest, True)
        low, high, found = oldest.seq, self._clock(shard).seq, None
        while low < high:
            middle = (low + high + 1) // 2
            (log,) = self._ask(("XRANGE", self._names[shard].log, f"{middle}-0", "+", "COUNT", 1))
            message = next(_messages_of(_entries_of(log)), None)
            if message is None or message.time_us >= time_us:
                high = middle - 1
                found = message or found
            else:
                low = message.seq
        return None if found is None else (found, False)

    def _backwards(self, trail: Trail) -> Iterator[tuple[int, Message]]:
        """Yield the messages of a log up to the position, the newest first."""
        end, epoch = trail.seq, trail.epoch
        while end > 0:
            start = max(1, end - PAGE + 1)
            (log,) = self._ask(("XRANGE", self._names[trail.shard].log, f"{start}-0", f"{end}-0"))
            entries = _entries_of(log)
            for message in _messages_of(reversed(entries)):
                if message.epoch == epoch:
                    yield trail.shard, message
            if not entries:
                return
            end = start - 1

    def _unavailable_because(self, error: Exception) -> CacheUnavailable:
        what = "refused" if isinstance(error, ReplyError) else "cannot be reached"
        if isinstance(error, redis.RedisError | OSError):
            return CacheUnavailable(f"cannot connect to Redis at {self._endpoint.description}: {error}")
        return CacheUnavailable(f"Redis at {self._endpoint.description} {what}: {error}")

    @contextmanager
    def _unavailable(self) -> Iterator[None]:
        """Turn what may go wrong with a connection into our error."""
        try:
            yield
        except (redis.RedisError, OSError, ConnectionLost, ReplyError) as error:
            self.close()
            raise self._unavailable_because(error) from error


_NAME: Final = "coherent-cache:tail"
_PING: Final = pack(("PING",))
_TIME: Final = ("TIME",)
_random: Final = Random()  # noqa: S311  # jitter is no secret


def _read_clock(names: ShardNames) -> tuple[Any, ...]:
    return ("HMGET", names.clock, "epoch", "seq", "nonce")


def _clock_of(clock: Any, stamp: Any) -> Clock:
    epoch, seq, nonce = clock if isinstance(clock, list) else (None, None, None)
    seconds, microseconds = stamp
    return Clock(epoch, int(seq or 0), nonce or b"", int(seconds) * 1_000_000 + int(microseconds))


def _entries_of(log: Any) -> list[LogEntry]:
    if isinstance(log, ReplyError):
        return []
    return [LogEntry(int(name.partition(b"-")[0]), bytes(fields[1])) for name, fields in log]


def _messages_of(entries: Iterable[LogEntry]) -> Iterator[Message]:
    for entry in entries:
        try:
            yield decode_message(entry.data)
        except WireError:
            continue


def _reach(shard: int, first: Message) -> Gap:
    """Return the gap that says that a log begins here."""
    return Gap(shard, GapCause.LOG, None, None, first.seq, first.time_us)


def _newest(records: Iterable[Record]) -> float:
    return max((record.time_us for record in records), default=-inf)


def _taken(queues: Iterable[deque[Record]], until: float) -> list[Record | Notice]:
    """Take what is not newer than a time out of several queues, ordered by time."""
    fronts: list[list[Record]] = []
    for queue in queues:
        fronts.append([])
        while queue and queue[0].time_us <= until:
            fronts[-1].append(queue.popleft())
    in_order: Iterator[Record] = merge(*fronts, key=_time_of)
    return list(in_order)


def _time_of(record: Record) -> int:
    return record.time_us
