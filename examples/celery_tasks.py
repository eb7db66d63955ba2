"""The tasks of ``celery_pair.py``, as its two workers import them. What they need to know is in the environment."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_shutdown, worker_shutdown
from support import CACHE_OPTIONS, read_product, write_price

from coherent_cache import CoherentCache

FOLDER = Path(os.environ["EXAMPLE_FOLDER"])
DATABASE = str(FOLDER / "shop.sqlite3")

app = Celery("celery_tasks", broker="filesystem://", backend=f"file://{FOLDER}")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "messages"),
        "data_folder_out": str(FOLDER / "messages"),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.02,
    },
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
)

# Made before the worker forks its processes: each of them begins anew.
cache = CoherentCache(os.environ["EXAMPLE_URL"], namespace="celery", **CACHE_OPTIONS)
# Celery's processes end without atexit. A cache that was not closed is waited for until its time is over.
worker_process_shutdown.connect(lambda **_: cache.close(), weak=False)
worker_shutdown.connect(lambda **_: cache.close(), weak=False)


@app.task
def price(number):
    """Tell a price, with who told it and where it came from."""
    found = cache.get_or_set_entry(f"product:{number}", lambda: read_product(DATABASE, number), ttl=60)
    return {"price": found.value["price"], "tier": found.tier, "pid": os.getpid()}


@app.task
def change(number, amount):
    """Change a price: first in the table, then in the cache. Ends when no process serves an older one."""
    write_price(DATABASE, number, amount)
    cache.delete(f"product:{number}", wait=10)
    return os.getpid()
