"""How many invalidations does one process absorb, and what do they cost the main thread's hits?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import Event, Thread
from typing import Any, Final

import hiredis
import redis
from bench import Bench, main, ready_cache
from measure import Row, compare
from peers import READY, Peer

from coherent_cache.config import Settings
from coherent_cache.core.requests import StoreRequest
from coherent_cache.keys import key_digest, shard_names
from coherent_cache.remote.scripts import Scripts
from coherent_cache.serializers import CODE_MSGPACK
from coherent_cache.wire import Kind, Message, encode_content, encode_message, envelope_prefix

QUESTION: Final = "subscriber"
KEYS: Final = [f"product:{number}" for number in range(10_000)]
PER_SCRIPT: Final = 1000
RATES: Final = (0, 1_000, 10_000)
"""Messages per second."""

WINDOW: Final = 0.25
"""Seconds that hits are counted."""

FLOOD: Final = """
for i = 4, #ARGV do redis.call('PUBLISH', ARGV[1], ARGV[i]) end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'seq', ARGV[2], 'nonce', ARGV[3]) end
"""
"""Publishes messages and sets the clock to the last one's position, so that the next heartbeat finds nothing amiss."""


def measure(bench: Bench) -> list[Row]:
    """Flood a process with invalidations, then disturb one that hits."""
    return [*absorbed(bench), *disturbed(bench)]


# -- how many ----------------------------------------------------------------------------------------------------------


def absorbed(bench: Bench) -> list[Row]:
    """Publish 10,000 messages as fast as the server can; redis-py's PubSub gets the same ones in its turn."""
    names, client = shard_names(bench.namespace, 0, _database(bench.url)), bench.client()
    raw_channel = f"{bench.namespace}:raw".encode()
    with bench.cache(local_enabled=False) as cache:
        for start in range(0, len(KEYS), PER_SCRIPT):
            cache.set_many(dict.fromkeys(KEYS[start : start + PER_SCRIPT], 1), ttl=None)
    walls: dict[str, list[float]] = {"held": [], "not held": [], "raw": []}
    busy: dict[str, list[float]] = {name: [] for name in walls}
    with Peer(absorb, bench.url, bench.namespace) as ours, Peer(listen, bench.url, raw_channel) as theirs:
        for _ in range(bench.times(15, 3)):
            for name, peer in (("held", ours), ("not held", ours), ("raw", theirs)):
                packed = _flood(client, names, raw_channel if name == "raw" else None)
                peer.ask(("prepare", name))
                started = time.perf_counter()
                for arguments in packed:
                    client.eval(FLOOD, 1, names.clock, *arguments)
                until, used = peer.ask(("await", len(KEYS)))
                walls[name].append((until - started) / len(KEYS))
                busy[name].append(used / len(KEYS))
    rows = []
    for name in ("held", "not held"):
        case = f"absorbs, one key each, {name}"
        speed, raw_speed = ([1 / wall for wall in walls[kind]] for kind in (name, "raw"))
        rows.append(compare(QUESTION, case, speed, "PubSub loop", raw_speed, unit="/s"))
        rows.append(compare(QUESTION, f"CPU per message, {name}", busy[name], "PubSub loop", busy["raw"], unit="us"))
    return rows


def _flood(client: redis.Redis, names: Any, raw_channel: bytes | None) -> list[list[Any]]:
    """Return the arguments of the scripts: the next messages of the namespace's history, one key each."""
    epoch, seq, nonce = client.hmget(names.clock, "epoch", "seq", "nonce")
    position, now_us = int(seq), int(time.time() * 1e6)
    packed = []
    for start in range(0, len(KEYS), PER_SCRIPT):
        messages = []
        for key in KEYS[start : start + PER_SCRIPT]:
            position += 1
            previous, nonce = nonce, os.urandom(8)
            message = Message(Kind.SET, epoch, position, nonce, previous, now_us, "a-writer-elsewhere", (key,))
            messages.append(encode_message(message))
        head = [names.channel, position, nonce] if raw_channel is None else [raw_channel, "", ""]
        packed.append([*head, *messages])
    return packed


def absorb(pipe: Connection, url: str, namespace: str) -> None:
    """Be the flooded process."""
    with ready_cache(url, namespace) as cache:

        def prepare(name: str) -> None:
            cache.clear_local()
            if name == "held":
                assert cache.warm(KEYS) == len(KEYS)

        _answer_floods(pipe, prepare, lambda: cache.stats().invalidations_received)
        assert cache.stats().resyncs == 1, "the flood was taken for damage"


def listen(pipe: Connection, url: str, channel: bytes) -> None:
    """Be the flooded process without this package: redis-py's PubSub in a thread."""
    received = [0]
    stopping = Event()
    with redis.Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(channel)

        def loop() -> None:
            while not stopping.is_set():
                if pubsub.get_message(timeout=0.2) is not None:
                    received[0] += 1

        thread = Thread(target=loop)
        thread.start()
        try:
            _answer_floods(pipe, lambda _: None, lambda: received[0])
        finally:
            stopping.set()
            thread.join()


def _answer_floods(pipe: Connection, prepare: Callable[[str], None], received: Callable[[], int]) -> None:
    before, cpu = 0, 0.0
    pipe.send(READY)
    while (question := pipe.recv()) is not None:
        if question[0] == "prepare":
            prepare(question[1])
            before, cpu = received(), time.process_time()
            pipe.send(None)
            continue
        deadline = time.monotonic() + 30
        while received() < before + question[1]:
            assert time.monotonic() < deadline, "messages are missing"
            time.sleep(0.001)
        pipe.send((time.perf_counter(), time.process_time() - cpu))


def _database(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return client.connection_pool.connection_kwargs.get("db") or 0


# -- what it costs -----------------------------------------------------------------------------------------------------


def disturbed(bench: Bench) -> list[Row]:
    """Count hits per second while another process writes other keys at a steady rate."""
    rates: dict[int, list[float]] = {rate: [] for rate in RATES}
    with Peer(hit, bench.url, bench.namespace) as reader, Peer(publish, bench.url, bench.namespace) as writer:
        for number in range(bench.times(40, 6)):
            order = RATES if number % 2 else RATES[::-1]
            for rate in order:
                writer.ask(rate)
                time.sleep(0.05)
                rates[rate].append(reader.ask(WINDOW))
                writer.ask(0)
    rows = []
    for rate in RATES[1:]:
        case = f"hits under {rate:,} messages/s"
        rows.append(compare(QUESTION, case, rates[rate], "under none", rates[0], unit="/s"))
    return rows


def hit(pipe: Connection, url: str, namespace: str) -> None:
    """Be the process that hits, in its main thread."""
    keys = [f"hit:{number}" for number in range(1000)]
    with ready_cache(url, namespace) as cache:
        cache.set_many(dict.fromkeys(keys, 1))
        pipe.send(READY)
        while (window := pipe.recv()) is not None:
            get, count, started = cache.get, 0, time.perf_counter()
            deadline = started + window
            while time.perf_counter() < deadline:
                for key in keys:
                    get(key)
                count += len(keys)
            pipe.send(count / (time.perf_counter() - started))


def publish(pipe: Connection, url: str, namespace: str) -> None:
    """Be the process that writes by the real script, packed beforehand, every millisecond as many as are due."""
    with redis.Redis.from_url(url) as client:
        database = client.connection_pool.connection_kwargs.get("db") or 0
        scripts = Scripts(Settings(namespace=namespace), instance_id="a-writer-elsewhere", database=database)
        calls = [_store(scripts, f"written:{number}") for number in range(100)]
        connection = client.connection_pool.get_connection()
        connection.send_packed_command([calls[0].packed_with_text()])
        connection.read_response()
        packed = [call.packed for call in calls]
        pipe.send(READY)
        rate, sent, started = 0, 0, time.perf_counter()
        while True:
            if pipe.poll():
                rate = pipe.recv()
                if rate is None:
                    break
                sent, started = 0, time.perf_counter()
                pipe.send(None)
            due = int((time.perf_counter() - started) * rate) - sent
            if due > 0:
                connection.send_packed_command([b"".join(packed[(sent + at) % len(packed)] for at in range(due))])
                for _ in range(due):
                    connection.read_response()
                sent += due
            time.sleep(0.001)
        client.connection_pool.release(connection)


def _store(scripts: Scripts, key: str) -> Any:
    prefix = envelope_prefix(key_digest(key.encode()), CODE_MSGPACK)
    content = encode_content((), hiredis.pack_command(("x",)))
    return scripts.call(StoreRequest(0, (key,), (prefix, content), 300_000))


if __name__ == "__main__":
    main(measure)
