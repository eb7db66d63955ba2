"""One process with one instance of the cache: the real core, its threads, its connections and its clock."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from coherent_cache.config import Settings
from coherent_cache.core.entries import Entry
from coherent_cache.core.instance import Instance
from coherent_cache.events import Event, Resynced
from coherent_cache.serializers import make_codec
from coherent_cache.testing.simulation.checks import check_process, number_of
from coherent_cache.testing.simulation.loop import PreemptibleLock, Violation
from coherent_cache.testing.simulation.network import Pool
from coherent_cache.testing.simulation.subscriber import SubscriberThread

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.calls import Call
    from coherent_cache.testing.simulation.server import Server
    from coherent_cache.testing.simulation.world import World

CODEC = make_codec("msgpack")


class Process:
    """One process. A restarted or forked one is another object with another name.

    Attributes:
        world: the simulation.
        name: name of the instance.
        slot: which of the schedule's processes it is.
        core: the real instance.
        pool: its command connections.
        subscriber: its subscriber thread.
        calls: operations under way.
        floors: per key, index of the newest change that a completed operation returned or made.
        tag_floors: per shard and tag, index of the newest change when it was invalidated from here.
        exempt: shards that have not been resynchronised since a primary that lived on was replaced: until then values
            may go back, for both answer.
        answering: taint of the answer that the subscriber is just taking in.
        alive: whether it runs.
        paused_until: until when it does not go on.
        misrouted: server that new connections lead to instead of the primary, until ``misrouted_until``.
        misrouted_commands: the same for command connections alone.
    """

    def __init__(
        self,
        world: World,
        name: str,
        slot: int,
        *,
        settings: Settings,
        rng: Random,
        offset: float,
        rate: float,
        marks: bool,
        buffer_limit: int,
    ) -> None:
        """Make a process whose threads do not run yet.

        Args:
            world: the simulation.
            name: name of the instance.
            slot: which of the schedule's processes it is.
            settings: settings of the instance.
            rng: for all that is random in it.
            offset: local clock at virtual time 0, in seconds.
            rate: seconds of the local clock per second of virtual time.
            marks: see :class:`SubscriberThread`.
            buffer_limit: see :class:`SubscriberThread`.
        """
        self.world = world
        self.loop = world.loop
        self.name = name
        self.slot = slot
        self.settings = settings
        self.alive = True
        self.paused_until = 0.0
        self.calls: list[Call] = []
        self.floors: dict[str, int] = {}
        self.tag_floors: dict[tuple[int, str], int] = {}
        self.exempt: set[int] = set()
        self.answering = 0
        self.misrouted: Server | None = None
        self.misrouted_commands: Server | None = None
        self.misrouted_until = 0.0
        self.checked: list[tuple[object, int, int] | None] = [None] * settings.shards
        self._offset = offset
        self._rate = rate
        self._locks: list[PreemptibleLock] = []
        self.core = Instance(
            settings,
            CODEC,
            instance_id=name,
            lock=self._make_lock,
            rng=rng,
            emit=self._on_event,
        )
        if world.trace is not None:
            self.core.set_trace(True)
        self.pool = Pool(self._route_commands)
        self.subscriber = SubscriberThread(self, rng, marks=marks, buffer_limit=buffer_limit)

    def _make_lock(self) -> PreemptibleLock:
        self._locks.append(PreemptibleLock(self.loop, self))
        return self._locks[-1]

    def check_unlocked(self) -> None:
        """Check that no thread waits for Redis with a lock in its hands: two of them could wait for each other."""
        if any(lock.held for lock in self._locks):
            raise Violation("lock", f"{self.name} asks Redis while a shard's lock is held")

    def check(self) -> None:
        """Check what must hold between any two steps."""
        check_process(self)

    # -- time and place --------------------------------------------------------------------------------------------

    def local(self) -> float:
        """Return the local clock."""
        return self._offset + self._rate * self.loop.now

    def to_global(self, local: float) -> float:
        """Return the virtual time at which the local clock shows ``local``."""
        return (local - self._offset) / self._rate

    def route(self) -> Server | None:
        """Return where a new connection leads; None if there is no server."""
        server = self.misrouted
        # A primary of the past would accept subscriber and writes: a split brain, which no reader can see (review A31).
        if server is not None and self.loop.now < self.misrouted_until and server not in self.world.deposed:
            return server
        return self.world.primary

    def _route_commands(self) -> Server | None:
        if self.misrouted_commands is not None and self.loop.now < self.misrouted_until:
            return self.misrouted_commands
        return self.route()

    # -- what happens to it ----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End it between two steps: nothing of it goes on, but what it has sent may still be executed."""
        self.alive = False
        link = self.subscriber.link
        if link is not None:
            link.close()

    def _on_event(self, event: Event) -> None:
        if type(event) is Resynced:
            link = self.subscriber.link
            if link is not None:
                link.proven[event.shard] = self.answering
                if link.server is self.world.primary:
                    self.exempt.discard(event.shard)
        if self.world.trace is not None:
            self.world.note(self.name, f"  {event}")

    # -- what the checks ask ---------------------------------------------------------------------------------------

    def number_of(self, entry: Entry) -> int:
        """Return the number of a local entry's value."""
        value = entry.value
        return number_of(value if entry.deadline >= entry.coded_deadline else CODEC.loads(value))

    def keys_of(self, shard: int) -> Sequence[str]:
        """Return the schedule's keys that belong to a shard."""
        return self.world.keys_by_shard[shard]
