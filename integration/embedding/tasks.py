"""The application's operations as tasks of Celery: ``celery -A integration.embedding.tasks worker``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery.signals import worker_process_shutdown

from integration.embedding.application import ROUTES, cache, configuration
from integration.embedding.tasks_app import make_app

app = make_app(configuration.url, Path.cwd())


if configuration.close:
    # Children of the pool end without atexit: whoever waits for all instances would wait until their time is over.
    worker_process_shutdown.connect(lambda **_: cache.close(), weak=False)


@app.task(name="ask")
def ask(method: str, route: str, query: dict[str, str]) -> dict[str, Any]:
    """Answer as the web application does."""
    told = ROUTES[method, route](**query)
    return {"pid": os.getpid(), "instance": cache.instance_id, **told}
