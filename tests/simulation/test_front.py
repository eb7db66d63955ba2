"""The simulator's local hit reads in the order of the front's: horizon, clock, entry (P4)."""

import inspect

import pytest

from coherent_cache.aio import AsyncCoherentCache
from coherent_cache.cache import CoherentCache
from coherent_cache.testing.simulation.calls import Call

READS = {
    "tier": ("= self._shard.tier", "= shard.tier"),
    "horizon": (".valid_until",),
    "clock": ("clock()",),
    "look up": ("entries[key]", "entries.get(key)"),
}


@pytest.mark.parametrize(
    "function",
    [
        CoherentCache.get, CoherentCache.get_or_set, CoherentCache._local_entry,
        AsyncCoherentCache.get, AsyncCoherentCache.get_or_set,
    ],
)  # fmt: skip
def test_the_front_hits_in_the_simulated_order(function):
    text = inspect.getsource(function).split('"""')[2]
    places = {read: min(text.find(form) for form in forms if form in text) for read, forms in READS.items()}
    assert places.pop("tier") < min(places.values()), "one tier object throughout"
    assert tuple(sorted(places, key=places.get)) == Call.HIT
