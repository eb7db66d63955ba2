"""Loading several keys by one call of a loader (rule P11): ``core.loading`` for many.

What others are just loading, in this process or elsewhere, is waited for only when everything of our own is stored and
our leases are gone: nobody waits while somebody may wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from coherent_cache.core.instance import Instance
from coherent_cache.core.leasing import (
    Fill,
    LoaderError,
    Patience,
    ask_leases,
    call_loader,
    fail,
    give_up,
    prepare_fill,
    store_fills,
)
from coherent_cache.core.load_options import LoadOptions
from coherent_cache.core.operations import MISSING, read
from coherent_cache.core.requests import Lease, Operation, WaitRequest
from coherent_cache.core.shard import Shard
from coherent_cache.core.waiting import Flight, Waiter
from coherent_cache.errors import CacheUnavailable, ConfigError

Loader = Callable[[list[str]], Mapping[str, Any]]


def get_or_set_many(
    instance: Instance, keys: Sequence[str], loader: Loader, options: LoadOptions, home: object = None
) -> Operation[dict[str, Any]]:
    """Read keys from Redis; load those that are nowhere, by one call of the loader. MISSING: there is no such thing.

    ``home`` is that of the flights, see :class:`coherent_cache.core.waiting.Flight`.

    Raises:
        Exception: what the loader raised.
        ConfigError: it returned something else than values of those keys.
        Others: as :func:`coherent_cache.core.loading.get_or_set`.
    """
    patience = Patience(instance)
    values: dict[str, Any] = {}
    missing = list(keys)
    while missing:
        found = yield from read(instance, missing)
        values |= found
        missing = [key for key in missing if key not in values]
        if missing:
            values |= yield from _round(instance, missing, loader, options, patience, home)
            missing = [key for key in missing if key not in values]
    return values


def _round(
    instance: Instance,
    keys: Sequence[str],
    loader: Loader,
    options: LoadOptions,
    patience: Patience,
    home: object,
) -> Operation[dict[str, Any]]:
    """Load what nobody else is loading, then wait for those who load the rest; return what is known now."""
    flights = instance.flights
    mine: dict[str, Flight] = {}
    values: dict[str, Any] = {}
    waits: list[WaitRequest] = []
    registered: list[tuple[Shard, str, Waiter]] = []
    joined: list[tuple[Flight, Waiter]] = []
    try:
        for key in keys:
            flight, waiter, _ = flights.join(key, home)
            if waiter is None:
                mine[key] = flight
                shard = instance.shard_of(instance.facts(key)[0])
                registered.append((shard, key, shard.await_key(key)))
            else:
                waits.append(WaitRequest(waiter, inf, flight))
                joined.append((flight, waiter))
        try:
            if mine:
                values = yield from _lead(instance, mine, registered, loader, options, patience, waits)
        except Exception as error:  # noqa: BLE001  # it is raised below
            _end(instance, mine, error)
            raise _plain(error) from None
        _end(instance, mine)
        for wait in waits:
            yield (wait,)
        for flight, _ in joined:
            if flight.error is not None:
                raise _plain(flight.error)
    finally:
        _end(instance, mine)  # also of those that were interrupted before they asked for anything
        for shard, key, waiter in registered:
            shard.stop_waiting(key, waiter)
        for flight, waiter in joined:
            flights.leave(flight, waiter)
    return values


def _end(instance: Instance, mine: Mapping[str, Flight], error: Exception | None = None) -> None:
    """End those of our flights that have not ended yet."""
    for flight in mine.values():
        instance.flights.end(flight, error=error)


def _plain(error: Exception) -> Exception:
    return error.error if isinstance(error, LoaderError) else error


def _lead(
    instance: Instance,
    mine: Mapping[str, Flight],
    registered: Sequence[tuple[Shard, str, Waiter]],
    loader: Loader,
    options: LoadOptions,
    patience: Patience,
    waits: list[WaitRequest],
) -> Operation[dict[str, Any]]:
    """Get the leases of our flights and load what they are for; add to ``waits`` who holds the others."""
    values: dict[str, Any] = {}
    leases: dict[str, Lease | None] = {}
    try:
        answers = yield from ask_leases(instance, tuple(mine))
    except CacheUnavailable as error:
        if error.maybe_applied:
            raise
        leases = dict.fromkeys(mine)  # Redis reads and does not write: load without storing
        answers = []
    for (shard, key, waiter), answer in zip(registered, answers, strict=False):
        if answer.lease is not None:
            leases[key] = answer.lease
        elif answer.result is not None:
            values[key] = answer.result.value
        else:
            until = patience.until(shard, answer.reply) if answer.reply.remaining else None
            if until is None:
                leases[key] = None
            else:
                waits.append(WaitRequest(waiter, until))
                instance.flights.end(mine[key])
    if leases:
        for key in leases:
            instance.flights.begin_load(mine[key])
        values |= yield from _load(instance, mine, leases, loader, options)
    return values


def _load(
    instance: Instance,
    mine: Mapping[str, Flight],
    leases: Mapping[str, Lease | None],
    loader: Loader,
    options: LoadOptions,
) -> Operation[dict[str, Any]]:
    held = [lease for lease in leases.values() if lease is not None]
    keys = list(leases)
    loaded = yield from call_loader(instance, keys, partial(loader, list(keys)), held, [mine[key] for key in keys])
    fills: dict[str, Fill | None] = {}
    try:
        values = _checked(keys, loaded)
        for key in keys:
            fills[key] = prepare_fill(instance, key, values[key], options.ttl, options.tags, options)
    except Exception as error:
        yield from fail(instance, keys, held, error)
        raise
    pairs = [(fill, lease) for key, fill in fills.items() if fill is not None and (lease := leases[key]) is not None]
    if pairs:
        yield from store_fills(instance, pairs)
    yield from give_up(lease for lease in held if fills[lease.key] is None)
    for key, fill in fills.items():
        nothing = values[key] is MISSING
        payload = None if nothing or fill is None else fill.payload
        instance.flights.end(mine[key], payload=payload, nothing=nothing)
    return values


def _checked(keys: Sequence[str], loaded: object) -> dict[str, Any]:
    """Return what a loader returned for each key, MISSING for what it left out."""
    if not isinstance(loaded, Mapping):
        raise ConfigError("loader", f"must return a mapping of keys to values, not {type(loaded).__name__}")
    asked = frozenset(keys)
    unasked = [key for key in loaded if key not in asked]
    if unasked:
        raise ConfigError("loader", f"returned {len(unasked)} keys that it was not asked for, e.g. {unasked[0]!r:.60}")
    return {key: loaded.get(key, MISSING) for key in keys}
