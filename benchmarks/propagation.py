"""How long from a write in one process to the eviction in another, next to a bare PUBLISH and redis-py's PubSub?"""

from __future__ import annotations

import random
import time
from multiprocessing.connection import Connection
from statistics import median
from typing import Final

import redis
from bench import Bench, main, ready_cache
from measure import Row, percentile, quartiles
from peers import READY, Peer

from coherent_cache.core.shard import Shard

QUESTION: Final = "propagation"
VALUE: Final = b"v" * 500
MESSAGE: Final = b"m" * 120
"""About as long as an invalidation."""

CHUNK: Final = 50
PAUSE: Final = (0.002, 0.004)
"""Seconds between two writes: the listeners have fallen asleep again."""


def measure(bench: Bench) -> list[Row]:
    """Write and publish in turn; both moments are read from the one monotonic clock of this machine."""
    samples = bench.times(40, 8) * CHUNK
    keys = [f"product:{number}" for number in range(samples)]
    client, cache = bench.client(), bench.cache(max_entries=samples)
    channel = f"{bench.namespace}:raw"
    sent: dict[str, list[float]] = {"ours": [], "raw": []}
    for start in range(0, samples, 1000):
        cache.set_many(dict.fromkeys(keys[start : start + 1000], VALUE))
    rng = random.Random(1)
    with Peer(watch, bench.url, bench.namespace, keys) as watcher, Peer(listen, bench.url, channel) as listener:
        for key in keys:
            time.sleep(rng.uniform(*PAUSE))
            sent["ours"].append(time.perf_counter())
            cache.set(key, VALUE)
            time.sleep(rng.uniform(*PAUSE))
            sent["raw"].append(time.perf_counter())
            client.publish(channel, MESSAGE)
        seen = {"ours": watcher.ask(samples), "raw": listener.ask(samples)}
    took = {name: [b - a for a, b in zip(sent[name], seen[name], strict=True)] for name in sent}
    return [_row("write to eviction", 0.50, took), _row("write to eviction", 0.99, took)]


def _row(case: str, fraction: float, took: dict[str, list[float]]) -> Row:
    """Make a row: the ratio of the percentiles, chunk by chunk for the median, else of all samples."""
    size = CHUNK if fraction == 0.5 else len(took["raw"])
    chunks = range(0, len(took["raw"]), size)
    ratios = [
        percentile(took["ours"][at : at + size], fraction) / percentile(took["raw"][at : at + size], fraction)
        for at in chunks
    ]
    return Row(
        QUESTION, f"{case}, p{fraction * 100:.0f}", percentile(took["ours"], fraction) * 1e6, "us",
        "PUBLISH to get_message", percentile(took["raw"], fraction) * 1e6, median(ratios), quartiles(ratios),
    )  # fmt: skip


def watch(pipe: Connection, url: str, namespace: str, keys: list[str]) -> None:
    """Be the other process: hold all keys, note when each is evicted."""
    seen: list[float] = []
    apply = Shard.apply

    def noting(shard: Shard, message, *, now: float) -> bool:
        sound = apply(shard, message, now=now)
        seen.append(time.perf_counter())
        return sound

    with ready_cache(url, namespace, max_entries=len(keys)) as cache:
        assert cache.warm(keys) == len(keys)
        Shard.apply = noting
        pipe.send(READY)
        expected = pipe.recv()
        _await(seen, expected)
        assert not cache.stats().size
        pipe.send(seen)
        pipe.recv()


def listen(pipe: Connection, url: str, channel: str) -> None:
    """Be the other process without this package: redis-py's own listener."""
    seen: list[float] = []
    with redis.Redis.from_url(url) as client, client.pubsub() as pubsub:
        pubsub.subscribe(channel)
        while (message := pubsub.get_message(timeout=1.0)) is None or message["type"] != "subscribe":
            pass
        pipe.send(READY)
        while not pipe.poll():
            while pubsub.get_message(timeout=0.2) is not None:
                seen.append(time.perf_counter())
        pipe.recv()
        pipe.send(seen)
        pipe.recv()


def _await(seen: list[float], expected: int) -> None:
    deadline = time.monotonic() + 5
    while len(seen) < expected and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    main(measure)
