"""Leases and fills (rule P11): the right to load a key, and storing what was loaded only while that right holds.

A *lease* is an envelope that lies where the value will be. So every write and deletion of the key removes it, and every
clear outdates it, without knowing of it. The fill stores only where the very lease still lies, and only if no tag of
what was loaded was invalidated since. So what a loader read before an invalidation is never stored after it.

A refresh replaces a value that is there. Its fence is that value's version, which every write and deletion changes as
well; its lease lies in a place of its own, and only keeps others from loading the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final, Literal, NamedTuple

from coherent_cache.config import check_ttl
from coherent_cache.core.entries import Entry
from coherent_cache.core.instance import Instance, KeyFacts
from coherent_cache.core.load_options import LoadOptions
from coherent_cache.core.operations import (
    MISSING,
    RawFound,
    content_of,
    distrust_if_ambiguous,
    envelope_parts,
    lifetime_of,
    milliseconds,
    take,
)
from coherent_cache.core.requests import (
    MAX_KEYS_PER_SCRIPT,
    FillRequest,
    Lease,
    LeaseReply,
    LeaseRequest,
    LeaseStatus,
    Loaded,
    LoadRequest,
    Operation,
    ReadReply,
    ReleaseRequest,
    RenewRequest,
    WriteReply,
)
from coherent_cache.core.shard import Shard
from coherent_cache.core.tokens import Token
from coherent_cache.core.waiting import Flight
from coherent_cache.errors import CacheUnavailable
from coherent_cache.events import LeaseTaken, LeaseVoided, LoadFailed, WritePublished
from coherent_cache.keys import check_tags
from coherent_cache.versions import Version
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    TOKEN_BYTES,
    WireError,
    coded_prefix,
    decode_envelope,
    encode_content,
)

FIRST_PAUSE: Final = 0.05
"""Seconds after which an instance that hears no messages asks again for what another one loads; doubled each time."""

LONGEST_PAUSE: Final = 1.0
"""Most seconds between two such questions."""

EXPIRY_MARGIN: Final = 0.005
"""Seconds after the end of another lease at which it is asked for again: Redis counts milliseconds."""


class LoaderError(Exception):
    """Carries what a loader raised through the core, so that it is not taken for an error of the cache's own.

    Attributes:
        error: what it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Result(NamedTuple):
    """What a read or a load came to.

    Attributes:
        value: the value; MISSING if there is no such thing.
        version: its version; None if it is stored nowhere, or was loaded by somebody else.
        expires_at: when it expires, in seconds of the local clock; ``inf`` for never.
        tier: where it was found: ``redis``, ``loader``, or ``stale`` for a last known value beyond its time.
    """

    value: Any
    version: Version | None
    expires_at: float
    tier: Literal["redis", "loader", "stale"]


Stored = tuple[Version, float]
"""Version of what was stored, and when it expires, in seconds of the local clock."""


def is_older(version: Version | None, least: Version | None) -> bool:
    """Tell whether a version is older than a session may see. Another epoch has no order with it (P9)."""
    return version is not None and least is not None and version.epoch == least.epoch and version.seq < least.seq


def result_of(raw: RawFound | None, reply: ReadReply, facts: KeyFacts) -> Result | None:
    """Return what the read of one key came to; None if it is absent."""
    if raw is not None:
        return Result(raw[0], Version(reply.epoch, raw[1]), raw[2], "redis")
    return Result(MISSING, None, inf, "redis") if _says_nothing(reply, facts) else None


def _says_nothing(reply: ReadReply, facts: KeyFacts) -> bool:
    """Tell whether a reply to a read of one key says that there is no such thing."""
    (data,) = reply.envelopes
    if data is None or len(data) < 17 or data[16] != CODE_NOTHING:
        return False
    try:
        epoch, seq, expires_ms, _, tags, _ = decode_envelope(data, facts[1])
    except WireError:
        return False
    alive = epoch == reply.epoch and reply.floor < seq <= reply.seq and not 0 < expires_ms <= reply.now_ms
    return alive and not (tags and seq < reply.tag_seq)  # in doubt about tags: the lease's script knows


# -- leases ------------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What came of asking for one lease.

    Attributes:
        reply: the reply.
        lease: the lease, if it was given.
        result: what is there, if there is anything.
    """

    reply: LeaseReply
    lease: Lease | None
    result: Result | None


def ask_leases(instance: Instance, keys: Sequence[str], *, version: int = 0) -> Operation[list[Answer]]:
    """Ask for values, and where there are none for the right to load them, in one round trip per 1,000 (P11).

    Whoever wants to be woken when another lease ends registers before.

    Args:
        instance: the instance.
        keys: user keys.
        version: for a refresh, of one key: seq of the value that is there.

    Raises:
        ForeignValue: bytes of another program are there.
        CacheUnavailable: Redis refused or is away.
    """
    answers: list[Answer] = []
    try:
        for start in range(0, len(keys), MAX_KEYS_PER_SCRIPT):
            yield from _ask_leases(instance, keys[start : start + MAX_KEYS_PER_SCRIPT], version, answers)
    except Exception:
        yield from give_up(answer.lease for answer in answers if answer.lease is not None)
        raise
    return answers


def _ask_leases(instance: Instance, keys: Sequence[str], version: int, answers: list[Answer]) -> Operation[None]:
    lease_ms, over_foreign = milliseconds(instance.settings.lease), instance.settings.on_foreign == "miss"
    asked: list[tuple[Shard, KeyFacts, LeaseRequest]] = []
    for key in keys:
        facts = instance.facts(key)
        shard = instance.shard_of(facts[0])
        parts = coded_prefix(facts[1], CODE_LEASE), encode_content((), instance.rng.randbytes(TOKEN_BYTES))
        asked.append((shard, facts, LeaseRequest(shard.index, key, parts, lease_ms, version, over_foreign)))
    tokens: list[tuple[Shard, Token]] = []
    try:
        tokens += [(shard, shard.register((request.key,))) for shard, _, request in asked]
        replies = yield [request for _, _, request in asked]
        for (shard, facts, request), (_, token), reply in zip(asked, tokens, replies, strict=True):
            assert isinstance(reply, LeaseReply)
            answers.append(_judge(instance, shard, facts, request, token, reply))
    finally:
        for shard, token in tokens:
            shard.release(token)


def _judge(
    instance: Instance, shard: Shard, facts: KeyFacts, request: LeaseRequest, token: Token, reply: LeaseReply
) -> Answer:
    key, read = request.key, reply.read
    if reply.status is LeaseStatus.FOREIGN:
        (head,) = read.envelopes
        if head is None:
            instance.foreign(key, "not an envelope")  # raises: where such bytes are to be a miss, they are overwritten
        shard.note_unknown("value", f"envelope of format {(head or b'')[-1]}", read.sent_at)
    if reply.status is LeaseStatus.VALUE:
        details: dict[str, RawFound] = {}
        shard.absorb(token, read, take(instance, ((key, facts),), read, {}, [], details), now=read.sent_at)
        instance.counters.redis_hits += len(details)
        return Answer(reply, None, result_of(details.get(key), read, facts))
    if not request.version:
        shard.absorb(token, read, [(key, read.seq + 1, None)], now=read.sent_at)
    if reply.status is LeaseStatus.TAKEN:
        return Answer(reply, None, None)
    lease = Lease(shard.index, key, request.parts[1], read.epoch, read.seq + 1, request.version, read.sent_at)
    if shard.trace:
        shard.tell(LeaseTaken(shard.index, key, request.version))
    return Answer(reply, lease, None)


class Patience:
    """How long to wait for somebody else's lease."""

    __slots__ = ("_deadline", "_lease_wait", "_pause")

    def __init__(self, instance: Instance) -> None:
        """Begin to wait."""
        self._lease_wait = instance.settings.lease_wait
        self._deadline = inf
        self._pause = FIRST_PAUSE

    def until(self, shard: Shard, reply: LeaseReply) -> float | None:
        """Return until when to wait before asking again, unless woken; None to wait no longer."""
        now = reply.read.sent_at
        self._deadline = min(self._deadline, now + self._lease_wait)
        if now >= self._deadline:
            return None
        until = min(self._deadline, now + reply.remaining + EXPIRY_MARGIN)
        if not shard.hears:
            until, self._pause = min(until, now + self._pause), min(LONGEST_PAUSE, 2 * self._pause)
        return until


def give_up(leases: Iterable[Lease]) -> Operation[None]:
    """Give leases up, in one round trip per 1,000.

    If that fails they end by themselves: what brought us here counts more.
    """
    requests: list[ReleaseRequest | RenewRequest] = [
        RenewRequest(lease.shard, lease, 0) if lease.version else ReleaseRequest(lease.shard, (lease.key,), lease)
        for lease in leases
    ]
    try:
        for start in range(0, len(requests), MAX_KEYS_PER_SCRIPT):
            yield requests[start : start + MAX_KEYS_PER_SCRIPT]
    except CacheUnavailable:
        pass


# -- loads and fills ---------------------------------------------------------------------------------------------------


def call_loader(
    instance: Instance,
    keys: Sequence[str],
    load: Callable[[], Any],
    leases: Sequence[Lease],
    flights: Sequence[Flight] = (),
) -> Operation[Any]:
    """Let the front call a loader while it renews the leases; return what it returned.

    Raises:
        LoaderError: it raised. The leases are given up.
    """
    instance.counters.loads += 1
    try:
        (loaded,) = yield (LoadRequest(load, tuple(leases), tuple(flights)),)
    except GeneratorExit:
        raise
    except Exception as error:  # noqa: BLE001  # user code
        yield from fail(instance, keys, leases, error)
        raise LoaderError(error) from None
    except BaseException:
        yield from give_up(leases)
        raise
    assert isinstance(loaded, Loaded)
    return loaded.value


def fail(instance: Instance, keys: Sequence[str], leases: Sequence[Lease], error: Exception) -> Operation[None]:
    """Count and tell a load that failed, and give its leases up."""
    instance.counters.load_failures += 1
    for key in keys:
        instance.emit(LoadFailed(key, type(error).__name__))
    yield from give_up(leases)


class Fill(NamedTuple):
    """What is to be stored.

    Attributes:
        key: user key.
        value: what the local tier is to hold; MISSING for nothing.
        payload: the value in this instance's codec.
        tags: its tags.
        ttl: seconds until Redis forgets it; None for never.
    """

    key: str
    value: Any
    payload: bytes
    tags: tuple[str, ...]
    ttl: float | None


def prepare_fill(
    instance: Instance, key: str, value: Any, ttl: float | None, tags: Iterable[str], options: LoadOptions
) -> Fill | None:
    """Check and encode what was loaded; None if nothing is to be stored.

    Raises:
        ConfigError: the loader has set a ``ttl`` or ``tags`` that cannot be.
        SerializationError, ValueTooLarge: the value cannot be stored.
    """
    check_ttl("ttl", ttl)
    tags = check_tags(tags)
    if value is MISSING:
        ttl = options.negative_ttl
        return None if ttl is None else Fill(key, MISSING, b"", tags, ttl)
    if ttl is not None and options.jitter is not None:
        ttl *= 1 - options.jitter * instance.rng.random()
    value, payload = content_of(instance, key, value)
    return Fill(key, value, payload, tags, ttl)


def store_fills(instance: Instance, fills: Sequence[tuple[Fill, Lease]]) -> Operation[dict[str, Stored]]:
    """Store what was loaded, in one round trip per 1,000, where the leases hold; return what was stored, by key.

    What is not stored is counted and told, and what is left of its lease goes. So it does if Redis is away: the caller
    has its value.
    """
    stored: dict[str, Stored] = {}
    try:
        for start in range(0, len(fills), MAX_KEYS_PER_SCRIPT):
            yield from _store_fills(instance, fills[start : start + MAX_KEYS_PER_SCRIPT], stored)
    except CacheUnavailable:
        pass
    # A lease may still lie there, if it was a tag that voided it: nobody is to wait for it.
    yield from give_up(lease for fill, lease in fills if fill.key not in stored)
    return stored


def _store_fills(instance: Instance, fills: Sequence[tuple[Fill, Lease]], stored: dict[str, Stored]) -> Operation[None]:
    asked: list[tuple[Shard, KeyFacts, Fill, FillRequest]] = []
    for fill, lease in fills:
        facts = instance.facts(fill.key)
        if fill.value is MISSING:
            parts = coded_prefix(facts[1], CODE_NOTHING), encode_content(fill.tags, b"")
        else:
            parts = envelope_parts(instance, facts[1], fill.payload, fill.tags)
        request = FillRequest(lease.shard, (fill.key,), parts, milliseconds(fill.ttl), fill.tags, lease)
        asked.append((instance.shards[lease.shard], facts, fill, request))
    tokens: list[tuple[Shard, Token]] = []
    try:
        tokens += [(shard, shard.register(request.keys)) for shard, _, _, request in asked]
        replies = yield [request for _, _, _, request in asked]
        for (shard, facts, fill, request), (_, token), reply in zip(asked, tokens, replies, strict=True):
            assert isinstance(reply, WriteReply)
            if reply.applied:
                stored[fill.key] = _absorb(instance, shard, facts, fill, request.ttl_ms, token, reply)
                if shard.trace:
                    shard.tell(WritePublished(shard.index, "set", reply.seq, request.keys))
            else:
                shard.absorb(token, reply, (), now=reply.sent_at)
                instance.counters.fills_refused += 1
                instance.emit(LeaseVoided(shard.index, fill.key))
    except BaseException as error:
        for shard, _, _, request in asked:
            distrust_if_ambiguous(shard, error, request.keys)
        raise
    finally:
        for shard, token in tokens:
            shard.release(token)


def _absorb(
    instance: Instance, shard: Shard, facts: KeyFacts, fill: Fill, ttl_ms: int, token: Token, reply: WriteReply
) -> Stored:
    """Take a fill that was stored into the local tier, as an own write."""
    expires_at = reply.sent_at + (ttl_ms / 1000 or inf)
    entry: Entry | None = None
    if instance.settings.local_enabled and fill.value is not MISSING:
        local = reply.sent_at + lifetime_of(instance, ttl_ms)
        entry = instance.make_entry(facts, fill.value, fill.payload, reply.seq, fill.tags, local)
    shard.absorb(token, reply, [(fill.key, reply.seq, entry)], now=reply.sent_at)
    return Version(reply.epoch, reply.seq), expires_at
