"""Changes values, fifty times a second: sets, deletes, batches, tags. Each value says when it was written."""

from __future__ import annotations

import random
import time

from shop import KEYS, end_when_told, open_cache, say, show_metrics

from coherent_cache import CacheUnavailable, CoherentCache

PAUSE = 0.02  # seconds between two writes
REPORT = 2.0  # seconds between two reports


def value() -> dict[str, float]:
    return {"price": round(random.uniform(1, 100), 2), "written_at": time.time()}


def change(cache: CoherentCache) -> None:
    """Do one of the things that happen to a cache."""
    match random.choices(["set", "delete", "batch", "tag"], weights=[90, 5, 4, 1])[0]:
        case "set":
            cache.set(random.choice(KEYS), value(), tags=["products"])
        case "delete":
            cache.delete(random.choice(KEYS))
        case "batch":
            with cache.batch() as batch:
                for key in random.sample(KEYS, 5):
                    batch.set(key, value(), tags=["products"])
        case "tag":
            cache.invalidate_tags("products")


def main() -> None:
    end_when_told()
    with open_cache() as cache:
        show_metrics(cache)
        written = 0
        next_report = time.monotonic()
        while True:
            try:
                change(cache)
                written += 1
            except CacheUnavailable as error:
                say(writer=cache.instance_id, error=str(error))
                time.sleep(0.5)
            if time.monotonic() >= next_report:
                say(writer=cache.instance_id, written=written)
                next_report = time.monotonic() + REPORT
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
