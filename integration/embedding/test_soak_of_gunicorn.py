"""Four workers of gunicorn under faults. The long form is a command: ``python -m integration.embedding``."""

from __future__ import annotations

import os

import pytest

from integration.embedding.soak import FAULTS, MAX_STALENESS, OVERTIME, soak

SECONDS = float(os.environ.get("COHERENT_CACHE_GUNICORN_SOAK_SECONDS", "15"))
SEED = os.environ.get("COHERENT_CACHE_SOAK_SEED")
END = 120.0  # seconds that the begin, the end and the checking may take


@pytest.mark.slow
@pytest.mark.timeout(OVERTIME * SECONDS + END)
def test_no_answer_is_older_than_allowed():
    outcome = soak(seconds=SECONDS, seed=SEED)
    print(outcome.report())
    assert outcome.faults == [], outcome.report()
    # A soak that puts nothing to the test proves nothing.
    assert set(outcome.happened) == set(FAULTS)
    traffic = outcome.traffic
    assert len(traffic.pids) >= 4  # who replaces a worker that was killed in the last second may come too late
    assert {read.tier for read in traffic.reads} == {"local", "redis"}
    assert traffic.staleness(), "no answer was ever outdated: no worker was behind"
    assert max(traffic.staleness()) <= MAX_STALENESS
    assert sum(write.settled for write in traffic.writes) > 3, outcome.report()
