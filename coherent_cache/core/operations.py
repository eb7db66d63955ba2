"""Every operation, written once: generators that yield requests and are sent replies (see ``core.requests``).

The fronts run them with threads or asyncio, the simulator step by step. None of them touches a clock: the moments that
matter come with the replies. The local hit is inlined by the fronts; what is here begins with a miss.

A token is registered before each request and released on every way out (P7). A write that fails without a definite
answer makes its keys distrusted before the error leaves (review A8).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from math import inf
from typing import Any, Final, NamedTuple, NoReturn

from coherent_cache.core.acknowledging import Receipts
from coherent_cache.core.entries import Entry
from coherent_cache.core.instance import Instance, KeyFacts
from coherent_cache.core.requests import (
    MAX_BYTES_PER_SCRIPT,
    MAX_KEYS_PER_SCRIPT,
    BatchRequest,
    Condition,
    DeleteRequest,
    FloorRequest,
    Loaded,
    LoadRequest,
    Operation,
    ReadReply,
    ReadRequest,
    StoreRequest,
    TouchRequest,
    WriteReply,
)
from coherent_cache.core.shard import Shard
from coherent_cache.core.tokens import Token
from coherent_cache.errors import (
    CacheUnavailable,
    CoherentCacheError,
    ConfigError,
    ForeignValue,
    InvalidKey,
    SerializationError,
    ValueTooLarge,
    VersionConflict,
)
from coherent_cache.events import WritePublished
from coherent_cache.keys import check_key, check_tags, shard_of
from coherent_cache.serializers import Codec
from coherent_cache.serializers.compression import decompress
from coherent_cache.versions import Version
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    CODING_SHIFT,
    STAMP,
    Kind,
    OtherSchema,
    WireError,
    compressed_prefix,
    decode_envelope,
    decode_twin,
    encode_content,
)


class Missing:
    """The type of :data:`MISSING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        """Stay a singleton through copy and pickle."""
        return "MISSING"


MISSING: Final = Missing()
"""Stands for "no value": ``set(..., if_version=MISSING)`` stores if absent, ``update`` deletes if it is returned."""


class Found(NamedTuple):
    """What a read found in Redis.

    Attributes:
        value: the decoded value.
        version: its version.
        expires_at: when it expires, in seconds of the local clock; ``inf`` for never.
        sent_at: local clock before the request was sent: the value was current at some moment after it.
    """

    value: Any
    version: Version
    expires_at: float
    sent_at: float


_NO_TAGS: Final[tuple[str, ...]] = ()
_NO_VALUES: Final = frozenset((CODE_LEASE, CODE_NOTHING))

RawFound = tuple[Any, int, float]
"""Value, seq and expiry: what :class:`Found` is made of."""


# -- reading -----------------------------------------------------------------------------------------------------------


def read_one(instance: Instance, key: str, into: list[ReadReply] | None = None) -> Operation[Found | None]:
    """Read a key from Redis and fill the local tier; return None if it is not there.

    What :func:`read` does for many keys, without what these need.

    Args:
        instance: the instance.
        key: user key.
        into: takes the replies, if anybody wants them.

    Raises:
        As :func:`read`.
    """
    ((shard, (pair,)),) = by_shard(instance, (key,))
    found: dict[str, Any] = {}
    details: dict[str, RawFound] = {}
    tagged: list[Key] = []
    while True:
        request = ReadRequest(shard.index, (pair[1][0],), bool(tagged))
        tagged = []
        token = shard.register((key,))
        try:
            (reply,) = yield (request,)
            assert isinstance(reply, ReadReply)
            shard.absorb(token, reply, take(instance, (pair,), reply, found, tagged, details), now=reply.sent_at)
        finally:
            shard.release(token)
        if into is not None:
            into.append(reply)
        if not tagged:
            break
    raw = details.get(key)
    if raw is None:
        return None
    instance.counters.redis_hits += 1
    return Found(raw[0], Version(reply.epoch, raw[1]), raw[2], reply.sent_at)


def read(instance: Instance, keys: Iterable[str]) -> Operation[dict[str, Any]]:
    """Read keys from Redis and fill the local tier; return the values of those that are there (P2, P7).

    Args:
        instance: the instance.
        keys: user keys; repeated ones are read once.

    Raises:
        InvalidKey: before anything is sent.
        CacheUnavailable: Redis refused or is away.
        ForeignValue: a key holds no envelope, and ``on_foreign="raise"``.
        SerializationError: a payload cannot be decoded.
    """
    found: dict[str, Any] = {}
    groups = by_shard(instance, keys)
    judge_tags = False
    while groups:
        chunks = [(shard, chunk) for shard, group in groups for chunk in in_chunks(group, MAX_KEYS_PER_SCRIPT)]
        requests = [
            ReadRequest(shard.index, tuple([facts[0] for _, facts in chunk]), judge_tags) for shard, chunk in chunks
        ]
        doubtful: list[tuple[Shard, list[Key]]] = []
        tokens: list[tuple[Shard, Token]] = []
        try:
            for shard, chunk in chunks:
                tokens.append((shard, shard.register([key for key, _ in chunk])))
            replies = yield requests
            for (shard, token), (_, chunk), reply in zip(tokens, chunks, replies, strict=True):
                assert isinstance(reply, ReadReply)
                tagged: list[Key] = []
                shard.absorb(token, reply, take(instance, chunk, reply, found, tagged), now=reply.sent_at)
                if tagged:
                    doubtful.append((shard, tagged))
        finally:
            for shard, token in tokens:
                shard.release(token)
        # A second, dearer question for tagged values that are older than some tag's invalidation.
        groups, judge_tags = doubtful, True
    instance.counters.redis_hits += len(found)
    return found


def take(  # noqa: C901, PLR0915  # one reply's rules in one place, and no call per key that can be spared
    instance: Instance,
    chunk: Sequence[Key],
    reply: ReadReply,
    found: dict[str, Any],
    tagged: list[Key],
    details: dict[str, RawFound] | None = None,
) -> list[tuple[str, int, Entry | None]]:
    """Judge and decode what a reply holds; return what the shard is to take in.

    Args:
        instance: the instance.
        chunk: the keys that were asked for.
        reply: the reply.
        found: live values are added to it, by key.
        tagged: keys whose tags must be judged before anything can be said are added to it.
        details: takes the same with seq and expiry, if anybody wants them: a bulk read does not.
    """
    items: list[tuple[str, int, Entry | None]] = []
    epoch, floor, absent, sent_at, now_ms = reply.epoch, reply.floor, reply.seq + 1, reply.sent_at, reply.now_ms
    keep, codec, local_ttl = instance.settings.local_enabled, instance.codec, instance.settings.local_ttl
    make_entry, loads, code_here = instance.make_entry, codec.loads, codec.code
    tag_floors = reply.tag_floors or repeat(0, len(chunk))
    # Of the last envelope that was judged, if it has no tags and lives: then its twins live as well, and have the same
    # seq and expiry.
    stamp = b""
    seq, expires_at, local_until = 0, inf, inf
    for (key, facts), data, tag_floor in zip(chunk, reply.envelopes, tag_floors, strict=True):
        if data is None:
            items.append((key, absent, None))
            continue
        own_stamp = data[STAMP]
        payload = decode_twin(data, facts[1]) if own_stamp == stamp else None
        if payload is not None:
            coding, tags = code_here, _NO_TAGS
        else:
            stamp = b""
            try:
                written_in, seq, expires_ms, coding, tags, payload = decode_envelope(data, facts[1])
            except OtherSchema:
                items.append((key, absent, None))
                continue
            except WireError as error:
                instance.unreadable(key, facts, error, sent_at)  # raises, unless such bytes are to be a miss
                items.append((key, absent, None))
                continue
            # An envelope lives iff it is of the same epoch, floors < version <= clock, and its time is not over (P2,
            # P10); a lease and "no such thing" are no values (P11).
            if (
                written_in != epoch
                or not floor < seq < absent
                or seq <= tag_floor
                or 0 < expires_ms <= now_ms
                or (coding != code_here and coding in _NO_VALUES)
            ):
                items.append((key, absent, None))
                continue
            if not tags:
                stamp = b"" if reply.tag_floors else own_stamp
            elif seq < reply.tag_seq:
                tagged.append((key, facts))
                continue
            # What Redis has left, counted from before the request was sent.
            expires_at = sent_at + (expires_ms - now_ms) / 1000 if expires_ms else inf
            local_until = expires_at if local_ttl is None else min(expires_at, sent_at + local_ttl)
        kept: bytes | None = payload
        try:
            if coding == code_here:
                value = loads(payload)
            else:
                value, kept = _decode_other(instance, payload, coding)
        except SerializationError as error:
            raise SerializationError(error.reason, key=key) from error
        found[key] = value
        if details is not None:
            details[key] = (value, seq, expires_at)
        if keep:
            entry = None if kept is None else make_entry(facts, value, kept, seq, tags, local_until)
            items.append((key, seq, entry))
    return items


# -- writing -----------------------------------------------------------------------------------------------------------


def store(
    instance: Instance,
    items: Mapping[str, Any],
    *,
    ttl: float | None,
    tags: Iterable[str] = (),
    condition: Condition | None = None,
) -> Operation[dict[str, Version]]:
    """Store values, log and publish, then keep them locally (P1); return their versions.

    Args:
        instance: the instance.
        items: values by key.
        ttl: seconds until Redis forgets them; None for never.
        tags: tags of all of them.
        condition: for exactly one key, what its present value must be.

    Raises:
        InvalidKey, SerializationError, ValueTooLarge: before anything is sent.
        VersionConflict: the condition does not hold. Nothing was written.
        ForeignValue: the condition cannot be judged. Nothing was written.
        CacheUnavailable: Redis refused or is away; ``applied_keys`` tells what was written all the same.
    """
    tags = check_tags(tags) if tags else ()
    groups = by_shard(instance, items)
    contents = {key: content_of(instance, key, value) for key, value in items.items()}
    versions: dict[str, Version] = {}
    # One chunk at a time: if Redis refuses one, those before it are known to be written.
    for shard, group in groups:
        for chunk in in_chunks(group, MAX_KEYS_PER_SCRIPT, lambda key: len(contents[key[0]][1])):
            to_store = [(key, facts, *contents[key]) for key, facts in chunk]
            version = yield from _store_chunk(instance, shard, to_store, ttl, tags, condition, versions)
            for key, _ in chunk:
                versions[key] = version
    return versions


def store_one(
    instance: Instance,
    key: str,
    value: Any,
    *,
    ttl: float | None,
    tags: Iterable[str],
    condition: Condition | None,
    receipts: Receipts | None = None,
) -> Operation[Version]:
    """Store one value as :func:`store` does; return its version.

    ``receipts`` collects what members answer; None if nobody waits for that (P12).

    Raises:
        As :func:`store`; what is wrong with the arguments is found by this call itself.
    """
    tags = check_tags(tags) if tags else ()
    facts = instance.facts(key)
    to_store = ((key, facts, *content_of(instance, key, value)),)
    return _store_chunk(instance, instance.shard_of(facts[0]), to_store, ttl, tags, condition, (), receipts)


def _store_chunk(
    instance: Instance,
    shard: Shard,
    to_store: Sequence[tuple[str, KeyFacts, Any, bytes]],
    ttl: float | None,
    tags: tuple[str, ...],
    condition: Condition | None,
    applied_keys: Iterable[str],
    receipts: Receipts | None = None,
) -> Operation[Version]:
    """Store key, facts, value and payload of several, by one script; return their version."""
    ttl_ms = milliseconds(ttl)
    keys = tuple([key for key, _, _, _ in to_store])
    parts: list[bytes] = []
    for _, facts, _, payload in to_store:
        parts += envelope_parts(instance, facts[1], payload, tags)
    request = StoreRequest(shard.index, keys, tuple(parts), ttl_ms, condition, _entropy(shard, receipts))
    token = shard.register(keys)
    try:
        reply = yield from write(shard, request, keys, applied_keys, receipts)
        if not reply.applied:
            _refuse(instance, shard, token, keys[0], reply, condition)
        epoch, seq, sent_at = reply.epoch, reply.seq, reply.sent_at
        if instance.settings.local_enabled:
            expires_at = sent_at + lifetime_of(instance, ttl_ms)
            learnt: list[tuple[str, int, Entry | None]] = [
                (key, seq, instance.make_entry(facts, value, payload, seq, tags, expires_at))
                for key, facts, value, payload in to_store
            ]
            shard.absorb(token, reply, learnt, now=sent_at)
    finally:
        shard.release(token)
    return Version(epoch, seq)


def delete(
    instance: Instance,
    keys: Iterable[str],
    *,
    condition: Condition | None = None,
    receipts: Receipts | None = None,
) -> Operation[int]:
    """Delete values, log and publish, whether they are there or not (P1); return how many live ones there were.

    ``condition`` as for :func:`store`, ``receipts`` as for :func:`store_one`.

    Raises:
        InvalidKey: before anything is sent.
        VersionConflict: the condition does not hold. Nothing was deleted.
        ForeignValue: the condition cannot be judged. Nothing was deleted.
        CacheUnavailable: Redis refused or is away; ``applied_keys`` tells what was deleted all the same.
    """
    existed = 0
    done: list[str] = []
    for shard, group in by_shard(instance, keys):
        for chunk in in_chunks(group, MAX_KEYS_PER_SCRIPT):
            names = tuple(key for key, _ in chunk)
            with holding_token(shard, names) as token:
                request = DeleteRequest(shard.index, names, condition, _entropy(shard, receipts))
                reply = yield from write(shard, request, names, done, receipts)
                if not reply.applied:
                    _refuse(instance, shard, token, names[0], reply, condition)
                shard.absorb(token, reply, [(key, reply.seq, None) for key in names], now=reply.sent_at)
            existed += sum(reply.existed)
            done += names
    return existed


def touch(instance: Instance, key: str, ttl: float | None) -> Operation[bool]:
    """Give a live value another time to live, under a new version (P1); tell whether it was there.

    Raises:
        InvalidKey: before anything is sent.
        ForeignValue: bytes of another program are there.
        CacheUnavailable: Redis refused or is away.
    """
    shard = instance.shard_of(check_key(key))
    ttl_ms = milliseconds(ttl)
    with holding_token(shard, (key,)) as token:
        reply = yield from write(shard, TouchRequest(shard.index, key, ttl_ms), (key,), ())
        if reply.foreign:
            _refuse(instance, shard, token, key, reply, None)
        # Not there: the absence is knowledge too (review A19).
        shard.absorb(token, reply, [(key, reply.seq + (not reply.applied), None)], now=reply.sent_at)
    return reply.applied


def raise_floor(
    instance: Instance, kind: Kind, tags: Iterable[str] = (), *, receipts: Receipts | None = None
) -> Operation[Version]:
    """Make everything, or everything with one of the tags, absent: in O(1) per shard (P10).

    ``receipts`` as for :func:`store_one`.

    Returns:
        The version of the last shard's floor.

    Raises:
        ConfigError: a tag is no tag.
        CacheUnavailable: Redis refused or is away; some shards may have been done.
    """
    tags = check_tags(tags)
    if kind is Kind.TAG and not tags:
        raise ConfigError("tags", "give at least one tag; clear() makes everything absent")
    for shard in instance.shards:
        try:
            request = FloorRequest(shard.index, kind, tags, _entropy(shard, receipts))
            reply = yield from write(shard, request, (), (), receipts)
        except BaseException as error:
            if not isinstance(error, CacheUnavailable) or error.maybe_applied:
                shard.distrust_all()
            raise
        shard.learn_floor(reply, kind, tags)
    return Version(reply.epoch, reply.seq)


def update(
    instance: Instance,
    key: str,
    fn: Callable[[Any], Any],
    *,
    default: Any,
    ttl: float | None,
    tags: Iterable[str],
    attempts: int,
) -> Operation[Any]:
    """Read, change and compare-and-set, again if another writer was faster; return the new value.

    Args:
        instance: the instance.
        key: user key.
        fn: makes the new value from the present one; may be called several times; MISSING deletes. The front is asked
            to await what is awaitable.
        default: what ``fn`` gets if the key is absent.
        ttl: seconds until Redis forgets it; None for never.
        tags: tags.
        attempts: how often to try.

    Raises:
        VersionConflict: other writers were faster each time.
    """
    tags = check_tags(tags)
    for attempt in range(attempts):
        replies: list[ReadReply] = []
        found = yield from read_one(instance, key, replies)
        epoch = replies[-1].epoch
        value = fn(default if found is None else found.value)
        if isinstance(value, Awaitable):
            (awaited,) = yield (LoadRequest(partial(_same, value), ()),)
            assert isinstance(awaited, Loaded)
            value = awaited.value
        condition = Condition(epoch, 0 if found is None else found.version.seq)
        try:
            if value is not MISSING:
                yield from store_one(instance, key, value, ttl=ttl, tags=tags, condition=condition)
            elif found is not None:
                yield from delete(instance, (key,), condition=condition)
        except VersionConflict:
            if attempt == attempts - 1:
                raise
        else:
            return value
    raise AssertionError("unreachable: attempts >= 1")


def _same(value: object) -> object:
    return value


# -- inside ------------------------------------------------------------------------------------------------------------

Key = tuple[str, KeyFacts]
"""A user key with its facts."""


_KINDS: Final[dict[type, str]] = {
    StoreRequest: "set", DeleteRequest: "delete", TouchRequest: "touch", BatchRequest: "batch",
}  # fmt: skip
"""What the messages of writes say has happened."""


def write(
    shard: Shard,
    request: StoreRequest | DeleteRequest | TouchRequest | FloorRequest | BatchRequest,
    keys: Collection[str],
    applied_keys: Iterable[str],
    receipts: Receipts | None = None,
) -> Operation[WriteReply]:
    """Send one write. Without a definite answer its keys are distrusted before the error leaves (review A8)."""
    try:
        (reply,) = yield (request,)
    except BaseException as error:
        distrust_if_ambiguous(shard, error, keys)
        if isinstance(error, CacheUnavailable):
            error.applied_keys = tuple(applied_keys)
        raise
    assert isinstance(reply, WriteReply)
    if receipts is not None:
        receipts.executed(reply)
    if shard.trace and reply.applied:
        if isinstance(request, FloorRequest):
            shard.tell(WritePublished(shard.index, request.kind.name.lower(), reply.seq, request.tags))
        else:
            shard.tell(WritePublished(shard.index, _KINDS[type(request)], reply.seq, tuple(keys)))
    return reply


def _entropy(shard: Shard, receipts: Receipts | None) -> bytes:
    """Begin to collect the receipts of a script, if anybody waits for them (P12)."""
    return b"" if receipts is None else receipts.begin(shard)


def distrust_if_ambiguous(shard: Shard, error: BaseException, keys: Collection[str]) -> None:
    """After a write that failed: distrust its keys unless it is certain that nothing was written (review A8)."""
    if not isinstance(error, CoherentCacheError) or getattr(error, "maybe_applied", False):
        shard.distrust_keys(keys)


def _refuse(
    instance: Instance, shard: Shard, token: Token, key: str, reply: WriteReply, condition: Condition | None
) -> NoReturn:
    """Raise for a condition that does not hold; what the refusal says about the key is knowledge too."""
    if reply.foreign:
        reason = "not an envelope"
        instance.foreign(key, reason)
        raise ForeignValue(key, reason)
    assert condition is not None
    seq = reply.current_seq or reply.seq + 1
    shard.absorb(token, reply, [(key, seq, None)], now=reply.sent_at)
    raise VersionConflict(
        key,
        Version(condition.epoch, condition.seq) if condition.seq else None,
        Version(reply.epoch, reply.current_seq) if reply.current_seq else None,
    )


def _encode(instance: Instance, key: str, value: Any) -> bytes:
    """Encode a value.

    Raises:
        SerializationError: it cannot be encoded.
        ValueTooLarge: it is larger than ``max_value_bytes`` allows.
    """
    try:
        payload = instance.codec.dumps(value)
    except SerializationError as error:
        raise SerializationError(error.reason, key=key) from error
    if len(payload) > instance.settings.max_value_bytes:
        raise ValueTooLarge(key, len(payload), instance.settings.max_value_bytes)
    return payload


def content_of(instance: Instance, key: str, value: Any) -> tuple[Any, bytes]:
    """Return what the local tier may hold of an own write, and its payload.

    Raises:
        SerializationError, ValueTooLarge: it cannot be stored.
    """
    payload = _encode(instance, key, value)
    # Never an object that the caller may still change, nor what a custom serializer would give back in another form.
    # Decoded before anything is sent: later it could fail.
    return (value if instance.keeps_values else instance.codec.loads(payload)), payload


def milliseconds(ttl: float | None) -> int:
    """Return a time to live as Redis takes it; 0 for never."""
    return 0 if ttl is None else max(1, round(ttl * 1000))


def lifetime_of(instance: Instance, ttl_ms: int) -> float:
    """Return how long the local tier may hold an own write, in seconds from before it was sent."""
    local_ttl = instance.settings.local_ttl
    return min(ttl_ms / 1000 or inf, inf if local_ttl is None else local_ttl)


def envelope_parts(instance: Instance, prefix: bytes, payload: bytes, tags: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Return what precedes the epoch and what follows the expiry in an envelope, compressed if that makes it smaller.

    Args:
        instance: the instance.
        prefix: the prefix of the key's envelopes.
        payload: the encoded value.
        tags: its tags.
    """
    compressor = instance.codec.compressor
    if compressor is not None and len(payload) > instance.settings.compress_above:
        packed = compressor.compress(payload)
        if len(packed) < len(payload):
            return compressed_prefix(prefix, compressor.code), encode_content(tags, packed)
    return prefix, encode_content(tags, payload)


def _decode_other(instance: Instance, payload: bytes, coding: int) -> tuple[Any, bytes | None]:
    """Decode what is compressed, or of another codec than this instance's.

    Returns:
        The value, and what the local tier may keep of it: its payload in this instance's own codec, not compressed;
        None if it has none.
    """
    codec, settings = instance.codec, instance.settings
    compression, code = divmod(coding, 1 << CODING_SHIFT)
    payload = decompress(payload, compression, settings.max_value_bytes)
    value = codec.decode(payload, code)
    if code == codec.code:
        return value, payload
    return value, _reencode(codec, value) if settings.local_enabled else b""


def _reencode(codec: Codec, value: Any) -> bytes | None:
    """Encode another codec's value for the local tier; None if it cannot be, and so not be kept."""
    try:
        return codec.encode(value)
    except SerializationError:
        return None


def by_shard(instance: Instance, keys: Iterable[str]) -> list[tuple[Shard, list[Key]]]:
    """Check keys and group them by shard.

    Raises:
        InvalidKey: one of them is no key.
    """
    try:
        pairs = list(zip(unique := dict.fromkeys(keys), map(instance.facts, unique), strict=True))
    except TypeError:
        raise InvalidKey("a key must be a str; one of these is not even hashable") from None
    shards = instance.shards
    if len(shards) == 1:
        return [(shards[0], pairs)] if pairs else []
    groups: dict[int, list[Key]] = {}
    for pair in pairs:
        groups.setdefault(shard_of(pair[1][0], len(shards)), []).append(pair)
    return [(shards[index], group) for index, group in groups.items()]


def in_chunks(group: Sequence[Key], most: int, size: Callable[[Key], int] | None = None) -> Iterator[Sequence[Key]]:
    """Cut a group into what one script may take, by number and bytes."""
    if len(group) == 1:
        yield group
        return
    if size is None:
        for start in range(0, len(group), most):
            yield group[start : start + most]
        return
    chunk: list[Key] = []
    total = 0
    for key in group:
        more = size(key)
        if chunk and (len(chunk) == most or total + more > MAX_BYTES_PER_SCRIPT):
            yield chunk
            chunk, total = [], 0
        chunk.append(key)
        total += more
    if chunk:
        yield chunk


@contextmanager
def holding_token(shard: Shard, keys: Collection[str]) -> Iterator[Token]:
    """Hold a token for as long as a command is under way (P7)."""
    token = shard.register(keys)
    try:
        yield token
    finally:
        shard.release(token)
