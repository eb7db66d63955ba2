"""Traffic for the application, over HTTP or whatever else, and what is checked from outside in its answers."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self
from urllib.parse import urlencode

from integration.history import SET, Read, Write, violations
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = 6
WRITES = 0.25  # part of the requests
SETTLED_WAIT = 30.0  # seconds that such a write may take
ANSWER_TIMEOUT = 60.0  # seconds for one answer
START_TIMEOUT = 60.0  # seconds until a server must answer
PAUSE = 0.002  # seconds between two requests of a thread; the same after a failure, so that nothing spins

clock = time.monotonic


class Unanswered(Exception):
    """A request got no complete answer: nobody knows what became of it."""


class _Connection(http.client.HTTPConnection):
    """A connection to a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Ask(Protocol):
    """Asks the application; returns a status, 200 if all is well, and its answer.

    Raises:
        Unanswered: nobody knows what became of it.
    """

    def __call__(self, method: str, route: str, /, **query: str) -> tuple[int, dict[str, Any]]: ...


def request(path: Path, method: str, route: str, /, **query: str) -> tuple[int, dict[str, Any]]:
    """Send an HTTP request by a connection of its own, so that the workers take turns; return its status and answer.

    Raises:
        Unanswered: there was none.
    """
    connection = _Connection(path)
    try:
        connection.request(method, f"{route}?{urlencode(query)}", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return response.status, json.loads(body) if body.startswith(b"{") else {"error": body.decode(errors="replace")}


def wait_for_workers(ask: Ask, number: int) -> dict[str, dict[str, Any]]:
    """Wait until so many workers have answered and their instances are coherent; return what they said, by instance."""
    told: dict[str, dict[str, Any]] = {}

    def ask_one(_: int) -> None:
        try:
            status, answer = ask("GET", "/who")
        except Unanswered:
            return
        assert status == 200, answer
        assert answer["ready"], answer
        told.setdefault(answer["instance"], answer)

    def all_there() -> bool:
        list(pool.map(ask_one, range(2 * number)))  # at the same time: if one is busy, another one answers
        return len(told) >= number

    with ThreadPoolExecutor(2 * number) as pool:
        wait_until(all_there, START_TIMEOUT, f"{number} workers answer")
    return told


class Failure(NamedTuple):
    """A request that was not answered with 200.

    Attributes:
        began: before it was sent.
        at: when that was known.
        why: what happened.
    """

    began: float
    at: float
    why: str


class Traffic:
    """Threads that read and write through workers and note what it answers. ``with traffic:`` runs them.

    Attributes:
        writes: what was written.
        reads: what was read.
        failures: requests that failed.
        pids: how many answers each process gave.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        seed: str,
        threads: int = 4,
        keys: int = KEYS,
        writes: float = WRITES,
        settled: float = 0.0,
    ) -> None:
        """Prepare.

        Args:
            ask: how the workers are reached.
            seed: decides what is asked for.
            threads: how many.
            keys: how many.
            writes: which part of the requests are writes.
            settled: which part of those wait until nobody can serve an older value.
        """
        self._ask = ask
        self._keys = [f"key-{number}" for number in range(keys)]
        self._share = writes
        self._settled = settled
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(Random(f"{seed}-{n}"), n)) for n in range(threads)]
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.failures: list[Failure] = []
        self.pids: Counter[int] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the threads. A second call does nothing."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def wait(self, predicate: Callable[[], object], timeout: float, description: str) -> None:
        """Wait until it holds; a thread that fails ends that."""
        wait_until(lambda: self._error is not None or predicate(), timeout, description)
        if self._error is not None:
            raise self._error

    def run_for(self, answers: int, timeout: float) -> None:
        """Wait until so many more answers have come."""
        until = self.answers + answers
        self.wait(lambda: self.answers >= until, timeout, f"{answers} answers")

    @property
    def answers(self) -> int:
        return len(self.writes) + len(self.reads)

    def _run(self, rng: Random, number: int) -> None:
        turn = 0
        try:
            while not self._stop.is_set():
                turn += 1
                key = rng.choice(self._keys)
                if rng.random() < self._share:
                    self._write(key, f"{number}-{turn}", settled=rng.random() < self._settled)
                else:
                    self._read(key)
                self._stop.wait(PAUSE)
        except BaseException as error:
            self._error = error
            raise

    def _write(self, key: str, stamp: str, *, settled: bool) -> None:
        more = {"wait": str(SETTLED_WAIT)} if settled else {}
        began = clock()
        try:
            status, answer = self._ask("POST", "/write", key=key, value=stamp, **more)
        except Unanswered as error:
            self._fail(began, str(error))
            self.writes.append(Write("nobody", key, SET, None, stamp, began, None))
            return
        ended = clock()
        if status == 200:
            self.pids[answer["pid"]] += 1
            certain = settled and answer["by"] != "timeout"
            self.writes.append(Write(answer["instance"], key, SET, answer["seq"], stamp, began, ended, certain))
            return
        self._fail(began, f"{status}: {answer['error']}")
        if answer.get("maybe_applied", True):
            self.writes.append(Write("nobody", key, SET, None, stamp, began, None))

    def _read(self, key: str) -> None:
        began = clock()
        try:
            status, answer = self._ask("GET", "/read", key=key)
        except Unanswered as error:
            self._fail(began, str(error))
            return
        ended = clock()
        if status != 200:
            self._fail(began, f"{status}: {answer['error']}")
            return
        self.pids[answer["pid"]] += 1
        who = answer["instance"]
        if answer["found"]:
            seq, stamp, tier, age = (answer[name] for name in ("seq", "value", "tier", "age"))
            self.reads.append(Read(who, key, True, seq, stamp, tier, age, began, ended))
        else:
            self.reads.append(Read(who, key, False, None, None, "redis", None, began, ended))

    def _fail(self, began: float, why: str) -> None:
        self.failures.append(Failure(began, clock(), why))

    def faults(self, *, max_staleness: float) -> list[str]:
        """Return what the contract forbids in what was answered; empty if all is well."""
        stamps: dict[tuple[str, int], str] = {
            (write.key, write.seq): write.stamp for write in self.writes if write.seq is not None and write.stamp
        }
        mixed_up = [
            f"version {read.seq} of {read.key} was written as {stamps[read.key, read.seq]!r}: {read}"
            for read in self.reads
            if read.seq is not None and stamps.get((read.key, read.seq), read.stamp) != read.stamp
        ]
        return mixed_up + violations(self.writes, self.reads, max_staleness=max_staleness)

    def staleness(self) -> list[float]:
        """Return of each answer that was outdated when it was asked for: since when, in seconds."""
        newer: dict[str, list[tuple[int, float]]] = defaultdict(list)  # versions; when one of at least that was there
        for write in sorted(self.writes, key=lambda write: -(write.seq or 0)):
            if write.seq is not None and write.ended is not None:
                earliest = min(write.ended, newer[write.key][-1][1] if newer[write.key] else write.ended)
                newer[write.key].append((write.seq, earliest))
        found = []
        for read in self.reads:
            above = newer[read.key][: bisect_left(newer[read.key], -(read.seq or 0), key=lambda each: -each[0])]
            if read.found and above and above[-1][1] < read.began:
                found.append(read.began - above[-1][1])
        return found

    def lost(self, entry: Callable[[str], tuple[int, str] | None]) -> list[str]:
        """Return which acknowledged writes are not there, given what is there: version and value by key."""
        newest: dict[str, Write] = {}
        doubtful: dict[str, set[str | None]] = defaultdict(set)
        for write in self.writes:
            if write.seq is None:
                doubtful[write.key].add(write.stamp)
            elif write.key not in newest or write.seq > (newest[write.key].seq or 0):
                newest[write.key] = write
        found = []
        for key, write in newest.items():
            seq, stamp = entry(key) or (0, None)
            if (seq, stamp) != (write.seq, write.stamp) and not (seq > (write.seq or 0) and stamp in doubtful[key]):
                found.append(f"{key} is {stamp!r} in version {seq}, but this was answered with 200: {write}")
        return found
