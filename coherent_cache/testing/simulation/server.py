"""A simulated Redis process: executes requests with the semantics of ``remote/scripts``, on real bytes.

It knows no network and no time but what its clock says. Links subscribe by being listed in ``links``; whoever must know
what changed listens to ``on_changed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol

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
    Member,
    MembersReply,
    MembersRequest,
    ReadReply,
    ReadRequest,
    RedisReply,
    RedisRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    StoreRequest,
    TouchRequest,
    WriteReply,
)
from coherent_cache.versions import NONCE_BYTES
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    PREFIX_BYTES,
    Kind,
    Message,
    SyncReply,
    WireError,
    decode_envelope,
    encode_envelope,
    encode_message,
    encode_sync_reply,
    newer_head,
)

EXPIRY_END: Final = 69
"""Offset of tags and payload in an envelope."""

DENIED_WHEN_FULL: Final = "OOM"


class Refused(Exception):
    """The server answered an error.

    Attributes:
        maybe_applied: whether the answer leaves open that something was written.
    """

    def __init__(self, text: str, *, maybe_applied: bool) -> None:
        super().__init__(text)
        self.maybe_applied = maybe_applied


class Subscriber(Protocol):
    """Where published messages go.

    Attributes:
        origin: instance whose receipts go there.
    """

    origin: str

    def push(self, kind: str, shard: int, data: bytes) -> None:
        """Take a message that the server sends."""


class Stored(NamedTuple):
    """What a Redis key holds, with what its header says.

    Attributes:
        data: the bytes; None for a value that is no string.
        envelope: whether the bytes are an envelope.
        epoch: its epoch.
        seq: its version.
        expires_ms: when Redis drops it; 0 for never.
        tags: its tags.
        codec: codec of its payload.
    """

    data: bytes | None
    envelope: bool
    epoch: bytes
    seq: int
    expires_ms: int
    tags: tuple[str, ...]
    codec: int = 0

    @classmethod
    def of(cls, data: bytes | None) -> Stored:
        """Look at bytes as the scripts do: at the header alone, whosever it is."""
        try:
            epoch, seq, expires, codec, tags, _ = decode_envelope(data or b"", (data or b"")[:PREFIX_BYTES])
        except WireError:
            return cls(data, False, b"", 0, 0, ())
        return cls(data, True, epoch, seq, expires, tags, codec)

    @property
    def content(self) -> bytes:
        """What follows the expiry in an envelope."""
        return (self.data or b"")[EXPIRY_END:]


class ShardData:
    """One shard's data. Without an epoch there is no clock.

    Attributes:
        log: seq and message of the latest writes.
        values: by user key.
        refreshes: by user key, the lease of who refreshes its value.
        registry_epoch: history that the registry of members belongs to; empty if there is none.
        registry_ms: when it was begun, in milliseconds.
        members: per member its bound and when it was last seen, in milliseconds.
        gone: keys whose value Redis dropped or another program changed, with what the oracle knew of it then: what is
            absent there was not deleted.
    """

    __slots__ = (
        "epoch", "floor", "gone", "log", "members", "nonce", "refreshes", "registry_epoch", "registry_ms", "seq",
        "tag_floors", "tag_seq", "values",
    )  # fmt: skip

    def __init__(self) -> None:
        self.epoch: bytes | None = None
        self.seq = 0
        self.nonce = b""
        self.floor = 0
        self.tag_seq = 0
        self.tag_floors: dict[str, int] = {}
        self.log: list[tuple[int, bytes]] = []
        self.values: dict[str, Stored] = {}
        self.refreshes: dict[str, Stored] = {}
        self.lose_registry()
        self.gone: dict[str, Any] = {}

    def copy(self) -> ShardData:
        """Return what a replica has that is up to date now."""
        other = ShardData()
        other.epoch, other.seq, other.nonce = self.epoch, self.seq, self.nonce
        other.floor, other.tag_seq, other.tag_floors = self.floor, self.tag_seq, self.tag_floors.copy()
        other.refreshes = self.refreshes.copy()
        other.registry_epoch, other.registry_ms = self.registry_epoch, self.registry_ms
        other.members = self.members.copy()
        other.log, other.values, other.gone = self.log.copy(), self.values.copy(), self.gone.copy()
        return other

    def forget_gone(self, keys: Iterable[str]) -> None:
        """Note that keys have been written or deleted by the rules."""
        for key in keys:
            self.gone.pop(key, None)

    def lose_clock(self) -> None:
        """Forget the clock hash, floors and all; values and log stay."""
        self.epoch, self.seq, self.nonce = None, 0, b""
        self.floor = self.tag_seq = 0
        self.tag_floors = {}

    def lose_registry(self) -> None:
        """Forget who the members are."""
        self.registry_epoch = b""
        self.registry_ms = 0
        self.members: dict[str, tuple[int, int]] = {}


class Server:
    """One Redis process.

    Attributes:
        run_id: its run id.
        data: its data, per shard.
        links: connections that are subscribed to all channels.
        refuse: error code that writes are answered with: ``OOM``, ``MISCONF``, ``READONLY``...; empty for none.
        abort_after: the next write dies after this many of its commands; None for none.
        garble: the next write is logged and published in a form that nobody here knows.
        alive: whether the process runs.
        stalled_until: until when it does not go on.
        on_changed: called with (server, shard, keys) after each write that may have changed values; None for all keys.
        on_half_run: called with (server, shard, whether it was published) when a write died half-way.
    """

    COMMANDS: ClassVar[tuple[str, ...]] = ("append", "bump", "publish", "put")
    """What a write does, in this order (P1)."""

    def __init__(
        self,
        run_id: str,
        *,
        shards: int,
        clock: Callable[[], float],
        entropy: Callable[[], bytes],
        log_length: int,
        replay_limit: int,
        on_changed: Callable[[Server, int, Sequence[str] | None], None] | None = None,
        on_half_run: Callable[[Server, int, bool], None] | None = None,
    ) -> None:
        """Make an empty server.

        Args:
            run_id: its run id.
            shards: shards of the namespace.
            clock: its clock, in seconds.
            entropy: makes the 16 random bytes that clients bring.
            log_length: entries that a log keeps.
            replay_limit: entries that a resync may ask for.
            on_changed: see the class.
            on_half_run: see the class.
        """
        self.run_id = run_id
        self.data = [ShardData() for _ in range(shards)]
        self.links: list[Subscriber] = []
        self.refuse = ""
        self.abort_after: int | None = None
        self.garble = False
        self.alive = True
        self.stalled_until = 0.0
        self.on_changed = on_changed or (lambda _server, _shard, _keys: None)
        self.on_half_run = on_half_run or (lambda _server, _shard, _published: None)
        self._clock = clock
        self._entropy = entropy
        self._log_length = log_length
        self._replay_limit = replay_limit

    # -- commands --------------------------------------------------------------------------------------------------

    def execute(self, request: RedisRequest, *, origin: str, sent_at: float) -> RedisReply:  # noqa: C901, PLR0911
        """Execute a request.

        Raises:
            Refused: the server answers an error.
        """
        data = self.data[request.shard]
        match request:
            case ReadRequest():
                return self._read(data, request, sent_at)
            case StoreRequest():
                return self._store(data, request, origin, sent_at)
            case DeleteRequest():
                return self._delete(data, request, origin, sent_at)
            case TouchRequest():
                return self._touch(data, request, origin, sent_at)
            case FloorRequest():
                return self._raise_floor(data, request, origin, sent_at)
            case BatchRequest():
                return self._batch(data, request, origin, sent_at)
            case LeaseRequest():
                return self._lease(data, request, sent_at)
            case FillRequest():
                return self._fill(data, request, origin, sent_at)
            case ReleaseRequest():
                return self._release(data, request, origin, sent_at)
            case RenewRequest():
                return self._renew(data, request)
            case MembersRequest():
                return self._members(data)
            case LeaveRequest():
                self._check_refuse(DENIED_WHEN_FULL)
                return Left(data.members.pop(origin, None) is not None)

    def sync(self, shard: int, token: bytes, position: int | None, *, member: str, bound_ms: int) -> bytes:
        """Answer a heartbeat or a resync of a member, that may go without one for so many milliseconds."""
        data = self.data[shard]
        status = "" if self.refuse == DENIED_WHEN_FULL else self.refuse
        epoch, seq, nonce = data.epoch, data.seq, data.nonce
        if epoch is None:
            epoch = self._entropy()
            seq, nonce = 0, epoch[:NONCE_BYTES]
            if not status:
                data.log.clear()
                data.epoch, data.seq, data.nonce = epoch, seq, nonce
        if not status:
            self._enter(data, member, bound_ms)
        entries: tuple[bytes, ...] = ()
        most = self._replay_limit
        if position is not None and position < seq <= position + most:
            entries = tuple([message for at, message in data.log if at >= position][: most + 1])
        return encode_sync_reply(SyncReply(token, status, epoch, seq, nonce, self._now_us(), entries))

    def _enter(self, data: ShardData, member: str, bound_ms: int) -> None:
        assert data.epoch is not None
        if data.registry_epoch != data.epoch:
            data.lose_registry()
            data.registry_epoch, data.registry_ms = data.epoch, self._now_ms()
        data.members[member] = (bound_ms, self._now_ms())

    def _members(self, data: ShardData) -> MembersReply:
        longest = max([bound for bound, _ in data.members.values()], default=0)
        last = self._now_ms() - 10 * longest - 60_000
        data.members = {name: entry for name, entry in data.members.items() if entry[1] >= last}
        members = tuple([Member(name, *entry) for name, entry in data.members.items()])
        return MembersReply(data.registry_epoch, data.registry_ms, self._now_ms(), members, self.run_id)

    def publish_receipt(self, shard: int, origin: str, data: bytes) -> None:
        """Publish a receipt to the instance that wrote."""
        for link in tuple(self.links):
            if link.origin == origin:
                link.push("receipt", shard, data)

    # -- what the scripts do ---------------------------------------------------------------------------------------

    def live(self, shard: int, key: str) -> Stored | None:
        """Return the live value of a key (P2), None if there is none."""
        data = self.data[shard]
        return self._get(data, key) if self._live_seq(data, key) else None

    def _get(self, data: ShardData, key: str, *, refresh: bool = False) -> Stored | None:
        place = data.refreshes if refresh else data.values
        stored = place.get(key)
        if stored is not None and 0 < stored.expires_ms <= self._now_ms():
            del place[key]
            return None
        return stored

    def _live(self, data: ShardData, key: str) -> tuple[int | None, int]:
        """Return version and codec of what lives under a key: 0 if it is absent or dead, None if it is no envelope."""
        stored = self._get(data, key)
        if stored is None or stored.data == b"":
            return 0, 0
        if not stored.envelope:
            return None, 0
        floor = max(data.floor, self._tag_floor(data, stored))
        newest = data.seq + (stored.codec == CODE_LEASE)
        return stored.seq if stored.epoch == data.epoch and floor < stored.seq <= newest else 0, stored.codec

    def _live_seq(self, data: ShardData, key: str) -> int | None:
        """Return the version of a live value, 0 if absent or dead, None if other bytes are there."""
        seq, codec = self._live(data, key)
        return 0 if codec in (CODE_LEASE, CODE_NOTHING) else seq

    @staticmethod
    def _tag_floor(data: ShardData, stored: Stored) -> int:
        return max([data.tag_floors.get(tag, 0) for tag in stored.tags], default=0)

    def _read(self, data: ShardData, request: ReadRequest, sent_at: float) -> ReadReply:
        found = [self._get(data, key.decode("utf-8")) for key in request.keys]
        no_string = b"" if len(found) == 1 else None
        envelopes = [None if each is None else no_string if each.data is None else each.data for each in found]
        tag_floors: list[int] = []
        if request.judge_tags:
            tag_floors = [0 if each is None else self._tag_floor(data, each) for each in found]
        return ReadReply(
            epoch=data.epoch or b"",
            seq=data.seq,
            floor=data.floor,
            tag_seq=0 if request.judge_tags else data.tag_seq,
            now_ms=self._now_ms(),
            envelopes=envelopes,
            tag_floors=tag_floors if any(tag_floors) else (),
            server=self.run_id,
            sent_at=sent_at,
        )

    def _store(self, data: ShardData, request: StoreRequest, origin: str, sent_at: float) -> WriteReply:
        if request.condition is not None:
            refusal = self._refusal(data, request.keys[0], request.condition, sent_at)
            if refusal is not None:
                return refusal
        expires_ms = self._now_ms() + request.ttl_ms if request.ttl_ms else 0

        def put(epoch: bytes, seq: int) -> None:
            for at, key in enumerate(request.keys):
                prefix, content = request.parts[2 * at : 2 * at + 2]
                data.values[key] = Stored.of(encode_envelope(prefix, epoch, seq, expires_ms, content))
            data.forget_gone(request.keys)

        self._write(data, request.shard, Kind.SET, request.keys, origin, put, dirty=False, entropy=request.entropy)
        self.on_changed(self, request.shard, request.keys)
        return self._reply(data, sent_at)

    def _delete(self, data: ShardData, request: DeleteRequest, origin: str, sent_at: float) -> WriteReply:
        if request.condition is not None:
            refusal = self._refusal(data, request.keys[0], request.condition, sent_at)
            if refusal is not None:
                return refusal
        existed = [self._live_seq(data, key) != 0 for key in request.keys]

        def put(_epoch: bytes, _seq: int) -> None:
            for key in request.keys:
                data.values.pop(key, None)
            data.forget_gone(request.keys)

        self._write(data, request.shard, Kind.DELETE, request.keys, origin, put, dirty=True, entropy=request.entropy)
        self.on_changed(self, request.shard, request.keys)
        return self._reply(data, sent_at, existed=existed)

    def _touch(self, data: ShardData, request: TouchRequest, origin: str, sent_at: float) -> WriteReply:
        current = self._live_seq(data, request.key)
        if not current:
            return self._reply(data, sent_at, applied=False, foreign=current is None)
        expires_ms = self._now_ms() + request.ttl_ms if request.ttl_ms else 0

        def put(_epoch: bytes, seq: int) -> None:
            old = data.values[request.key].data or b""
            head = b"%b%016d%b%016d" % (old[:36], seq, old[52:53], expires_ms)
            data.values[request.key] = Stored.of(head + old[EXPIRY_END:])

        self._write(data, request.shard, Kind.TOUCH, (request.key,), origin, put, dirty=False)
        self.on_changed(self, request.shard, (request.key,))
        return self._reply(data, sent_at)

    def _raise_floor(self, data: ShardData, request: FloorRequest, origin: str, sent_at: float) -> WriteReply:
        def put(_epoch: bytes, seq: int) -> None:
            if request.kind is Kind.CLEAR:
                data.floor = seq
                data.gone.clear()
            else:
                data.tag_seq = seq
                data.tag_floors.update(dict.fromkeys(request.tags, seq))

        self._write(data, request.shard, request.kind, request.tags, origin, put, dirty=True, entropy=request.entropy)
        self.on_changed(self, request.shard, None)
        return self._reply(data, sent_at)

    def _batch(self, data: ShardData, request: BatchRequest, origin: str, sent_at: float) -> WriteReply:
        ttls_ms, parts = request.ttls_ms, request.parts
        deleted = request.keys[len(ttls_ms) :]
        existed = [self._live_seq(data, key) != 0 for key in deleted]

        def put(epoch: bytes, seq: int) -> None:
            for at, ttl_ms in enumerate(ttls_ms):
                expires_ms = self._now_ms() + ttl_ms if ttl_ms else 0
                prefix, content = parts[2 * at : 2 * at + 2]
                data.values[request.keys[at]] = Stored.of(encode_envelope(prefix, epoch, seq, expires_ms, content))
            for key in deleted:
                data.values.pop(key, None)
            data.forget_gone(request.keys)

        self._write(data, request.shard, Kind.BATCH, request.keys, origin, put, dirty=not ttls_ms)
        self.on_changed(self, request.shard, request.keys)
        return self._reply(data, sent_at, existed=existed)

    def _lease(self, data: ShardData, request: LeaseRequest, sent_at: float) -> LeaseReply:
        seq, codec = self._live(data, request.key)
        status, value, remaining_ms, refresh = LeaseStatus.LEASED, None, 0, False
        newer = newer_head(data.values[request.key].data) if seq is None else None
        if seq is None and (newer or not request.over_foreign):
            status, value = LeaseStatus.FOREIGN, newer
        elif seq and codec != CODE_LEASE:
            refresh = seq == request.version
            if not refresh:
                status, value = LeaseStatus.VALUE, data.values[request.key].data
        elif request.version:
            status = LeaseStatus.TAKEN
        if status is LeaseStatus.LEASED:
            other = self._get(data, request.key, refresh=refresh)
            if other is not None and (refresh or (seq and codec == CODE_LEASE)):
                status, remaining_ms = LeaseStatus.TAKEN, other.expires_ms - self._now_ms()
            else:
                self._take_lease(data, request, refresh=refresh)
        read = ReadReply(
            data.epoch or b"", data.seq, data.floor, 0, self._now_ms(), (value,), (), self.run_id, sent_at
        )  # fmt: skip
        return LeaseReply(status, read, remaining_ms / 1000)

    def _take_lease(self, data: ShardData, request: LeaseRequest, *, refresh: bool) -> None:
        # Making a clock begins with a deletion, after which even a full memory takes what follows.
        self._check_refuse(DENIED_WHEN_FULL if data.epoch is None else "")
        if data.epoch is None:
            data.epoch, data.seq = self._entropy(), 0
            data.nonce = data.epoch[:NONCE_BYTES]
            data.log.clear()
        prefix, content = request.parts
        lease = Stored.of(encode_envelope(prefix, data.epoch, data.seq + 1, 0, content))
        place = data.refreshes if refresh else data.values
        place[request.key] = lease._replace(expires_ms=self._now_ms() + request.lease_ms)

    def _fill(self, data: ShardData, request: FillRequest, origin: str, sent_at: float) -> WriteReply:
        if not self._holds(data, request):
            return self._reply(data, sent_at, applied=False)
        return self._store(data, StoreRequest(request.shard, *request[1:4]), origin, sent_at)

    def _holds(self, data: ShardData, request: FillRequest) -> bool:
        """Tell whether what was loaded may be stored (P11)."""
        lease = request.lease
        seq, codec = self._live(data, lease.key)
        if not seq or data.epoch != lease.epoch:
            return False
        if lease.version:
            held = codec != CODE_LEASE and seq == lease.version
        else:
            held = codec == CODE_LEASE and data.values[lease.key].content == lease.content
        return held and all(data.tag_floors.get(tag, 0) < lease.seq for tag in request.tags)

    def _release(self, data: ShardData, request: ReleaseRequest, origin: str, sent_at: float) -> WriteReply:
        if not self._lies(data, request.lease):
            return self._reply(data, sent_at, applied=False)

        def put(_epoch: bytes, _seq: int) -> None:
            data.values.pop(request.lease.key, None)

        self._write(data, request.shard, Kind.RELEASE, request.keys, origin, put, dirty=True)
        return self._reply(data, sent_at)

    def _renew(self, data: ShardData, request: RenewRequest) -> RenewReply:
        lease = request.lease
        if not self._lies(data, lease):
            return RenewReply(False)
        self._check_refuse(DENIED_WHEN_FULL)
        place = data.refreshes if lease.version else data.values
        if request.lease_ms:
            place[lease.key] = place[lease.key]._replace(expires_ms=self._now_ms() + request.lease_ms)
        else:
            del place[lease.key]
        return RenewReply(True)

    def _lies(self, data: ShardData, lease: Lease) -> bool:
        """Tell whether a lease is still there, alive or not."""
        held = self._get(data, lease.key, refresh=bool(lease.version))
        return held is not None and held.codec == CODE_LEASE and held.content == lease.content

    def _write(
        self,
        data: ShardData,
        shard: int,
        kind: Kind,
        names: tuple[str, ...],
        origin: str,
        put: Callable[[bytes, int], None],
        *,
        dirty: bool,
        entropy: bytes = b"",
    ) -> None:
        """Append, bump, publish, then change values. ``dirty``: something was written before, so memory may be full."""
        self._check_refuse(DENIED_WHEN_FULL if dirty or data.epoch is None else "")
        wants_receipts, entropy = bool(entropy), entropy or self._entropy()
        epoch, seq, nonce = data.epoch or entropy, data.seq + 1, entropy[:NONCE_BYTES]
        previous = epoch[:NONCE_BYTES] if data.epoch is None else data.nonce
        message = encode_message(
            Message(kind, epoch, seq, nonce, previous, self._now_us(), origin, names, wants_receipts)
        )
        if self.garble:
            self.garble, message = False, b"\x07" + message[1:]
        if data.epoch is None:
            data.log.clear()
        for done, command in enumerate(self.COMMANDS):
            if self.abort_after == done:
                self.abort_after = None
                self.on_half_run(self, shard, "publish" in self.COMMANDS[:done])
                raise Refused("ERR the script died half-way", maybe_applied=True)
            if command == "append":
                if data.log and data.log[-1][0] >= seq:
                    data.log.clear()
                data.log.append((seq, message))
                del data.log[: -self._log_length]
            elif command == "bump":
                data.epoch, data.seq, data.nonce = epoch, seq, nonce
            elif command == "publish":
                for link in tuple(self.links):
                    link.push("message", shard, message)
            else:
                put(epoch, seq)

    def _check_refuse(self, accepted: str) -> None:
        if self.refuse and self.refuse != accepted:
            raise Refused(f"{self.refuse} the server refuses writes", maybe_applied=False)

    def _refusal(self, data: ShardData, key: str, wanted: Condition, sent_at: float) -> WriteReply | None:
        """Return the reply to a write whose condition does not hold, None if it holds."""
        current = self._live_seq(data, key)
        if current is None:
            return self._reply(data, sent_at, applied=False, foreign=True)
        if current != wanted.seq or (wanted.epoch and data.epoch != wanted.epoch):
            return self._reply(data, sent_at, applied=False, current_seq=current)
        return None

    def _reply(
        self,
        data: ShardData,
        sent_at: float,
        *,
        applied: bool = True,
        existed: Sequence[bool] = (),
        current_seq: int = 0,
        foreign: bool = False,
    ) -> WriteReply:
        return WriteReply(data.epoch or b"", data.seq, applied, existed, current_seq, foreign, self.run_id, sent_at)

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
