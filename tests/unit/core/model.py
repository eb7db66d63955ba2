"""A world in plain Python for tests of the core: a fake Redis, members with one subscriber connection each, one clock.

Nothing happens by itself. A test starts an operation, lets Redis execute its requests, lets other things happen, and
only then delivers the replies; what the server publishes waits in each connection's queue until the test delivers it.
"""

import copy
import itertools
import random
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from coherent_cache.config import Settings
from coherent_cache.core import batching, operations
from coherent_cache.core.instance import Instance
from coherent_cache.core.requests import (
    FRONT_REQUESTS,
    BatchRequest,
    DeleteRequest,
    FillRequest,
    FloorRequest,
    LeaseReply,
    LeaseRequest,
    LeaseStatus,
    Loaded,
    LoadRequest,
    ReadReply,
    ReadRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    Spawned,
    SpawnRequest,
    StoreRequest,
    TouchRequest,
    WaitRequest,
    Woken,
    WriteReply,
)
from coherent_cache.core.session import Session, Subscribe
from coherent_cache.keys import key_digest
from coherent_cache.serializers import make_codec
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    PREFIX_BYTES,
    Kind,
    Message,
    SyncReply,
    WireError,
    decode_envelope,
    encode_content,
    encode_envelope,
    encode_message,
    encode_sync_reply,
    envelope_prefix,
)

HEARTBEAT = 1.0
MAX_STALENESS = 5.0
PATIENCE = 2.5
ABSENT = type("Absent", (), {"__repr__": lambda _: "ABSENT"})()
CONTENT = 69  # where an envelope's tags and payload begin


EPOCH = b"epoch of history"
OTHER_EPOCH = b"another history."


def nonce(seq, history=b"n"):
    """Nonce of the write with this number; another history's is another one."""
    return history + b"%07d" % seq


def message(kind, seq, *names, epoch=EPOCH, history=b"n", time_us=0, origin="b", wants_receipts=False):
    nonces = nonce(seq, history), nonce(seq - 1, history)
    return Message(kind, epoch, seq, *nonces, time_us, origin, names, wants_receipts)


def sync_reply(seq, *, epoch=EPOCH, history=b"n", entries=(), time_us=0):
    log = tuple(encode_message(entry) if isinstance(entry, Message) else entry for entry in entries)
    return SyncReply(b"token", "", epoch, seq, nonce(seq, history), time_us, log)


def read_reply(
    seq=10,
    *,
    epoch=EPOCH,
    server="A",
    sent_at=100.0,
    envelopes=(),
    floor=0,
    tag_seq=0,
    tag_floors=(),
    now_ms=0,
):
    return ReadReply(
        epoch=epoch,
        seq=seq,
        floor=floor,
        tag_seq=tag_seq,
        now_ms=now_ms,
        envelopes=envelopes,
        tag_floors=tag_floors,
        server=server,
        sent_at=sent_at,
    )


def envelope(member, key, value, seq, *, epoch=EPOCH, expires_ms=0, tags=(), codec="msgpack"):
    """Make an envelope as a member with this codec would have stored it."""
    codec = make_codec(codec)
    prefix = envelope_prefix(key_digest(key.encode()), codec.code)
    return encode_envelope(prefix, epoch, seq, expires_ms, encode_content(tags, codec.dumps(value)))


def write_reply(seq, *, epoch=EPOCH, server="A", applied=True, existed=(), current_seq=0, foreign=False, sent_at=100.0):
    return WriteReply(
        epoch=epoch,
        seq=seq,
        applied=applied,
        existed=list(existed),
        current_seq=current_seq,
        foreign=foreign,
        server=server,
        sent_at=sent_at,
    )


class Stored(NamedTuple):
    """A decoded envelope."""

    epoch: bytes
    seq: int
    expires_ms: int
    codec: int
    tags: tuple[str, ...]
    payload: bytes


def open_envelope(stored):
    """Decode an envelope as the scripts judge it: whatever its key and its codec."""
    return Stored(*decode_envelope(stored, stored[:PREFIX_BYTES]))


class Clock:
    """The one clock of a test, in seconds. Servers show the same time."""

    def __init__(self, now=1000.0):
        self.now = now

    @property
    def us(self):
        return int(self.now * 1_000_000)


@dataclass
class Data:
    """One shard's data on one server. Without an epoch there is no clock."""

    epoch: bytes | None = None
    seq: int = 0
    nonce: bytes = b""
    floor: int = 0
    tag_seq: int = 0
    tag_floors: dict[str, int] = field(default_factory=dict)
    log: list[tuple[int, bytes]] = field(default_factory=list)
    values: dict[str, tuple[object, int]] = field(default_factory=dict)  # stored bytes, expiry in ms (0 for never)
    refreshes: dict[str, tuple[object, int]] = field(default_factory=dict)  # the same for leases of refreshes


class Link:
    """A subscriber connection: what the server has sent on it and nobody has read yet, in order."""

    def __init__(self, server):
        self.server = server
        self.channels = set()
        self.items = deque()

    def put(self, kind, shard, data=b""):
        self.items.append((kind, shard, data))


class Server:
    """One Redis process. Executes requests as ``remote/scripts`` do, one at a time."""

    def __init__(self, clock, run_id="A", *, shards=1, log_length=1000, replay_limit=100):
        self.clock = clock
        self.run_id = run_id
        self.shards = [Data() for _ in range(shards)]
        self.log_length = log_length
        self.replay_limit = replay_limit
        self.status = ""  # what the probing write answers
        self.silent = False  # True: subscriber connections are half open, nothing comes from here any more
        self.links = []
        self._entropy = itertools.count(1)

    def replica(self, run_id):
        """Return a server with a copy of this one's data as it is now, and no connections."""
        other = Server(self.clock, run_id, shards=0, log_length=self.log_length, replay_limit=self.replay_limit)
        other.shards = copy.deepcopy(self.shards)
        other._entropy = self._entropy  # never the same nonce twice
        return other

    # -- faults ----------------------------------------------------------------------------------------------------

    def lose_clock(self, shard=0):
        """Forget the clock hash (evicted, deleted); values and log stay."""
        data = self.shards[shard]
        self.shards[shard] = Data(log=data.log, values=data.values)

    def flushall(self):
        self.shards = [Data() for _ in self.shards]

    def lose_log(self, shard=0):
        self.shards[shard].log.clear()

    def foreign(self, key, data, shard=0):
        """Let another program write; None for a value that is no string."""
        self.shards[shard].values[key] = (data, 0)

    # -- commands --------------------------------------------------------------------------------------------------

    def execute(self, requests, *, origin="-", sent_at=0.0):
        return [self._execute(request, origin, sent_at) for request in requests]

    def _execute(self, request, origin, sent_at):
        data = self.shards[request.shard]
        match request:
            case ReadRequest():
                return self._read(data, request, sent_at)
            case StoreRequest():
                reply = partial(self._reply, data, sent_at)
                if request.condition is not None:
                    current = self._live_seq(data, request.keys[0])
                    if current is None:
                        return reply(applied=False, foreign=True)
                    wanted = request.condition
                    if current != wanted.seq or (wanted.epoch and data.epoch != wanted.epoch):
                        return reply(applied=False, current_seq=current)
                self._advance(request.shard, Kind.SET, origin, request.keys)
                expires = self._expiry(request.ttl_ms)
                for at, key in enumerate(request.keys):
                    prefix, content = request.parts[2 * at : 2 * at + 2]
                    data.values[key] = (encode_envelope(prefix, data.epoch, data.seq, expires, content), expires)
                return reply()
            case DeleteRequest():
                reply = partial(self._reply, data, sent_at)
                lives = [self._live_seq(data, key) for key in request.keys]
                if request.condition is not None:
                    wanted, (current,) = request.condition, lives
                    if current is None:
                        return reply(applied=False, foreign=True)
                    if current != wanted.seq or (wanted.epoch and data.epoch != wanted.epoch):
                        return reply(applied=False, current_seq=current)
                self._advance(request.shard, Kind.DELETE, origin, request.keys)
                for key in request.keys:
                    data.values.pop(key, None)
                return reply(existed=[seq is None or seq > 0 for seq in lives])
            case TouchRequest():
                reply = partial(self._reply, data, sent_at)
                current = self._live_seq(data, request.key)
                if not current:
                    return reply(applied=False, foreign=current is None)
                self._advance(request.shard, Kind.TOUCH, origin, (request.key,))
                expires = self._expiry(request.ttl_ms)
                stored = data.values[request.key][0]
                envelope = encode_envelope(stored[:PREFIX_BYTES], data.epoch, data.seq, expires, stored[CONTENT:])
                data.values[request.key] = (envelope, expires)
                return reply()
            case BatchRequest():
                deleted = request.keys[len(request.ttls_ms) :]
                lives = [self._live_seq(data, key) for key in deleted]
                self._advance(request.shard, Kind.BATCH, origin, request.keys)
                for at, ttl_ms in enumerate(request.ttls_ms):
                    expires, (prefix, content) = self._expiry(ttl_ms), request.parts[2 * at : 2 * at + 2]
                    stored = encode_envelope(prefix, data.epoch, data.seq, expires, content)
                    data.values[request.keys[at]] = (stored, expires)
                for key in deleted:
                    data.values.pop(key, None)
                return self._reply(data, sent_at, existed=[seq is None or seq > 0 for seq in lives])
            case FloorRequest():
                self._advance(request.shard, request.kind, origin, request.tags)
                if request.kind is Kind.CLEAR:
                    data.floor = data.seq
                else:
                    data.tag_seq = data.seq
                    data.tag_floors.update(dict.fromkeys(request.tags, data.seq))
                return self._reply(data, sent_at)

            case LeaseRequest():
                return self._lease(data, request, sent_at)
            case FillRequest(lease=lease):
                seq, codec = self._live(data, lease.key)
                held = seq and data.epoch == lease.epoch
                if lease.version:
                    held = held and codec != CODE_LEASE and seq == lease.version
                else:
                    held = held and codec == CODE_LEASE and self._get(data, lease.key)[CONTENT:] == lease.content
                if not held or any(data.tag_floors.get(tag, 0) >= lease.seq for tag in request.tags):
                    return self._reply(data, sent_at, applied=False)
                return self._execute(StoreRequest(request.shard, *request[1:4]), origin, sent_at)
            case ReleaseRequest(lease=lease):
                if self._get(data, lease.key)[CONTENT:] != lease.content:
                    return self._reply(data, sent_at, applied=False)
                self._advance(request.shard, Kind.RELEASE, origin, request.keys)
                del data.values[lease.key]
                return self._reply(data, sent_at)
            case RenewRequest(lease=lease):
                place = data.refreshes if lease.version else data.values
                stored, _ = place.get(lease.key, (b"", 0))
                if stored[CONTENT:] != lease.content:
                    return RenewReply(False)
                place[lease.key] = (stored, self._expiry(request.lease_ms))
                if not request.lease_ms:
                    del place[lease.key]
                return RenewReply(True)

    def _lease(self, data, request, sent_at):
        key, status, value, left = request.key, LeaseStatus.LEASED, None, 0
        seq, codec = self._live(data, key)
        place = data.values
        if seq is None and not request.over_foreign:
            status = LeaseStatus.FOREIGN
        elif seq and codec != CODE_LEASE:
            if seq != request.version:
                status, value = LeaseStatus.VALUE, self._get(data, key)
            elif key in data.refreshes:
                status, left = LeaseStatus.TAKEN, 1000
            place = data.refreshes
        elif request.version:
            status = LeaseStatus.TAKEN
        elif seq:
            status, left = LeaseStatus.TAKEN, data.values[key][1] - self.clock.us // 1000
        if status is LeaseStatus.LEASED:
            if data.epoch is None:
                data.epoch, data.nonce = self._new_epoch(), self._new_nonce()
            prefix, content = request.parts
            lease = encode_envelope(prefix, data.epoch, data.seq + 1, 0, content)
            place[key] = (lease, self._expiry(request.lease_ms))
        now_ms = self.clock.us // 1000
        read = ReadReply(data.epoch or b"", data.seq, data.floor, 0, now_ms, (value,), (), self.run_id, sent_at)
        return LeaseReply(status, read, left / 1000)

    def sync(self, command):
        """Answer a heartbeat or a resync."""
        data = self.shards[command.shard]
        epoch, seq, nonce = data.epoch, data.seq, data.nonce
        if epoch is None:
            epoch, seq, nonce = self._new_epoch(), 0, self._new_nonce()
            if not self.status:
                data.log.clear()
                data.epoch, data.nonce = epoch, nonce
        entries = ()
        position, most = command.seq, self.replay_limit
        if position is not None and 0 < seq - position <= most:
            entries = tuple(message for at, message in data.log if at >= position)[: most + 1]
        return encode_sync_reply(SyncReply(command.token, self.status, epoch, seq, nonce, self.clock.us, entries))

    def take(self, link, command):
        """Execute a command of a subscriber connection; the answer goes into its queue."""
        if self.silent:
            return
        if isinstance(command, Subscribe):
            if link not in self.links:
                self.links.append(link)
            for shard in command.shards:
                link.channels.add(shard)
                link.put("confirmed", shard)
        else:
            link.put("answer", command.shard, self.sync(command))

    # -- what a test asks ------------------------------------------------------------------------------------------

    def live(self, key, shard=0):
        """Return the live envelope of a key, None if there is none."""
        data = self.shards[shard]
        return self._envelope(data, key) if self._live_seq(data, key) else None

    # -- as the scripts do it --------------------------------------------------------------------------------------

    def _new_epoch(self):
        return b"epoch %010d" % next(self._entropy)

    def _new_nonce(self):
        return b"n%07d" % next(self._entropy)

    def _expiry(self, ttl_ms):
        return self.clock.us // 1000 + ttl_ms if ttl_ms else 0

    def _get(self, data, key):
        stored, expires = data.values.get(key, (b"", 0))
        if 0 < expires <= self.clock.us // 1000:
            del data.values[key]
            return b""
        return stored

    def _envelope(self, data, key):
        return open_envelope(self._get(data, key))

    def _live_seq(self, data, key):
        """Version of a live value, 0 if absent or dead, None if there are other bytes."""
        seq, codec = self._live(data, key)
        return 0 if codec in (CODE_LEASE, CODE_NOTHING) else seq

    def _live(self, data, key):
        """Version and codec of what lives, 0 if nothing does, None if there are other bytes."""
        if self._get(data, key) == b"":
            return 0, 0
        try:
            envelope = self._envelope(data, key)
        except (WireError, TypeError):
            return None, 0
        tag_floor = max((data.tag_floors.get(tag, 0) for tag in envelope.tags), default=0)
        newest = data.seq + (envelope.codec == CODE_LEASE)
        alive = envelope.epoch == data.epoch and max(data.floor, tag_floor) < envelope.seq <= newest
        return (envelope.seq if alive else 0), envelope.codec

    def _read(self, data, request, sent_at):
        envelopes, tag_floors = [], []
        for key in request.keys:
            name = key.decode()
            stored = self._get(data, name)
            tags = ()
            if stored is None:
                envelopes.append(b"" if len(request.keys) == 1 else None)  # no string
            else:
                envelopes.append(stored or None)
                with suppress(WireError):
                    tags = open_envelope(stored).tags
            tag_floors.append(max((data.tag_floors.get(tag, 0) for tag in tags), default=0))
        judged = request.judge_tags
        return ReadReply(
            epoch=data.epoch or b"",
            seq=data.seq,
            floor=data.floor,
            tag_seq=0 if judged else data.tag_seq,
            now_ms=self.clock.us // 1000,
            envelopes=envelopes,
            tag_floors=tag_floors if judged and any(tag_floors) else [],
            server=self.run_id,
            sent_at=sent_at,
        )

    def _advance(self, shard, kind, origin, names):
        data = self.shards[shard]
        if data.epoch is None:
            data.epoch, data.seq, data.floor = self._new_epoch(), 0, 0
            data.nonce = data.epoch[:8]
            data.log.clear()
        data.seq += 1
        previous, data.nonce = data.nonce, self._new_nonce()
        message = encode_message(
            Message(kind, data.epoch, data.seq, data.nonce, previous, self.clock.us, origin, tuple(names))
        )
        data.log.append((data.seq, message))
        del data.log[: -self.log_length]
        for link in self.links:
            if shard in link.channels:
                link.put("message", shard, message)

    def _reply(self, data, sent_at, *, applied=True, existed=(), current_seq=0, foreign=False):
        return write_reply(
            data.seq,
            epoch=data.epoch or b"",
            server=self.run_id,
            applied=applied,
            existed=existed,
            current_seq=current_seq,
            foreign=foreign,
            sent_at=sent_at,
        )


class Flight:
    """An operation under way, stopped between a request and its reply.

    Attributes:
        member: whose operation it is.
        requests: what it waits for an answer to; None once it has ended.
        result: what it returned.
    """

    def __init__(self, member, operation):
        self.member = member
        self._operation = operation
        self._replies = None
        self.requests = self.result = None
        self._go_on(partial(next, operation))

    @property
    def done(self):
        return self.requests is None

    @property
    def executed(self):
        return self._replies is not None

    def _go_on(self, step):
        self._replies, self.requests = None, None
        try:
            self.requests = step()
        except StopIteration as stop:
            self.result = stop.value
        else:
            self.sent_at = self.member.clock.now
        return self

    def execute(self, server=None):
        """Let a server (the member's own) execute the requests; the replies are on their way then."""
        server = server or self.member.server
        self._replies = server.execute(self.requests, origin=self.member.name, sent_at=self.sent_at)
        return self

    def answer(self, *replies):
        """Deliver replies that a test has made. Raises what the operation does."""
        return self._go_on(partial(self._operation.send, replies))

    def serve(self):
        """Do what the front does: call a loader, end a wait, run something in the background."""
        (request,) = self.requests
        match request:
            case LoadRequest(load):
                try:
                    reply = Loaded(load())
                except Exception as error:  # noqa: BLE001  # whatever it raises
                    return self.fail(error)
            case WaitRequest(waiter):
                reply = Woken(waiter is not None and waiter.woken, self.member.clock.now)
            case SpawnRequest(operation):
                self.member.spawned.append(Flight(self.member, operation))
                reply = Spawned(True)
        return self.answer(reply)

    def finish(self):
        """Deliver the replies; executes the requests now, if that has not been done. Raises what the operation does."""
        if type(self.requests[0]) in FRONT_REQUESTS:
            return self.serve()
        if not self.executed:
            self.execute()
        return self._go_on(partial(self._operation.send, self._replies))

    def fail(self, error):
        """Throw an error into the operation. Raises what the operation does."""
        return self._go_on(partial(self._operation.throw, error))

    def close(self):
        """Abandon the operation."""
        self.requests = None
        self._operation.close()

    def run(self):
        """Go on to the end; return the result."""
        while not self.done:
            self.finish()
        return self.result


class Member:
    """One instance with its subscriber connection, driven by hand."""

    def __init__(self, server, name="a", *, serializer="msgpack", lock=nullcontext, **options):
        self.server = server  # where commands go
        self.clock = server.clock
        self.name = name
        self.events = []
        options = {"namespace": "test", "heartbeat": HEARTBEAT, "max_staleness": MAX_STALENESS, "ttl": None, **options}
        self.settings = Settings(shards=len(server.shards), **options)
        self.instance = Instance(
            self.settings,
            make_codec(serializer),
            instance_id=name,
            lock=lock,
            rng=random.Random(0),
            emit=self.events.append,
        )
        self.session = self.link = None
        self.spawned = []  # what operations have left to the background

    # -- the stream ------------------------------------------------------------------------------------------------

    def open(self, server=None):
        """Open a subscriber connection; nothing is sent yet."""
        self.cut()
        server = server or self.server
        self.link = Link(server)
        self.session = Session(
            self.instance.shards,
            server=server.run_id,
            origin=self.name,
            heartbeat=self.settings.heartbeat,
            patience=PATIENCE,
            replay_limit=self.settings.replay_limit,
            now=self.clock.now,
        )

    def connect(self, server=None):
        """Open a connection and settle: subscribed and synchronised."""
        self.open(server)
        self.settle()
        return self

    def cut(self):
        """Lose the connection with all that waits in it."""
        if self.session is not None:
            if self.link in self.link.server.links:
                self.link.server.links.remove(self.link)
            self.session.lost("cut")
            self.session = self.link = None

    def send(self):
        """Let the server execute what the session wants sent; return how many commands that were."""
        count = len(self.session.outgoing)
        while self.session.outgoing:
            self.link.server.take(self.link, self.session.outgoing.popleft())
        return count

    def deliver(self, count=1):
        """Hand the session the next items of the queue."""
        for _ in range(count):
            kind, shard, data = self.link.items.popleft()
            if kind == "confirmed":
                self.session.confirmed(shard, self.clock.now)
            elif kind == "message":
                self.session.message(shard, data, self.clock.now)
            else:
                self.session.answer(shard, data, self.clock.now)

    def settle(self):
        """Send and deliver until nothing is left."""
        while self.session.outgoing or self.link.items:
            self.send()
            self.deliver(len(self.link.items))

    def tick(self):
        self.session.tick(self.clock.now)

    def beat(self):
        """Let a heartbeat interval pass, send the heartbeats, and settle."""
        self.clock.now += self.settings.heartbeat
        self.tick()
        self.settle()

    # -- operations ------------------------------------------------------------------------------------------------

    def begin(self, operation, *args, **kwargs):
        """Start an operation and stop at its first request."""
        return Flight(self, operation(self.instance, *args, **kwargs))

    def read(self, *keys):
        return self.begin(operations.read, keys)

    def store(self, items, *, ttl=None, **options):
        return self.begin(operations.store, items, ttl=ttl, **options)

    def delete(self, *keys, **options):
        return self.begin(operations.delete, keys, **options)

    def batch(self, writes, items=None, *, ttl=None, tags=()):
        """Begin a batch: MISSING deletes."""
        collected = {
            key: batching.DELETE
            if value is operations.MISSING
            else batching.collect(self.instance, key, value, ttl=ttl, tags=tags)
            for key, value in writes.items()
        }
        return self.begin(batching.send, collected, [] if items is None else items)

    def touch(self, key, ttl):
        return self.begin(operations.touch, key, ttl)

    def clear(self):
        return self.begin(operations.raise_floor, Kind.CLEAR)

    def invalidate(self, *tags):
        return self.begin(operations.raise_floor, Kind.TAG, tags)

    def update(self, key, fn, *, default=None, ttl=None, tags=(), attempts=3):
        return self.begin(operations.update, key, fn, default=default, ttl=ttl, tags=tags, attempts=attempts)

    def set(self, key, value, **options):
        """Store one value, all the way; return its version."""
        return self.store({key: value}, **options).run()[key]

    def get(self, key):
        """Return a value as the front does: a local hit, or what Redis has; ABSENT if there is none."""
        value = self.hit(key)
        if value is not ABSENT:
            return value
        found = self.begin(operations.read_one, key).run()
        return ABSENT if found is None else found.value

    # -- what a test asks ------------------------------------------------------------------------------------------

    @property
    def shard(self):
        return self.instance.shards[0]

    def hit(self, key):
        """Return the value of a local hit, in the order of the front: horizon, clock, look-up; else ABSENT."""
        tier = self.instance.shard_of(key.encode()).tier
        if tier.valid_until >= self.clock.now:
            entry = tier.entries.get(key)
            if entry is not None and self.clock.now < entry.expires_at:
                tier.ticks = entry.used = tier.ticks + 1
                return self.value_of(entry)
        return ABSENT

    def value_of(self, entry):
        return entry.value if entry.deadline >= entry.coded_deadline else self.instance.codec.loads(entry.value)

    def held(self, key):
        """Return the local entry of a key, None if there is none, whether it may be served or not."""
        return self.instance.shard_of(key.encode()).tier.entries.get(key)

    def tokens(self):
        """Return how many tokens are registered, in all shards."""
        return sum(
            sum(map(len, shard._tokens._single.values())) + len(shard._tokens._bulk) for shard in self.instance.shards
        )

    def events_of(self, kind):
        return [event for event in self.events if type(event) is kind]


class World:
    """A clock, a server and members on it, connected unless a test wants otherwise."""

    def __init__(self, *, members="ab", shards=1, connect=True, log_length=1000, replay_limit=100, **options):
        self.clock = Clock()
        self.server = Server(self.clock, shards=shards, log_length=log_length, replay_limit=replay_limit)
        self.members = [
            Member(self.server, name, log_length=log_length, replay_limit=replay_limit, **options) for name in members
        ]
        if connect:
            for member in self.members:
                member.connect()

    def __iter__(self):
        return iter(self.members)

    def settle(self):
        for member in self.members:
            member.settle()

    def fail_over(self, to):
        """Let another server take over: commands go there; subscriber connections are cut."""
        self.server = to
        for member in self.members:
            member.cut()
            member.server = to

    def check(self):
        """Check what must hold after each test."""
        for member in self.members:
            for shard in member.instance.shards:
                shard.tier.check_invariants()
            assert member.tokens() == 0
            assert not any(shard._waiters for shard in member.instance.shards)
            assert len(member.instance.flights) == 0
