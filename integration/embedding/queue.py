"""Asks workers of Celery, through their queue."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Self

from kombu import pools

from integration.embedding.tasks_app import make_app
from integration.embedding.traffic import ANSWER_TIMEOUT, Unanswered

if TYPE_CHECKING:
    from pathlib import Path

POLL = 0.003  # seconds between two looks for a result


class Queue:
    """The queue as those see it who have something done. ``with queue:`` closes its connections."""

    def __init__(self, url: str, folder: Path) -> None:
        """Prepare.

        Args:
            url: of Redis.
            folder: the worker's.
        """
        self._app = make_app(url, folder)
        self._given_up = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        self._app.close()
        pools.reset()

    def give_up(self) -> None:
        """Wait no longer for results: those who do are told that there is none."""
        self._given_up.set()

    def ask(self, method: str, route: str, /, **query: str) -> tuple[int, dict[str, Any]]:
        """Have one task done; see :class:`integration.embedding.traffic.Ask`."""
        result = self._app.send_task("ask", (method, route, query))
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while not (ready := result.ready()) and time.monotonic() < deadline:
            if self._given_up.wait(POLL):
                ready = result.ready()
                break
        if not ready:
            raise Unanswered("there is no result")
        if result.failed():
            return 503, {"error": repr(result.result)}
        return 200, result.result
