"""The Lua scripts and the read transaction against a real Redis: what they store, publish, refuse, and leave behind.

Every write is watched from three sides: what Redis holds, what the log holds, and what a subscriber hears.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis

from coherent_cache.config import Settings
from coherent_cache.core.requests import (
    MAX_KEYS_PER_SCRIPT,
    BatchRequest,
    Condition,
    DeleteRequest,
    FloorRequest,
    ReadRequest,
    StoreRequest,
    TouchRequest,
)
from coherent_cache.core.session import Sync
from coherent_cache.keys import key_digest
from coherent_cache.remote.connection import CommandConnection, ReplyError, connect
from coherent_cache.remote.scripts import ScriptCall, Scripts, StoreCall
from coherent_cache.remote.topology import resolve
from coherent_cache.versions import MAX_SEQ
from coherent_cache.wire import (
    Kind,
    SyncReply,
    decode_envelope,
    decode_message,
    decode_sync_reply,
    encode_content,
    encode_envelope,
    envelope_prefix,
)
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coherent_cache.core.requests import ReadReply, Request, WriteReply
    from integration.servers import RedisServer

ORIGIN = "tester"
CODEC = 1
TTL_MS = 60_000
END = b"end of what was heard"


class Clock(NamedTuple):
    """What the clock holds."""

    epoch: bytes
    seq: int
    nonce: bytes
    floor: int
    config: bytes


class Ear:
    """A subscriber of one channel."""

    def __init__(self, client: redis.Redis, channel: bytes) -> None:
        self._client = client
        self._channel = channel
        self._pubsub = client.pubsub()
        self._pubsub.subscribe(channel)
        assert self._pubsub.get_message(timeout=5)["type"] == "subscribe"

    def heard(self) -> list[bytes]:
        """Return what was published since the last call. One connection is ordered: a mark ends it."""
        self._client.publish(self._channel, END)
        found = []
        while (data := self._pubsub.get_message(timeout=5)["data"]) != END:
            found.append(data)
        return found

    def close(self) -> None:
        self._pubsub.close()


class Shard:
    """Shard 0 of a namespace, seen by an instance and from outside."""

    def __init__(self, client: redis.Redis, connection: CommandConnection, settings: Settings) -> None:
        self.client = client
        self.connection = connection
        self.scripts = Scripts(settings, instance_id=ORIGIN, database=0)
        self.names = self.scripts.names[0]
        self.ear = Ear(client, self.names.channel)

    # -- as an instance

    def ask(self, call, connection: CommandConnection | None = None) -> list[Any]:
        """Run a call as text; return its raw replies."""
        packed = call.packed_with_text() if isinstance(call, ScriptCall | StoreCall) else call.packed
        return (connection or self.connection).exchange(packed, call.replies)

    def run(self, request: Request, connection: CommandConnection | None = None):
        """Run a request; return its reply.

        Raises:
            ReplyError: Redis answered an error.
        """
        call = self.scripts.call(request)
        return call.parse(self.ask(call, connection), "server", 0.0)

    def store(self, *keys: str, payload=b"payload", tags=(), ttl_ms=TTL_MS, condition=None) -> WriteReply:
        return self.run(StoreRequest(0, keys, parts(*keys, payload=payload, tags=tags), ttl_ms, condition))

    def delete(self, *keys: str, condition=None) -> WriteReply:
        return self.run(DeleteRequest(0, keys, condition))

    def batch(self, stored: tuple[str, ...], deleted: tuple[str, ...], *, ttls_ms=None, tags=()) -> WriteReply:
        ttls_ms = (TTL_MS,) * len(stored) if ttls_ms is None else ttls_ms
        return self.run(BatchRequest(0, stored + deleted, parts(*stored, tags=tags), ttls_ms))

    def touch(self, key: str, ttl_ms: int = TTL_MS) -> WriteReply:
        return self.run(TouchRequest(0, key, ttl_ms))

    def clear(self) -> WriteReply:
        return self.run(FloorRequest(0, Kind.CLEAR))

    def invalidate(self, *tags: str) -> WriteReply:
        return self.run(FloorRequest(0, Kind.TAG, tags))

    def read(self, *keys: str, judge_tags: bool = False) -> ReadReply:
        return self.run(ReadRequest(0, tuple(key.encode() for key in keys), judge_tags))

    def sync(self, seq: int | None = None, connection: CommandConnection | None = None) -> SyncReply:
        (answer,) = self.ask(self.scripts.sync(Sync(0, b"token", seq)), connection)
        if isinstance(answer, ReplyError):
            raise answer
        reply = decode_sync_reply(answer)
        assert reply.token == b"token"
        return reply

    # -- from outside

    def clock(self) -> Clock | None:
        found = self.client.hgetall(self.names.clock)
        if not found:
            return None
        seq, floor = int(found[b"seq"]), int(found.get(b"floor", 0))
        return Clock(found[b"epoch"], seq, found[b"nonce"], floor, found[b"config"])

    def log(self) -> list[tuple[bytes, bytes]]:
        """Return the log's ids and messages."""
        entries = self.client.xrange(self.names.log)
        assert all(list(fields) == [b"m"] for _, fields in entries)
        return [(entry, fields[b"m"]) for entry, fields in entries]

    def stored(self, key: str) -> bytes | None:
        return self.client.get(self.value(key))

    def value(self, key: str) -> bytes:
        return self.names.value(key.encode())

    def envelope(self, key: str):
        return decode_envelope(self.stored(key), prefix_of(key))

    def everything(self) -> dict[bytes, tuple]:
        """Return all that Redis holds, to compare."""
        has_pexpiretime = int(self.client.info("server")["redis_version"].split(".")[0]) >= 7
        return {
            key: (self.client.type(key), self.client.dump(key), self.client.pexpiretime(key) if has_pexpiretime else 0)
            for key in self.client.scan_iter()
        }

    def close(self) -> None:
        self.ear.close()
        self.connection.close()


def prefix_of(key: str) -> bytes:
    return envelope_prefix(key_digest(key.encode()), CODEC)


def parts(*keys: str, payload=b"payload", tags=()) -> tuple[bytes, ...]:
    content = encode_content(tuple(tags), payload)
    return tuple(part for key in keys for part in (prefix_of(key), content))


def server_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


@contextmanager
def opened(server: RedisServer, namespace: str, **options: Any) -> Iterator[Shard]:
    settings = Settings(namespace=namespace, timeout=30.0, **options)
    with server.client() as client:
        shard = Shard(client, connect(resolve(server.url, settings), name="tester"), settings)
        try:
            yield shard
        finally:
            shard.close()


@pytest.fixture
def shard(redis_server, namespace) -> Iterator[Shard]:
    with opened(redis_server, namespace) as shard:
        yield shard


@pytest.fixture
def own_shard(fresh_server, namespace) -> Iterator[Shard]:
    """Give a shard on a server of this test alone."""
    with opened(fresh_server, namespace) as shard:
        yield shard


WRITES: dict[str, Callable[[Shard], WriteReply]] = {
    "store": lambda shard: shard.store("a"),
    "store many": lambda shard: shard.store("a", "b", "c"),
    "store if": lambda shard: shard.store("new", condition=Condition()),
    "delete": lambda shard: shard.delete("a"),
    "delete many": lambda shard: shard.delete("a", "nothing"),
    "delete if": lambda shard: shard.delete("nothing", condition=Condition()),
    "touch": lambda shard: shard.touch("a", 5000),
    "batch": lambda shard: shard.batch(("a", "new"), ("b", "nothing")),
    "batch of deletions": lambda shard: shard.batch((), ("a", "nothing")),
    "clear": lambda shard: shard.clear(),
    "tags": lambda shard: shard.invalidate("red", "green"),
}
NAMES = {
    "store": (Kind.SET, ("a",)),
    "store many": (Kind.SET, ("a", "b", "c")),
    "store if": (Kind.SET, ("new",)),
    "delete": (Kind.DELETE, ("a",)),
    "delete many": (Kind.DELETE, ("a", "nothing")),
    "delete if": (Kind.DELETE, ("nothing",)),
    "touch": (Kind.TOUCH, ("a",)),
    "batch": (Kind.BATCH, ("a", "new", "b", "nothing")),
    "batch of deletions": (Kind.BATCH, ("a", "nothing")),
    "clear": (Kind.CLEAR, ()),
    "tags": (Kind.TAG, ("red", "green")),
}
READS: dict[str, Callable[[Shard], object]] = {
    "read": lambda shard: shard.read("a"),
    "read many": lambda shard: shard.read("a", "b"),
    "read tagged": lambda shard: shard.read("a", judge_tags=True),
    "sync": lambda shard: shard.sync(),
    "sync from": lambda shard: shard.sync(0),
}
every_write = pytest.mark.parametrize("write", WRITES)
every_call = pytest.mark.parametrize("call", [*WRITES, *READS])
CALLS = WRITES | READS


# --- P1: what a write stores ---


@pytest.mark.parametrize("ttl_ms", [0, 1, TTL_MS, 315_360_000_000])
@pytest.mark.parametrize("tags", [(), ("red",), tuple(f"tag{n}" for n in range(16))])
@pytest.mark.parametrize("payload", [b"", b"payload", bytes(256), bytes(65_536)])
def test_p1_a_stored_envelope_is_byte_for_byte_what_python_encodes(shard, payload, tags, ttl_ms):
    # At 1 ms it would be gone before it is looked at: the message says what was done.
    before = server_ms(shard.client)
    reply = shard.store("grün", payload=payload, tags=tags, ttl_ms=ttl_ms)
    data = shard.stored("grün")
    after = server_ms(shard.client)

    clock = shard.clock()
    assert (reply.applied, reply.epoch, reply.seq, list(reply.existed)) == (True, clock.epoch, clock.seq, [])
    if ttl_ms == 1 and data is None:
        return
    epoch, seq, expires_ms, codec, found_tags, found_payload = decode_envelope(data, prefix_of("grün"))
    assert (epoch, seq, codec, found_tags, found_payload) == (clock.epoch, clock.seq, CODEC, tags, payload)
    if ttl_ms:
        assert before + ttl_ms <= expires_ms <= after + ttl_ms
    else:
        assert expires_ms == 0
    content = encode_content(tags, payload)
    assert data == encode_envelope(prefix_of("grün"), clock.epoch, clock.seq, expires_ms, content)


def test_the_expiry_in_the_envelope_is_that_of_redis(shard):
    for ttl_ms in (5000, TTL_MS):
        shard.store("a", ttl_ms=ttl_ms)
        left, now_ms = shard.client.pttl(shard.value("a")), server_ms(shard.client)
        # The two commands may lie in different milliseconds; the clock of a script stands still (7.0) or nearly so.
        assert abs(shard.envelope("a")[2] - (now_ms + left)) <= 50

    shard.store("a", ttl_ms=0)
    assert shard.client.pttl(shard.value("a")) == -1
    assert shard.envelope("a")[2] == 0


def test_a_bulk_write_has_one_version_and_one_message(shard):
    keys = [f"key{number}" for number in range(100)]

    reply = shard.store(*keys)

    assert {shard.envelope(key)[1] for key in keys} == {reply.seq} == {1}
    (message,) = map(decode_message, shard.ear.heard())
    assert message.names == tuple(keys)


def test_each_key_of_a_bulk_write_gets_its_own_value(shard):
    keys = ("a", "b", "c")
    contents = [encode_content((key,), key.encode() * 3) for key in keys]
    mixed = tuple(itertools.chain.from_iterable(zip(map(prefix_of, keys), contents, strict=True)))

    shard.run(StoreRequest(0, keys, mixed, TTL_MS))

    for key in keys:
        assert shard.envelope(key)[4:] == ((key,), key.encode() * 3)


def test_a_thousand_keys_of_a_kilobyte_each(shard):
    keys = [f"{number:04}" + "k" * 1020 for number in range(MAX_KEYS_PER_SCRIPT)]

    stored = shard.store(*keys)
    found = shard.read(*keys)
    deleted = shard.delete(*keys)

    assert (stored.seq, deleted.seq) == (1, 2)
    assert [decode_envelope(data, prefix_of(key))[1] for key, data in zip(keys, found.envelopes, strict=True)] == [
        1
    ] * 1000
    assert list(deleted.existed) == [True] * MAX_KEYS_PER_SCRIPT
    messages = [decode_message(data) for data in shard.ear.heard()]
    assert [message.names for message in messages] == [tuple(keys)] * 2


# --- P1: log, message and clock ---


@every_write
def test_p1_the_message_is_the_log_entry_and_says_what_was_done(shard, write):
    shard.store("a", "b")
    shard.ear.heard()
    before = server_ms(shard.client)

    reply = WRITES[write](shard)

    (published,) = shard.ear.heard()
    after = server_ms(shard.client)
    entry, logged = shard.log()[-1]
    clock = shard.clock()
    message = decode_message(published)
    assert published == logged
    assert entry == b"%d-0" % message.seq
    assert (message.epoch, message.seq, message.nonce) == (clock.epoch, clock.seq, clock.nonce)
    assert (reply.applied, reply.epoch, reply.seq) == (True, clock.epoch, clock.seq)
    assert (message.kind, message.names, message.origin) == (*NAMES[write], ORIGIN)
    assert before <= message.time_us // 1000 <= after


@every_write
def test_p1_the_clock_goes_up_by_one(shard, write):
    shard.store("a", "b")
    before = shard.clock()

    WRITES[write](shard)

    after = shard.clock()
    assert (after.epoch, after.seq, after.config) == (before.epoch, before.seq + 1, before.config)
    assert after.nonce != before.nonce
    assert len(shard.ear.heard()) == 2


def test_p1_many_writes_leave_no_gap(shard):
    for number, write in enumerate(list(WRITES) * 3, start=2):
        shard.store("a")  # for touch
        WRITES[write](shard)
        shard.client.delete(shard.value("new"))
        assert shard.clock().seq == 2 * (number - 1)

    messages = [decode_message(data) for data in shard.ear.heard()]
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
    assert [entry for entry, _ in shard.log()] == [b"%d-0" % message.seq for message in messages]
    assert len({message.nonce for message in messages}) == len(messages)


def test_the_nonce_is_the_callers(shard):
    call = shard.scripts.call(TouchRequest(0, "a", 5000))
    shard.store("a")
    entropy = call.arguments[7]

    shard.ask(call)

    assert shard.clock().nonce == entropy[:8]


def test_the_log_keeps_about_as_many_as_it_is_told(redis_server, namespace):
    with opened(redis_server, namespace, log_length=200, replay_limit=100) as shard:
        for number in range(1000):
            shard.store(f"key{number}", ttl_ms=1000)

        ids = [int(entry.removesuffix(b"-0")) for entry, _ in shard.log()]
        # Whole nodes of 100 entries are dropped (stream-node-max-entries).
        assert 200 <= len(ids) <= 320
        assert ids == list(range(1000 - len(ids) + 1, 1001))


def test_a10_numbers_above_15_digits_keep_all_of_them(shard):
    shard.store("a", "b")
    for seq in (10**15 + 6, 10**15 + 7, MAX_SEQ - 2):
        shard.client.hset(shard.names.clock, "seq", seq)
        shard.client.delete(shard.names.log)
        shard.ear.heard()

        reply = shard.store("a", tags=("red",))

        assert reply.seq == shard.clock().seq == shard.envelope("a")[1] == seq + 1
        assert [entry for entry, _ in shard.log()] == [b"%d-0" % (seq + 1)]
        assert decode_message(shard.ear.heard()[0]).seq == seq + 1
        assert shard.read("a").seq == shard.sync().seq == seq + 1
        assert shard.invalidate("red").seq == seq + 2
        assert list(shard.read("a", judge_tags=True).tag_floors) == [seq + 2]
        assert shard.read("a").tag_seq == seq + 2
        assert [decode_message(entry).seq for entry in shard.sync(seq + 1).entries] == [seq + 1, seq + 2]
        conflict = shard.store("a", condition=Condition(reply.epoch, seq + 1))
        assert (conflict.applied, conflict.current_seq) == (False, 0)  # its tag's floor passed it


def test_a10_a_condition_compares_all_digits(shard):
    shard.store("a")
    shard.client.hset(shard.names.clock, "seq", 10**15 + 6)
    epoch, seq = shard.store("a")[:2]

    for other in (seq - 1, seq + 1):
        reply = shard.store("a", condition=Condition(epoch, other))
        assert (reply.applied, reply.current_seq) == (False, seq)
    assert shard.store("a", condition=Condition(epoch, seq)).applied


# --- P9: no clock, another history ---


@every_write
def test_p9_without_a_clock_a_new_history_begins_and_the_old_log_goes(shard, write):
    for _ in range(5):
        shard.store("a", "b")
    old = shard.clock()
    shard.clear()
    shard.client.delete(shard.names.clock)
    shard.ear.heard()

    reply = WRITES[write](shard)

    if write == "touch":  # nothing lives: there is nothing to touch, and nothing is begun
        assert (reply.applied, reply.epoch, shard.clock()) == (False, b"", None)
        return
    clock = shard.clock()
    assert (clock.seq, reply.seq, len(clock.epoch), clock.config) == (1, 1, 16, b"1/1")
    assert clock.epoch != old.epoch
    assert clock.floor == (1 if write == "clear" else 0)
    assert [entry for entry, _ in shard.log()] == [b"1-0"]
    (message,) = map(decode_message, shard.ear.heard())
    assert (message.epoch, message.seq) == (clock.epoch, 1)


def test_p9_values_of_another_history_are_dead(shard):
    epoch, seq = shard.store("a", "b")[:2]
    shard.client.delete(shard.names.clock)

    assert shard.read("a").epoch == b""
    assert shard.store("a", condition=Condition(epoch, seq)).current_seq == 0
    assert list(shard.delete("a", "b").existed) == [False, False]
    assert shard.clock().epoch != epoch


def test_p9_a_new_history_does_not_revive_an_old_value_by_its_number(shard):
    shard.store("a")
    shard.client.delete(shard.names.clock)
    epoch = shard.store("b")[0]  # now both have version 1

    assert shard.envelope("a")[1] == shard.envelope("b")[1] == 1
    reply = shard.store("a", condition=Condition(epoch, 1))
    assert (reply.applied, reply.current_seq) == (False, 0)
    assert not shard.touch("a").applied


def test_each_new_history_has_its_own_epoch(shard):
    epochs = set()
    for _ in range(20):
        epochs.add(shard.store("a")[0])
        shard.client.delete(shard.names.clock)

    assert len(epochs) == 20


# --- A7: a log that cannot be appended to is begun again, whatever else is wrong ends the script ---


@every_write
@pytest.mark.parametrize("damage", ["another type", "ids ahead"])
def test_a7_a_damaged_log_is_begun_again(shard, write, damage):
    shard.store("a", "b")
    shard.ear.heard()
    if damage == "another type":
        shard.client.set(shard.names.log, b"not a stream")
    else:
        shard.client.xadd(shard.names.log, {"m": "from another history"}, id="1000-0")

    reply = WRITES[write](shard)

    assert reply.applied
    assert shard.clock().seq == reply.seq == 2
    ((entry, logged),) = shard.log() if damage == "another type" else shard.log()[-1:]
    assert entry == b"2-0"
    assert [logged] == shard.ear.heard()


def test_a7_a_log_with_ids_ahead_holds_nothing_of_another_history_afterwards(shard):
    shard.store("a")
    shard.client.xadd(shard.names.log, {"m": "from another history"}, id="1000-0")

    shard.store("a")

    assert [entry for entry, _ in shard.log()] == [b"2-0"]


@every_call
def test_a7_a_clock_of_another_type_is_an_error_and_nothing_is_done(shard, call):
    shard.store("a", "b")
    shard.client.delete(shard.names.clock)
    shard.client.set(shard.names.clock, b"not a hash")
    before = shard.everything()
    shard.ear.heard()

    with pytest.raises((ReplyError, TypeError)) as caught:  # TypeError: see the unit test of ReadCall
        CALLS[call](shard)

    if isinstance(caught.value, ReplyError):
        assert "WRONGTYPE" in str(caught.value)
    assert shard.everything() == before
    assert shard.ear.heard() == []


# --- P1: a script that dies half-way over-invalidates, and never stores what it did not announce ---


def user_without(shard: Shard, server: RedisServer, *rules: str) -> CommandConnection:
    """Connect as a user who may do everything but what ``rules`` take away."""
    shard.client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "&*", "+@all", *rules)
    url = server.url.replace("redis://", "redis://limited:secret@")
    return connect(resolve(url, Settings(namespace="any")), name="limited")


@contextmanager
def limited(shard: Shard, server: RedisServer, *rules: str) -> Iterator[Shard]:
    """Let the shard's instance be that user for a while."""
    own, shard.connection = shard.connection, user_without(shard, server, *rules)
    try:
        yield shard
    finally:
        shard.connection.close()
        shard.connection = own


@every_write
def test_p1_when_publishing_fails_nothing_is_stored_and_the_clock_tells_of_it(own_shard, fresh_server, write):
    shard = own_shard
    shard.store("a", "b", tags=("red",))
    before = {key: shard.stored(key) for key in ("a", "b", "c", "new")}
    shard.ear.heard()

    with limited(shard, fresh_server, "resetchannels"), pytest.raises(ReplyError) as caught:
        WRITES[write](shard)

    assert not Scripts.refused_before_any_write(caught.value)  # the caller learns that it may have happened
    assert shard.ear.heard() == []
    # Whoever heard nothing finds out with its next heartbeat: the clock moved, and the log says for which keys.
    assert shard.clock().seq == 2
    entry, logged = shard.log()[-1]
    assert (entry, decode_message(logged).names) == (b"2-0", NAMES[write][1])
    for key, envelope in before.items():
        if not write.startswith("delete"):
            assert shard.stored(key) == envelope
    assert shard.clock().floor == 0
    assert list(shard.read("a", judge_tags=True).tag_floors) in ([], [0])


@pytest.mark.parametrize("write", [write for write in WRITES if not write.startswith("delete")])
@pytest.mark.parametrize("command", ["hset", "xadd"])
def test_p1_when_the_clock_or_the_log_cannot_be_written_nothing_is_stored(own_shard, fresh_server, write, command):
    shard = own_shard
    shard.store("a", "b", tags=("red",))
    before = {key: shard.stored(key) for key in ("a", "b", "c", "new")}
    clock = shard.clock()
    shard.ear.heard()

    with limited(shard, fresh_server, f"-{command}"), pytest.raises(ReplyError):
        WRITES[write](shard)

    assert shard.clock() == clock
    assert {key: shard.stored(key) for key in before} == before
    assert shard.ear.heard() == []
    # A log that is ahead of its clock does not disturb the next write.
    assert WRITES[write](shard).seq == 2
    assert [entry for entry, _ in shard.log()][-1] == b"2-0"
    assert len(shard.ear.heard()) == 1


@pytest.mark.parametrize("write", ["delete", "delete many"])
@pytest.mark.parametrize("command", ["hset", "xadd"])
def test_p1_a_value_never_goes_without_a_message_or_a_new_version(own_shard, fresh_server, write, command):
    shard = own_shard
    shard.store("a", "b")
    clock = shard.clock()

    with limited(shard, fresh_server, f"-{command}"), pytest.raises(ReplyError):
        WRITES[write](shard)

    assert shard.stored("a") is not None or shard.clock() != clock


@pytest.mark.parametrize("write", ["store", "store many", "store if", "batch", "touch"])
def test_p1_when_storing_fails_the_message_is_out(own_shard, fresh_server, write):
    shard = own_shard
    shard.store("a", "b")
    before = {key: shard.stored(key) for key in ("a", "b", "c", "new")}
    shard.ear.heard()

    with limited(shard, fresh_server, "-set"), pytest.raises(ReplyError) as caught:
        WRITES[write](shard)

    assert not Scripts.refused_before_any_write(caught.value)
    (message,) = map(decode_message, shard.ear.heard())
    assert (message.seq, message.names) == (2, NAMES[write][1])
    assert shard.clock().seq == 2
    assert {key: shard.stored(key) for key in before} == before


# --- A7b: full memory ---


@contextmanager
def full_memory(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@pytest.mark.parametrize("write", ["store", "store many", "store if", "batch", "touch"])
def test_a7b_in_full_memory_a_store_is_refused_and_nothing_is_changed(own_shard, write):
    shard = own_shard
    shard.store("a", "b")
    before = shard.everything()
    shard.ear.heard()

    with full_memory(shard.client), pytest.raises(ReplyError, match="OOM"):
        WRITES[write](shard)

    assert shard.everything() == before
    assert shard.ear.heard() == []


@pytest.mark.parametrize("write", ["store", "store many", "store if", "batch", "touch"])
def test_a7b_a_store_refused_in_full_memory_is_known_not_to_have_happened(own_shard, write):
    shard = own_shard
    shard.store("a", "b")

    with full_memory(shard.client), pytest.raises(ReplyError) as caught:
        WRITES[write](shard)

    assert caught.value.code == "OOM"
    assert Scripts.refused_before_any_write(caught.value)


@pytest.mark.parametrize("write", ["delete", "delete many", "delete if", "batch of deletions", "clear", "tags"])
@pytest.mark.parametrize("with_clock", [True, False])
def test_a7b_in_full_memory_invalidations_work(own_shard, write, with_clock):
    shard = own_shard
    shard.store("a", "b", tags=("red",))
    if not with_clock:
        shard.client.delete(shard.names.clock)
    shard.ear.heard()

    with full_memory(shard.client):
        reply = WRITES[write](shard)
        assert reply.applied
        assert shard.clock().seq == reply.seq == (2 if with_clock else 1)
        (message,) = map(decode_message, shard.ear.heard())
        assert message.names == NAMES[write][1]
        assert shard.log()[-1][0] == b"%d-0" % reply.seq
        if write in {"delete", "delete many", "batch of deletions"}:
            assert shard.stored("a") is None
        elif write == "clear":
            assert shard.clock().floor == reply.seq
        elif write == "tags":
            assert list(shard.read("a", judge_tags=True).tag_floors) == [reply.seq]


@pytest.mark.parametrize("with_clock", [True, False])
def test_a7b_in_full_memory_heartbeats_work(own_shard, with_clock):
    shard = own_shard
    shard.store("a")
    if not with_clock:
        shard.client.delete(shard.names.clock)

    with full_memory(shard.client):
        reply = shard.sync()

    assert (reply.status, reply.seq) == ("", 1 if with_clock else 0)
    assert shard.clock().epoch == reply.epoch


@pytest.mark.parametrize("keys", [("a",), ("a", "b")])
def test_a7b_in_full_memory_reads_work_by_script(own_shard, keys):
    shard = own_shard
    shard.store("a", "b")

    with full_memory(shard.client):
        assert list(shard.read(*keys, judge_tags=True).envelopes) == [shard.stored(key) for key in keys]
        # Redis queues nothing when it is full: SyncIO asks by script then.
        with pytest.raises(ReplyError, match="OOM"):
            shard.read(*keys, judge_tags=False)


# --- settings of the namespace ---


@every_call
@pytest.mark.parametrize("found", [b"1/16", b"2/1", b""])
def test_other_settings_are_refused_and_nothing_is_touched(shard, call, found):
    shard.store("a", "b", tags=("red",))
    shard.client.hset(shard.names.clock, "config", found)
    before = shard.everything()
    shard.ear.heard()

    with pytest.raises(ReplyError) as caught:
        CALLS[call](shard)

    mismatch = shard.scripts.error(caught.value)
    assert (mismatch.found, mismatch.expected) == (found.decode(), "1/1")
    assert shard.everything() == before
    assert shard.ear.heard() == []


@every_call
def test_an_instance_with_other_settings_is_refused(redis_server, namespace, call):
    with opened(redis_server, namespace) as first, opened(redis_server, namespace, shards=2) as second:
        first.store("a")
        before = first.everything()

        with pytest.raises(ReplyError, match="CCMISMATCH 1/1"):
            CALLS[call](second)

        assert first.everything() == before


@pytest.mark.parametrize("call", ["store", "delete", "clear", "sync"])
def test_whoever_begins_a_history_writes_the_settings(shard, call):
    CALLS[call](shard)

    assert shard.clock().config == b"1/1"


@pytest.mark.parametrize("call", READS)
def test_a_read_begins_no_history(shard, call):
    CALLS[call](shard)

    assert (shard.clock() is not None) is call.startswith("sync")


# --- conditions ---


def damage_foreign(shard: Shard) -> None:
    shard.client.set(shard.value("a"), b"another program's bytes, longer than any header of ours: " + bytes(100))


def damage_type(shard: Shard) -> None:
    shard.client.delete(shard.value("a"))
    shard.client.rpush(shard.value("a"), "x")


def damage_short(shard: Shard) -> None:
    shard.client.set(shard.value("a"), shard.stored("a")[:69])


def damage_other_format(shard: Shard) -> None:
    data = shard.stored("a")
    shard.client.set(shard.value("a"), data[:1] + b"\x02" + data[2:])


CONDITIONALS: dict[str, Callable[[Shard, Condition], WriteReply]] = {
    "store": lambda shard, condition: shard.store("a", payload=b"new", condition=condition),
    "delete": lambda shard, condition: shard.delete("a", condition=condition),
}
conditional = pytest.mark.parametrize("write", CONDITIONALS)


def assert_refused(shard: Shard, write: str, condition: Condition, **expected: Any) -> None:
    before = shard.everything()
    clock = shard.clock()
    shard.ear.heard()

    reply = CONDITIONALS[write](shard, condition)

    assert not reply.applied
    found = {"current_seq": reply.current_seq, "foreign": reply.foreign}
    assert found == {"current_seq": 0, "foreign": False} | expected
    assert (reply.epoch, reply.seq) == ((clock.epoch, clock.seq) if clock else (b"", 0))
    assert shard.everything() == before
    assert shard.ear.heard() == []


@conditional
def test_a_condition_on_the_present_version_holds(shard, write):
    shard.store("a")
    epoch, seq = shard.store("a")[:2]

    reply = CONDITIONALS[write](shard, Condition(epoch, seq))

    assert (reply.applied, reply.seq) == (True, seq + 1)
    assert (shard.stored("a") is None) is (write == "delete")


@conditional
def test_a_condition_on_another_version_does_not_hold(shard, write):
    epoch, seq = shard.store("a")[:2]
    shard.store("a")

    for other in (Condition(epoch, seq), Condition(epoch, seq + 2), Condition(bytes(16), seq + 1)):
        assert_refused(shard, write, other, current_seq=seq + 1)


@conditional
def test_a_condition_on_absence(shard, write):
    assert CONDITIONALS[write](shard, Condition()).applied  # also where there is no clock yet

    shard.delete("a")
    assert CONDITIONALS[write](shard, Condition()).applied

    seq = shard.store("a").seq
    assert_refused(shard, write, Condition(), current_seq=seq)


@conditional
def test_a_condition_on_absence_may_name_the_history_it_was_seen_in(shard, write):
    # Absent now, and absent when it was read; in between it was there, and that history was lost.
    epoch = shard.store("b")[0]

    assert_refused(shard, write, Condition(bytes(16), 0))
    assert CONDITIONALS[write](shard, Condition(epoch, 0)).applied


@conditional
def test_a_condition_on_absence_in_a_history_that_is_gone_does_not_hold(shard, write):
    epoch = shard.store("b")[0]
    shard.client.delete(shard.names.clock)

    assert_refused(shard, write, Condition(epoch, 0))


@conditional
def test_a_condition_on_a_version_of_an_absent_key_does_not_hold(shard, write):
    assert_refused(shard, write, Condition(bytes(16), 1))

    epoch = shard.store("b")[0]
    assert_refused(shard, write, Condition(epoch, 1))


DEATHS: dict[str, Callable[[Shard], object]] = {
    "floor": lambda shard: shard.clear(),
    "tag": lambda shard: shard.invalidate("green"),
    "epoch": lambda shard: (shard.client.delete(shard.names.clock), shard.store("b")),
    "no clock": lambda shard: shard.client.delete(shard.names.clock),
    "a clock that went back": lambda shard: shard.client.hset(shard.names.clock, "seq", 0),
}


@conditional
@pytest.mark.parametrize("death", DEATHS)
def test_p2_a_dead_value_is_absent_to_a_condition(shard, write, death):
    epoch, seq = shard.store("a", tags=("red", "green", "blue"))[:2]
    DEATHS[death](shard)

    assert_refused(shard, write, Condition(epoch, seq))
    assert CONDITIONALS[write](shard, Condition()).applied


@conditional
@pytest.mark.parametrize("tags", [("red",), tuple(f"tag{n}" for n in range(15)), tuple(f"tag{n}" for n in range(40))])
def test_p2_a_value_whose_tags_are_alive_is_present_to_a_condition(shard, write, tags):
    shard.invalidate(*tags)  # older than the value
    epoch, seq = shard.store("a", tags=tags)[:2]
    shard.invalidate("another", "re", "redd", "tag")

    assert_refused(shard, write, Condition(), current_seq=seq)
    assert CONDITIONALS[write](shard, Condition(epoch, seq)).applied


@conditional
@pytest.mark.parametrize("count", [1, 15, 16, 40])
@pytest.mark.parametrize("which", [0, -1])
def test_p2_any_one_tag_kills(shard, write, count, which):
    tags = tuple(f"tag{number}-ü" for number in range(count))
    epoch, seq = shard.store("a", tags=tags)[:2]
    shard.invalidate(tags[which])

    assert_refused(shard, write, Condition(epoch, seq))


@conditional
@pytest.mark.parametrize("damage", [damage_foreign, damage_type, damage_short, damage_other_format])
def test_a_condition_on_foreign_bytes_cannot_be_judged(shard, write, damage):
    epoch, seq = shard.store("a")[:2]
    damage(shard)

    assert_refused(shard, write, Condition(epoch, seq), foreign=True)
    assert_refused(shard, write, Condition(), foreign=True)


@pytest.mark.parametrize("damage", [damage_foreign, damage_type, damage_short, damage_other_format])
def test_a_plain_store_overwrites_whatever_is_there(shard, damage):
    shard.store("a")
    damage(shard)

    assert shard.store("a", payload=b"new").applied
    assert shard.envelope("a")[5] == b"new"


# --- delete ---


def test_delete_tells_what_was_there(shard):
    shard.store("dead")
    shard.clear()
    shard.store("live")
    shard.store("tagged", tags=("red",))
    shard.store("dead by tag", tags=("green",))
    shard.invalidate("green")
    shard.client.set(shard.value("foreign"), b"x")
    shard.client.rpush(shard.value("list"), "x")
    keys = ("live", "absent", "dead", "tagged", "dead by tag", "foreign", "list")

    reply = shard.delete(*keys)

    assert dict(zip(keys, reply.existed, strict=True)) == {
        "live": True,
        "absent": False,
        "dead": False,
        "tagged": True,
        "dead by tag": False,
        "foreign": True,
        "list": True,
    }
    assert [shard.client.exists(shard.value(key)) for key in keys] == [0] * len(keys)


def test_delete_of_nothing_is_announced_too(shard):
    # A peer may hold what Redis has lost.
    reply = shard.delete("absent")

    assert (reply.applied, reply.seq, list(reply.existed)) == (True, 1, [False])
    (message,) = map(decode_message, shard.ear.heard())
    assert message.names == ("absent",)


# --- touch ---


@pytest.mark.parametrize("tags", [(), ("red", "green")])
@pytest.mark.parametrize(("first", "second"), [(TTL_MS, 5000), (5000, TTL_MS), (0, 5000), (5000, 0), (0, 0)])
def test_touch_changes_version_and_expiry_and_nothing_else(shard, tags, first, second):
    shard.store("a", payload=bytes(300), tags=tags, ttl_ms=first)
    old = shard.stored("a")
    before = server_ms(shard.client)

    reply = shard.touch("a", second)

    after = server_ms(shard.client)
    epoch, seq, expires_ms, *_ = shard.envelope("a")
    assert (reply.applied, reply.epoch, reply.seq, seq) == (True, epoch, 2, 2)
    if second:
        assert before + second <= expires_ms <= after + second
        assert second - 5000 < shard.client.pttl(shard.value("a")) <= second
    else:
        assert expires_ms == 0
        assert shard.client.pttl(shard.value("a")) == -1
    content = encode_content(tags, bytes(300))
    assert shard.stored("a") == encode_envelope(prefix_of("a"), epoch, 2, expires_ms, content)
    assert old[69:] == shard.stored("a")[69:]


@pytest.mark.parametrize("death", DEATHS)
def test_touch_does_not_revive_the_dead(shard, death):
    shard.store("a", tags=("green",))
    DEATHS[death](shard)
    before = shard.everything()
    shard.ear.heard()

    reply = shard.touch("a")

    assert (reply.applied, reply.foreign, reply.current_seq) == (False, False, 0)
    assert shard.everything() == before
    assert shard.ear.heard() == []


def test_touch_of_nothing_changes_nothing(shard):
    reply = shard.touch("a")
    assert (reply.applied, reply.epoch, reply.seq) == (False, b"", 0)
    assert shard.everything() == {}

    shard.store("b")
    reply = shard.touch("a")
    assert (reply.applied, reply.foreign, reply.seq, shard.clock().seq) == (False, False, 1, 1)


@pytest.mark.parametrize("damage", [damage_foreign, damage_type, damage_short, damage_other_format])
def test_touch_leaves_foreign_bytes_alone(shard, damage):
    shard.store("a")
    damage(shard)
    before = shard.everything()

    reply = shard.touch("a")

    assert (reply.applied, reply.foreign) == (False, True)
    assert shard.everything() == before


# --- P2: reads ---


def test_p2_a_read_of_an_empty_namespace(shard):
    for judge_tags in (False, True):
        reply = shard.read("a", judge_tags=judge_tags)
        assert (reply.epoch, reply.seq, reply.floor, reply.tag_seq, list(reply.envelopes)) == (b"", 0, 0, 0, [None])
        assert list(reply.tag_floors) in ([], [0])


@pytest.mark.parametrize("judge_tags", [False, True])
def test_p2_a_read_returns_envelopes_and_clock_at_once(shard, judge_tags):
    shard.store("a", payload=b"1")
    floor = shard.clear().seq
    shard.store("b", payload=b"2")
    before = server_ms(shard.client)

    one = shard.read("b", judge_tags=judge_tags)
    many = shard.read("a", "nothing", "b", "a", judge_tags=judge_tags)

    clock = shard.clock()
    assert list(one.envelopes) == [shard.stored("b")]
    assert list(many.envelopes) == [shard.stored("a"), None, shard.stored("b"), shard.stored("a")]
    for reply in (one, many):
        assert (reply.epoch, reply.seq, reply.floor) == (clock.epoch, clock.seq, floor)
        assert before <= reply.now_ms <= server_ms(shard.client)


@pytest.mark.parametrize("judge_tags", [False, True])
def test_p2_a_read_of_a_thousand_keys(shard, judge_tags):
    keys = [f"key{number}" for number in range(MAX_KEYS_PER_SCRIPT)]
    shard.store(*keys[:500], tags=("red",))
    shard.store(*keys[500:])

    reply = shard.read(*keys, judge_tags=judge_tags)

    assert list(reply.envelopes) == [shard.stored(key) for key in keys]


@pytest.mark.parametrize("judge_tags", [False, True])
@pytest.mark.parametrize("make", ["rpush", "sadd", "hset", "zadd", "xadd"])
def test_p2_a_value_that_is_no_string_does_not_break_a_read(shard, make, judge_tags):
    value = shard.value("odd")
    shard.store("a")
    {
        "rpush": lambda: shard.client.rpush(value, "x"),
        "sadd": lambda: shard.client.sadd(value, "x"),
        "hset": lambda: shard.client.hset(value, "x", "y"),
        "zadd": lambda: shard.client.zadd(value, {"x": 1}),
        "xadd": lambda: shard.client.xadd(value, {"x": "y"}),
    }[make]()

    assert list(shard.read("odd", judge_tags=judge_tags).envelopes) == [b""]
    assert list(shard.read("a", "odd", judge_tags=judge_tags).envelopes) == [shard.stored("a"), None]


@pytest.mark.parametrize("judge_tags", [False, True])
@pytest.mark.parametrize(
    "data", [b"", b"x", b"\xc1", b"\xc1\x01", bytes(69), bytes(70), bytes(100_000), b"\xc1\x02" + bytes(99)]
)
def test_p2_foreign_bytes_are_returned_as_they_are(shard, data, judge_tags):
    shard.store("a")
    shard.client.set(shard.value("foreign"), data)

    assert list(shard.read("foreign", judge_tags=judge_tags).envelopes) == [data]
    assert list(shard.read("a", "foreign", judge_tags=judge_tags).envelopes) == [shard.stored("a"), data]


@pytest.mark.parametrize(
    "damage", [b"", b"\x91", b"\x91\xd9", b"\x91\xd9\xff", b"\xdc", b"\xdc\xff", b"\xdc\xff\xff\xd9", b"\xff"]
)
def test_p2_damaged_tags_do_not_break_the_scripts(shard, damage):
    epoch, seq = shard.store("a", tags=("red",))[:2]
    data = shard.stored("a")[:69] + damage
    shard.client.set(shard.value("a"), data)

    assert list(shard.read("a", judge_tags=True).envelopes) == [data]
    assert shard.store("a", condition=Condition(epoch, seq + 99)).applied is False
    shard.touch("a")  # refused or not, it does not fail
    assert shard.delete("a").applied


# --- P10: floors ---


def test_p10_clear_raises_the_floor_to_its_own_version(shard):
    shard.store("a")

    for _ in range(2):
        reply = shard.clear()
        assert reply.seq == shard.clock().floor == shard.read("a").floor
        assert shard.envelope("a")[1] <= reply.seq

    shard.store("a")
    assert shard.envelope("a")[1] > shard.read("a").floor


def test_p10_tag_floors_are_those_of_the_tags_that_an_envelope_names(shard):
    shard.store("plain")
    shard.store("red", tags=("red",))
    shard.store("both", tags=("red", "green"))
    shard.store("blue", tags=("blue",))
    red = shard.invalidate("red").seq
    green = shard.invalidate("green", "ü").seq

    reply = shard.read("plain", "red", "both", "blue", "nothing", judge_tags=True)

    assert list(reply.tag_floors) == [0, red, green, 0, 0]
    assert shard.clock().floor == 0
    assert shard.read("red").tag_seq == green


def test_p10_no_tag_floors_where_nothing_has_tags(shard):
    shard.store("a", "b")
    shard.invalidate("red")

    assert list(shard.read("a", "b", judge_tags=True).tag_floors) == []


def test_p10_the_last_tag_invalidation_is_known_to_every_read(shard):
    shard.store("a")
    assert shard.read("a").tag_seq == 0

    shard.invalidate("red")
    seq = shard.invalidate("green").seq
    shard.clear()

    assert shard.read("a").tag_seq == seq


def test_p10_a_tag_cannot_be_taken_for_a_field_of_the_clock(shard):
    epoch = shard.store("a")[0]

    shard.invalidate("epoch", "seq", "floor", "nonce", "config", "tag_seq", "")

    clock = shard.clock()
    assert (clock.epoch, clock.seq, clock.floor, clock.config) == (epoch, 2, 0, b"1/1")


def test_p10_a_thousand_tags(shard):
    tags = tuple(f"tag{number}" for number in range(1000))
    shard.store("a", tags=tags)

    seq = shard.invalidate(*tags).seq

    assert list(shard.read("a", judge_tags=True).tag_floors) == [seq]


# --- P4, P6: sync ---


def test_p4_a_heartbeat_is_the_clock_and_changes_nothing_but_the_registry(shard):
    shard.store("a")
    before, clock = shard.everything(), shard.clock()
    shard.ear.heard()
    earliest = server_ms(shard.client)

    reply = shard.sync()

    assert (reply.status, reply.epoch, reply.seq, reply.nonce) == ("", clock.epoch, clock.seq, clock.nonce)
    assert earliest <= reply.time_us // 1000 <= server_ms(shard.client)
    assert reply.entries == ()
    after = shard.everything()
    assert after.pop(shard.names.members)[0] == b"hash"
    assert after == before
    assert shard.ear.heard() == []


def test_p9_a_heartbeat_begins_a_history_where_there_is_none(shard):
    shard.store("a")
    shard.client.delete(shard.names.clock)
    shard.ear.heard()

    first = shard.sync(0)
    second = shard.sync(0)

    clock = shard.clock()
    assert (first.epoch, first.seq, first.nonce) == (clock.epoch, 0, clock.nonce)
    assert (second.epoch, second.nonce) == (first.epoch, first.nonce)
    assert first.entries == second.entries == ()
    assert shard.log() == []
    assert shard.ear.heard() == []
    assert shard.store("a")[:2] == (first.epoch, 1)


def test_p6_the_log_from_a_position_on_begins_with_that_positions_entry(shard):
    for number in range(6):
        shard.store(f"key{number}")
    log = [message for _, message in shard.log()]

    for position in range(1, 6):
        assert list(shard.sync(position).entries) == log[position - 1 :]
    assert list(shard.sync(0).entries) == log  # there is no entry at 0


@pytest.mark.parametrize("position", [6, 7, 1000, MAX_SEQ])
def test_p6_nothing_is_replayed_to_who_missed_nothing_or_knows_more(shard, position):
    for number in range(6):
        shard.store(f"key{number}")

    reply = shard.sync(position)

    assert (reply.seq, reply.entries) == (6, ())


def test_p6_more_than_the_limit_is_not_replayed(redis_server, namespace):
    with opened(redis_server, namespace, replay_limit=3) as shard:
        for number in range(6):
            shard.store(f"key{number}")
        log = [message for _, message in shard.log()]

        assert list(shard.sync(3).entries) == log[2:]  # its own entry and three more
        assert shard.sync(2).entries == ()


def test_p6_a_limit_of_nothing_replays_nothing(redis_server, namespace):
    with opened(redis_server, namespace, replay_limit=0) as shard:
        for number in range(3):
            shard.store(f"key{number}")

        assert shard.sync(2).entries == ()


def test_p6_a_log_that_does_not_reach_back_shows_a_gap(shard):
    for number in range(6):
        shard.store(f"key{number}")
    shard.client.xtrim(shard.names.log, maxlen=2, approximate=False)

    entries = [decode_message(entry).seq for entry in shard.sync(2).entries]

    assert entries == [5, 6]  # not 2: whoever asked sees that 3 and 4 are missing


@pytest.mark.parametrize("damage", ["another type", "gone"])
def test_p6_without_a_log_there_is_nothing_to_replay(shard, damage):
    for number in range(3):
        shard.store(f"key{number}")
    shard.client.delete(shard.names.log)
    if damage == "another type":
        shard.client.set(shard.names.log, "x")

    reply = shard.sync(1)

    assert (reply.seq, reply.entries) == (3, ())


def test_p6_a_foreign_log_entry_is_passed_on_for_judgement(shard):
    for number in range(3):
        shard.store(f"key{number}")
    shard.client.xadd(shard.names.log, {"foreign": "entry"}, id="3-1")

    assert shard.sync(2).entries[-1] == b"entry"


def test_p6_the_largest_replay(redis_server, namespace):
    with opened(redis_server, namespace, log_length=100_000, replay_limit=60_000) as shard:
        shard.store("a")
        with shard.client.pipeline(transaction=False) as pipeline:
            for number in range(2, 60_002):
                pipeline.xadd(shard.names.log, {"m": b"%d" % number}, id=f"{number}-0")
            pipeline.execute()
        shard.client.hset(shard.names.clock, "seq", 60_001)

        entries = shard.sync(1).entries

        assert list(entries[1:]) == [b"%d" % number for number in range(2, 60_002)]
        assert len(entries) == 60_001


@pytest.mark.parametrize("count", [99, 100, 101, 199, 200, 201, 1000])
def test_p6_a_replay_is_whole_wherever_its_pieces_end(shard, count):
    for number in range(count):
        shard.delete(f"key{number}")
    log = [message for _, message in shard.log()]

    for position in (1, 2, count - 1):
        assert list(shard.sync(position).entries) == log[position - 1 :]


@pytest.mark.parametrize(("size", "replayed"), [(1000, True), (1100, False)])
def test_p6_more_than_a_mebibyte_is_not_replayed(shard, size, replayed):
    # The subscriber's output buffer would overflow, its connection be cut, and the next resync the same.
    for _ in range(10):
        shard.delete(*[f"{number:04}" + "k" * (size - 4) for number in range(100)])

    reply = shard.sync(1)

    assert list(reply.entries) == ([message for _, message in shard.log()] if replayed else [])
    assert reply.seq == 10


@pytest.mark.parametrize("seq", [None, 1])
def test_an_answer_can_be_published_instead(shard, seq):
    shard.store("a")
    shard.store("b")
    private = Ear(shard.client, b"private")

    (answer,) = shard.ask(shard.scripts.sync(Sync(0, b"mark", seq), b"private"))

    assert answer == b"OK"
    (published,) = private.heard()
    reply = decode_sync_reply(published)
    assert (reply.token, reply.seq, len(reply.entries)) == (b"mark", 2, 0 if seq is None else 2)
    private.close()


@pytest.mark.parametrize("token", [b"", b"t", bytes(range(256))])
def test_the_token_comes_back(shard, token):
    (answer,) = shard.ask(shard.scripts.sync(Sync(0, token, None)))

    assert decode_sync_reply(answer).token == token


# --- A1: who may not write, says so ---


@contextmanager
def replica_of(server_factory, primary: RedisServer, namespace: str) -> Iterator[Shard]:
    replica = server_factory()
    if replica.kind == "container":
        pytest.skip("containers do not see each other's loopback interface")
    with opened(replica, namespace) as shard:
        shard.client.replicaof("127.0.0.1", primary.port)
        wait_until(
            lambda: shard.client.info("replication").get("master_link_status") == "up", 30, "the replica is connected"
        )
        yield shard


def test_a1_a_replica_knows_the_clock_and_says_that_it_is_none(fresh_server, server_factory, namespace):
    with opened(fresh_server, namespace) as primary, replica_of(server_factory, fresh_server, namespace) as replica:
        primary.store("a")
        primary.store("b")
        assert primary.client.wait(1, 30_000) == 1

        reply = replica.sync(1)

        assert reply.status
        assert (reply.epoch, reply.seq, reply.nonce) == primary.clock()[:3]
        assert list(reply.entries) == [message for _, message in primary.log()]
        assert list(replica.read("a").envelopes) == [primary.stored("a")]
        assert primary.sync(1).status == ""


def test_a1_a_replica_begins_no_history(fresh_server, server_factory, namespace):
    with replica_of(server_factory, fresh_server, namespace) as replica:
        first, second = replica.sync(), replica.sync()

        assert (bool(first.status), first.seq) == (True, 0)
        assert first.epoch != second.epoch  # nobody can hold anything for such an epoch
        assert replica.client.keys() == []


@every_write
def test_a1_a_demoted_primary_refuses_every_write(fresh_server, namespace, write):
    # Its primary is not there: that makes no difference to what it refuses.
    with opened(fresh_server, namespace) as shard:
        shard.store("a", "b")
        before = shard.everything()
        shard.client.replicaof("127.0.0.1", 1)
        shard.ear.heard()

        with pytest.raises(ReplyError, match="READONLY"):
            WRITES[write](shard)

        assert shard.sync(0).status
        assert shard.everything() == before
        assert shard.ear.heard() == []


def test_a1_the_status_is_the_code_of_the_refusal(own_shard):
    own_shard.client.replicaof("127.0.0.1", 1)

    assert own_shard.sync().status == "READONLY"


def test_a1_a_user_who_may_not_write_is_told_from_one_who_may(own_shard, fresh_server):
    shard = own_shard
    shard.store("a")

    with limited(shard, fresh_server, "-@write"):
        reply = shard.sync()

    assert reply.status
    assert (reply.epoch, reply.seq) == shard.clock()[:2]
    assert shard.sync().status == ""


# --- batches ---


def test_a_batch_stores_and_deletes_under_one_version_with_one_message(shard):
    shard.store("a", "b", "c")
    shard.ear.heard()

    reply = shard.batch(("a", "new"), ("b", "nothing", "c"), ttls_ms=(0, TTL_MS))

    assert (reply.applied, reply.seq, list(reply.existed)) == (True, 2, [True, False, True])
    assert [shard.envelope(key)[1] for key in ("a", "new")] == [2, 2]
    assert [shard.stored(key) for key in ("b", "nothing", "c")] == [None] * 3
    (message,) = map(decode_message, shard.ear.heard())
    assert (message.kind, message.names) == (Kind.BATCH, ("a", "new", "b", "nothing", "c"))


@pytest.mark.parametrize("tags", [(), ("red", "green")])
def test_what_a_batch_stores_is_byte_for_byte_what_python_encodes(shard, tags):
    before = server_ms(shard.client)
    shard.batch(("a", "b", "c"), (), ttls_ms=(0, TTL_MS, 5000), tags=tags)
    after = server_ms(shard.client)

    for key, ttl_ms in (("a", 0), ("b", TTL_MS), ("c", 5000)):
        expires_ms, left = shard.envelope(key)[2], shard.client.pttl(shard.value(key))
        data = encode_envelope(prefix_of(key), shard.clock().epoch, 1, expires_ms, encode_content(tags, b"payload"))
        assert shard.stored(key) == data
        if ttl_ms:
            assert before + ttl_ms <= expires_ms <= after + ttl_ms
            assert abs(expires_ms - (server_ms(shard.client) + left)) <= 50
        else:
            assert (expires_ms, left) == (0, -1)


@pytest.mark.parametrize("stored", [0, 1, 500, 1000])
def test_the_largest_batch(shard, stored):
    keys = [f"key{number}" for number in range(MAX_KEYS_PER_SCRIPT)]
    shard.store(*keys)

    reply = shard.batch(tuple(keys[:stored]), tuple(keys[stored:]))

    assert list(reply.existed) == [True] * (MAX_KEYS_PER_SCRIPT - stored)
    assert shard.client.exists(*map(shard.value, keys)) == stored


# --- schemas ---


@pytest.mark.parametrize(("written", "asked"), [(0, 3), (3, 0), (3, 259)])
def test_values_of_another_schema_are_judged_as_absent(redis_server, namespace, written, asked):
    with (
        opened(redis_server, namespace, schema=written) as writer,
        opened(redis_server, namespace, schema=asked) as other,
    ):
        prefix = envelope_prefix(key_digest(b"a"), CODEC, written)
        version = writer.run(StoreRequest(0, ("a",), (prefix, encode_content((), b"payload")), TTL_MS)).seq

        assert other.touch("a").applied is False
        refused = other.store("a", condition=Condition(seq=version))
        assert (refused.applied, refused.foreign, refused.current_seq) == (False, False, 0)
        assert other.delete("a", condition=Condition(seq=version)).applied is False
        assert writer.touch("a").applied is True
        assert list(other.delete("a", "nothing").existed) == [False, False]
        assert writer.stored("a") is None


def test_a_condition_of_absence_holds_over_another_schema(redis_server, namespace):
    with opened(redis_server, namespace) as writer, opened(redis_server, namespace, schema=3) as other:
        writer.store("a")
        assert writer.store("a", condition=Condition()).applied is False
        prefix, content = envelope_prefix(key_digest(b"a"), CODEC, 3), encode_content((), b"new")

        assert other.run(StoreRequest(0, ("a",), (prefix, content), TTL_MS, Condition())).applied is True
        assert other.run(StoreRequest(0, ("a",), (prefix, content), TTL_MS, Condition())).applied is False
        assert writer.store("a", condition=Condition()).applied is True
