"""``with cache.batch() as b``: collects writes and sends them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from coherent_cache.config import check_ttl
from coherent_cache.core import batching
from coherent_cache.core.batching import BatchItem, Write
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


class Batch:
    """Writes that are sent together at the end of a ``with`` block. See :meth:`coherent_cache.CoherentCache.batch`.

    For one thread. Of several writes to one key the last counts.

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

    def __enter__(self) -> Batch:
        if self._open or self._over:
            raise ConfigError("batch", "is used once, in one with block; ask the cache for another one")
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open, self._over = False, True
        if kind is None and self._writes:
            self._send()

    def _send(self) -> None:
        runtime = self._runtime()
        items: list[BatchItem] = []
        try:
            runtime.run(batching.send(runtime.instance, self._writes, items))
        finally:
            self.result = BatchResult(tuple(items))

    def _collect(self, key: str, write: Write) -> None:
        self._writes.pop(key, None)
        self._writes[key] = write

    def _check_open(self) -> None:
        if not self._open:
            raise ConfigError("batch", "collects inside of its with block only: with cache.batch() as b: ...")
