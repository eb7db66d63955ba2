"""The simulated Redis answers as the real one does: one random trace of requests on both, through the real scripts.

What differs by nature is made equal first: epochs and nonces are numbered in the order of their appearance, run ids and
moments of sending are dropped, times are compared roughly.
"""

from __future__ import annotations

import itertools
import random
import time
from contextlib import closing, suppress
from dataclasses import replace

import pytest
import redis

from coherent_cache.config import Settings
from coherent_cache.core.requests import (
    BatchRequest,
    Condition,
    DeleteRequest,
    FillRequest,
    FloorRequest,
    Lease,
    LeaseReply,
    LeaseRequest,
    LeaseStatus,
    LeaveRequest,
    Left,
    MembersReply,
    MembersRequest,
    ReadReply,
    ReadRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    StoreRequest,
    TouchRequest,
)
from coherent_cache.core.session import Sync
from coherent_cache.errors import CacheUnavailable
from coherent_cache.keys import key_digest
from coherent_cache.remote.scripts import Scripts
from coherent_cache.remote.sync_io import ConnectionPool, SyncIO
from coherent_cache.remote.topology import resolve
from coherent_cache.testing.simulation.server import Refused, Server, Stored
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    PREFIX_BYTES,
    Kind,
    WireError,
    decode_envelope,
    decode_message,
    decode_sync_reply,
    encode_content,
    envelope_prefix,
)

KEYS = ("k1", "k2", "k3", "schlüssel")
TAGS = ("t1", "t2", "t" * 200)
REPLAY_LIMIT = 5
ROUGHLY_MS = 5_000
PATIENCE = 20.0
END = b"end of what was heard"
STEPS = 1_500


class Numbers:
    """Numbers for what is random, in the order of appearance."""

    def __init__(self):
        self._seen = {b"": 0}

    def __getitem__(self, data):
        return self._seen.setdefault(data, len(self._seen))


def epoch_of(reply, before):
    """Return the epoch that a reply names."""
    if isinstance(reply, RenewReply | MembersReply | Left):
        return before
    return reply.read.epoch if isinstance(reply, LeaseReply) else reply.epoch


class Real:
    """A Redis server, reached as instances reach it."""

    def __init__(self, server, namespace):
        self.settings = Settings(namespace=namespace, replay_limit=REPLAY_LIMIT, timeout=PATIENCE)
        endpoint = resolve(server.url, self.settings)
        self._database = endpoint.database
        self._scripts = Scripts(self.settings, instance_id="-", database=endpoint.database)
        self.names = self._scripts.names[0]
        self._pool = ConnectionPool(endpoint, self._scripts.rights, name="trace", size=1, timeout=PATIENCE)
        self._io = SyncIO(endpoint, self._scripts, self._pool, time.monotonic)
        self.plain = server.client()
        self._listener = self.plain.pubsub()
        self._listener.subscribe(self.names.channel)
        while self._listener.get_message(timeout=5)["type"] != "subscribe":
            pass
        self.numbers = Numbers()
        self.epoch = b""
        self.leases = []

    def close(self):
        self._listener.close()
        self.plain.close()
        self._pool.close()

    def execute(self, request):
        (reply,) = self._io.execute([request])
        self.epoch = epoch_of(reply, self.epoch)
        return reply

    def sync(self, token, position, member, bound):
        settings = replace(self.settings, max_staleness=bound)
        scripts = Scripts(settings, instance_id="-", database=self._database, member=member)
        answer, _ = self._io.ask(scripts.sync(Sync(0, token, position)))
        return answer

    def heard(self):
        self.plain.publish(self.names.channel, END)  # one connection is ordered
        messages = []
        while (data := self._listener.get_message(timeout=PATIENCE)["data"]) != END:
            messages.append(data)
        return messages

    # What other hands may do.

    def value(self, key):
        return self.names.value(key.encode())

    def lose_clock(self):
        self.plain.delete(self.names.clock)

    def lose_registry(self):
        self.plain.delete(self.names.members)

    def lose_log(self):
        self.plain.delete(self.names.log)

    def spoil_log(self):
        self.plain.set(self.names.log, "something else")

    def trim_log(self, first):
        with suppress(redis.ResponseError):  # it may be something else
            self.plain.xtrim(self.names.log, minid=f"{first}-0", approximate=False)

    def lose_value(self, key):
        self.plain.delete(self.value(key))

    def write_raw(self, key, data):
        self.plain.delete(self.value(key))
        if data is None:
            self.plain.rpush(self.value(key), "an item")
        else:
            self.plain.set(self.value(key), data)

    def copy_value(self, source, target):
        if source != target:
            self.plain.copy(self.value(source), self.value(target), replace=True)

    def flush(self):
        self.plain.flushdb()

    def refuse(self, why):
        self.plain.config_set("maxmemory", "1" if why == "OOM" else "0")
        self.plain.config_set("min-replicas-to-write", "1" if why == "NOREPLICAS" else "0")


class Simulated:
    """The simulated server, with the same hands on it."""

    origin = "-"

    def __init__(self, offset):
        entropy = itertools.count(1)
        self.server = Server(
            "simulated", shards=1, clock=lambda: time.time() + offset, entropy=lambda: b"%08d" % next(entropy) * 2,
            log_length=10_000, replay_limit=REPLAY_LIMIT,
        )  # fmt: skip
        self.server.links.append(self)
        self.messages = []
        self.numbers = Numbers()
        self.epoch = b""
        self.leases = []

    def push(self, _kind, _shard, data):
        self.messages.append(data)

    @property
    def data(self):
        return self.server.data[0]

    def execute(self, request):
        if self.server.refuse == "OOM" and isinstance(request, ReadRequest):
            request = request._replace(judge_tags=True)  # a full Redis runs no transaction: see SyncIO.execute
        reply = self.server.execute(request, origin="-", sent_at=0.0)
        self.epoch = epoch_of(reply, self.epoch)
        return reply

    def sync(self, token, position, member, bound):
        return self.server.sync(0, token, position, member=member, bound_ms=round(bound * 1000))

    def heard(self):
        messages, self.messages = self.messages, []
        return messages

    def lose_clock(self):
        self.data.lose_clock()

    def lose_registry(self):
        self.data.lose_registry()

    def lose_log(self):
        self.data.log.clear()

    spoil_log = lose_log

    def trim_log(self, first):
        self.data.log[:] = [(seq, message) for seq, message in self.data.log if seq >= first]

    def lose_value(self, key):
        self.data.values.pop(key, None)

    def write_raw(self, key, data):
        self.data.values[key] = Stored.of(data)

    def copy_value(self, source, target):
        if source in self.data.values:
            self.data.values[target] = self.data.values[source]

    def flush(self):
        self.data.lose_clock()
        self.data.log.clear()
        self.data.values.clear()
        self.data.refreshes.clear()
        self.data.lose_registry()

    def refuse(self, why):
        self.server.refuse = why


def opened(side, key, data, now_ms):
    """Return an envelope with a number for its epoch and its expiry roughly."""
    try:
        epoch, seq, expires_ms, *rest = decode_envelope(data, envelope_prefix(key_digest(key), 1))
    except WireError as error:
        reason = str(error)
        if "another key" not in reason:
            return reason, bytes(data)
        epoch, seq, expires_ms, *rest = decode_envelope(data, data[:PREFIX_BYTES])
        rest.append(reason)
    return (side.numbers[epoch], seq, expires_ms and round((expires_ms - now_ms) / ROUGHLY_MS), *rest)


def leases_given(request, reply):
    """Return the lease that a reply gives, as the core makes it."""
    if not isinstance(reply, LeaseReply) or reply.status is not LeaseStatus.LEASED:
        return []
    read = reply.read
    return [Lease(0, request.key, request.parts[1], read.epoch, read.seq + 1, request.version, 0.0)]


def told(side, message):
    numbers = side.numbers
    return message._replace(
        epoch=numbers[message.epoch], nonce=numbers[message.nonce], previous=numbers[message.previous], time_us=0
    )


def answer(side, step):
    """Let one side take a step; return what it answers in a form that can be compared."""
    name, *args = step
    if name == "request":
        request = args[0](side)
        try:
            reply = side.execute(request)
        except (CacheUnavailable, Refused):
            return "refused"
        side.leases += leases_given(request, reply)
        if isinstance(reply, Left):
            return "left", reply.entered
        if isinstance(reply, MembersReply):
            now_ms = reply.now_ms
            assert abs(now_ms - time.time() * 1000) < ROUGHLY_MS
            members = sorted(
                (name, bound_ms, round((now_ms - seen_ms) / ROUGHLY_MS)) for name, bound_ms, seen_ms in reply.members
            )
            age = reply.created_ms and round((now_ms - reply.created_ms) / ROUGHLY_MS)
            return "members", side.numbers[reply.epoch], age, members
        if isinstance(reply, RenewReply):
            return reply.held
        if isinstance(reply, LeaseReply):
            read = reply.read
            values = [data and opened(side, request.key.encode(), data, read.now_ms) for data in read.envelopes]
            left = round(reply.remaining * 1000 / ROUGHLY_MS)
            return reply.status, side.numbers[read.epoch], read.seq, read.floor, values, left
        if isinstance(reply, ReadReply):
            assert abs(reply.now_ms - time.time() * 1000) < ROUGHLY_MS
            values = [
                data if data is None else opened(side, key, data, reply.now_ms)
                for key, data in zip(request.keys, reply.envelopes, strict=True)
            ]
            floors = list(reply.tag_floors) if any(reply.tag_floors) else []
            return side.numbers[reply.epoch], reply.seq, reply.floor, reply.tag_seq, values, floors
        return (
            side.numbers[reply.epoch], reply.seq, reply.applied, list(reply.existed), reply.current_seq, reply.foreign
        )  # fmt: skip
    if name == "sync":
        reply = decode_sync_reply(side.sync(*args))
        assert abs(reply.time_us / 1000 - time.time() * 1000) < ROUGHLY_MS
        entries = [told(side, decode_message(entry)) for entry in reply.entries]
        return reply.token, reply.status, side.numbers[reply.epoch], reply.seq, side.numbers[reply.nonce], entries
    if name == "heard":
        return [told(side, decode_message(data)) for data in side.heard()]
    if name != "refuse":
        side.refuse("")  # other hands need no leave
    return getattr(side, name)(*args)


def drawn_steps(rng):
    """Draw a trace. Conditions name epochs and versions that each side knows by other bytes."""
    position = 0
    for number in range(STEPS):
        keys = tuple(rng.sample(KEYS, rng.choice((1, 1, 1, 2, 4))))
        key = keys[0]
        position = max(0, position + rng.choice((1, 1, 1, 0, -3)))
        ttl = rng.choice((0, 0, 60_000, 600_000))
        tags = tuple(rng.sample(TAGS, rng.choice((0, 0, 1, 2, 3))))
        seq = rng.choice((None, 0, position, position))
        known = rng.random() < 0.9

        # What asks for receipts brings its own random bytes: no other's, on either side.
        entropy = b"entropy %08d" % number if rng.random() < 0.3 else b""

        def condition(side, seq=seq, known=known):
            if seq is None:
                return None
            return Condition(side.epoch if known and len(side.epoch) == 16 else b"x" * 16 if not known else b"", seq)

        def store(side, keys=keys, key=key, ttl=ttl, tags=tags, condition=condition, number=number, entropy=entropy):
            wanted = condition(side)
            names = keys if wanted is None else (key,)
            content = encode_content(tags, b"value %d" % number)
            parts = [part for name in names for part in (envelope_prefix(key_digest(name.encode()), 1), content)]
            return StoreRequest(0, names, tuple(parts), ttl, wanted, entropy)

        def delete(side, keys=keys, key=key, condition=condition, entropy=entropy):
            wanted = condition(side)
            return DeleteRequest(0, keys if wanted is None else (key,), wanted, entropy)

        def batch(_, keys=keys, key=key, ttl=ttl, tags=tags, number=number):
            deleted = keys[1 + number % 3 :]
            stored = tuple(name for name in keys if name not in deleted) if number % 5 else ()
            content = encode_content(tags, b"value %d" % number)
            parts = [part for name in stored for part in (envelope_prefix(key_digest(name.encode()), 1), content)]
            ttls_ms = tuple(ttl if name == key else 0 for name in stored)
            return BatchRequest(0, stored + (deleted if stored else keys), tuple(parts), ttls_ms)

        token = encode_content((), b"token %d" % number)
        version, over_foreign = rng.choice((0, 0, 0, position, position)), rng.random() < 0.3

        def lease(_, key=key, token=token, version=version, over_foreign=over_foreign):
            prefix = envelope_prefix(key_digest(key.encode()), CODE_LEASE)
            return LeaseRequest(0, key, (prefix, token), 600_000, version, over_foreign)

        which = rng.choice((-1, -1, -1, -2, -3))

        def of_lease(side, make, which=which):
            known = side.leases[which:] or [Lease(0, "k1", b"no such token", b"x" * 16, 1, 0, 0.0)]
            return make(known[0])

        def release(side, of_lease=of_lease):
            return of_lease(side, lambda lease: ReleaseRequest(0, (lease.key,), lease._replace(version=0)))

        def renew(side, of_lease=of_lease, lease_ms=rng.choice((600_000, 600_000, 0))):  # noqa: B008
            return of_lease(side, lambda lease: RenewRequest(0, lease, lease_ms))

        codec, loaded = rng.choice((1, 1, CODE_NOTHING)), encode_content(tags, b"loaded %d" % number)

        def fill(side, ttl=ttl, tags=tags, codec=codec, loaded=loaded, of_lease=of_lease):
            return of_lease(
                side,
                lambda lease: FillRequest(
                    0, (lease.key,), (envelope_prefix(key_digest(lease.key.encode()), codec), loaded), ttl, tags, lease
                ),
            )

        read = ReadRequest(0, tuple(name.encode() for name in keys), rng.random() < 0.4)
        kind = rng.choice((Kind.CLEAR, Kind.TAG, Kind.TAG))
        floor = FloorRequest(0, kind, () if kind is Kind.CLEAR else tags or ("t1",), entropy)
        member, bound = rng.choice(("-", "a:1", "b:2", "c:3")), rng.choice((5.0, 60.0))
        raw = rng.choice((b"", b"raw", b"\xc1\x01 not all of it", None, b"x" * 100))
        yield rng.choices(
            [
                ("request", lambda _, read=read: read), ("request", store), ("request", delete),
                ("request", batch), ("request", lambda _, key=key, ttl=ttl: TouchRequest(0, key, ttl)),
                ("request", lambda _, floor=floor: floor),
                ("request", lease), ("request", fill), ("request", release), ("request", renew),
                ("request", lambda _: MembersRequest(0)), ("request", lambda _: LeaveRequest(0)),
                ("sync", b"%08d" % number, rng.choice((None, position, position)), member, bound),
                ("lose_registry",), ("lose_clock",), ("lose_log",), ("spoil_log",),
                ("trim_log", position), ("lose_value", key),
                ("write_raw", key, raw), ("copy_value", key, keys[-1]), ("flush",),
                ("refuse", rng.choice(("OOM", "NOREPLICAS"))), ("refuse", ""), ("heard",),
            ],
            [26, 16, 8, 8, 6, 4, 20, 16, 4, 6, 8, 2, 12, 1, 1, 1, 1, 2, 2, 3, 2, 0.5, 3, 3, 3],
        )[0]  # fmt: skip
    yield ("refuse", "")
    yield ("heard",)


@pytest.mark.parametrize("seed", range(3))
def test_the_simulated_redis_answers_as_the_real_one(redis_server, namespace, seed):
    rng = random.Random(seed)
    with closing(Real(redis_server, namespace)) as real:
        simulated = Simulated(0.0)
        try:
            trace = []
            for step in drawn_steps(rng):
                mine, theirs = answer(simulated, step), answer(real, step)
                trace.append((step, theirs))
                if step[0] not in ("request", "sync", "heard"):
                    continue
                assert mine == theirs, trace[-8:]
        finally:
            real.refuse("")
    answers = [theirs for (name, *_), theirs in trace if name == "request"]
    assert sum(each == "refused" for each in answers) > 5
    leases = [each[0] for each in answers if isinstance(each, tuple) and isinstance(each[0], LeaseStatus)]
    assert set(leases) == set(LeaseStatus)
    assert {each for each in answers if isinstance(each, bool)} == {True, False}
    assert {each[1] for each in answers if isinstance(each, tuple) and each[0] == "left"} == {True, False}
    assert {len(each[3]) for each in answers if isinstance(each, tuple) and each[0] == "members"} >= {0, 1, 2, 3}
    assert sum(isinstance(each, tuple) and len(each) == 6 and each[2] is False for each in answers) > 20
