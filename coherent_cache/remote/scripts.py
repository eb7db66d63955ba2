"""Commands and Lua scripts as typed functions: requests to packed commands, raw answers to replies.

Reads are transactions, writes are scripts. Scripts are sent as ``EVALSHA``; a server that does not know one answers
``NOSCRIPT`` without having done anything, and is then sent the text. Each write brings 16 random bytes, for Lua's
``math.random`` repeats itself after each server start: half of them are its nonce, all of them the epoch if there is
none yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, NamedTuple, Protocol

from coherent_cache.config import Settings
from coherent_cache.core.instance import CACHED_KEYS
from coherent_cache.core.requests import (
    BatchRequest,
    Condition,
    DeleteRequest,
    FillRequest,
    FloorRequest,
    LeaseReply,
    LeaseRequest,
    LeaseStatus,
    LeaveRequest,
    Left,
    Member,
    MembersReply,
    MembersRequest,
    ReadReply,
    ReadRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    Reply,
    Request,
    StoreRequest,
    TouchRequest,
    WriteReply,
)
from coherent_cache.core.session import Receipt, Report, Response, Sync
from coherent_cache.errors import CacheUnavailable, NamespaceMismatch
from coherent_cache.keys import ShardNames, shard_names
from coherent_cache.remote.connection import ReplyError, pack
from coherent_cache.remote.rights import Rights
from coherent_cache.versions import EPOCH_BYTES
from coherent_cache.wire import FORMAT, Kind, encode_message_ends, encode_receipt, schema_bytes

MISMATCH: Final = "CCMISMATCH"
"""First word of the error that scripts answer if the namespace was created with other settings."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script.

    Attributes:
        text: what to EVAL.
        sha: what to EVALSHA: SHA-1 of the text, in hex.
    """

    text: bytes
    sha: bytes

    @classmethod
    def load(cls, *parts: str) -> Script:
        """Join files of the ``scripts`` folder into one script."""
        folder = files("coherent_cache.remote") / "scripts"
        text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in parts).encode()
        return cls(text, sha1(text, usedforsecurity=False).hexdigest().encode("ascii"))


READ_TAGGED: Final = Script.load("envelope", "read")
LEASE: Final = Script.load("common", "envelope", "lease")
FILL: Final = Script.load("common", "write", "envelope", "fill", "store")
RELEASE: Final = Script.load("common", "write", "release")
RENEW: Final = Script.load("renew")
STORE: Final = Script.load("common", "write", "store")
STORE_IF: Final = Script.load("common", "write", "envelope", "condition", "store")
DELETE: Final = Script.load("common", "write", "envelope", "condition", "delete")
TOUCH: Final = Script.load("common", "write", "envelope", "touch")
FLOOR: Final = Script.load("common", "write", "floor")
BATCH: Final = Script.load("common", "write", "envelope", "batch")
SYNC: Final = Script.load("common", "sync")
MEMBERS: Final = Script.load("members")
VERSIONS: Final = Script.load("envelope", "versions")

STORE_WORDS: Final = 17
"""Words of the call that stores one value."""

ENTROPY_STOCK: Final = 64
"""Writes whose random bytes are fetched at once."""

_MULTI: Final = pack(("MULTI",))
_TIME_EXEC: Final = pack(("TIME",)) + pack(("EXEC",))

_REFUSED_BEFORE_ANY_WRITE: Final = frozenset(
    {
        "OOM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "NOPERM",
        "NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "CROSSSLOT", "EXECABORT",
    }
)  # fmt: skip
"""Codes of errors that Redis answers before a script has written anything."""


class Call(Protocol):
    """Packed commands, and what to make of their replies."""

    @property
    def packed(self) -> bytes:
        """The commands."""

    @property
    def replies(self) -> int:
        """How many replies they get."""

    def parse(self, replies: list[Any], server: str, sent_at: float) -> Reply:
        """Make a reply.

        Args:
            replies: raw replies.
            server: run id of the server.
            sent_at: local clock before sending.

        Raises:
            ReplyError: Redis answered an error.
            TypeError, ValueError, IndexError: Redis answered something else.
        """


class ReadCall(NamedTuple):
    """A read as a transaction: no Lua, which would copy each value several times (P2).

    Measured here for 100 values of 500 bytes: 25 us of server time against 130 us for a script; for one value 3 us
    against 12 us.
    """

    packed: bytes
    replies: int
    config: bytes

    def parse(self, replies: list[Any], server: str, sent_at: float) -> ReadReply:
        """Make a reply; see :class:`Call`."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        clock, envelopes, (seconds, microseconds) = replies[-1]
        if isinstance(clock, ReplyError):
            raise clock
        epoch, seq, floor, tag_seq, config = clock
        if config is not None and config != self.config:
            raise ReplyError(f"{MISMATCH} {config.decode('ascii', 'replace')}")
        if not isinstance(envelopes, list):
            # GET of one key: a value of another type answers an error.
            envelopes = [b"" if isinstance(envelopes, Exception) else envelopes]
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        return ReadReply(
            epoch or b"", int(seq or 0), int(floor or 0), int(tag_seq or 0), now_ms, envelopes, (), server, sent_at
        )


def _answer(replies: list[Any]) -> Any:
    """Return a script's one answer, or raise it if it is an error."""
    (answer,) = replies
    if isinstance(answer, ReplyError):
        raise answer
    return answer


class ScriptCall(NamedTuple):
    """One script call.

    Attributes:
        script: the script.
        arguments: what follows the script's name: number of keys, keys, arguments.
        parser: makes a reply of (raw answer, server's run id, local clock before sending).
    """

    script: Script
    arguments: tuple[Any, ...]
    parser: Callable[[Any, str, float], Reply]
    replies: int = 1

    @property
    def packed(self) -> bytes:
        """The call by the script's SHA-1."""
        return pack((b"EVALSHA", self.script.sha, *self.arguments))

    def packed_with_text(self) -> bytes:
        """The call with the script's text, for a server that does not know it yet."""
        return pack((b"EVAL", self.script.text, *self.arguments))

    def parse(self, replies: list[Any], server: str, sent_at: float) -> Reply:
        """Make a reply; see :class:`Call`."""
        return self.parser(_answer(replies), server, sent_at)


class StoreCall(NamedTuple):
    """The call that stores one value, the commonest script: most of it is packed once for all.

    Attributes:
        start: of the call by the script's SHA-1, keys of the clock and log included.
        start_with_text: the same for a server that does not know the script yet.
        rest: what follows in both.
    """

    start: bytes
    start_with_text: bytes
    rest: bytes
    replies: int = 1

    @property
    def packed(self) -> bytes:
        """The call by the script's SHA-1."""
        return self.start + self.rest

    def packed_with_text(self) -> bytes:
        """The call with the script's text."""
        return self.start_with_text + self.rest

    def parse(self, replies: list[Any], server: str, sent_at: float) -> Reply:
        """Make a reply; see :class:`Call`."""
        return _parse_write(_answer(replies), server, sent_at)


class PlainCall(NamedTuple):
    """One ordinary command, answered by a number."""

    packed: bytes
    replies: int = 1

    def parse(self, replies: list[Any], _server: str, _sent_at: float) -> Left:
        """Make a reply; see :class:`Call`."""
        return Left(int(_answer(replies)) > 0)


class Scripts:
    """The scripts of one instance: knows the namespace's names in Redis and the instance's own."""

    def __init__(self, settings: Settings, *, instance_id: str, database: int, member: str = "-") -> None:
        """Prepare what all calls have in common.

        Args:
            settings: the instance's settings.
            instance_id: its name, the origin of its messages.
            database: number of the Redis database.
            member: the instance's name among the members (P12).
        """
        self.names = tuple(shard_names(settings.namespace, index, database) for index in range(settings.shards))
        self._namespace = settings.namespace
        self.rights = Rights(settings.namespace, self.names[0])
        self._config = b"%d/%d" % (FORMAT, settings.shards)
        # Scripts that judge stored values take it as their last argument.
        self._schema = schema_bytes(settings.schema)
        self._log_length = settings.log_length
        self._replay_limit = settings.replay_limit
        self._bound_ms = round(settings.longest_age * 1000)
        self.member = member
        self.origin = instance_id
        fields = ("epoch", "seq", "floor", "tag_seq", "config")
        self._packers = tuple(
            lru_cache(maxsize=CACHED_KEYS)(partial(_packed_name, names.values)) for names in self.names
        )
        self._entropy: list[bytes] = []
        self._message_tail = lru_cache(maxsize=CACHED_KEYS)(self._packed_message_tail)
        self._store_parts = tuple(map(self._packed_store_parts, self.names))
        self._read_heads = tuple(_MULTI + pack(("HMGET", names.clock, *fields)) for names in self.names)

    def call(self, request: Request) -> Call:  # noqa: C901, PLR0911  # one line or two per request
        """Make the call for a request."""
        match request:
            case ReadRequest():
                return self._read(request)
            case StoreRequest():
                return self._store(request)
            case DeleteRequest():
                values = tuple(map(self._value(request.shard), request.keys))
                keys = (*values, self.names[request.shard].probe)
                arguments = (*_condition(request.condition), self._schema)
                return self._write(DELETE, request.shard, keys, Kind.DELETE, request.keys, arguments, request.entropy)
            case TouchRequest():
                value = self._value(request.shard)(request.key)
                ttl_and_schema = (request.ttl_ms, self._schema)
                return self._write(TOUCH, request.shard, (value,), Kind.TOUCH, (request.key,), ttl_and_schema)
            case FloorRequest():
                probe = self.names[request.shard].probe
                return self._write(
                    FLOOR, request.shard, (probe,), request.kind, request.tags, request.tags, request.entropy
                )
            case BatchRequest():
                keys = (*map(self._value(request.shard), request.keys), self.names[request.shard].probe)
                batch_arguments = (len(request.ttls_ms), *request.ttls_ms, *request.parts, self._schema)
                return self._write(BATCH, request.shard, keys, Kind.BATCH, request.keys, batch_arguments)
            case LeaseRequest():
                return self._lease(request)
            case FillRequest():
                return self._fill(request)
            case ReleaseRequest():
                keys = (self._value(request.shard)(request.lease.key), self.names[request.shard].probe)
                content = (request.lease.content,)
                return self._write(RELEASE, request.shard, keys, Kind.RELEASE, (request.lease.key,), content)
            case RenewRequest(shard, lease, lease_ms):
                names, key = self.names[shard], lease.key.encode("utf-8")
                place = names.refresh(key) if lease.version else names.value(key)
                return ScriptCall(RENEW, (1, place, lease.content, lease_ms), _parse_renewal)
            case MembersRequest(shard):
                return ScriptCall(MEMBERS, (1, self.names[shard].members), _parse_members)
            case LeaveRequest(shard):
                return PlainCall(pack((b"HDEL", self.names[shard].members, self.member)))
            case _:
                raise AssertionError(f"{type(request).__name__} is not for Redis")

    def sync(self, command: Sync, channel: bytes = b"") -> ScriptCall:
        """Make the call for a heartbeat or resync.

        Args:
            command: what the session wants.
            channel: where the answer shall be published; empty for an ordinary answer.
        """
        names = self.names[command.shard]
        arguments = (
            4, names.clock, names.log, names.probe, names.members,
            self._config, command.token, os.urandom(EPOCH_BYTES),
            "" if command.seq is None else command.seq, self._replay_limit, channel,
            self.member, self._bound_ms,
        )  # fmt: skip
        return ScriptCall(SYNC, arguments, _no_parser)

    def receipt(self, receipt: Receipt) -> PlainCall:
        """Make the call that tells a writer that its message was applied here (P12)."""
        channel = self.names[receipt.shard].receipts(receipt.origin)
        return PlainCall(pack((b"PUBLISH", channel, encode_receipt(receipt.nonce, self.member))))

    def report(self, report: Report) -> PlainCall:
        """Make the call that leaves this instance's report in Redis."""
        name = self.names[0].report(self.member)
        return PlainCall(pack((b"SET", name, report.data, b"PX", report.expiry_ms)))

    def response(self, response: Response) -> PlainCall:
        """Make the call that answers a question to this instance."""
        return PlainCall(pack((b"PUBLISH", self.names[0].answer(response.question), response.data)))

    def versions(self, shard: int, keys: Sequence[str]) -> ScriptCall:
        """Make the call that asks for the versions of values, for people who look on."""
        values = tuple(map(self._value(shard), keys))
        return ScriptCall(VERSIONS, (len(keys) + 1, self.names[shard].clock, *values, self._config), _no_parser)

    def error(self, error: ReplyError) -> NamespaceMismatch | None:
        """Return the error that a script's own error answer stands for, None if it is not a script's own."""
        if error.code != MISMATCH:
            return None
        return self.mismatch(str(error).removeprefix(MISMATCH).strip().encode())

    def mismatch(self, config: bytes | None) -> NamespaceMismatch | None:
        """Return the error for a clock with this ``config`` field; None if it is this instance's, or there is none."""
        if config is None or config == self._config:
            return None
        return NamespaceMismatch(self._namespace, config.decode("ascii", "replace"), self._config.decode("ascii"))

    @staticmethod
    def refused_before_any_write(error: ReplyError) -> bool:
        """Tell whether an error answer to a write proves that nothing was written.

        An error that a command inside a script raised may have come after the script's first write; except for OOM,
        which Redis answers to the first write or not at all.
        """
        return error.code == "OOM" or (error.code in _REFUSED_BEFORE_ANY_WRITE and "script:" not in str(error))

    def _value(self, shard: int) -> Callable[[str], bytes]:
        prefix = self.names[shard].values
        return lambda key: prefix + key.encode("utf-8")

    def _read(self, request: ReadRequest) -> Call:
        names = self.names[request.shard]
        prefix = names.values
        if request.judge_tags:
            keys = [prefix + key for key in request.keys]
            return ScriptCall(READ_TAGGED, (len(keys) + 1, names.clock, *keys, self._config), _parse_read)
        if len(request.keys) == 1:
            get = pack(("GET", prefix + request.keys[0]))
        else:
            parts = [b"*%d\r\n$4\r\nMGET\r\n" % (len(request.keys) + 1)]
            parts += map(self._packers[request.shard], request.keys)
            get = b"".join(parts)
        return ReadCall(b"".join((self._read_heads[request.shard], get, _TIME_EXEC)), 5, self._config)

    def _store(self, request: StoreRequest) -> Call:
        if len(request.keys) == 1 and request.condition is None and not request.entropy:
            return self._store_one(request)
        prefix = self.names[request.shard].values
        values = tuple([prefix + key.encode("utf-8") for key in request.keys])
        arguments = (*_condition(request.condition), request.ttl_ms, *request.parts)
        script = STORE
        if request.condition is not None:
            script, arguments = STORE_IF, (*arguments, self._schema)
        return self._write(script, request.shard, values, Kind.SET, request.keys, arguments, request.entropy)

    def _store_one(self, request: StoreRequest) -> StoreCall:
        start, start_with_text, settings, message_head = self._store_parts[request.shard]
        (key,), (prefix, content), ttl = request.keys, request.parts, b"%d" % request.ttl_ms
        rest = b"%b%b%b%b%b$0\r\n\r\n$0\r\n\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            self._packers[request.shard](key.encode("utf-8")), settings, self._random(), message_head,
            self._message_tail(key), len(ttl), ttl, len(prefix), prefix, len(content), content,
        )  # fmt: skip
        return StoreCall(start, start_with_text, rest)

    def _packed_store_parts(self, names: ShardNames) -> tuple[bytes, bytes, bytes, bytes]:
        """Pack what precedes the value's name, by SHA-1 and by text; what precedes the random bytes; what follows."""
        starts = [
            b"*%d\r\n" % STORE_WORDS + _packed_words(*command, 3, names.clock, names.log)
            for command in (("EVALSHA", STORE.sha), ("EVAL", STORE.text))
        ]
        head, _ = encode_message_ends(Kind.SET, self.origin, ())
        settings = _packed_words(self._config, names.channel, self._log_length) + b"$%d\r\n" % EPOCH_BYTES
        return starts[0], starts[1], settings, b"\r\n" + _packed_words(head)

    def _packed_message_tail(self, key: str) -> bytes:
        return _packed_words(encode_message_ends(Kind.SET, self.origin, (key,))[1])

    def _random(self) -> bytes:
        """Return 16 random bytes. They are fetched for many writes at once: a system call each costs more."""
        try:
            return self._entropy.pop()
        except IndexError:
            more = os.urandom(EPOCH_BYTES * ENTROPY_STOCK)
            self._entropy += [more[at : at + EPOCH_BYTES] for at in range(EPOCH_BYTES, len(more), EPOCH_BYTES)]
            return more[:EPOCH_BYTES]

    def _lease(self, request: LeaseRequest) -> Call:
        names, key = self.names[request.shard], request.key.encode("utf-8")
        arguments = (
            4, names.clock, names.log, names.value(key), names.refresh(key),
            self._config, self._random(), request.lease_ms, *request.parts, request.version or "",
            int(request.over_foreign), self._schema,
        )  # fmt: skip
        return ScriptCall(LEASE, arguments, _parse_lease)

    def _fill(self, request: FillRequest) -> Call:
        value, lease = self._value(request.shard)(request.lease.key), request.lease
        arguments = (
            lease.epoch, lease.version, request.ttl_ms, *request.parts, lease.seq, lease.content, *request.tags,
            self._schema,
        )  # fmt: skip
        return self._write(FILL, request.shard, (value,), Kind.SET, request.keys, arguments)

    def _write(
        self,
        script: Script,
        shard: int,
        redis_keys: tuple[bytes, ...],
        kind: Kind,
        message_names: tuple[str, ...],
        arguments: Sequence[Any],
        entropy: bytes = b"",
    ) -> Call:
        wants_receipts = bool(entropy)
        names, entropy = self.names[shard], entropy or self._random()
        head, tail = encode_message_ends(kind, self.origin, message_names, wants_receipts=wants_receipts)
        return ScriptCall(
            script,
            (
                len(redis_keys) + 2, names.clock, names.log, *redis_keys,
                self._config, names.channel, self._log_length, entropy, head, tail, *arguments,
            ),
            _parse_write,
        )  # fmt: skip


def _packed_words(*words: Any) -> bytes:
    """Return words as Redis' protocol writes them, without their number."""
    return pack(words).partition(b"\r\n")[2]


def _packed_name(prefix: bytes, key: bytes) -> bytes:
    """Return the name of a value as Redis' protocol writes an argument."""
    return b"$%d\r\n%b%b\r\n" % (len(prefix) + len(key), prefix, key)


def _condition(condition: Condition | None) -> tuple[bytes | str | int, ...]:
    return ("", "") if condition is None else (condition.epoch, condition.seq)


def _parse_read(raw: Any, server: str, sent_at: float) -> ReadReply:
    epoch, seq, floor, seconds, microseconds, envelopes, tag_floors = raw
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    return ReadReply(epoch, int(seq), int(floor), 0, now_ms, envelopes, tag_floors, server, sent_at)


def _parse_lease(raw: Any, server: str, sent_at: float) -> LeaseReply:
    status, *read_raw, value, milliseconds = raw
    read = _parse_read((*read_raw, (value or None,), ()), server, sent_at)
    return LeaseReply(LeaseStatus(status.decode("ascii")), read, int(milliseconds) / 1000)


def _parse_members(raw: Any, server: str, _sent_at: float) -> MembersReply:
    now_ms, fields = int(raw[0]), raw[1:]
    epoch, created_ms, members = b"", 0, []
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name:
            bound_ms, seen_ms = map(int, value.split(b":"))
            members.append(Member(name.decode("ascii"), bound_ms, seen_ms))
        else:
            epoch, created_ms = value[:EPOCH_BYTES], int(value[EPOCH_BYTES:])
    return MembersReply(epoch, created_ms, now_ms, tuple(members), server)


def _parse_renewal(raw: Any, _server: str, _sent_at: float) -> RenewReply:
    return RenewReply(int(raw) == 1)


def _parse_write(raw: Any, server: str, sent_at: float) -> WriteReply:
    status, epoch, seq = raw[0], raw[1], int(raw[2])
    applied = status == b"ok"
    existed = [flag == b"1" for flag in raw[3:]] if applied and len(raw) > 3 else ()
    current_seq = int(raw[3]) if status == b"conflict" else 0
    return WriteReply(epoch, seq, applied, existed, current_seq, status == b"foreign", server, sent_at)


def _no_parser(_raw: Any, _server: str, _sent_at: float) -> Reply:
    raise CacheUnavailable("the answer to this call belongs to who made it")
