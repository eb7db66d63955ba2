"""The queue: what workers of Celery and those who ask them have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = "results"  # the folder of results, in the worker's working directory


def make_app(url: str, folder: Path) -> Celery:
    """Return the queue as workers and those who ask them see it: messages in Redis, results in files."""
    results = folder / RESULTS
    results.mkdir(exist_ok=True)
    app = Celery("tasks", broker=url, backend=f"file://{results}")
    app.conf.update(
        worker_prefetch_multiplier=1,  # tasks go to whoever is free
        task_acks_late=True,  # until then they are the queue's
        broker_connection_retry_on_startup=True,
    )
    return app
