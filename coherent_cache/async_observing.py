"""What an asynchronous cache tells operators about its fleet: the same questions, asked in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coherent_cache.observing import Observing

if TYPE_CHECKING:
    from coherent_cache.core.overview import FleetStatus
    from coherent_cache.runtime import Runtime


class AsyncObserving:
    """Coroutines that ask the whole fleet. See :class:`coherent_cache.observing.Observing`."""

    _runtime: Runtime

    async def fleet(self) -> FleetStatus:
        """See :meth:`CoherentCache.fleet`."""
        return await asyncio.to_thread(self._blocking().fleet)

    def _blocking(self) -> Observing:
        blocking = Observing()
        blocking._runtime = self._runtime  # noqa: SLF001
        return blocking
