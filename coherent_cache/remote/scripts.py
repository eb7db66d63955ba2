"""The Lua scripts as typed functions: requests to command arguments, raw answers to replies.

Scripts are sent as ``EVALSHA``; a server that does not know one answers ``NOSCRIPT`` without having done anything, and
is then sent the text. Epochs and nonces come from here: Lua's ``math.random`` repeats itself after each server start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from coherent_cache.config import Settings
from coherent_cache.core.requests import (
    Condition,
    DeleteRequest,
    FloorRequest,
    ReadReply,
    ReadRequest,
    Reply,
    Request,
    StoreRequest,
    TouchRequest,
    WriteReply,
)
from coherent_cache.core.session import Sync
from coherent_cache.errors import CacheUnavailable, NamespaceMismatch
from coherent_cache.keys import shard_names
from coherent_cache.versions import EPOCH_BYTES, NONCE_BYTES
from coherent_cache.wire import FORMAT, Kind, encode_message_ends

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


READ: Final = Script.load("envelope", "read")
STORE: Final = Script.load("common", "write", "store")
STORE_IF: Final = Script.load("common", "write", "envelope", "condition", "store")
DELETE: Final = Script.load("common", "write", "envelope", "condition", "delete")
TOUCH: Final = Script.load("common", "write", "envelope", "touch")
FLOOR: Final = Script.load("common", "write", "floor")
SYNC: Final = Script.load("common", "sync")

Parser = Callable[[Any, str, float], Reply]


@dataclass(frozen=True, slots=True)
class Call:
    """One script call.

    Attributes:
        script: the script.
        arguments: what follows the script's name: number of keys, keys, arguments.
        parse: makes a reply of (raw answer, server's run id, local clock before sending).
    """

    script: Script
    arguments: tuple[Any, ...]
    parse: Parser


class Scripts:
    """The scripts of one instance: knows the namespace's names in Redis and the instance's own."""

    def __init__(self, settings: Settings, *, instance_id: str, database: int) -> None:
        """Prepare what all calls have in common.

        Args:
            settings: the instance's settings.
            instance_id: its name, the origin of its messages.
            database: number of the Redis database.
        """
        self.names = tuple(shard_names(settings.namespace, index, database) for index in range(settings.shards))
        self._namespace = settings.namespace
        self._config = f"{FORMAT}/{settings.shards}"
        self._log_length = settings.log_length
        self._replay_limit = settings.replay_limit
        self._origin = instance_id

    def call(self, request: Request) -> Call:
        """Make the call for a request."""
        match request:
            case ReadRequest():
                return self._read(request)
            case StoreRequest():
                return self._store(request)
            case DeleteRequest():
                values = tuple(map(self._value(request.shard), request.keys))
                return self._write(
                    DELETE, request.shard, values, Kind.DELETE, request.keys, _condition(request.condition)
                )
            case TouchRequest():
                value = self._value(request.shard)(request.key)
                return self._write(TOUCH, request.shard, (value,), Kind.TOUCH, (request.key,), (request.ttl_ms,))
            case FloorRequest():
                probe = self.names[request.shard].probe
                return self._write(FLOOR, request.shard, (probe,), request.kind, request.tags, request.tags)

    def sync(self, command: Sync, channel: bytes = b"") -> Call:
        """Make the call for a heartbeat or resync.

        Args:
            command: what the session wants.
            channel: where the answer shall be published; empty for an ordinary answer.
        """
        names = self.names[command.shard]
        arguments = (
            3, names.clock, names.log, names.probe,
            self._config, command.token, os.urandom(EPOCH_BYTES), os.urandom(NONCE_BYTES),
            "" if command.seq is None else command.seq, self._replay_limit, channel,
        )  # fmt: skip
        return Call(SYNC, arguments, _no_parser)

    def error(self, text: str) -> Exception | None:
        """Return the error that a script's own error answer stands for, None if it is not a script's own."""
        if not text.startswith(MISMATCH):
            return None
        return NamespaceMismatch(self._namespace, text.removeprefix(MISMATCH).strip(), self._config)

    def _value(self, shard: int) -> Callable[[str], bytes]:
        prefix = self.names[shard].values
        return lambda key: prefix + key.encode("utf-8")

    def _read(self, request: ReadRequest) -> Call:
        names = self.names[request.shard]
        prefix = names.values
        keys = [prefix + key for key in request.keys]
        return Call(READ, (len(keys) + 1, names.clock, *keys, self._config), _parse_read)

    def _store(self, request: StoreRequest) -> Call:
        values = tuple(map(self._value(request.shard), request.keys))
        arguments = (*_condition(request.condition), request.ttl_ms, *request.tails)
        script = STORE if request.condition is None else STORE_IF
        return self._write(script, request.shard, values, Kind.SET, request.keys, arguments)

    def _write(
        self,
        script: Script,
        shard: int,
        redis_keys: tuple[bytes, ...],
        kind: Kind,
        message_names: tuple[str, ...],
        arguments: Sequence[Any],
    ) -> Call:
        names = self.names[shard]
        head, tail = encode_message_ends(kind, self._origin, message_names)
        entropy = os.urandom(EPOCH_BYTES + NONCE_BYTES)
        return Call(
            script,
            (
                len(redis_keys) + 2, names.clock, names.log, *redis_keys,
                self._config, names.channel, self._log_length, entropy[:EPOCH_BYTES], entropy[EPOCH_BYTES:],
                head, tail, *arguments,
            ),
            _parse_write,
        )  # fmt: skip


def _condition(condition: Condition | None) -> tuple[bytes | str | int, ...]:
    return ("", "") if condition is None else (condition.epoch, condition.seq)


def _parse_read(raw: Any, server: str, sent_at: float) -> ReadReply:
    epoch, seq, floor, seconds, microseconds, envelopes, tag_floors = raw
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    return ReadReply(epoch, int(seq), int(floor), now_ms, envelopes, tag_floors, server, sent_at)


def _parse_write(raw: Any, server: str, sent_at: float) -> WriteReply:
    status, epoch, seq = raw[0], raw[1], int(raw[2])
    applied = status == b"ok"
    return WriteReply(
        epoch=epoch,
        seq=seq,
        applied=applied,
        existed=[flag == b"1" for flag in raw[3:]] if applied else (),
        current_seq=int(raw[3]) if status == b"conflict" else 0,
        foreign=status == b"foreign",
        server=server,
        sent_at=sent_at,
    )


def _no_parser(raw: Any, server: str, sent_at: float) -> Reply:
    raise CacheUnavailable("a sync call's answer belongs to the subscriber")
