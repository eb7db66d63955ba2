"""What type checkers make of the public surface. Checked by mypy (``test_typing.py``), never run.

``type: ignore[...]`` marks what has to be an error: one that is none is reported as unused.
"""

from decimal import Decimal
from typing import Any, assert_type

from coherent_cache import Acknowledgement, AsyncCoherentCache, BatchItem, BatchResult, CoherentCache, Version

cache = CoherentCache("memory://typing", namespace="typing", compress="zlib", schema=3)
CoherentCache("memory://typing", namespace="typing", compress="gzip")  # type: ignore[arg-type]


@cache.cached(ttl=60, tags=["prices", "product:{product}"])
def price(product: int, currency: str = "EUR") -> Decimal:
    return Decimal(product)


@cache.cached(key=lambda *names, **_: "-".join(names), tags=lambda *names, **_: names, jitter=0.1, ttl=None)
def joined(*names: str, sep: str = ",") -> list[str]:
    return [sep.join(names)]


class Shop:
    @cache.cached(ignore=["self"])
    def price(self, product: int, *, currency: str = "EUR") -> Decimal:
        return Decimal(product)

    @staticmethod
    @cache.cached()
    def vat(country: str) -> float:
        return 0.19


def calls() -> None:
    assert_type(price(7), Decimal)
    assert_type(price(product=7, currency="USD"), Decimal)
    assert_type(price.key(7), str)
    assert_type(price.invalidate(7), bool)
    assert_type(price.refresh(7, currency="USD"), Decimal)
    assert_type(price.uncached(7), Decimal)
    assert_type(joined("a", "b", sep="-"), list[str])
    price("7")  # type: ignore[arg-type]
    price()  # type: ignore[call-arg]
    price(7, coin="EUR")  # type: ignore[call-arg]
    price.key("7")  # type: ignore[arg-type]
    price.invalidate()  # type: ignore[call-arg]


def methods(shop: Shop) -> None:
    assert_type(shop.price(7, currency="USD"), Decimal)
    assert_type(shop.price.key(7), str)
    assert_type(shop.price.invalidate(7), bool)
    assert_type(shop.price.refresh(7), Decimal)
    assert_type(shop.price.uncached(7), Decimal)
    assert_type(Shop.price(shop, 7), Decimal)
    assert_type(Shop.vat("DE"), float)
    shop.price("7")  # type: ignore[arg-type]
    shop.price(7, "USD")  # type: ignore[call-arg]
    shop.price.key()  # type: ignore[call-arg]


def options() -> None:
    cache.cached(ttl="60")  # type: ignore[arg-type]
    cache.cached(tll=60)  # type: ignore[call-arg]
    cache.cached(key=7)  # type: ignore[arg-type]


def batches() -> None:
    with cache.batch() as batch:
        assert_type(batch.set("k", 1, ttl=None, tags=["t"]), None)
        batch.delete(b"k")  # type: ignore[arg-type]
    assert_type(batch.result, BatchResult)
    assert_type(batch.result.versions, dict[str, Version])
    assert_type(batch.result.failed, tuple[BatchItem, ...])


def values() -> None:
    assert_type(cache.get("k"), Any)
    assert_type(cache.set("k", 1), Version)


def loads() -> None:
    assert_type(cache.get_or_set("k", lambda: 1, ttl=60, jitter=0.1, default=None), Any)
    assert_type(cache.get_or_set_entry("k", lambda context: context.key).stale, bool)
    assert_type(cache.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, 1)), dict[str, Any])
    assert_type(cache.get("k", min_version=cache.set("k", 1), max_staleness=0.5), Any)
    cache.get_or_set("k", lambda: 1, tll=60)  # type: ignore[call-arg]
    cache.get_or_set("k", lambda: 1, refresh_ahead="0.1")  # type: ignore[typeddict-item,arg-type,unused-ignore]
    cache.get_or_set("k")  # type: ignore[call-arg]


def acknowledged_writes() -> None:
    assert_type(cache.set("k", 1, wait=1), Acknowledgement)
    assert_type(cache.set("k", 1, wait=None), Version)
    assert_type(cache.delete("k"), bool)
    assert_type(cache.delete("k", wait=0.5), Acknowledgement)
    assert_type(cache.clear(), Version)
    assert_type(cache.clear(wait=0.5), Acknowledgement)
    assert_type(cache.invalidate_tags("t"), Version)
    assert_type(cache.invalidate_tags("t", wait=0.5), Acknowledgement)
    assert_type(cache.clear(wait=0.5).acknowledged, bool)
    cache.set("k", 1, wait="1")  # type: ignore[call-overload]


aio = cache.aio


@aio.cached(ttl=60)
async def price_elsewhere(product: int, currency: str = "EUR") -> Decimal:
    return Decimal(product)


async def asynchronous() -> None:
    assert_type(aio, AsyncCoherentCache)
    assert_type(await price_elsewhere(7), Decimal)
    assert_type(await price_elsewhere.refresh(7), Decimal)
    assert_type(await price_elsewhere.invalidate(7), bool)
    assert_type(price_elsewhere.key(7, currency="USD"), str)
    await price_elsewhere("7")  # type: ignore[arg-type]
    assert_type(await aio.set("k", 1), Version)
    assert_type(await aio.set("k", 1, wait=1), Acknowledgement)
    assert_type(await aio.delete("k"), bool)
    assert_type(await aio.clear(wait=1), Acknowledgement)
    assert_type(await aio.get_many(["k"]), dict[str, Any])
    assert_type((await aio.get_or_set_entry("k", price_elsewhere.uncached, ttl=5)).stale, bool)
    async with aio.batch() as batch:
        assert_type(batch.set("k", 1), None)
    aio.cached()(joined.uncached)  # type: ignore[arg-type]
    cache.cached(ttl="60")  # type: ignore[arg-type]
