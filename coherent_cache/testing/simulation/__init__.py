"""A deterministic simulator of the coherence protocol: the real core, simulated Redis, network, time and faults.

What runs is the code that users run: the operations' generators, shards, sessions, local tiers and wire codecs of
several instances. What is simulated is around it: a Redis that answers the same requests (:mod:`.server`), connections
that are slow, lossy or cut (:mod:`.network`), processes that pause, crash and fork, clocks that drift, primaries that
fail over. A schedule (:mod:`.schedule`) says what happens; everything else follows from its seed, so a failing seed
fails again. Between any two steps the promises to users are checked (:mod:`.checks`). A failure is shrunk and told as a
timeline::

    python -m coherent_cache.testing.simulation --minutes 5
    python -m coherent_cache.testing.simulation --replay 4711
"""

from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.testing.simulation.runner import Failure, explain, replay, run, search, violation_of
from coherent_cache.testing.simulation.schedule import PROFILES, Schedule, Step, draw
from coherent_cache.testing.simulation.world import World

__all__ = [
    "PROFILES",
    "Failure",
    "Schedule",
    "Step",
    "Violation",
    "World",
    "draw",
    "explain",
    "replay",
    "run",
    "search",
    "violation_of",
]
