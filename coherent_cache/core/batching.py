"""Batches: many writes of different kinds as one script per shard, one version and one message (P1).

What is written is checked and encoded when it is collected, so that nothing is left that could fail but Redis. Redis
executes nothing else while a script runs, so a large batch goes as several, one after the other; each of them is
written as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from coherent_cache.core.entries import Entry
from coherent_cache.core.instance import Instance
from coherent_cache.core.operations import (
    Key,
    by_shard,
    content_of,
    envelope_parts,
    holding_token,
    in_chunks,
    lifetime_of,
    milliseconds,
    write,
)
from coherent_cache.core.requests import MAX_KEYS_PER_SCRIPT, BatchRequest, Operation
from coherent_cache.core.shard import Shard
from coherent_cache.errors import CacheUnavailable
from coherent_cache.keys import check_tags
from coherent_cache.versions import Version


class Write(NamedTuple):
    """One write of a batch, ready to be sent.

    Attributes:
        payload: the encoded value; None to delete.
        value: what the local tier may hold of it.
        ttl: seconds until Redis forgets it; None for never.
        tags: its tags.
    """

    payload: bytes | None
    value: Any
    ttl: float | None
    tags: tuple[str, ...]


DELETE: Final = Write(None, None, None, ())
"""A write that deletes."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What became of one key of a batch.

    Attributes:
        key: the key.
        action: ``set`` or ``delete``.
        version: the version that the key was written or deleted under; None if it was not.
        existed: of a deletion: whether there was a value.
        error: why it was not done, None if it was; its ``maybe_applied`` tells whether it may have been all the same.
    """

    key: str
    action: Literal["set", "delete"]
    version: Version | None
    existed: bool = False
    error: CacheUnavailable | None = None


def collect(instance: Instance, key: str, value: Any, *, ttl: float | None, tags: Iterable[str]) -> Write:
    """Check and encode what a batch is to store.

    Raises:
        InvalidKey, ConfigError, SerializationError, ValueTooLarge: it cannot be stored.
    """
    by_shard(instance, (key,))
    value, payload = content_of(instance, key, value)
    return Write(payload, value, ttl, check_tags(tags))


def send(instance: Instance, writes: Mapping[str, Write], items: list[BatchItem]) -> Operation[None]:
    """Write a batch, log and publish it, then keep locally what it stored (P1).

    Args:
        instance: the instance.
        writes: the last write to each key.
        items: takes what became of each; complete unless something else than Redis interrupts.

    Raises:
        CacheUnavailable: Redis refused a part or is away. What follows that part is not sent.
        NamespaceMismatch: the namespace was created with other settings. Nothing was done.
    """
    failure: CacheUnavailable | None = None
    for shard, group in by_shard(instance, writes):
        # First what is stored, as the script wants it; a chunk of deletions alone works when memory is full.
        group.sort(key=lambda key: writes[key[0]].payload is None)
        for chunk in in_chunks(group, MAX_KEYS_PER_SCRIPT, lambda key: len(writes[key[0]].payload or b"")):
            error = failure and CacheUnavailable("not sent, because the batch had failed before it came to this part")
            if error is None:
                try:
                    items += yield from _send(instance, shard, chunk, writes, items)
                except CacheUnavailable as caught:
                    failure = error = caught
            if error is not None:
                items += [_item(key, writes[key], error=error) for key, _ in chunk]
    if failure is not None:
        raise failure


def _send(
    instance: Instance, shard: Shard, chunk: Sequence[Key], writes: Mapping[str, Write], before: Sequence[BatchItem]
) -> Operation[list[BatchItem]]:
    """Write one chunk; return what became of it."""
    keys = tuple([key for key, _ in chunk])
    parts: list[bytes] = []
    ttls_ms: list[int] = []
    for key, facts in chunk:
        payload, _, ttl, tags = writes[key]
        if payload is not None:
            parts += envelope_parts(instance, facts[1], payload, tags)
            ttls_ms.append(milliseconds(ttl))
    request = BatchRequest(shard.index, keys, tuple(parts), tuple(ttls_ms))
    with holding_token(shard, keys) as token:
        reply = yield from write(shard, request, keys, (item.key for item in before))
        version = Version(reply.epoch, reply.seq)
        learnt: list[tuple[str, int, Entry | None]] = []
        for key, facts in chunk:
            payload, value, ttl, tags = writes[key]
            entry = None
            if payload is not None and instance.settings.local_enabled:
                expires_at = reply.sent_at + lifetime_of(instance, milliseconds(ttl))
                entry = instance.make_entry(facts, value, payload, reply.seq, tags, expires_at)
            learnt.append((key, reply.seq, entry))
        shard.absorb(token, reply, learnt, now=reply.sent_at)
    existed = (*(False for _ in ttls_ms), *reply.existed)
    return [_item(key, writes[key], version, there) for key, there in zip(keys, existed, strict=True)]


def _item(
    key: str,
    written: Write,
    version: Version | None = None,
    existed: bool = False,  # noqa: FBT001, FBT002
    error: CacheUnavailable | None = None,
) -> BatchItem:
    return BatchItem(key, "delete" if written.payload is None else "set", version, existed, error)
