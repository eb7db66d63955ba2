"""Hostile bytes for everything that reads what Redis sends: ``python -m integration.fuzz_subscriber --inputs 1000000``.

No server is needed. Four targets, each fed with random bytes, with mutations of valid ones, and with bytes made to
offend:

``envelope``, ``message``, ``sync``
    The decoders of ``coherent_cache.wire``. Allowed: WireError, or fields that encode to the same bytes (envelopes),
    or that survive another round (messages and sync replies, whose msgpack has more than one spelling).
``stream``
    The subscriber: one end of a socketpair stands for the server, at the other end are SocketLink, ``_Wire``, Session
    and Shard as the background thread drives them. Valid traffic goes on all the time, so that the shard is coherent
    and holds entries; between it come broken frames, damaged messages, forged and repeated answers, other epochs.
    Allowed: LinkLost (the thread then connects again), the transport's change, NamespaceMismatch. After every input:
    every entry held is one that was inserted, unchanged; none is older than a sound message that has come for it; the
    horizon is a moment at which something was asked; the tier's own invariants hold.

Each frame, message or envelope counts as one input. A finding is reported once per place, with the bytes that led
there; ``--seed`` and ``--inputs`` repeat a run exactly. Exit status: 0 nothing found, 1 something.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

import hiredis
import msgpack

from coherent_cache import wire
from coherent_cache.config import Settings
from coherent_cache.core.entries import Entry, make_entry
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.requests import ReadReply
from coherent_cache.core.session import Session
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.core.stats import Counters
from coherent_cache.errors import NamespaceMismatch
from coherent_cache.keys import key_digest
from coherent_cache.remote import topology
from coherent_cache.remote.link import LinkLost, SocketLink
from coherent_cache.remote.scripts import ScriptCall, Scripts
from coherent_cache.remote.subscriber import _NeedsMarks, _Wire
from coherent_cache.wire import Kind, Message, SyncReply, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coherent_cache.remote.link import Item

SHARES = {"envelope": 0.3, "message": 0.25, "sync": 0.15, "stream": 0.3}
MEMORY = 4 * 1024**3  # bytes: a length that is believed must fail here rather than on the machine
MAX_TIME = (10**16 - 1) * 1_000_000 + 999_999  # microseconds that two numbers of 16 digits hold
SERVER = "server"
KEYS = ("a", "b", "c", "d", "long" * 20)
TAGS = ("t1", "t2")
EPOCHS = (b"E" * 16, b"F" * 16, bytes(16))

# Heads of msgpack and RESP, digits and signs, and ends of ranges.
TELLING = (
    bytes.fromhex("00017f80908f989a9fa0b0bfc0c1c2c3c4c5c6c7cacccdcfd0d3d9dadbdcdddedfe0ff") + b"0919+-_ \r\n*$:%~>|(,#="
)


@dataclass
class Report:
    """What a run did and found.

    Attributes:
        inputs: how many, by target.
        taken: how many of them were not refused.
        findings: by the place where it happened: what, how often, and the first input in hex.
        sessions: connections that the stream went through.
        endings: why they ended.
        coherent: stream inputs that found the shard coherent with entries: else that target would prove nothing.
        seconds: how long it took.
    """

    inputs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    taken: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    findings: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    sessions: int = 0
    endings: dict[str, int] = field(default_factory=dict)
    coherent: int = 0
    seconds: float = 0.0

    def find(self, error: BaseException, data: bytes) -> None:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "fuzz_subscriber" not in each.filename]
        last = (frames or traceback.extract_tb(error.__traceback__))[-1]
        place = f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno} ({last.name})"
        what, times, first = self.findings.get(place, (str(error)[:200], 0, data[:300].hex()))
        self.findings[place] = (what, times + 1, first)

    def end(self, error: BaseException) -> None:
        cause = f"{type(error).__name__}: {str(error).partition(':')[0]:.60}"
        self.endings[cause] = self.endings.get(cause, 0) + 1


# --- bytes ------------------------------------------------------------------------------------------------------------


def mutate(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """Change bytes a little: flip, set, cut off, cut out, put in, repeat, swap, or graft."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        action = rng.randrange(9)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif action <= 2 and at < len(changed):
            changed[at] = rng.choice(TELLING)
        elif action == 3:
            del changed[at:]
        elif action == 4:
            del changed[at : at + rng.randint(1, 20)]
        elif action == 5:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        elif action == 6:
            changed[at:at] = changed[at : at + rng.randint(1, 60)]
        elif action == 7 and other:
            changed[at:] = other[rng.randrange(len(other)) :]
        elif at + 4 < len(changed):
            # A length or a number becomes an extreme one.
            changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"9999"))
    return bytes(changed)


def some_text(rng: Random) -> str:
    return rng.choice(("", "a", "key", "ключ", "\x00", "🗝", "x" * 40, "0", "1_0", "٣"))


def an_envelope(rng: Random, digest: bytes, codec: int) -> bytes:
    tags = tuple(rng.choice(TAGS) * rng.choice((1, 1, 40)) for _ in range(rng.choice((0, 0, 0, 1, 2, 16))))
    payload = rng.randbytes(rng.choice((0, 1, 5, 100, 255, 256, 300)))
    seq = rng.choice((1, 7, wire.MAX_SEQ))
    return wire.encode_envelope(
        wire.envelope_prefix(digest, codec), rng.choice(EPOCHS), seq, rng.choice((0, 1, 10**16 - 1)),
        wire.encode_content(tags, payload),
    )  # fmt: skip


def a_message(rng: Random, **fields: Any) -> Message:
    kind = rng.choice(list(Kind))
    names = TAGS if kind is Kind.TAG else () if kind is Kind.CLEAR else KEYS
    chosen = tuple(rng.choice(names) for _ in range(rng.randint(1, 3))) if names else ()
    message = Message(
        kind, rng.choice(EPOCHS), rng.choice((1, 2, 5, wire.MAX_SEQ)), rng.randbytes(8), rng.randbytes(8),
        rng.randrange(10**15), some_text(rng), chosen, rng.random() < 0.2,
    )  # fmt: skip
    return message._replace(**fields)


def a_sync_reply(rng: Random, **fields: Any) -> SyncReply:
    entries = tuple(wire.encode_message(a_message(rng)) for _ in range(rng.choice((0, 0, 1, 3))))
    values = {
        "token": rng.randbytes(8), "status": rng.choice(("", "", "", "READONLY", "OOM", "x")),
        "epoch": rng.choice(EPOCHS), "seq": rng.choice((0, 1, 5, wire.MAX_SEQ)), "nonce": rng.randbytes(8),
        "time_us": rng.randrange(10**15), "entries": entries,
    }  # fmt: skip
    return SyncReply(**(values | fields))


def anything(rng: Random, depth: int = 0) -> Any:
    """Return something that msgpack can hold."""
    kinds = 11 if depth < 3 else 9
    kind = rng.randrange(kinds)
    if kind == 9:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 8))]
    if kind == 10:
        return {some_text(rng): anything(rng, depth + 1) for _ in range(rng.randint(0, 2))}
    return (
        None, True, rng.randrange(-(2**63), 2**64), float("nan"), some_text(rng), rng.randbytes(rng.randint(0, 20)),
        msgpack.ExtType(rng.randrange(5), rng.randbytes(4)), rng.choice(EPOCHS), str(rng.randrange(10**17)),
    )[kind]  # fmt: skip


def packed_offence(rng: Random) -> bytes:
    """Return a format byte with msgpack behind it that is nearly right, deep, or claims to be long."""
    choice = rng.randrange(6)
    if choice == 0:
        return b"\x01" + rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")) + rng.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x0f\xff\xff")
        ) + rng.randbytes(5)  # fmt: skip
    if choice == 1:
        return b"\x01" + b"\x91" * rng.choice((10, 600, 5000)) + b"\xc0"
    if choice == 2:
        return b"\x01" + b"\xd6\xff" + rng.randbytes(4)  # a timestamp
    fields: list[Any] = [
        rng.randint(0, 7), rng.choice(EPOCHS), str(rng.randint(0, 9)), rng.randbytes(8), "1", "2", some_text(rng),
        [rng.choice(KEYS)],
    ]  # fmt: skip
    if choice == 3:
        fields = [rng.randbytes(8), "", rng.choice(EPOCHS), "3", rng.randbytes(8), "1", "2", [rng.randbytes(9)]]
    for _ in range(rng.randint(0, 2)):
        fields[rng.randrange(8)] = anything(rng)
    if rng.random() < 0.2:
        del fields[rng.randrange(8)]
    return b"\x01" + bytes(msgpack.packb(fields))


# --- the decoders -----------------------------------------------------------------------------------------------------

DIGEST = key_digest(b"key")


def feed_envelope(rng: Random, data: bytes) -> bool:
    codec = rng.choice((0, 1, 255))
    prefix = wire.envelope_prefix(DIGEST, codec)
    try:
        fields = wire.decode_envelope(data, prefix)
    except WireError:
        return False
    epoch, seq, expires_ms, found, tags, payload = fields
    compression, found_codec = divmod(found, 256)
    start = wire.compressed_prefix(wire.envelope_prefix(DIGEST, found_codec), compression)
    again = wire.encode_envelope(start, epoch, seq, expires_ms, wire.encode_content(tags, payload))
    assert again == data, "a decoded envelope encodes to other bytes"
    # The short cut must judge as the decoder of all envelopes does.
    assert wire._decode_envelope(data, prefix) == fields, "the short cut decodes otherwise"
    return True


def feed_message(data: bytes) -> bool:
    try:
        message = wire.decode_message(data)
    except WireError:
        return False
    assert type(message) is Message
    assert set(map(type, message)) <= {Kind, bool, bytes, int, str, tuple}
    if message.time_us <= MAX_TIME:
        assert wire.decode_message(wire.encode_message(message)) == message, "a message does not survive another round"
    return True


def feed_sync(data: bytes) -> bool:
    try:
        reply = wire.decode_sync_reply(data)
    except WireError:
        return False
    if reply.time_us <= MAX_TIME:
        assert wire.decode_sync_reply(wire.encode_sync_reply(reply)) == reply, "a reply does not survive another round"
    return True


def envelope_input(rng: Random) -> bytes:
    valid = an_envelope(rng, DIGEST, rng.choice((0, 1, 255)))
    choice = rng.randrange(10)
    if choice == 0:
        return rng.randbytes(rng.randint(0, 120))
    if choice == 1:
        return valid[: rng.choice((1, 19, 69))] + rng.randbytes(rng.randint(0, 80))
    if choice == 2:
        return valid
    return mutate(rng, valid, an_envelope(rng, rng.choice((DIGEST, bytes(8))), 1))


def packed_input(rng: Random, valid: Callable[[Random], bytes]) -> bytes:
    choice = rng.randrange(10)
    if choice == 0:
        return rng.choice((b"", b"\x01")) + rng.randbytes(rng.randint(0, 120))
    if choice <= 2:
        return packed_offence(rng)
    if choice == 3:
        return valid(rng)
    return mutate(rng, valid(rng), valid(rng))


def message_bytes(rng: Random) -> bytes:
    return wire.encode_message(a_message(rng))


def sync_bytes(rng: Random) -> bytes:
    return wire.encode_sync_reply(a_sync_reply(rng))


ALLOWED = (LinkLost, NamespaceMismatch, _NeedsMarks)


# --- the stream -------------------------------------------------------------------------------------------------------


SIMPLE_FRAMES = (
    b"+OK\r\n", b"-ERR\r\n", b":1\r\n", b":-1\r\n", b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n",
    b",nan\r\n", b",1e309\r\n", b"(1234567890123456789012\r\n", b"=5\r\ntxt:a\r\n", b"$0\r\n\r\n", b"$-2\r\n",
    b"*-2\r\n", b"*1\r\n" * 40, b"$99999999999999999999\r\n", b":9223372036854775808\r\n", b"*100000\r\n",
    b"!3\r\nERR\r\n",
)  # fmt: skip


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


def push(*parts: bytes, resp2: bool = False) -> bytes:
    return (b"*%d\r\n" if resp2 else b">%d\r\n") % len(parts) + b"".join(map(bulk, parts))


class _Connection:
    """What SocketLink takes over."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        setattr(self, topology._SERVER, SERVER)

    def disconnect(self) -> None:
        self.sock.close()


class _NoIO:
    """Answers what the ``marks`` transport asks on a command connection."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def ask(self, call: Any) -> tuple[Any, str]:
        if isinstance(call, ScriptCall):
            self.calls.append(call.arguments)
        return b"OK", SERVER


class Stream:
    """A shard with a subscriber, and a server that sends it whatever it likes."""

    def __init__(self, rng: Random, report: Report) -> None:
        self.rng = rng
        self.report = report
        self.settings = Settings(namespace="fuzz", heartbeat=1.0, max_staleness=5.0, replay_limit=20)
        self.scripts = Scripts(self.settings, instance_id="fuzz", database=0)
        self.channel = self.scripts.names[0].channel
        self.now = 1000.0
        self.epoch, self.seq, self.nonce = EPOCHS[0], 0, bytes(8)
        self.log: list[tuple[int, bytes]] = []
        self.shard = self._new_shard()
        self.inserted: dict[str, tuple[Entry, int, Any, tuple[str, ...]]] = {}
        self.asked_at: set[float] = {-inf}
        self.steps = 0

    def _new_shard(self) -> Shard:
        tier = LocalTier(max_entries=4, rng=Random(1))
        return Shard(
            0, tier, max_staleness=self.settings.max_staleness, lock=nullcontext(), counters=Counters(),
            emit=lambda _: None,
        )  # fmt: skip

    # -- one connection after the other

    def run(self, inputs: int) -> None:
        while self.report.inputs["stream"] < inputs:
            if self.rng.random() < 0.05:
                self.shard, self.inserted = self._new_shard(), {}
            self._one_connection(min(inputs, self.report.inputs["stream"] + self.rng.choice((5, 30, 200))))

    def _one_connection(self, until: int) -> None:
        self.report.sessions += 1
        sent = b""
        try:
            self._open(inline=self.rng.random() < 0.7)
            while self.report.inputs["stream"] < until:
                sent = self._input()
                self.report.inputs["stream"] += 1
                self._send(sent)
                self._insert_something()
                self._check()
        except ALLOWED as error:
            self.report.end(error)
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            self._found(error, sent)
        finally:
            self._close()
        self.now += self.rng.choice((0.01, 0.5, 3.0, 10.0))
        try:
            self.shard.tick(self.now)
            self._check()
        except Exception as error:  # noqa: BLE001
            self._found(error, sent)

    def _found(self, error: Exception, data: bytes) -> None:
        self.report.find(error, data)
        self.shard, self.inserted = self._new_shard(), {}

    def one_input(self, data: bytes, *, inline: bool) -> None:
        """Send one input on a connection of its own. Raises whatever the background thread would have to deal with."""
        try:
            self._open(inline=inline)
            self._send(data)
        finally:
            self._close()

    def _open(self, *, inline: bool) -> None:
        client, self.server = socket.socketpair()
        self.server.setblocking(False)
        self.link = SocketLink(_Connection(client), client)  # type: ignore[arg-type]
        self.session = Session(
            [self.shard], server=SERVER, origin="fuzz", heartbeat=1.0, patience=2.5, replay_limit=20, now=self.now
        )
        self.inline = inline
        self.mark = self.channel + b":mark:0"
        self.receipts = self.scripts.names[0].receipts("fuzz")
        self.io = _NoIO()
        channels, receipts, marks = {self.channel: 0}, {self.receipts: 0}, {} if inline else {self.mark: 0}
        self.wire = _Wire(
            self.link, self.session, self.scripts, self.io, channels, receipts, marks  # type: ignore[arg-type]
        )  # fmt: skip
        self.commands = hiredis.Reader()
        self.questions: list[tuple[bytes | None, bytes]] = []
        self._turn()
        self._send(self._confirmation())

    def _close(self) -> None:
        self.session.lost("the test ends it")
        self.link.close()
        self.server.close()

    def _send(self, data: bytes) -> None:
        """Send to the subscriber, in one piece or two, and let it work, as its thread does."""
        pieces = [data]
        if len(data) > 1 and self.rng.random() < 0.1:
            at = self.rng.randrange(1, len(data))
            pieces = [data[:at], data[at:]]
        for piece in pieces:
            while piece:
                piece = piece[self.server.send(piece) :]  # noqa: PLW2901
                self._turn()

    def _turn(self) -> None:
        self.now += self.rng.choice((0.0, 0.001, 0.01, 0.01, 0.3))
        for item in self.link.receive(0):
            before = self.shard.epoch
            self.wire.dispatch(item, self.now)
            self._note(item, before)
        self.asked_at.add(self.now)
        self.session.tick(self.now)
        self.wire.send_outgoing()
        if self.session.failure is not None:
            raise LinkLost(self.session.failure)
        self._read_commands()

    def _read_commands(self) -> None:
        """Learn the tokens of the questions that were asked."""
        with suppress(BlockingIOError):
            self.commands.feed(self.server.recv(1 << 20))
        while (command := self.commands.gets()) is not False:
            if command[0] in (b"EVALSHA", b"EVAL"):
                self.questions.append((command[8], command[10]))
            elif command[0] == b"PUBLISH":
                self.questions.append((None, b""))
        for arguments in self.io.calls:
            self.questions.append((arguments[6], str(arguments[8]).encode()))
        self.io.calls.clear()

    # -- what the server sends

    def _confirmation(self) -> bytes:
        channels = [self.channel] if self.inline else [self.mark, self.channel]
        return b"".join(
            b"%s3\r\n%s%s:1\r\n" % (b">" if self.inline else b"*", bulk(b"subscribe"), bulk(each)) for each in channels
        )

    def _input(self) -> bytes:
        rng = self.rng
        if self.questions and rng.random() < 0.7:
            return self._answer()
        kind = rng.random()
        if kind < 0.45:
            return self._published(self._next_message())
        if kind < 0.50:
            return self._answer()
        if kind < 0.60:
            data = packed_input(rng, message_bytes if rng.random() < 0.5 else sync_bytes)
            return self._published(data) if rng.random() < 0.7 else self._answered(data)
        if kind < 0.65:
            return self._published(wire.encode_message(a_message(rng, epoch=rng.choice((self.epoch, EPOCHS[1])))))
        if kind < 0.70:
            word = rng.choice((b"message", b"smessage", b"unsubscribe", b"subscribe", b"other"))
            channel = rng.choice((self.channel, self.receipts, self.receipts, b"elsewhere"))
            data = rng.choice((rng.randbytes(9), wire.encode_receipt(rng.randbytes(8), some_text(rng))))
            return push(word, channel, data, resp2=rng.random() < 0.5)
        if kind < 0.75:
            return rng.choice(
                (b"-NOSCRIPT no\r\n", b"-ERR allowed in this context\r\n", b"-CCMISMATCH 1/7\r\n", b"-X\r\n")
            )
        if kind < 0.85:
            return mutate(rng, self._published(self._next_message(happens=False)), self._confirmation())
        if kind < 0.95:
            return b"".join(self._frame(0) for _ in range(rng.randint(1, 3)))
        return rng.randbytes(rng.randint(1, 40))

    def _published(self, message: bytes) -> bytes:
        return push(b"message", self.channel, message, resp2=not self.inline)

    def _answered(self, data: bytes) -> bytes:
        return bulk(data) if self.inline else push(b"message", self.mark, data, resp2=True)

    def _next_message(self, *, happens: bool = True) -> bytes:
        """Return the message of the next write; unless it is told otherwise, the write happens."""
        rng = self.rng
        if rng.random() < 0.01:  # Redis loses everything
            self.epoch, self.seq, self.log = rng.randbytes(16), 0, []
        nonce = rng.randbytes(8)
        fields = {"epoch": self.epoch, "seq": self.seq + 1, "nonce": nonce, "previous": self.nonce}
        message = wire.encode_message(a_message(rng, **fields))
        if happens:
            self.seq, self.nonce = self.seq + 1, nonce
            self.log = [*self.log[-30:], (self.seq, message)]
        return message

    def _answer(self) -> bytes:
        """Answer a question: mostly as a server would, else damaged, forged, late or twice."""
        rng = self.rng
        token, position = self.questions[0] if self.questions else (rng.randbytes(8), b"")
        if self.questions and rng.random() < 0.9:
            self.questions.pop(0)
        if token is None:
            return rng.choice((b":0\r\n", b":1\r\n", b":1\r\n", b"-NOPERM no\r\n"))  # a receipt was published
        entries: tuple[bytes, ...] = ()
        if position.isdigit() and rng.random() < 0.9:
            entries = tuple(message for seq, message in self.log if seq >= int(position))
        reply = a_sync_reply(
            rng, token=token, status="", epoch=self.epoch, seq=self.seq, nonce=self.nonce, time_us=int(self.now * 1e6),
            entries=entries,
        )  # fmt: skip
        data = wire.encode_sync_reply(reply)
        chance = rng.random()
        if chance < 0.85:
            return self._answered(data)
        if chance < 0.90:
            return self._answered(mutate(rng, data, self._next_message(happens=False)))
        if chance < 0.95:
            return self._answered(wire.encode_sync_reply(a_sync_reply(rng, token=token)))
        return self._answered(data) * 2

    def _frame(self, depth: int) -> bytes:
        """Return a RESP value of any type, with anything in it."""
        rng = self.rng
        kind = rng.randrange(16)
        if kind < 6 and depth < 4:
            head = b"*>~%|*"[kind : kind + 1]
            number = rng.choice((0, 1, 2, 3, 3, 3, 4))
            items = number * (2 if head in b"%|" else 1)
            return head + b"%d\r\n" % number + b"".join(self._frame(depth + 1) for _ in range(items))
        if kind < 12:
            return rng.choice(SIMPLE_FRAMES)
        words = (b"message", b"subscribe", b"unsubscribe", self.channel, rng.randbytes(5))
        return rng.choice((bulk(rng.choice(words)), b"+message\r\n", b"%c\r\n" % rng.randrange(256)))

    # -- what must hold

    def _insert_something(self) -> None:
        """Fill, as an operation does: sometimes with a reply that is too old, of another server or another epoch."""
        rng, shard = self.rng, self.shard
        if rng.random() < 0.5:
            key = rng.choice(KEYS)
            token = shard.register((key,))
            seq = rng.choice((self.seq, self.seq, max(1, self.seq - 1), 1)) or 1
            epoch = self.epoch if rng.random() < 0.95 else rng.choice(EPOCHS)
            entry = make_entry(object(), seq, 100, self.now + 1e6, tags=rng.choice(((), TAGS)))
            reply = ReadReply(epoch, self.seq, 0, 0, 0, (), (), SERVER if rng.random() < 0.95 else "other", self.now)
            shard.absorb(token, reply, [(key, seq, entry)], now=self.now)
            if shard.tier.entries.get(key) is entry:
                self.inserted[key] = (entry, entry.seq, entry.value, entry.tags)

    def _note(self, item: Item, epoch: bytes | None) -> None:
        """Learn from a sound message of the shard's epoch what may no longer be held."""
        if item.kind != "message" or item.channel != self.channel:
            return
        try:
            message = wire.decode_message(item.data)
        except WireError:
            assert not self.shard.tier.entries, "a message that cannot be understood must flush"
            return
        if message.epoch != epoch or self.shard.epoch != epoch:
            return
        for key, entry in self.shard.tier.entries.items():
            hit = (
                message.kind is Kind.CLEAR
                or (message.kind is Kind.TAG and set(entry.tags) & set(message.names))
                or (message.kind not in (Kind.CLEAR, Kind.TAG, Kind.RELEASE) and key in message.names)
            )
            assert not hit or entry.seq >= message.seq, f"{key!r} at {entry.seq} is older than message {message.seq}"

    def _check(self) -> None:
        shard, tier = self.shard, self.shard.tier
        for key, entry in tier.entries.items():
            held = (entry, entry.seq, entry.value, entry.tags)
            assert self.inserted.get(key) == held, f"{key!r} was never inserted, or has changed"
        assert tier.horizon in self.asked_at, "the horizon is no moment at which anything was asked"
        assert tier.horizon <= self.now
        assert not shard.synced or (shard.epoch is not None and shard.position is not None)
        if shard.state is State.COHERENT:
            assert shard.synced, "coherent, but not synchronised"
        self.steps += 1
        if self.steps % 64 == 0:
            tier.check_invariants()
            self.asked_at = {moment for moment in self.asked_at if moment >= tier.horizon} | {-inf, tier.horizon}
        self.report.coherent += shard.state is State.COHERENT and bool(tier.entries)


# --- running ----------------------------------------------------------------------------------------------------------


def run(inputs: int, seed: int, *, progress: Callable[[Report], None] | None = None) -> Report:
    """Feed ``inputs`` inputs, shared out among the targets; return what was found."""
    report = Report()
    start = time.monotonic()
    for target, share in SHARES.items():
        rng = Random(f"{seed}/{target}")
        number = round(inputs * share)
        if target == "stream":
            Stream(rng, report).run(number)
        else:
            _decode(target, rng, number, report)
        report.seconds = time.monotonic() - start
        if progress is not None:
            progress(report)
    return report


def _decode(target: str, rng: Random, number: int, report: Report) -> None:
    for data in _inputs(target, rng, number):
        report.inputs[target] += 1
        try:
            if target == "envelope":
                taken = feed_envelope(rng, data)
            else:
                taken = feed_message(data) if target == "message" else feed_sync(data)
            report.taken[target] += taken
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            report.find(error, data)


def _inputs(target: str, rng: Random, number: int) -> Iterator[bytes]:
    for _ in range(number):
        if target == "envelope":
            yield envelope_input(rng)
        else:
            yield packed_input(rng, message_bytes if target == "message" else sync_bytes)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Feed hostile bytes to whatever reads what Redis sends.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many (default: 1000000)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    report = run(options.inputs, options.seed, progress=lambda each: print(f"  {each.seconds:6.1f} s {each.inputs}"))
    print(f"{sum(report.inputs.values()):,} inputs, seed {options.seed}, {report.seconds:.0f} s")
    for target in ("envelope", "message", "sync"):
        print(f"  {target}: {report.inputs[target]:,}, of which {report.taken[target]:,} were taken")
    stream = f"{report.inputs['stream']:,} in {report.sessions:,} connections"
    print(f"  stream: {stream}; {report.coherent:,} found the shard coherent, with entries")
    for cause, times in sorted(report.endings.items(), key=lambda each: -each[1])[:12]:
        print(f"    {times:,} x {cause}")
    for place, (what, times, first) in report.findings.items():
        print(f"FOUND {times:,} x {place}: {what}\n    first input: {first}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
