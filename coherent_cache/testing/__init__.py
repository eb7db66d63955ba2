"""Tools for testing code that uses a cache, shipped to users; ``plugin`` makes fixtures of them for pytest."""

from typing import TYPE_CHECKING

from coherent_cache.lazy import lazily

if TYPE_CHECKING:
    from coherent_cache.testing.coherence import assert_coherent
    from coherent_cache.testing.fault_proxy import FaultProxy
    from coherent_cache.testing.fleet import Fleet, FleetError, Member, Task, WorkerDied, WorkerFailed, WorkerLate

__all__ = [
    "FaultProxy",
    "Fleet",
    "FleetError",
    "Member",
    "Task",
    "WorkerDied",
    "WorkerFailed",
    "WorkerLate",
    "assert_coherent",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(
        __name__,
        __all__,
        ("coherent_cache.testing.fault_proxy", "coherent_cache.testing.fleet", "coherent_cache.testing.coherence"),
    )
