"""The processes of a soak, seen from the one that started them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from integration.waiting import wait_until
from integration.workers import ROOT, STOP_TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

EXPIRY = 2.5  # seconds until all short-lived values are gone
TIMEOUT = 60.0  # seconds until all must have started, stopped, or shown what they hold


class Worker:
    """One process."""

    def __init__(self, name: str, folder: Path, arguments: dict[str, Any]) -> None:
        self.name = name
        self.errors = folder / f"stderr-{name}"
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "integration.soak.worker", json.dumps(arguments)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def ended_well(self) -> bool:
        return self._process.poll() == 0

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_TIMEOUT)


class Fleet:
    """Workers in places from 0; one that was killed is replaced by another of another name."""

    def __init__(self, folder: Path, count: int, **arguments: Any) -> None:
        self._folder = folder
        self._arguments = arguments
        self._made = [0] * count
        self.started: list[Worker] = []
        self.workers = [self._start(place) for place in range(count)]

    def _start(self, place: int) -> Worker:
        name = f"w{place}-{self._made[place]}"
        self._made[place] += 1
        worker = Worker(name, self._folder, {"folder": str(self._folder), "name": name, **self._arguments})
        self.started.append(worker)
        return worker

    def replace(self, place: int) -> None:
        self.workers[place] = self._start(place)

    def check(self) -> None:
        """Raise if a worker has ended that was not killed."""
        for worker in self.workers:
            if not worker.running and not worker.ended_well:
                text = "\n".join(worker.errors.read_text(errors="replace").splitlines()[-30:])
                raise AssertionError(f"worker {worker.name} ended by itself; its standard error:\n{text}")

    def wait_ready(self) -> None:
        """Wait until all are coherent."""
        self._wait("ready", "all workers are coherent")

    def finish(self) -> dict[str, dict[str, Any]]:
        """Let all stop and show what they hold; return that by name."""
        (self._folder / "stop").touch()
        self._wait("stopped", "all workers have stopped")
        time.sleep(EXPIRY)
        (self._folder / "quiet").touch()
        self._wait("end", "all workers have shown what they hold")
        return {worker.name: json.loads((self._folder / f"end-{worker.name}").read_text()) for worker in self.workers}

    def _wait(self, kind: str, description: str) -> None:
        """Wait until each worker has left a file."""

        def there() -> bool:
            self.check()
            return all((self._folder / f"{kind}-{worker.name}").exists() for worker in self.workers)

        wait_until(there, TIMEOUT, description, interval=0.1)

    def close(self) -> None:
        """Leave no process behind."""
        for worker in self.started:
            if worker.running:
                worker.kill()
