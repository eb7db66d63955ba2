"""What an asynchronous cache tells operators about its fleet: the same questions, asked in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from coherent_cache.observing import Observing

if TYPE_CHECKING:
    from coherent_cache.core.auditing import AuditReport
    from coherent_cache.core.explaining import Explanation
    from coherent_cache.core.overview import FleetStatus
    from coherent_cache.runtime import Runtime


class AsyncObserving:
    """Coroutines that ask the whole fleet. See :class:`coherent_cache.observing.Observing`."""

    _runtime: Runtime

    async def fleet(self) -> FleetStatus:
        """See :meth:`CoherentCache.fleet`."""
        return await asyncio.to_thread(self._blocking().fleet)

    async def audit(
        self,
        keys: Iterable[str] | None = None,
        *,
        sample: int = 500,
        sleep: Callable[[float], None] = time.sleep,
    ) -> AuditReport:
        """See :meth:`CoherentCache.audit`. ``sleep`` is called in the thread."""
        return await asyncio.to_thread(self._blocking().audit, keys, sample=sample, sleep=sleep)

    async def explain(self, key: str) -> Explanation:
        """See :meth:`CoherentCache.explain`."""
        return await asyncio.to_thread(self._blocking().explain, key)

    def _blocking(self) -> Observing:
        blocking = Observing()
        blocking._runtime = self._runtime  # noqa: SLF001
        return blocking
