"""What a cache tells operators about its fleet: who is there, whether it is coherent, what is known of one key."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coherent_cache.core.overview import FleetStatus
    from coherent_cache.runtime import Runtime


class Observing:
    """Methods of the cache that ask its whole fleet. Each takes a few round trips, and none changes anything."""

    _runtime: Runtime

    def fleet(self) -> FleetStatus:
        """Return what the instances of this namespace report about themselves, at most two heartbeats ago.

        Instances without a local tier, or with ``report=False``, do not report. One that has crashed is gone after six
        heartbeats.

        Raises:
            CacheUnavailable: Redis is away or refused.
            NamespaceMismatch: the namespace was created with other settings.
        """
        from coherent_cache.core.overview import FleetStatus  # noqa: PLC0415  # a cache that nobody looks at needs none

        runtime = self._runtime
        with runtime.inquiry() as inquiry:
            found = inquiry.fleet()
        return FleetStatus(
            namespace=runtime.settings.namespace,
            server=runtime.server,
            exists=found.exists,
            instances=tuple(sorted(found.reports.values(), key=lambda each: each.member)),
            silent=found.silent,
        )
