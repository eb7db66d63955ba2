"""Names: user keys, and what they and a shard's own data are called in Redis (rule R1)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from zlib import crc32

from coherent_cache.errors import ConfigError, InvalidKey

MAX_KEY_BYTES: Final = 1024
"""Longest user key, in UTF-8 bytes."""

MAX_TAG_BYTES: Final = 255
"""Longest tag, in UTF-8 bytes: its length is one byte in the envelope."""

MAX_TAGS: Final = 1000
"""Most tags of one entry: a read looks each of them up."""

DIGEST_BYTES: Final = 8
"""Length of the digest of its key that each envelope carries (review A25)."""


@dataclass(frozen=True, slots=True)
class ShardNames:
    """What one shard's data is called in Redis. All names share one hash tag, hence one cluster slot.

    Attributes:
        clock: hash with epoch, seq, nonce, floor, tag floors and config.
        log: capped stream of the last invalidation messages, ids ``<seq>-0``.
        probe: a key that never exists; deleting it proves that the server accepts writes (P4).
        channel: Pub/Sub channel. Pub/Sub ignores the database number, so the name contains it (review A27).
        values: prefix of the value keys.
        refreshes: prefix of the keys where the refresh of a value is claimed (P11).
        members: hash of the instances that may hold local values (P12).
        questions: channel of questions to instances.
        answers: prefix of the channels of their answers.
        reports: prefix of the keys where instances report themselves.
    """

    clock: bytes
    log: bytes
    probe: bytes
    channel: bytes
    values: bytes
    refreshes: bytes
    members: bytes
    questions: bytes
    answers: bytes
    reports: bytes

    def value(self, key: bytes) -> bytes:
        """Name of the value of a user key, given in UTF-8."""
        return self.values + key

    def refresh(self, key: bytes) -> bytes:
        """Name of the claim to refresh the value of a user key, given in UTF-8."""
        return self.refreshes + key

    def answer(self, question: bytes) -> bytes:
        """Name of the channel where the question with this id is answered."""
        return self.answers + question.hex().encode("ascii")

    def report(self, member: str) -> bytes:
        """Name of the report of a member, see P12."""
        return self.reports + member.encode("utf-8")

    def receipts(self, instance_id: str) -> bytes:
        """Name of the channel where an instance is told who has applied its acknowledged writes (P12)."""
        return b"%b:%b" % (self.channel, instance_id.encode("utf-8"))


def shard_names(namespace: str, shard: int, database: int) -> ShardNames:
    """Names of shard number ``shard`` of ``namespace`` in database number ``database``."""
    tag = f"cc:{{{namespace}/{shard}}}:"
    prefix = tag.encode("ascii")
    return ShardNames(
        clock=prefix + b"clock",
        log=prefix + b"log",
        probe=prefix + b"probe",
        channel=prefix + b"messages:%d" % database,
        values=prefix + b"v:",
        refreshes=prefix + b"r:",
        members=prefix + b"members",
        questions=prefix + b"questions:%d" % database,
        answers=prefix + b"answers:%d:" % database,
        reports=prefix + b"i:",
    )


def check_key(key: object) -> bytes:
    """Check a user key and return it in UTF-8.

    Raises:
        InvalidKey: not a ``str``, empty, over 1,024 UTF-8 bytes, or with lone surrogates.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a key must be a str, not {type(key).__name__}")
    try:
        encoded = key.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidKey("a key must be encodable in UTF-8; it contains lone surrogates") from None
    if not 0 < len(encoded) <= MAX_KEY_BYTES:
        raise InvalidKey(f"a key must have 1 to {MAX_KEY_BYTES:,} UTF-8 bytes, this one has {len(encoded):,}")
    return encoded


def check_tags(tags: object) -> tuple[str, ...]:
    """Check the tags of an entry and return them without repetition, in their order.

    Raises:
        ConfigError: not an iterable of 1 to 255 UTF-8 bytes long ``str``, or more than 1,000 of them.
    """
    if isinstance(tags, str | bytes):
        raise ConfigError("tags", f"must be a collection of str, not one {type(tags).__name__}: write ({tags!r},)")
    try:
        unique = tuple(dict.fromkeys(tags))  # type: ignore[call-overload]
    except TypeError:
        raise ConfigError("tags", f"must be a collection of str, not {type(tags).__name__}") from None
    if len(unique) > MAX_TAGS:
        raise ConfigError("tags", f"at most {MAX_TAGS:,} tags per entry, not {len(unique):,}")
    for tag in unique:
        if not isinstance(tag, str):
            raise ConfigError("tags", f"a tag must be a str, not {type(tag).__name__}")
        try:
            length = len(tag.encode("utf-8"))
        except UnicodeEncodeError:
            length = 0
        if not 0 < length <= MAX_TAG_BYTES:
            raise ConfigError("tags", f"a tag must have 1 to {MAX_TAG_BYTES} UTF-8 bytes, {tag!r} does not")
    return unique


def shard_of(key: bytes, shards: int) -> int:
    """Shard of a user key, given in UTF-8: the same in every release, language and process (CRC-32)."""
    return crc32(key) % shards if shards > 1 else 0


def key_digest(key: bytes) -> bytes:
    """Return the digest of a user key, given in UTF-8, that its envelopes carry (BLAKE2b, 8 bytes)."""
    return blake2b(key, digest_size=DIGEST_BYTES).digest()
