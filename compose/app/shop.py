"""What the worker and the writer share: the cache, its keys, how a program ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from prometheus_client import start_http_server

from coherent_cache import CoherentCache
from coherent_cache.telemetry.prometheus import register

KEYS = [f"product:{number}" for number in range(50)]
METRICS_PORT = 9100


def open_cache(**options: Any) -> CoherentCache:
    """Return a cache of the namespace that the environment names."""
    return CoherentCache(
        os.environ["COHERENT_CACHE_URL"], namespace=os.environ["COHERENT_CACHE_NAMESPACE"], ttl=600, **options
    )


def show_metrics(cache: CoherentCache) -> None:
    """Let Prometheus read the cache's metrics."""
    register(cache)
    start_http_server(METRICS_PORT)


def end_when_told() -> None:
    """End at a SIGTERM: for the first process of a container it would do nothing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def say(**fields: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(fields), flush=True)
