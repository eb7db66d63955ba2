"""Starts the real servers, each in a process group of its own that ends as a whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from integration.waiting import wait_until
from integration.workers import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.embedding.configuration import Configuration

STOP_TIMEOUT = 60.0  # seconds until a program that was told to end must be gone, on a machine that does much else
LOG_LINES = 60  # lines of a program's log that a failed test shows


class Program:
    """A program in a process group of its own. ``with program:`` ends it, in an orderly way if it still runs."""

    def __init__(self, arguments: Sequence[str], configuration: Configuration) -> None:
        """Start it with the interpreter that runs the tests.

        Args:
            arguments: those of ``python -m``; ``{folder}`` stands for a folder of its own.
            configuration: of the application.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="cc-"))  # short: sockets have their paths in it
        self._log = self.folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(each.format(folder=self.folder) for each in arguments)],
                cwd=self.folder,
                env=os.environ
                | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(self.folder)}  # the latter: for gunicorn's socket
                | configuration.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.running:
                self.terminate()
                self.wait()
        finally:
            self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it and its children wrote to standard output and standard error."""
        return self._log.read_text(errors="replace")

    @property
    def socket(self) -> Path:
        """Where servers listen."""
        return self.folder / "socket"

    def children(self) -> set[int]:
        """Return the processes that it has started and that still run."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid) for pid in listed if not _is_zombie(int(pid))}

    def members(self) -> set[int]:
        """Return all processes of its group that still run."""
        return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and self._owns(entry)}

    def _owns(self, entry: Path) -> bool:
        try:
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(group) == self.pid and state != "Z"

    def send_signal(self, number: int) -> None:
        """Send a signal to the program alone, not to its group."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end, as service managers do."""
        self.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end of the whole group, and return the program's exit status.

        Raises:
            AssertionError: it is late.
        """
        wait_until(
            lambda: not self.running and not self.members(), STOP_TIMEOUT, f"the program ends; its log:\n{self.tail()}"
        )
        return self._process.returncode

    def end(self) -> None:
        """Ask it to end. It must do so well, and say nothing of it."""
        self.terminate()
        assert self.wait() == 0, self.tail()
        assert "Traceback" not in self.log, self.log

    def tail(self) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.splitlines()[-LOG_LINES:])

    def close(self) -> None:
        """End at once what still runs, and remove the folder."""
        if self.running or self.members():
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT)
            wait_until(lambda: not self.members(), STOP_TIMEOUT, "killed processes are gone")
        shutil.rmtree(self.folder)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def celery(configuration: Configuration, *, pool: str, concurrency: int, options: Sequence[str] = ()) -> Program:
    """Start a worker of Celery."""
    arguments = [
        "celery", "--app", "integration.embedding.tasks", "--quiet", "worker", "--pool", pool,
        "--concurrency", str(concurrency), "--without-gossip", "--without-mingle", "--loglevel", "WARNING", *options,
    ]  # fmt: skip
    return Program(arguments, configuration)


def gunicorn(configuration: Configuration, *, workers: int, options: Sequence[str] = ()) -> Program:
    """Start gunicorn."""
    arguments = [
        "gunicorn", "--bind", "unix:{folder}/socket", "--workers", str(workers), "--worker-tmp-dir", "{folder}",
        *options, "integration.embedding.application:wsgi",
    ]  # fmt: skip
    return Program(arguments, configuration)


def uvicorn(configuration: Configuration, *, workers: int, application: str = "application") -> Program:
    """Start uvicorn."""
    arguments = [
        "uvicorn",
        "--uds",
        "{folder}/socket",
        "--workers",
        str(workers),
        "--no-access-log",
        f"integration.embedding.{application}:asgi",
    ]
    return Program(arguments, configuration)
