"""``assert_coherent``: what instances hold is what Redis holds, within the bound, and no version goes backwards.

An instance is looked at without being changed: nothing is read through it, so nothing is filled or evicted. What counts
is what a read would serve at that moment. Redis is read by an instance without a local tier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from time import sleep
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from coherent_cache.cache import CoherentCache
from coherent_cache.core import operations
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.errors import CacheUnavailable, ConfigError
from coherent_cache.keys import check_key
from coherent_cache.runtime import Runtime, clock, make_instance_id
from coherent_cache.serializers import Codec
from coherent_cache.versions import Version

if TYPE_CHECKING:
    from coherent_cache.testing.fleet import Fleet, Member

RECONNECT_SECONDS: Final = 10.0
"""Seconds beyond the staleness bound that an instance may take to be connected again."""

INTERVAL: Final = 0.02
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Held:
    """A value with its version.

    Attributes:
        version: its version.
        payload: the value as the instance's serializer writes it.
    """

    version: Version
    payload: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """What an instance held at one moment.

    Attributes:
        state: its state.
        bound: seconds that a value it serves may be outdated.
        held: what reads would have been served locally, by key.
    """

    state: str
    bound: float
    held: dict[str, Held]


Reader = Callable[[str], Held | None]
"""Returns what Redis holds under a key."""


class Instance(Protocol):
    """An instance that can be looked at: a cache of this process, or a member of a fleet."""

    @property
    def instance_id(self) -> str:
        """Name of the instance."""

    def look(self, keys: list[str] | None) -> Look:
        """Return what it holds of some keys, or of all."""

    def reader(self) -> AbstractContextManager[tuple[Reader, Codec]]:
        """Give a reader of Redis, and the codec of the payloads."""


def look(cache: CoherentCache, keys: list[str] | None) -> Look:
    """Return what a cache of this process holds of some keys, or of all, without counting or changing anything.

    Raises:
        CacheUnavailable: the cache is closed.
    """
    runtime = cache._runtime  # noqa: SLF001
    if runtime.closed:
        raise CacheUnavailable(f"the cache {cache.instance_id} is closed")
    instance, held = runtime.instance, dict[str, Held]()
    for shard in instance.shards:
        with shard._lock:  # noqa: SLF001  # epoch and tier change together
            now, epoch = clock(), shard.epoch
            if epoch is None or not _serves(cache, shard, now):
                continue
            entries = shard.tier.entries
            found = entries.items() if keys is None else [(key, entries[key]) for key in keys if key in entries]
            for key, entry in found:
                if not entry.is_expired(now):
                    shared = entry.deadline >= entry.coded_deadline
                    payload = instance.codec.dumps(entry.value) if shared else entry.value
                    held[key] = Held(Version(epoch, entry.seq), payload)
    return Look(cache.state, cache._settings.longest_age, held)  # noqa: SLF001


def _serves(cache: CoherentCache, shard: Shard, now: float) -> bool:
    """Tell whether a read would be served by the local tier (P4), be it past the bound by ``serve_stale``."""
    tier, settings = shard.tier, cache._settings  # noqa: SLF001
    if tier.valid_until >= now:
        return True
    stale = settings.on_disconnect == "serve_stale" and shard.state_at(now) is State.DISCONNECTED
    return stale and now - tier.horizon <= settings.stale_limit


@contextmanager
def reader(cache: CoherentCache) -> Iterator[tuple[Reader, Codec]]:
    """Give a reader of the Redis of a cache, by connections of its own, and the cache's codec."""
    used = cache._runtime  # noqa: SLF001
    codec = used.instance.codec
    settings = replace(used.settings, local_enabled=False)
    endpoint = cache._endpoint  # noqa: SLF001
    runtime = Runtime(settings, codec, endpoint, instance_id=make_instance_id(), callbacks={})

    def read(key: str) -> Held | None:
        found = runtime.run(operations.read_one(runtime.instance, key))
        return None if found is None else Held(found.version, codec.dumps(found.value))

    try:
        yield read, codec
    finally:
        runtime.close()


@dataclass(frozen=True, slots=True)
class _Local:
    """A cache of this process."""

    cache: CoherentCache

    @property
    def instance_id(self) -> str:
        return self.cache.instance_id

    def look(self, keys: list[str] | None) -> Look:
        return look(self.cache, keys)

    def reader(self) -> AbstractContextManager[tuple[Reader, Codec]]:
        return reader(self.cache)


_served: Final[WeakKeyDictionary[object, dict[str, Version]]] = WeakKeyDictionary()
"""The last version of each key that an instance was seen to serve: kept from one assertion to the next."""


def assert_coherent(
    instances: CoherentCache | Member | Fleet | Iterable[CoherentCache | Member],
    keys: Iterable[str] | None = None,
    *,
    timeout: float | None = None,
) -> None:
    """Wait until every instance is connected and holds nothing but what Redis holds; fail if that does not come true.

    For each key, an instance must hold nothing, or the version and the value that Redis has. While others go on
    writing, it is enough that each instance was seen up to date with each key once. Two things fail at once, since no
    waiting mends them: a version that goes backwards (compared with what this function ever saw that instance serve),
    and a value that was outdated for longer than the instance's bound and is still served.

    Looking changes nothing: no key is read through the instances. Where Redis itself lost its last writes (a failover
    to a replica that lagged), going back with it is not held against an instance.

    Args:
        instances: caches of this process, a fleet, or members of one; all of one namespace.
        keys: which keys to compare; None for all that any of the instances holds when first looked at.
        timeout: seconds to wait; None for the longest ``max_staleness`` of the instances and ten seconds more for those
            that have to connect again.

    Raises:
        AssertionError: says for each key at fault which instance holds which version, and which one Redis has.
        ConfigError: no instance, several namespaces, or no key.
        InvalidKey: a key is none.
        CacheUnavailable: a cache is closed, or Redis cannot be read by the end of the time.
        FleetError: a member of the fleet died, or does not answer.
    """
    __tracebackhide__ = True
    watched = _instances(instances)
    wanted = None if keys is None else _keys(keys)
    with watched[0][1].reader() as (read, codec):
        faults = _Comparison(watched, wanted, read, codec).run(timeout)
    if faults:
        raise AssertionError("\n  ".join(["the instances are not coherent:", *faults]))


def _instances(given: Any) -> list[tuple[object, Instance]]:
    """Return each instance with the object that its memory is tied to."""
    members = getattr(given, "members", None)
    several = members if members is not None else [given] if hasattr(given, "instance_id") else given
    try:
        found = list(several)
    except TypeError:
        found = [given]
    for each in found:
        if not (isinstance(each, CoherentCache) or hasattr(each, "look")):
            raise ConfigError("instances", f"must be caches, members of a fleet or a fleet, not {type(each).__name__}")
    if not found:
        raise ConfigError("instances", "there is none")
    namespaces = sorted({each.namespace for each in found})
    if len(namespaces) > 1:
        raise ConfigError("instances", f"must be of one namespace, not of {', '.join(namespaces)}")
    return [(each, _Local(each) if isinstance(each, CoherentCache) else each) for each in found]


def _keys(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str | bytes):
        raise ConfigError("keys", f"must be a collection of str, not one {type(keys).__name__}: write [{keys!r}]")
    wanted = list(dict.fromkeys(keys))
    if not wanted:
        raise ConfigError("keys", "there is none; leave the argument out for all that is held")
    for key in wanted:
        check_key(key)
    return wanted


class _Watched:
    """An instance during one assertion.

    Attributes:
        instance: the instance.
        served: the last version of each key that it was ever seen to serve.
        pending: keys of which it was not seen to be up to date yet.
        connected: whether it was seen coherent.
        state: as it was seen last.
        behind: by key, the outdated version that it serves, and since when it is outdated.
        faults: what is wrong with a key, as it was seen last.
    """

    def __init__(self, owner: object, instance: Instance) -> None:
        self.instance = instance
        self.served = _served.setdefault(owner, {})
        self.pending: set[str] = set()
        self.connected = False
        self.state = "not looked at"
        self.behind: dict[str, tuple[Version, float]] = {}
        self.faults: dict[str, str] = {}

    @property
    def done(self) -> bool:
        return self.connected and not self.pending

    def describe(self) -> list[str]:
        """Say what is still wrong."""
        name = self.instance.instance_id
        lost = [] if self.connected else [f"instance {name}: it is {self.state}, and was not seen coherent"]
        return lost + [self.faults[key] for key in sorted(self.faults)]


class _Comparison:
    """One run of :func:`assert_coherent`."""

    def __init__(
        self, watched: list[tuple[object, Instance]], keys: list[str] | None, read: Reader, codec: Codec
    ) -> None:
        self._watched = [_Watched(owner, instance) for owner, instance in watched]
        self._wanted = keys
        self._read = read
        self._codec = codec

    def run(self, timeout: float | None) -> list[str]:
        """Compare until all is well, something is proven wrong, or the time is over; return what is wrong."""
        began = clock()
        first = [watched.instance.look(self._wanted) for watched in self._watched]
        if self._wanted is None:
            self._wanted = sorted({key for each in first for key in each.held})
        for watched in self._watched:
            watched.pending = set(self._wanted)
        patience = max(each.bound for each in first) + RECONNECT_SECONDS if timeout is None else timeout
        while True:
            late = clock() - began >= patience  # one more look then: a machine that stood still is no failure
            try:
                proven = self._compare()
            except CacheUnavailable:
                if late:
                    raise
            else:
                left = [watched for watched in self._watched if not watched.done]
                if proven or not left:
                    return proven
                if late:
                    return [line for watched in left for line in watched.describe()]
            sleep(INTERVAL)

    def _compare(self) -> list[str]:
        """Look at every instance that is not done, after Redis; return what no waiting mends."""
        left = [watched for watched in self._watched if not watched.done]
        keys = sorted(set().union(*(watched.pending for watched in left)))
        truth = {key: self._read(key) for key in keys}
        known_at = clock()
        proven: list[str] = []
        for watched in left:
            looked_at = clock()
            seen = watched.instance.look(sorted(watched.pending))
            watched.state = seen.state
            coherent = seen.state == State.COHERENT.value
            watched.connected |= coherent
            for key in sorted(watched.pending):
                held, current = seen.held.get(key), truth[key]
                fault = self._judge(watched, key, held, current, seen.bound, known_at, looked_at)
                if fault:
                    proven.append(fault)
                elif coherent and self._agree(held, current):
                    watched.pending.discard(key)
                    watched.faults.pop(key, None)
                elif not self._agree(held, current):
                    watched.faults[key] = self._line(watched, key, held, current)
        return proven

    def _judge(
        self,
        watched: _Watched,
        key: str,
        held: Held | None,
        current: Held | None,
        bound: float,
        known_at: float,
        looked_at: float,
    ) -> str:
        """Remember what is served; say what is wrong with it if no waiting mends that."""
        if held is None:
            watched.behind.pop(key, None)
            return ""
        before = watched.served.get(key)
        watched.served[key] = held.version
        if before is not None and _older(held.version, before) and not (current and _older(current.version, before)):
            return self._line(watched, key, held, current, f", after having served {_short(before)}: it went backwards")
        if (
            current is not None
            and not _older(held.version, current.version)
            and held.version.epoch == current.version.epoch
        ):
            watched.behind.pop(key, None)
            return ""
        version, since = watched.behind.get(key, (held.version, known_at))
        if version != held.version:
            since = known_at
        watched.behind[key] = (held.version, since)
        if looked_at - since <= bound:
            return ""
        late = looked_at - since
        return self._line(watched, key, held, current, f", for {late:.3g} s; the bound is {bound:g} s")

    def _agree(self, held: Held | None, current: Held | None) -> bool:
        if held is None:
            return True
        if current is None or held.version != current.version:
            return False
        if held.payload == current.payload:
            return True
        return bool(self._codec.loads(held.payload) == self._codec.loads(current.payload))

    def _line(self, watched: _Watched, key: str, held: Held | None, current: Held | None, more: str = "") -> str:
        assert held is not None
        if current is None:
            what = "nothing"
        elif current.version == held.version:
            what = "another value under that version"
        else:
            what = _short(current.version)
        name = watched.instance.instance_id
        return f"key {key!r}: instance {name} ({watched.state}) holds {_short(held.version)}, Redis has {what}{more}"


def _older(one: Version, other: Version) -> bool:
    """Tell whether a version precedes another one in the same history."""
    return one.epoch == other.epoch and one.seq < other.seq


def _short(version: Version) -> str:
    return f"{version.epoch.hex()[:8]}:{version.seq}"
