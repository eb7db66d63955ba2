r"""What instances tell about themselves, to and from bytes: reports, questions to instances, and their answers.

A report lies in Redis and ends by itself: a format byte and a msgpack map, of which each release reads what it knows. A
question is published to all instances of a namespace, an answer only to who asked. Both start with a format byte and go
on with one msgpack array::

    01, then [id, kind, [member, ...], [key, ...], most]
    01, then [id, member, kind, body]

``id`` is 8 random bytes that name the question; no members means all of them. Decoding is strict: whatever is not
exactly this is a :class:`coherent_cache.wire.WireError`. A kind that is not known is answered by "unknown", so that a
new release may ask old ones; a format that is not known is answered by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from math import inf, isfinite
from typing import Any, Final, NamedTuple

import msgpack

from coherent_cache.core.stats import Lookups
from coherent_cache.versions import Version
from coherent_cache.wire import MESSAGE_FORMAT, UnknownFormat, WireError, unpack_fields

QUESTION_ID_BYTES: Final = 8
"""Length of a question's id."""

MAX_QUESTION_KEYS: Final = 1000
"""Most keys that one question may name or ask for: they are answered between two invalidations."""

MAX_EXPLAINED_KEYS: Final = 20
"""Most keys that one question may want explained."""

MAX_ANSWER_BYTES: Final = 256 * 1024
"""Bytes from which an answer lists no more entries: it waits in the asker's output buffer."""

_FORMAT_BYTE: Final = bytes((MESSAGE_FORMAT,))
_QUESTION_TYPES: Final[list[type]] = [bytes, str, list, list, int]
_ANSWER_TYPES: Final[list[type]] = [bytes, str, str, list]
_NEVER: Final = -1.0
"""Stands for an infinite number of seconds in what is sent."""


class Ask(StrEnum):
    """What a question wants to know."""

    STATUS = "status"  # the instance's report, as of now
    VERSIONS = "versions"  # the versions that it holds of the keys that are named
    SAMPLE = "sample"  # the versions of at most `most` keys that it holds, chosen by chance
    EXPLAIN = "explain"  # all that it knows about the keys that are named
    MESSAGES = "messages"  # what became there of messages, named by :func:`message_name` in the place of keys


class Fate(StrEnum):
    """What became of a message on one instance."""

    APPLIED = "applied"  # it concerned an entry or a command under way there
    IGNORED = "ignored"  # it came, and concerned neither
    PASSED = "passed"  # the instance is past it and remembers no more: it came, or the shard was flushed instead
    BEHIND = "behind"  # the instance has not come to it yet
    ELSEWHERE = "elsewhere"  # the instance follows another history


UNKNOWN: Final = "unknown"
"""Kind of an answer to a question of a kind that the instance does not know."""


class Question(NamedTuple):
    """A question to instances.

    Attributes:
        id: names the question; its answers carry it.
        kind: one of :class:`Ask`, or what a newer release may ask.
        to: members that are asked; none for all.
        keys: user keys, for ``versions`` and ``explain``.
        most: how many keys at most, for ``sample``.
    """

    id: bytes
    kind: str
    to: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    most: int = 0


class Answer(NamedTuple):
    """One instance's answer.

    Attributes:
        id: the question's.
        member: the instance's name among the members (P12).
        kind: the question's kind, or "unknown".
        body: depends on the kind.
    """

    id: bytes
    member: str
    kind: str
    body: list[Any]


class ShardFacts(NamedTuple):
    """A shard as one instance sees it.

    Attributes:
        shard: number of the shard.
        state: its state (P5).
        serves: whether a local hit would be served at that moment.
        epoch: history that it follows; empty if none.
        position: seq of the last message applied in order; 0 if none.
        horizon_age: seconds since its last proof of freshness; ``inf`` if there is none.
        server: run id of the server that it is synchronised with; empty if none.
        bound: seconds that it may serve without another proof.
    """

    shard: int
    state: str
    serves: bool
    epoch: bytes
    position: int
    horizon_age: float
    server: str
    bound: float


class HeldEntry(NamedTuple):
    """An entry that an instance holds, and whose time is not over.

    Attributes:
        key: user key.
        shard: number of its shard.
        seq: its version in the epoch of the shard.
        expires_in: seconds that it has left there; ``inf`` for no end.
    """

    key: str
    shard: int
    seq: int
    expires_in: float


class Holdings(NamedTuple):
    """What one instance holds of some keys: body of an answer to ``versions`` and ``sample``.

    Attributes:
        shards: the shards concerned, by number, at the moment at which their entries were read.
        entries: what it holds.
        complete: whether that is all that was asked for.
    """

    shards: Mapping[int, ShardFacts]
    entries: tuple[HeldEntry, ...]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReport(Lookups):
    """What an instance says about itself.

    Attributes:
        member: its name among the members (P12): the instance's id, and what tells two of the same id apart.
        instance: its id.
        version: release of this package that it runs.
        host: name of its host.
        pid: process id there.
        started: when it was made, in seconds since 1970 by its host's clock.
        uptime: seconds since then.
        state: worst state of its shards (P5).
        horizon_age: seconds since the oldest shard's last proof of freshness; ``inf`` if there is none.
        bound: seconds that it may serve what it holds without another proof.
        interval: seconds between two of its reports.
        entries: entries in its local tier.
        bytes: estimated bytes of its local tier.
        hits: keys served from the local tier.
        misses: keys that were asked for and not served from the local tier.
        redis_hits: misses that Redis had a value for.
        loads: loader calls.
        invalidations: messages received.
        applied: messages that concerned an entry held, or a command under way, there.
        resyncs: completed resyncs.
        flushes: how often a shard's local tier was emptied because it was in doubt.
        errors: commands that failed, and faults that its subscriber survived.
        propagation_p50: median seconds from a write's execution in Redis to its application there; None if unknown.
        propagation_p99: the same, 99th percentile.
        options: options that differ from instance to instance and matter to operators, by name.
    """

    member: str
    instance: str
    version: str = ""
    host: str = ""
    pid: int = 0
    started: float = 0.0
    uptime: float = 0.0
    state: str = ""
    horizon_age: float = inf
    bound: float = 0.0
    interval: float = 0.0
    entries: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    redis_hits: int = 0
    loads: int = 0
    invalidations: int = 0
    applied: int = 0
    resyncs: int = 0
    flushes: int = 0
    errors: int = 0
    propagation_p50: float | None = None
    propagation_p99: float | None = None
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and what follows from them as a dict of plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"options": dict(self.options), "requests": self.requests, "hit_rate": self.hit_rate}


_REPORT_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
}
_OPTION_TYPES: Final = (str, int, float, bool, type(None))


def message_name(shard: int, version: Version) -> str:
    """Return how a question names a message."""
    return f"{shard}:{version}"


def encode_report(report: InstanceReport) -> bytes:
    """Encode a report."""
    values = {each.name: getattr(report, each.name) for each in fields(report)}
    return _FORMAT_BYTE + bytes(msgpack.packb(values | {"horizon_age": _finite(report.horizon_age)}))


def decode_report(data: bytes) -> InstanceReport:
    """Decode a report; what a newer release has added is left out, what an older one lacks has its default.

    Raises:
        UnknownFormat: a report of a format that this release does not know.
        WireError: anything else that is no report.
    """
    if data[:1] != _FORMAT_BYTE:
        raise UnknownFormat("a report of another format")
    try:
        values = msgpack.unpackb(data[1:], raw=False, strict_map_key=True)
    except Exception as error:  # noqa: BLE001  # msgpack raises many kinds
        raise WireError(f"a report is not msgpack ({type(error).__name__})") from None
    if type(values) is not dict:
        raise WireError("a report is no map")
    return _report_of(values)


def _report_of(values: dict[Any, Any]) -> InstanceReport:
    known: dict[str, Any] = {}
    for each in fields(InstanceReport):
        if each.name not in values:
            if each.default is MISSING and each.default_factory is MISSING:
                raise WireError(f"a report without {each.name}")
            continue
        value = values[each.name]
        if each.name == "options":
            if type(value) is not dict or not all(isinstance(one, _OPTION_TYPES) for one in value.values()):
                raise WireError("a report's options are no map of plain values")
        elif type(value) not in _REPORT_TYPES[str(each.type)]:
            raise WireError(f"a report's {each.name} is of another type")
        known[each.name] = value
    if "horizon_age" in known:
        known["horizon_age"] = _seconds(known["horizon_age"])
    return InstanceReport(**known)


def encode_question(question: Question) -> bytes:
    """Encode a question."""
    return _FORMAT_BYTE + bytes(msgpack.packb(question))


def decode_question(data: bytes) -> Question:
    """Decode a question.

    Raises:
        UnknownFormat: a question of a format that this release does not know.
        WireError: anything else that is no question, or asks for too much.
    """
    identity, kind, to, keys, most = unpack_fields(data, _QUESTION_TYPES, "question")
    if len(identity) != QUESTION_ID_BYTES:
        raise WireError("a question's id is of another length")
    if set(map(type, [*to, *keys])) - {str}:
        raise WireError("a question's members or keys are not all text")
    if len(keys) > MAX_QUESTION_KEYS or not 0 <= most <= MAX_QUESTION_KEYS:
        raise WireError("a question asks for too many keys")
    if kind == Ask.EXPLAIN and len(keys) > MAX_EXPLAINED_KEYS:
        raise WireError("a question wants too many keys explained")
    return Question(identity, kind, tuple(to), tuple(keys), most)


def encode_answer(answer: Answer) -> bytes:
    """Encode an answer."""
    return _FORMAT_BYTE + bytes(msgpack.packb(answer))


def decode_answer(data: bytes) -> Answer:
    """Decode an answer, but for its body.

    Raises:
        UnknownFormat: an answer of a format that this release does not know.
        WireError: anything else that is no answer.
    """
    identity, member, kind, body = unpack_fields(data, _ANSWER_TYPES, "answer")
    if len(identity) != QUESTION_ID_BYTES:
        raise WireError("an answer's id is of another length")
    return Answer(identity, member, kind, body)


def shard_body(facts: ShardFacts) -> list[Any]:
    """Return a shard as answers hold it."""
    return list(facts._replace(horizon_age=_finite(facts.horizon_age)))


def shard_of_body(raw: Any) -> ShardFacts:
    """Read a shard of an answer.

    Raises:
        WireError: it is none.
    """
    facts = ShardFacts(*_typed(raw, [int, str, bool, bytes, int, float, str, float], "shard"))
    return facts._replace(horizon_age=_seconds(facts.horizon_age))


def holdings_body(holdings: Holdings) -> list[Any]:
    """Return the body of an answer to ``versions`` or ``sample``."""
    shards = [shard_body(each) for each in holdings.shards.values()]
    entries = [list(each._replace(expires_in=_finite(each.expires_in))) for each in holdings.entries]
    return [shards, entries, holdings.complete]


def holdings_of_body(body: list[Any]) -> Holdings:
    """Read the body of an answer to ``versions`` or ``sample``.

    Raises:
        WireError: it is none.
    """
    shards, raw_entries, complete = _typed(body, [list, list, bool], "list of holdings")
    facts = {each.shard: each for each in map(shard_of_body, shards)}
    entries = [HeldEntry(*_typed(raw, [str, int, int, float], "held entry")) for raw in raw_entries]
    if any(each.shard not in facts for each in entries):
        raise WireError("a held entry of a shard that the answer does not tell of")
    return Holdings(facts, tuple([each._replace(expires_in=_seconds(each.expires_in)) for each in entries]), complete)


def _typed(raw: Any, types: list[type], what: str) -> list[Any]:
    if type(raw) is not list or list(map(type, raw)) != types:
        raise WireError(f"an answer's {what} is of other types")
    return raw


def _finite(seconds: float) -> float:
    return float(seconds) if isfinite(seconds) else _NEVER


def _seconds(sent: float) -> float:
    return float(sent) if sent >= 0 else inf
