"""The demo's worker processes, seen from the process that started them."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from coherent_cache.cli.demo_worker import Plan, Sample, Tally, shared_clock
from coherent_cache.errors import CoherentCacheError

END_SECONDS: Final = 10.0
"""Seconds that a worker which was told to end may take to say what it counted."""

KILL_SECONDS: Final = 3.0
"""Seconds after which a worker that is to go, and does not, is killed."""

_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from coherent_cache.cli.demo_worker import main; sys.exit(main())"
)


class WorkerLost(CoherentCacheError):
    """A worker process ended early, or says nothing."""


class Member:
    """A worker process.

    Attributes:
        number: of the worker, from 1.
        instance_id: name of its cache.
        state: of its cache; ``starting`` before it has one.
        tally: what it counted.
        stats: what its cache counted, ``CacheStats`` as a dict; empty at first.
        events: events of its cache, oldest first, as dicts with ``at`` and ``name``.
        reads_per_second: of late.
        samples: reads that are still to be checked, when it has ended.
        lags: delays of invalidations in milliseconds, when it has ended.
        done: whether it has said everything.
    """

    def __init__(self, plan: Plan, folder: Path, inbox: queue.SimpleQueue[tuple[Member, str]]) -> None:
        """Start the process.

        Args:
            plan: what it is told.
            folder: for what it writes to standard error.
            inbox: gets its lines, and an empty one when there will be no more.
        """
        self.number = plan.number
        self.instance_id = plan.instance_id
        self.state = "starting"
        self.tally = Tally()
        self.stats: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.reads_per_second = 0.0
        self.samples: list[Sample] = []
        self.lags: list[float] = []
        self.done = False
        self._latest = (shared_clock(), 0)
        self._errors = folder / f"worker-{plan.number}.err"
        with self._errors.open("wb") as errors:
            # The parent's path, not the working directory's: a file redis.py that lies there is no business of ours.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the parent, which then tells the workers
            )
        self._inbox = inbox
        self._thread = threading.Thread(target=self._listen, name=f"demo worker {plan.number}", daemon=True)
        self._thread.start()
        self._say(json.dumps(asdict(plan)).encode("ascii") + b"\n")

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def begin(self) -> None:
        """Tell it to begin."""
        self._say(b"b")

    def end(self) -> None:
        """Tell it to end and to say what it counted."""
        self._say(b"e")

    def take(self, line: str) -> None:
        """Take a line that it said.

        Raises:
            WorkerLost: it has ended without having said everything.
        """
        if not line:
            if not self.done:
                raise WorkerLost(f"worker {self.number} ended unexpectedly: {self._last_words()}")
            return
        said = json.loads(line)
        match said["kind"]:
            case "ready":
                self.state = said["state"]
            case "progress":
                self._progress(said)
            case "done":
                self.samples = [Sample(*sample) for sample in said["samples"]]
                self.lags = said["lags"]
                self.done = True

    def close(self) -> None:
        """Let it go: closing its standard input ends it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Wait until it is gone; kill it at the deadline."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _progress(self, said: dict[str, Any]) -> None:
        at, reads = said["at"], said["tally"]["reads"]
        before, reads_before = self._latest
        if reads_before and at > before:
            self.reads_per_second = (reads - reads_before) / (at - before)
        self._latest = (at, reads)
        self.tally = Tally(**said["tally"])
        self.stats = said["stats"]
        self.state = self.stats["state"]
        self.events += said["events"]

    def _say(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone: its empty line says so
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._inbox.put((self, line.decode("ascii")))
        self._inbox.put((self, ""))

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it said nothing; exit status {self._process.wait()}"


class Fleet:
    """All workers. A context manager that leaves none of them behind."""

    def __init__(self, plans: Sequence[Plan], folder: Path) -> None:
        """Start the processes.

        Args:
            plans: what each worker is told.
            folder: for their files.
        """
        self._inbox: queue.SimpleQueue[tuple[Member, str]] = queue.SimpleQueue()
        self.members: list[Member] = []
        try:
            for plan in plans:
                self.members.append(Member(plan, folder, self._inbox))
        except BaseException:
            self.close()
            raise

    def listen(self, seconds: float) -> None:
        """Take what the workers say, for some time.

        Raises:
            WorkerLost: one of them has ended early.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                member, line = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            member.take(line)

    def finish(self) -> None:
        """Tell all workers to end; wait for what they counted.

        Raises:
            WorkerLost: one of them does not say.
        """
        for member in self.members:
            member.end()
        deadline = time.monotonic() + END_SECONDS
        while not all(member.done for member in self.members):
            if time.monotonic() > deadline:
                late = ", ".join(str(member.number) for member in self.members if not member.done)
                raise WorkerLost(f"no answer from worker {late} within {END_SECONDS:g} s")
            self.listen(0.05)

    def close(self) -> None:
        """End all processes."""
        for member in self.members:
            member.close()
        deadline = time.monotonic() + KILL_SECONDS
        for member in self.members:
            member.wait(deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
