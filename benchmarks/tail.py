"""Does ``coherent-cache tail`` keep up with 20,000 invalidations a second, and does it grow meanwhile?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import redis
from bench import Bench, main
from measure import Row, compare
from peers import READY, Peer
from subscriber import FLOOD

from coherent_cache.keys import shard_names
from coherent_cache.wire import Kind, Message, encode_message

QUESTION: Final = "tail"
RATE: Final = 20_000
"""Messages per second that it must keep up with."""

FLOODED: Final = 60_000
"""Messages per round, published as fast as the server can."""

PER_SCRIPT: Final = 200


def measure(bench: Bench) -> list[Row]:
    """Let it follow messages that come as fast as they can, then as fast as they should."""
    with bench.cache(local_enabled=False) as cache:
        cache.set("first", 1)
    rates: list[float] = []
    busy: list[float] = []
    growth: list[float] = []
    paced = bench.times(5, 1) * RATE
    with Peer(publish, bench.url, bench.namespace) as publisher, Following(bench.url, bench.namespace) as tail:

        def flood(count: int, rate: int) -> tuple[float, float]:
            """Return the seconds, and the seconds of the processor, until all are told."""
            publisher.ask(("prepare", count))
            before, cpu, started = tail.told, tail.cpu(), time.perf_counter()
            publisher.ask(("publish", rate))
            tail.until_told(before + count)
            return time.perf_counter() - started, tail.cpu() - cpu

        flood(PER_SCRIPT * 10, 0)  # warm
        for _ in range(bench.times(5, 1)):
            seconds, used = flood(FLOODED, 0)
            rates.append(FLOODED / seconds)
            busy.append(used / FLOODED)
            memory = tail.memory()
            flood(paced, RATE)
            growth.append(float(tail.memory() - memory))
        missed = tail.missed
    return [
        compare(
            QUESTION, "needed, of what it follows", [float(RATE)] * len(rates), "follows", rates, unit="/s", limit=1.0
        ),
        compare(QUESTION, "CPU per message", busy, "needed", [1 / RATE] * len(busy), unit="us", limit=1.0),
        Row(QUESTION, "of all these, missed", float(missed), "calls", limit=0.0),
        Row(QUESTION, f"growth while {RATE:,}/s come", max(growth), "bytes", limit=4.0 * 2**20),
    ]


class Following:
    """A ``tail`` whose JSON lines are read and counted."""

    def __init__(self, url: str, namespace: str) -> None:
        command = [sys.executable, "-m", "coherent_cache", "tail", "--url", url, "--namespace", namespace]
        self._process = subprocess.Popen([*command, "--last", "1"], stdout=subprocess.PIPE)
        self.told = 0
        self.missed = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b'{"event": "gap"'):
                self.missed += json.loads(line)["missed"]
                self.told += json.loads(line)["missed"]
            else:
                self.told += 1

    def until_told(self, count: int) -> None:
        """Wait until so many messages are shown, or told to be missing."""
        deadline = time.monotonic() + 60
        while self.told < count:
            assert time.monotonic() < deadline, f"{self.told} of {count}"
            time.sleep(0.001)

    def memory(self) -> int:
        """Return the bytes of memory that it has."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Return the seconds of the processor that it has used."""
        numbers = Path(f"/proc/{self._process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Following:
        self.until_told(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)
        self._thread.join()


def publish(pipe: Any, url: str, namespace: str) -> None:
    """Be the process that publishes so many messages at such a rate, 0 for as fast as it can."""
    names = shard_names(namespace, 0, redis.Redis.from_url(url).connection_pool.connection_kwargs.get("db") or 0)
    with redis.Redis.from_url(url) as client:
        scripts: list[list[Any]] = []
        pipe.send(READY)
        while (question := pipe.recv()) is not None:
            what, number = question
            if what == "prepare":
                scripts = list(packed(client, names, number))
            else:
                started = time.perf_counter()
                for sent, arguments in enumerate(scripts, 1):
                    client.eval(FLOOD, 1, names.clock, *arguments)
                    early = started + sent * PER_SCRIPT / number - time.perf_counter() if number else 0.0
                    if early > 0:
                        time.sleep(early)
            pipe.send(None)


def packed(client: redis.Redis, names: Any, count: int) -> Any:
    """Yield the arguments of scripts that publish the next messages of a history."""
    epoch, seq, nonce = client.hmget(names.clock, "epoch", "seq", "nonce")
    position = int(seq)
    for start in range(0, count, PER_SCRIPT):
        messages = []
        for number in range(start, start + PER_SCRIPT):
            position += 1
            previous, nonce = nonce, os.urandom(8)
            now = int(time.time() * 1e6)
            key = f"product:{number}"
            messages.append(
                encode_message(Message(Kind.SET, epoch, position, nonce, previous, now, "elsewhere", (key,)))
            )
        yield [names.channel, position, nonce, *messages]


if __name__ == "__main__":
    main(measure)
