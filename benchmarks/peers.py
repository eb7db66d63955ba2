"""Other processes that take part in a benchmark: each answers questions that come through a pipe."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final

START_TIMEOUT: Final = 30.0
ANSWER_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 5.0

READY: Final = "ready"

_SPAWN: Final = multiprocessing.get_context("spawn")


class Peer:
    """A process that runs ``target(connection, *arguments)``.

    The target sends ``READY`` once, then answers each message with one message; None ends it.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        """Start the process and wait until it is ready."""
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(theirs, target, arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive(START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def ask(self, message: Any) -> Any:
        """Send a message and return the answer."""
        self._connection.send(message)
        return self._receive(ANSWER_TIMEOUT)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):  # it may have ended
            self._connection.send(None)
        self._process.join(STOP_TIMEOUT)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._connection.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, timeout: float) -> Any:
        if not self._connection.poll(timeout):
            raise TimeoutError(f"a helper process did not answer within {timeout:g} s")
        return self._connection.recv()


def _run(connection: Connection, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with suppress(EOFError, KeyboardInterrupt):  # the benchmark is gone
        target(connection, *arguments)
