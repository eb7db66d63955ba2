"""Looking on from outside: who reports, what instances answer, what Redis holds. Changes nothing that a cache reads."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple

import redis

from coherent_cache.config import Settings
from coherent_cache.core.questions import (
    MAX_QUESTION_KEYS,
    QUESTION_ID_BYTES,
    Answer,
    Ask,
    InstanceReport,
    Question,
    decode_answer,
    decode_report,
    encode_question,
)
from coherent_cache.core.requests import MembersReply, MembersRequest
from coherent_cache.core.stored import Snapshot, judge
from coherent_cache.errors import CacheUnavailable, CoherentCacheError
from coherent_cache.keys import shard_names
from coherent_cache.remote.connection import ConnectionLost, ReplyError, connect, pack
from coherent_cache.remote.link import Link, LinkLost, open_link
from coherent_cache.remote.scripts import PlainCall, ScriptCall, Scripts
from coherent_cache.remote.sync_io import ConnectionPool, SyncIO
from coherent_cache.remote.topology import Endpoint, resolve
from coherent_cache.wire import Message, WireError, decode_message

KEYS_PER_SCRIPT: Final = 200
"""Keys whose versions one script reads: looking on must not make others wait."""

_NAME: Final = "coherent-cache:inquiry"

LOG_PIECE: Final = 1000
"""Messages of the log that are read at once."""


class Fleet(NamedTuple):
    """Who is there.

    Attributes:
        exists: whether anything was ever written or read in this namespace.
        reports: what instances say about themselves, by member.
        silent: members that were seen lately and do not report themselves.
        damaged: reports that cannot be understood.
    """

    exists: bool
    reports: dict[str, InstanceReport]
    silent: tuple[str, ...]
    damaged: int


class Answers(NamedTuple):
    """What came back to a question.

    Attributes:
        answers: one per instance that has answered.
        asked: how many instances the question reached, as far as is known.
        damaged: answers that cannot be understood.
    """

    answers: tuple[Answer, ...]
    asked: int
    damaged: int


class Inquiry:
    """Asks Redis and the instances of one namespace. Not safe to share between threads."""

    def __init__(
        self, endpoint: Endpoint, scripts: Scripts, io: SyncIO, *, clock: Callable[[], float], name: str
    ) -> None:
        """Combine the parts; nothing is connected yet.

        Args:
            endpoint: where Redis is.
            scripts: makes calls.
            io: runs them.
            clock: local clock in seconds.
            name: client name of the connection on which answers come.
        """
        self._endpoint = endpoint
        self._scripts = scripts
        self._io = io
        self._clock = clock
        self._name = name
        self._link: Link | None = None

    def __enter__(self) -> Inquiry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection on which answers come. Idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    # -- who is there ----------------------------------------------------------------------------------------------

    def fleet(self) -> Fleet:
        """Return who is there.

        Raises:
            CacheUnavailable: Redis is away or refused.
            NamespaceMismatch: the namespace was created with other settings.
        """
        members = self._members()
        names = self._scripts.names[0]
        alive = [each for each in members.members if members.now_ms - each.seen_ms <= each.bound_ms]
        raw: list[Any] = [None] * len(members.members)
        if members.members:
            raw = self.command("MGET", *[names.report(each.name) for each in members.members])
        reports, damaged = {}, 0
        for each, data in zip(members.members, raw, strict=True):
            if data is None:
                continue
            try:
                reports[each.name] = decode_report(data)
            except WireError:
                damaged += 1
        silent = tuple([each.name for each in alive if each.name not in reports])
        exists = bool(members.members) or self.command("HGET", names.clock, "epoch") is not None
        return Fleet(exists, reports, silent, damaged)

    def _members(self) -> MembersReply:
        (reply,) = self._io.execute([MembersRequest(0)])
        assert isinstance(reply, MembersReply)
        return reply

    # -- what instances answer -------------------------------------------------------------------------------------

    def ask(
        self,
        kind: Ask,
        *,
        timeout: float,
        to: Sequence[str] = (),
        keys: Sequence[str] = (),
        most: int = 0,
    ) -> Answers:
        """Ask instances, and wait until all of them have answered.

        Args:
            kind: what to ask.
            timeout: seconds to wait, at most: who is busy, suspended or dead does not answer.
            to: members to ask; none for all.
            keys: user keys, at most ``MAX_QUESTION_KEYS``.
            most: how many keys, for ``sample``.

        Raises:
            CacheUnavailable: Redis is away or refused.
        """
        question = Question(os.urandom(QUESTION_ID_BYTES), kind.value, tuple(to), tuple(keys), most)
        channel = self._scripts.names[0].answer(question.id)
        try:
            link = self._connected()
            link.send(pack((b"SUBSCRIBE", channel)))
            answers, asked, damaged = self._collect(link, question, channel, self._clock() + timeout)
        except (LinkLost, redis.RedisError, OSError) as error:
            self.close()
            raise CacheUnavailable(f"cannot listen at Redis at {self._endpoint.description}: {error}") from error
        return Answers(tuple(answers.values()), asked, damaged)

    def _connected(self) -> Link:
        if self._link is None:
            self._link = open_link(self._endpoint.connect(name=self._name))
        return self._link

    def _collect(
        self, link: Link, question: Question, channel: bytes, until: float
    ) -> tuple[dict[str, Answer], int, int]:
        answers: dict[str, Answer] = {}
        damaged, asked, wanted = 0, 0, -1
        while len(answers) != wanted and (left := until - self._clock()) > 0:
            for item in link.receive(left):
                if item.kind == "error":
                    raise CacheUnavailable(f"Redis at {self._endpoint.description} refused: {item.data}")
                if item.channel != channel:
                    continue
                if item.kind == "subscribe":
                    asked = self.command("PUBLISH", self._scripts.names[0].questions, encode_question(question))
                    wanted = min(asked, len(question.to)) if question.to else asked
                elif item.kind == "message":
                    try:
                        answer = decode_answer(item.data)
                    except WireError:
                        damaged += 1
                        continue
                    if answer.id == question.id:
                        answers[answer.member] = answer
        return answers, asked, damaged

    # -- what Redis holds ------------------------------------------------------------------------------------------

    def versions(self, shard: int, keys: Sequence[str]) -> list[Snapshot]:
        """Return what Redis holds of keys of one shard, in pieces of ``KEYS_PER_SCRIPT``.

        Raises:
            CacheUnavailable: Redis is away or refused.
            NamespaceMismatch: the namespace was created with other settings.
        """
        snapshots = []
        for start in range(0, max(1, len(keys)), KEYS_PER_SCRIPT):
            piece = keys[start : start + KEYS_PER_SCRIPT]
            raw, server = self._ask(self._scripts.versions(shard, piece))
            epoch, seq, floor, seconds, microseconds, found = raw
            stored = [judge(key, each, epoch, int(floor)) for key, each in zip(piece, found, strict=True)]
            time_us = int(seconds) * 1_000_000 + int(microseconds)
            snapshots.append(Snapshot(shard, epoch, int(seq), int(floor), time_us, server, tuple(stored)))
        return snapshots

    def refresh_lease(self, shard: int, key: str) -> float | None:
        """Return the seconds that the lease of whoever refreshes a value has left (P11), None if nobody does."""
        left = self.command("PTTL", self._scripts.names[shard].refresh(key.encode("utf-8")))
        return left / 1000 if left >= 0 else None

    def log(self, shard: int, *, down_to: int = 0, most: int = LOG_PIECE) -> list[Message]:
        """Return messages of a shard's log that can be understood, newest first.

        Args:
            shard: number of the shard.
            down_to: seq of the first of them.
            most: how many at most, from there on.

        Raises:
            CacheUnavailable: Redis is away or refused.
        """
        messages: list[Message] = []
        while len(messages) < most:
            count = min(LOG_PIECE, most - len(messages))
            raw = self.command("XRANGE", self._scripts.names[shard].log, b"%d-0" % down_to, "+", "COUNT", count)
            for _, fields in raw:
                with suppress(WireError, IndexError):
                    messages.append(decode_message(fields[1]))
            if len(raw) < count:
                break
            down_to = int(raw[-1][0].partition(b"-")[0]) + 1
        return messages[::-1]

    def lacking_rights(self, user: str | None = None) -> tuple[str, ...] | None:
        """Return the rights that a user lacks in this namespace, as ACL SETUSER takes them; None if nobody tells.

        Args:
            user: the user, which takes ACL DRYRUN; None for this connection's own.

        Raises:
            CacheUnavailable: Redis is away.
        """
        rights = self._scripts.rights
        if user is None:
            try:
                connection = connect(self._endpoint, name=self._name)
                try:
                    (begun,) = connection.exchange(rights.begin, 1)
                    if isinstance(begun, ReplyError):
                        return None
                    return rights.lacking(connection.exchange(rights.question, rights.replies))
                finally:
                    connection.close()
            except (ConnectionLost, redis.RedisError, OSError) as error:
                raise CacheUnavailable(f"cannot ask Redis at {self._endpoint.description}: {error}") from error
        found: dict[str, None] = {}
        for name, words in rights.commands.items():
            answer = self.try_command("ACL", "DRYRUN", user, *words)
            if isinstance(answer, ReplyError):
                return None
            if answer != b"OK":
                text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
                found |= dict.fromkeys(rights.named(text) or (f"+{name}",))
        return tuple(found)

    # -- anything else ---------------------------------------------------------------------------------------------

    def command(self, *words: Any) -> Any:
        """Run one command and return its raw answer.

        Raises:
            CacheUnavailable: Redis is away or refused.
        """
        return self._ask(PlainCall(pack(words)))[0]

    def try_command(self, *words: Any) -> Any:
        """Run one command and return its raw answer, or the ReplyError that Redis answered.

        Raises:
            CacheUnavailable: Redis is away.
        """
        return self._io.ask(PlainCall(pack(words)))[0]

    def _ask(self, call: ScriptCall | PlainCall) -> tuple[Any, str]:
        answer, server = self._io.ask(call)
        if isinstance(answer, ReplyError):
            error: CoherentCacheError | None = self._scripts.error(answer)
            raise error or CacheUnavailable(f"Redis at {self._endpoint.description} refused: {answer}")
        return answer, server


def in_pieces(keys: Iterable[str]) -> list[list[str]]:
    """Return keys in pieces of which each fits into one question."""
    every = list(keys)
    return [every[at : at + MAX_QUESTION_KEYS] for at in range(0, len(every), MAX_QUESTION_KEYS)]


@contextmanager
def open_inquiry(endpoint: Endpoint, settings: Settings) -> Iterator[Inquiry]:
    """Ask the instances of a namespace without being one.

    Args:
        endpoint: where Redis is.
        settings: the namespace's name and shards, and how long to wait.
    """
    scripts = Scripts(settings, instance_id="-", database=endpoint.database)
    pool = ConnectionPool(endpoint, scripts.rights, name=_NAME, size=1, timeout=settings.timeout)
    io, clock = SyncIO(endpoint, scripts, pool, time.monotonic), time.monotonic
    try:
        with Inquiry(endpoint, scripts, io, clock=clock, name=_NAME) as inquiry:
            yield inquiry
    finally:
        pool.close()


def find_shards(source: object, settings: Settings) -> int | None:
    """Return how many shards a namespace was created with; None if there is none.

    Args:
        source: where Redis is, as for a cache.
        settings: the namespace's name, and how long to wait.

    Raises:
        CacheUnavailable: Redis is away or refuses.
        ConfigError: the source is unusable.
    """
    endpoint = resolve(source, settings)
    try:
        connection = endpoint.connect(name=_NAME)
        try:
            connection.send_command("HGET", shard_names(settings.namespace, 0, endpoint.database).clock, "config")
            config = connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()
    except (redis.RedisError, OSError) as error:
        raise CacheUnavailable(f"cannot connect to Redis at {endpoint.description}: {error}") from error
    found = re.fullmatch(rb"\d+/(\d+)", config or b"")
    return int(found[1]) if found else None
