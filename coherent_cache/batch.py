"""``with cache.batch() as b``, ``async with`` as well: collects writes and sends them together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from coherent_cache.config import check_ttl
from coherent_cache.core import batching
from coherent_cache.core.batching import BatchItem, Write
from coherent_cache.core.requests import Operation
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import ConfigError
from coherent_cache.keys import check_key
from coherent_cache.runtime import Runtime
from coherent_cache.versions import Version


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch, key by key.

    Attributes:
        items: one per key.
    """

    items: tuple[BatchItem, ...] = ()

    @property
    def versions(self) -> dict[str, Version]:
        """Versions of what was written or deleted, by key."""
        return {item.key: item.version for item in self.items if item.version is not None}

    @property
    def failed(self) -> tuple[BatchItem, ...]:
        """What was not done, or not for certain."""
        return tuple(item for item in self.items if item.error is not None)


class Writes:
    """Collects writes. Of several writes to one key the last counts.

    Attributes:
        result: what became of each key; empty until the batch was sent.
    """

    def __init__(self, runtime: Callable[[], Runtime]) -> None:
        """Make an empty batch.

        Args:
            runtime: returns the runtime of the present process.
        """
        self._runtime = runtime
        self._writes: dict[str, Write] = {}
        self._open = False
        self._over = False
        self.result = BatchResult()

    def set(self, key: str, value: Any, *, ttl: float | Default | None = DEFAULT, tags: Iterable[str] = ()) -> None:
        """Collect a value to store. It is encoded now: what becomes of the object later makes no difference.

        Args:
            key: a non-empty str of at most 1,024 UTF-8 bytes.
            value: what the serializer takes.
            ttl: seconds until it expires, from 0.001; None for never; default as the cache was configured.
            tags: as for :meth:`coherent_cache.CoherentCache.set`.

        Raises:
            InvalidKey, SerializationError, ValueTooLarge, ConfigError: it was not collected; the batch goes on.
        """
        self._check_open()
        instance = self._runtime().instance
        if isinstance(ttl, Default):
            ttl = instance.settings.ttl
        else:
            check_ttl("ttl", ttl)
        self._collect(key, batching.collect(instance, key, value, ttl=ttl, tags=tags))

    def delete(self, key: str) -> None:
        """Collect a value to delete.

        Raises:
            InvalidKey, ConfigError: it was not collected; the batch goes on.
        """
        self._check_open()
        check_key(key)
        self._collect(key, batching.DELETE)

    def __len__(self) -> int:
        """Return how many keys are concerned."""
        return len(self._writes)

    def _begin(self) -> None:
        if self._open or self._over:
            raise ConfigError("batch", "is used once, in one with block; ask the cache for another one")
        self._open = True

    def _end(self, kind: type[BaseException] | None) -> bool:
        """End the block; return whether there is anything to send."""
        self._open, self._over = False, True
        return kind is None and bool(self._writes)

    def _send(self) -> Operation[None]:
        items: list[BatchItem] = []
        try:
            yield from batching.send(self._runtime().instance, self._writes, items)
        finally:
            self.result = BatchResult(tuple(items))

    def _collect(self, key: str, write: Write) -> None:
        self._writes.pop(key, None)
        self._writes[key] = write

    def _check_open(self) -> None:
        if not self._open:
            raise ConfigError("batch", "collects inside of its with block only: with cache.batch() as b: ...")


class Batch(Writes):
    """Writes that are sent together at the end of a ``with`` block. See :meth:`coherent_cache.CoherentCache.batch`.

    For one thread. Of several writes to one key the last counts.

    Attributes:
        result: what became of each key; empty until the batch was sent.
    """

    def __enter__(self) -> Batch:
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._end(kind):
            self._runtime().run(self._send())


class AsyncBatch(Writes):
    """Writes that are sent together at the end of an ``async with`` block, for one task. See :class:`Batch`.

    Attributes:
        result: what became of each key; empty until the batch was sent.
    """

    def __init__(self, runtime: Callable[[], Runtime], run: Callable[[Operation[None]], Awaitable[None]]) -> None:
        """Make an empty batch.

        Args:
            runtime: returns the runtime of the present process.
            run: runs an operation.
        """
        super().__init__(runtime)
        self._run = run

    async def __aenter__(self) -> AsyncBatch:
        self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._end(kind):
            await self._run(self._send())
