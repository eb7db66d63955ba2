"""What a cache tells operators about its fleet: who is there, whether it is coherent, what is known of one key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from coherent_cache.keys import check_key
from coherent_cache.runtime import clock

if TYPE_CHECKING:
    from coherent_cache.core.auditing import AuditReport
    from coherent_cache.core.explaining import Explanation
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

    def audit(
        self,
        keys: Iterable[str] | None = None,
        *,
        sample: int = 500,
        sleep: Callable[[float], None] = time.sleep,
    ) -> AuditReport:
        """Ask all instances which versions they hold, compare with Redis, and ask again about what differs.

        Takes a few round trips if nothing is outdated, else until everything is current, or at most as long as the
        bound and 10 seconds.

        Args:
            keys: the keys to look at; None for a sample of what each instance holds.
            sample: keys of each instance, 1 to 1,000.
            sleep: waits some seconds between two looks.

        Raises:
            CacheUnavailable: Redis is away or refused.
            NamespaceMismatch: the namespace was created with other settings.
            ConfigError, InvalidKey: before anything is sent.
        """
        from coherent_cache.auditor import Audit, check_audit  # noqa: PLC0415  # as above

        wanted = check_audit(keys, sample)
        runtime = self._runtime
        with runtime.inquiry() as inquiry:
            settings = runtime.settings
            audit = Audit(inquiry, namespace=settings.namespace, shards=settings.shards, clock=clock, sleep=sleep)
            return audit.run(wanted, sample)

    def explain(self, key: str) -> Explanation:
        """Return all that is known of a key, in Redis and on every instance, and why the next read does what it does.

        Args:
            key: the key.

        Raises:
            InvalidKey: before anything is sent.
            CacheUnavailable: Redis is away or refused.
            NamespaceMismatch: the namespace was created with other settings.
        """
        from coherent_cache.explainer import explain  # noqa: PLC0415  # as above

        runtime = self._runtime
        check_key(key)
        with runtime.inquiry() as inquiry:
            settings = runtime.settings
            return explain(inquiry, key, namespace=settings.namespace, server=runtime.server, shards=settings.shards)
