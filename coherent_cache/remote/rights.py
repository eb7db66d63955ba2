"""The rights that an ACL user needs, and how to find out which of them lack.

Redis says which command it refuses, but not always: of what a script runs, Redis 7.0 tells neither the command nor the
key. So the commands are queued in a transaction that is never executed: the right to each is judged when it is queued.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from coherent_cache.keys import ShardNames
from coherent_cache.remote.connection import ReplyError, pack

SENT: Final = (
    "client|setname", "info", "multi", "exec", "time", "eval", "evalsha", "get", "hget", "hmget", "mget", "hdel",
    "publish", "subscribe",
)  # fmt: skip
"""Commands that are sent as such. AUTH and HELLO are everybody's."""

RUN_BY_SCRIPTS: Final = (
    "del", "get", "getrange", "hdel", "hget", "hgetall", "hmget", "hset", "mget", "pexpire", "pttl", "publish", "set",
    "time", "xadd", "xrange",
)  # fmt: skip
"""Commands that the scripts run."""

_COMMAND: Final = re.compile(r"'([a-z]+(?:\|[a-z-]+)?)' command")
_DENIALS: Final = (
    "NOPERM", "no permissions to", "No permissions to", "user executing the script can't", "ACL failure in script",
)  # fmt: skip


def acl_rule(namespace: str, *, database: int = 0) -> str:
    """Return the least rights for a namespace, as ``ACL SETUSER <user>`` takes them.

    Args:
        namespace: the namespace.
        database: number of the database; only for 0 no right is needed to choose it.
    """
    commands = sorted({*SENT, *RUN_BY_SCRIPTS, *(("select",) if database else ())})
    return " ".join((*_patterns(namespace), *(f"+{name}" for name in commands)))


def _patterns(namespace: str) -> tuple[str, str]:
    return f"~cc:{{{namespace}/*", f"&cc:{{{namespace}/*"


def is_denial(error: Exception | str) -> bool:
    """Tell whether Redis refused something for lack of a right, by what it said."""
    text = str(error)
    return any(words in text for words in _DENIALS)


class Rights:
    """What a user needs for one namespace."""

    def __init__(self, namespace: str, names: ShardNames) -> None:
        """Prepare the question.

        Args:
            namespace: the namespace.
            names: names of a shard.
        """
        self._keys, self._channels = _patterns(namespace)
        value, receipts = names.value(b"-"), names.receipts("-")
        self._asked: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("get", ("GET", value)), ("mget", ("MGET", value, names.clock)), ("getrange", ("GETRANGE", value, 0, 1)),
            ("set", ("SET", value, "")), ("del", ("DEL", names.probe)), ("pexpire", ("PEXPIRE", value, 1)),
            ("pttl", ("PTTL", value)), ("hget", ("HGET", names.clock, "-")), ("hmget", ("HMGET", names.clock, "-")),
            ("hset", ("HSET", names.members, "-", "")), ("hdel", ("HDEL", names.members, "-")),
            ("hgetall", ("HGETALL", names.members)), ("xadd", ("XADD", names.log, "*", "m", "")),
            ("xrange", ("XRANGE", names.log, "-", "+")), ("time", ("TIME",)), ("info", ("INFO", "server")),
            ("eval", ("EVAL", "", 0)), ("evalsha", ("EVALSHA", "0" * 40, 0)),
            ("publish", ("PUBLISH", receipts, "")), ("subscribe", ("SUBSCRIBE", names.channel)),
        )  # fmt: skip
        self.commands = dict(self._asked)
        """Every command that is needed, in the namespace, by the name of its right."""
        self.begin = pack(("MULTI",))
        """What to send first, and alone: if it is refused, what follows would be executed."""
        self.question = b"".join(pack(command) for _, command in self._asked)
        """What to send then, on a connection that is closed afterwards: the transaction is left open."""
        self.replies = len(self._asked)

    def lacking(self, replies: Sequence[Any]) -> tuple[str, ...]:
        """Return the rights that lack, by the replies to the question."""
        found: dict[str, None] = {}
        for (name, _), reply in zip(self._asked, replies, strict=True):
            if isinstance(reply, ReplyError) and reply.code == "NOPERM":
                found |= dict.fromkeys(self.named(str(reply)) or (f"+{name}",))
        return tuple(found)

    def named(self, text: str) -> tuple[str, ...]:
        """Return the right that an error names; nothing if it names none."""
        command = _COMMAND.search(text)
        if command is not None:
            return (f"+{command[1]}",)
        lowered = text.lower()
        if "channel" in lowered:
            return (self._channels,)
        return (self._keys,) if "key" in lowered else ()
