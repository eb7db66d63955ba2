"""Work for other processes: ``python -m integration.workers NAME JSON`` runs one function in a fresh interpreter.

A function is registered with ``@worker``. Its first argument is a :class:`Context`, the others come from the caller and
must be JSON. What it reports with ``context.emit(...)`` and what it returns goes to standard output, one JSON object a
line; logs and tracebacks go to standard error.

The other end is :class:`Processes`, in tests the fixture ``processes``::

    @worker
    def count(context, *, to):
        for i in range(to):
            context.emit(i=i)
        return to

    def test_count(processes):
        assert processes.run_workers(3, "count", to=5) == [5, 5, 5]

        slow = processes.spawn("count", to=10**9)
        slow.wait_message(lambda message: message["i"] == 100, timeout=5)
        slow.kill()
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 60.0  # seconds for a worker whose caller names no other limit
STOP_TIMEOUT = 10.0  # seconds until a killed worker must be gone
RESULT = "__result__"  # key of the last line
MODULES = (
    "integration.coherence_workers",
    "integration.exit_workers",
    "integration.fork_workers",
    "integration.load_workers",
    "integration.telemetry_workers",
)  # where more workers register themselves

WORKERS: dict[str, Callable[..., Any]] = {}


def worker(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register ``function`` under its name."""
    assert function.__name__ not in WORKERS, f"two workers are called {function.__name__}"
    WORKERS[function.__name__] = function
    return function


def load_workers() -> None:
    """Let all workers register themselves."""
    for module in MODULES:
        importlib.import_module(module)


@dataclass(frozen=True)
class Context:
    """What a worker knows about itself.

    Attributes:
        index: number of this worker, from 0.
        count: how many workers were started together.
    """

    index: int
    count: int

    def emit(self, **message: Any) -> None:
        """Report one message to the caller, at once."""
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


@worker
def echo(context: Context, *, value: Any = None, hold: float = 0.0) -> dict[str, Any]:
    """Report the start, wait ``hold`` seconds, return what was given."""
    context.emit(started=context.index)
    time.sleep(hold)
    return {"index": context.index, "count": context.count, "value": value}


class WorkerFailed(AssertionError):
    """A worker ended with an error, was late, or was killed. Carries what it wrote to standard error."""


class Process:
    """One worker seen from its caller. Its output goes to files, so that nobody has to read along."""

    def __init__(self, folder: Path, name: str, index: int, count: int, arguments: dict[str, Any]) -> None:
        self.name = f"{name}[{index}]"
        self._output = folder / f"{name}-{index}.out"
        self._errors = folder / f"{name}-{index}.err"
        config = json.dumps({"index": index, "count": count, "arguments": arguments})
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "integration.workers", name, config],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def stderr(self) -> str:
        """The end of what it wrote to standard error so far."""
        return "\n".join(self._errors.read_text(errors="replace").splitlines()[-40:])

    def _lines(self) -> list[dict[str, Any]]:
        complete = self._output.read_bytes().rpartition(b"\n")[0]  # the last line may be half written
        return [json.loads(line) for line in complete.splitlines()]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What it has emitted so far, oldest first."""
        return [line for line in self._lines() if RESULT not in line]

    def wait_message(self, wanted: Callable[[dict[str, Any]], Any], *, timeout: float = DEADLINE) -> dict[str, Any]:
        """Return the first message for which ``wanted`` is true.

        Raises:
            WorkerFailed: none came within ``timeout`` seconds or before the worker ended.
        """

        def found() -> tuple[bool, dict[str, Any] | None]:
            ended = not self.running  # looked at first: what it emitted before its end is then on file
            match = next((message for message in self.messages if wanted(message)), None)
            return (ended, match) if ended or match is not None else ()  # type: ignore[return-value]

        try:
            _, match = wait_until(found, timeout, f"{self.name} reports the wanted message")
        except AssertionError as error:
            raise WorkerFailed(f"{error}; messages: {self.messages[-5:]}; standard error:\n{self.stderr}") from None
        if match is None:
            raise WorkerFailed(f"{self.name} ended without the wanted message; standard error:\n{self.stderr}")
        return match

    def result(self, *, timeout: float = DEADLINE) -> Any:
        """Wait for the end and return what the function returned. A late worker is killed.

        Raises:
            WorkerFailed: it was late or did not end well.
        """
        try:
            status = self._process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            self.kill()
            raise WorkerFailed(f"{self.name} was late and was killed; standard error:\n{self.stderr}") from None
        results = [line[RESULT] for line in self._lines() if RESULT in line]
        if status != 0 or not results:
            raise WorkerFailed(f"{self.name} ended with status {status}; standard error:\n{self.stderr}")
        return results[0]

    def wait(self, *, timeout: float = DEADLINE) -> int:
        """Wait for the end and return the exit status, negative for a signal. A late worker is killed.

        Raises:
            WorkerFailed: it was late.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise WorkerFailed(f"{self.name} was late and was killed; standard error:\n{self.stderr}") from None

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once (SIGKILL), paused or not."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT)


class Processes:
    """Starts workers and leaves none behind: ``close`` kills those that still run."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="coherent-cache-workers-"))
        self._started: list[Process] = []

    def spawn(self, name: str, *, index: int = 0, count: int = 1, **arguments: Any) -> Process:
        """Start one worker and return at once."""
        load_workers()
        assert name in WORKERS, f"no worker {name!r}; there are {', '.join(sorted(WORKERS))}"
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        process = Process(folder, name, index, count, arguments)
        self._started.append(process)
        return process

    def run_workers(self, n: int, name: str, *, timeout: float = DEADLINE, **arguments: Any) -> list[Any]:
        """Start ``n`` workers together and return their results in the order of their index.

        Raises:
            WorkerFailed: one was not finished ``timeout`` seconds after the start, or did not end well.
        """
        deadline = time.monotonic() + timeout
        started = [self.spawn(name, index=index, count=n, **arguments) for index in range(n)]
        return [process.result(timeout=deadline - time.monotonic()) for process in started]

    def close(self) -> None:
        for process in self._started:
            if process.running:
                process.kill()
        shutil.rmtree(self._folder)


def main(name: str, config: str) -> None:
    """Run one worker in this process."""
    given = json.loads(config)
    if name not in WORKERS:
        load_workers()
    result = WORKERS[name](Context(index=given["index"], count=given["count"]), **given["arguments"])
    sys.stdout.write(json.dumps({RESULT: result}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # By its real name: as __main__ this file is a second module, and a function elsewhere registers with the first.
    importlib.import_module("integration.workers").main(*sys.argv[1:])
