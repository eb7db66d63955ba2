"""Loading what is not there: once per process and fleet, and never storing what is outdated (rule P11).

A caller that finds nothing joins the flight of its key. Who begins it asks Redis for the right to load, a *lease*: an
envelope that lies where the value will be, so that every write and deletion of the key removes it, and every clear
outdates it, without knowing of it. The fill stores only where the lease still lies. So what a loader read before an
invalidation is never stored after it; its callers still get it.

Whoever finds another lease waits for the message that ends it: a fill and a lease given up publish one. A waiter is
registered before the lease is asked for, so no message can slip through. The death of a holder sends none: then the
lease's own time ends the wait.

Who waits within the process is woken at the end of the flight, and looks again: in the local tier (P7 has decided what
may be there), then in Redis. What the loader returned is handed on only to those who had asked before it was called:
it cannot be older than their question.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple

from coherent_cache.core.entries import KeptEntry
from coherent_cache.core.instance import Instance
from coherent_cache.core.leasing import (
    LoaderError,
    Patience,
    Result,
    Stored,
    ask_leases,
    call_loader,
    fail,
    give_up,
    is_older,
    prepare_fill,
    result_of,
    store_fills,
)
from coherent_cache.core.load_options import LoadContext, LoadOptions
from coherent_cache.core.operations import MISSING, read_one
from coherent_cache.core.requests import (
    Lease,
    LeaseStatus,
    Operation,
    ReadReply,
    Spawned,
    SpawnRequest,
    WaitRequest,
    Woken,
)
from coherent_cache.core.shard import Shard
from coherent_cache.core.waiting import Flight, Waiter
from coherent_cache.errors import CacheUnavailable, LoaderTimeout
from coherent_cache.events import StaleServed
from coherent_cache.versions import Version


class LoadCall(NamedTuple):
    """One caller's wish.

    Attributes:
        key: user key.
        loader: is called with a :class:`LoadContext`.
        options: its options.
        asked_at: local clock when it asked, in seconds.
        least: the value must not be older than this version.
        home: the event loop that the caller belongs to, as the front names it; None for a thread.
    """

    key: str
    loader: Callable[[LoadContext], object]
    options: LoadOptions
    asked_at: float
    least: Version | None = None
    home: object = None


def get_or_set(instance: Instance, call: LoadCall) -> Operation[Result | None]:
    """Read a key from Redis, or load it once in the fleet; return None if the caller is to look again.

    Raises:
        Exception: what the loader raised, also if another thread of this process had called it.
        LoaderTimeout: ``hard_timeout`` is over.
        CacheUnavailable: Redis refused or is away.
        SerializationError: what was loaded cannot be encoded.
        ForeignValue: as for a read.
    """
    failure: Exception
    options, loads = call.options, False
    try:
        return (yield from _get_or_set(instance, call))
    except LoaderError as error:
        failure, cause, loads = error.error, type(error.error).__name__, True
    except LoaderTimeout as error:
        failure, cause = error, "hard_timeout"
    except CacheUnavailable as error:
        failure, cause = error, "Redis is away"
    if options.fail_safe is None and options.error_ttl is None:
        raise failure
    (told,) = yield (WaitRequest(None, 0.0),)
    assert isinstance(told, Woken)
    if loads and options.error_ttl is not None and instance.flights.error_of(call.key, told.now) is not failure:
        instance.flights.remember_error(call.key, failure, told.now + options.error_ttl, told.now)
    if options.fail_safe is not None:
        shard = instance.shard_of(instance.facts(call.key)[0])
        kept = shard.last_known(call.key, told.now, call.least)
        if kept is not None:
            kept.retry_at = told.now + options.throttle
            return _stale(instance, call, kept, cause)
    raise failure


def throttled(instance: Instance, call: LoadCall) -> Result | None:
    """Return a key's last known value while no other attempt to load it is to be made, else None."""
    shard = instance.shard_of(instance.facts(call.key)[0])
    kept = shard.last_known(call.key, call.asked_at, call.least)
    return None if kept is None or kept.retry_at <= call.asked_at else _stale(instance, call, kept, "throttle")


def _get_or_set(instance: Instance, call: LoadCall) -> Operation[Result | None]:
    key, options = call.key, call.options
    shard = instance.shard_of(instance.facts(key)[0])
    found = yield from _look(instance, call)
    if found is not None:
        return found
    remembered = None if options.error_ttl is None else instance.flights.error_of(key, call.asked_at)
    if remembered is not None:
        raise LoaderError(remembered)
    flight, waiter, early = instance.flights.join(key, call.home)
    if waiter is None:
        operation = _fly(instance, shard, call, flight)
        if not options.timed:
            return (yield from operation)
        waiter = instance.flights.attend(flight)
        try:
            (spawned,) = yield (SpawnRequest(operation),)
        except BaseException:
            instance.flights.end(flight)  # whether or not it runs: nobody is to wait for what may never end
            raise
        assert isinstance(spawned, Spawned)
        if not spawned.running:
            return (yield from operation)
        result = yield from _follow(instance, shard, call, flight, waiter, early=early)
        if flight.interruption is not None:
            raise flight.interruption
        return result
    return (yield from _follow(instance, shard, call, flight, waiter, early=early))


def _look(instance: Instance, call: LoadCall) -> Operation[Result | None]:
    """Read a key as ``get`` does; None if it has to be loaded."""
    replies: list[ReadReply] = []
    found = yield from read_one(instance, call.key, replies)
    if found is None:
        result = result_of(None, replies[-1], instance.facts(call.key))
    else:
        result = Result(found.value, found.version, found.expires_at, "redis")
    return None if result is None or is_older(result.version, call.least) else result


# -- in one process ----------------------------------------------------------------------------------------------------


def _follow(
    instance: Instance, shard: Shard, call: LoadCall, flight: Flight, waiter: Waiter, *, early: bool
) -> Operation[Result | None]:
    """Wait for a flight; return its value, a last known one, or None to look again."""
    options = call.options
    ends = inf if options.hard_timeout is None else call.asked_at + options.hard_timeout
    kept = None if options.soft_timeout is None else shard.last_known(call.key, call.asked_at, call.least)
    if kept is not None and options.soft_timeout is not None:
        ends = call.asked_at + options.soft_timeout
    try:
        (woken,) = yield (WaitRequest(waiter, ends, flight),)
    finally:
        instance.flights.leave(flight, waiter)
    assert isinstance(woken, Woken)
    if not flight.done:
        if kept is not None:
            return _stale(instance, call, kept, "soft_timeout")
        assert options.hard_timeout is not None
        raise LoaderTimeout(call.key, options.hard_timeout)
    if flight.error is not None:
        raise flight.error
    if early and flight.nothing:
        return Result(MISSING, None, inf, "loader")
    if early and flight.payload is not None:
        return Result(instance.codec.loads(flight.payload), None, inf, "loader")
    return None


def _stale(instance: Instance, call: LoadCall, kept: KeptEntry, cause: str) -> Result:
    instance.counters.stale_served += 1
    instance.emit(StaleServed(call.key, cause))
    shared = kept.deadline >= kept.coded_deadline
    value = kept.value if shared else instance.codec.loads(kept.value)
    return Result(value, None, kept.expires_at, "stale")


def _fly(instance: Instance, shard: Shard, call: LoadCall, flight: Flight) -> Operation[Result | None]:
    """Lead a flight to its end, whatever happens. Only the errors of the load itself are every waiter's."""
    end = instance.flights.end
    try:
        result, payload = yield from _lead(instance, shard, call, flight)
    except Exception as error:
        end(flight, error=error)
        raise
    except BaseException as error:
        end(flight, interruption=error)  # this thread is interrupted, not those that wait: they look again
        raise
    end(flight, payload=payload, nothing=result.value is MISSING and result.tier == "loader")
    return result


def _lead(instance: Instance, shard: Shard, call: LoadCall, flight: Flight) -> Operation[tuple[Result, bytes | None]]:
    """Get the lease, or what another lease has brought; load and fill. Returns the payload of what was loaded."""
    try:
        leased = yield from _lease(instance, shard, call)
    except CacheUnavailable as error:
        if error.maybe_applied:
            raise
        # Redis reads and does not write, e.g. because it is full: it is only this process that loads once.
        leased = None
    if isinstance(leased, Result):
        return leased, None
    instance.flights.begin_load(flight)
    return (yield from _load(instance, call, leased, (flight,)))


# -- in the fleet ------------------------------------------------------------------------------------------------------


def _lease(instance: Instance, shard: Shard, call: LoadCall) -> Operation[Result | Lease | None]:
    """Get the right to load, or what somebody else has brought meanwhile; None to load without storing.

    Waits for other processes' leases, ``lease_wait`` seconds at most.
    """
    key, patience = call.key, Patience(instance)
    while True:
        waiter = shard.await_key(key)  # before the question: what happens after it is not missed
        try:
            (answer,) = yield from ask_leases(instance, (key,))
            match answer.reply.status:
                case LeaseStatus.LEASED:
                    return answer.lease
                case LeaseStatus.FOREIGN:  # a newer release's: not ours to replace
                    return None
                case LeaseStatus.VALUE:
                    return (
                        None if answer.result is None or is_older(answer.result.version, call.least) else answer.result
                    )
            until = patience.until(shard, answer.reply)
            if until is None:
                return None
            yield (WaitRequest(waiter, until),)
        finally:
            shard.stop_waiting(key, waiter)


def _load(
    instance: Instance, call: LoadCall, lease: Lease | None, flights: tuple[Flight, ...] = ()
) -> Operation[tuple[Result, bytes | None]]:
    """Call the loader, and fill if there is a lease. A lease does not outlive what happens here."""
    key, options = call.key, call.options
    context = LoadContext(key, options.ttl, options.tags)
    leases = () if lease is None else (lease,)
    value = yield from call_loader(instance, (key,), partial(call.loader, context), leases, flights)
    try:
        fill = prepare_fill(instance, key, value, context.ttl, context.tags, options)
    except Exception as error:
        yield from fail(instance, (key,), leases, error)
        raise
    stored: Stored | None = None
    if lease is not None:
        if fill is None:
            yield from give_up(leases)
        else:
            stored = (yield from store_fills(instance, ((fill, lease),))).get(key)
    version, expires_at = (None, inf) if stored is None else stored
    payload = None if fill is None or value is MISSING else fill.payload
    return Result(value, version, expires_at, "loader"), payload


# -- ahead of time -----------------------------------------------------------------------------------------------------


def refresh(instance: Instance, call: LoadCall, seq: int) -> Operation[None]:
    """Load a value that is there, before its time is over, once in the fleet; replace that version and no other.

    Must follow :meth:`coherent_cache.core.waiting.Flights.claim_refresh`. Its errors are told as events only: nobody
    waits for it.

    Args:
        instance: the instance.
        call: what to load.
        seq: version of the present value.
    """
    not_before = call.asked_at + instance.settings.lease
    try:
        (answer,) = yield from ask_leases(instance, (call.key,), version=seq)
        if answer.lease is not None:
            result, _ = yield from _load(instance, call, answer.lease)
            if result.version is not None:
                not_before = call.asked_at
            yield from give_up((answer.lease,))
    except (LoaderError, CacheUnavailable):
        pass
    finally:
        instance.flights.end_refresh(call.key, not_before)
