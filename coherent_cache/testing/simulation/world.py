"""The simulation of one schedule: servers, processes, the oracle, and the run from first step to rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from math import inf
from random import Random
from typing import Any, Final

from coherent_cache.config import Settings
from coherent_cache.keys import shard_of
from coherent_cache.testing.simulation.calls import OPERATIONS, Call
from coherent_cache.testing.simulation.checks import number_of
from coherent_cache.testing.simulation.faults import FAULTS
from coherent_cache.testing.simulation.history import History
from coherent_cache.testing.simulation.loads import LoadedValues
from coherent_cache.testing.simulation.loop import Loop, Violation
from coherent_cache.testing.simulation.network import LOST, Weather
from coherent_cache.testing.simulation.process import CODEC, Process
from coherent_cache.testing.simulation.rest import settle
from coherent_cache.testing.simulation.schedule import (
    HEARTBEAT,
    LEASE,
    LEASE_WAIT,
    MAX_STALENESS,
    TIMEOUT,
    Schedule,
    Step,
)
from coherent_cache.testing.simulation.server import Server, ShardData, Stored
from coherent_cache.wire import PREFIX_BYTES, decode_envelope

SERVER_EPOCH: Final = 1_700_000_000.0
"""Roughly what the servers' clock shows at virtual time 0."""

LAGGING: Final = frozenset({"fail_over", "restart_old", "misroute", "misroute_commands"})
"""Faults for which a replica that lags is needed."""

Note = tuple[float, str, str]
"""One line of a timeline: virtual time, who, what."""


class World:
    """One run of one schedule.

    Attributes:
        schedule: what happens.
        loop: virtual time.
        history: the oracle.
        loaded: what loaders have read.
        weather: how long messages take.
        primary: the server in office; None while there is none.
        replica: the server that would take over.
        deposed: servers that were primary, and when they ceased to be.
        zombie: the latest primary that was deposed and goes on as if nothing had happened; None if there is none.
        half_run: whether a write has died half-way.
        reviving: processes that are dead and about to be replaced.
        trace: lines of the timeline; None if nobody wants them.
        server_offset: the servers' clock at virtual time 0.
        keys_by_shard: the schedule's keys, by shard.
    """

    def __init__(self, schedule: Schedule, *, trace: bool = False) -> None:
        """Prepare a run.

        Args:
            schedule: what happens.
            trace: whether to write a timeline.
        """
        self.schedule = schedule
        self.trace: list[Note] | None = [] if trace else None
        self._rng = rng = Random(schedule.seed)  # noqa: S311  # simulation
        self.loop = Loop(Random(schedule.seed + 1), schedule.preempt_chance)  # noqa: S311
        self.history = History(schedule.keys)
        self.loaded = LoadedValues()
        self.weather = Weather(schedule.slow, schedule.fixed)
        self.keys_by_shard: list[list[str]] = [[] for _ in range(schedule.shards)]
        for key in schedule.keys:
            self.keys_by_shard[self.shard_of(key)].append(key)
        self._settings = Settings(
            namespace="simulation",
            shards=schedule.shards,
            max_entries=schedule.max_entries,
            heartbeat=HEARTBEAT,
            max_staleness=MAX_STALENESS,
            timeout=TIMEOUT,
            log_length=schedule.log_length,
            replay_limit=schedule.replay_limit,
            on_disconnect=schedule.on_disconnect,
            stale_limit=schedule.stale_limit,
            lease=LEASE,
            lease_wait=LEASE_WAIT,
        )
        self._values = count(1)
        self._entropies = count(1)
        self._numbers: dict[bytes, int] = {}
        self.server_offset = SERVER_EPOCH + rng.uniform(-1e5, 1e5)
        self._run_ids = map("R{}".format, count(1))
        self.deposed: dict[Server, float] = {}
        self._followers: list[Server] = []
        self._replicates = any(step.action in LAGGING for step in schedule.steps)
        self.primary: Server | None = self._new_server()
        self.zombie: Server | None = None
        self.replica = self._new_server()
        self.replica.refuse = "READONLY"
        self._slots: list[list[Process]] = [[] for _ in range(schedule.processes)]
        self._births = count(1)
        self.half_run = False
        self.reviving = 0
        for slot in range(schedule.processes):
            self._new_process(slot, chr(ord("a") + slot))

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the schedule.

        Raises:
            Violation: the protocol broke a promise.
        """
        loop = self.loop
        for step in self.schedule.steps:
            loop.at(step.at, None, self._begin, step)
        end = self.schedule.steps[-1].at if self.schedule.steps else 0.0
        try:
            loop.run_until(end)
            if self.schedule.settle:
                settle(self)
        except Violation:
            raise
        except Exception as error:
            raise Violation("crash", f"{type(error).__name__}: {error}") from error
        finally:
            loop.stop()

    def _begin(self, step: Step) -> None:
        slot = [process for process in self._slots[step.slot] if process.alive] if step.slot >= 0 else []
        process = slot[step.number % len(slot)] if slot else None
        if step.action in FAULTS:
            process = process or next(self.running(), None)
            if process is not None:
                self.note(process.name if step.slot >= 0 else "-", f"FAULT {step.action} #{step.number}")
                FAULTS[step.action](self, process, *(*step.args, "", 0.0, 0.0, 0.0)[: max(4, len(step.args))])
        elif process is not None:
            assert step.action in OPERATIONS or step.action in ("get", "load", "clear_local", "evict"), step
            self.loop.at(self.loop.now, process, self.call, process, step)

    def call(self, process: Process, step: Step) -> None:
        """Call an operation in a process."""
        Call(process, step).begin()

    # -- what its parts ask ----------------------------------------------------------------------------------------

    def running(self) -> Iterator[Process]:
        """Yield the processes that run."""
        for slot in self._slots:
            for process in slot:
                if process.alive:
                    yield process

    def shard_of(self, key: str) -> int:
        """Return the shard of a key."""
        return shard_of(key.encode(), self.schedule.shards)

    def new_value(self) -> Any:
        """Return a value that was never used before."""
        number = next(self._values)
        return [number] if self.schedule.wrapped else number

    def entropy(self) -> bytes:
        """Return 16 bytes that were never used before."""
        return next(self._entropies).to_bytes(8, "big") * 2

    def number_of(self, stored: Stored) -> int:
        """Return the number of a stored value."""
        data = stored.data or b""
        number = self._numbers.get(data)
        if number is None:
            payload = decode_envelope(data, data[:PREFIX_BYTES])[5]
            number = self._numbers[data] = number_of(CODEC.loads(payload))
        return number

    def note(self, who: str, text: str) -> None:
        """Write a line of the timeline."""
        if self.trace is not None:
            self.trace.append((self.loop.now, who, text))

    # -- processes -------------------------------------------------------------------------------------------------

    def _new_process(self, slot: int, name: str) -> Process:
        schedule, rng = self.schedule, self._rng
        process = Process(
            self,
            name,
            slot,
            settings=self._settings,
            rng=Random(rng.random()),  # noqa: S311
            offset=rng.uniform(0, 1e6),
            rate=1 + rng.uniform(-schedule.drift, schedule.drift),
            marks=schedule.marks[slot % len(schedule.marks)],
            buffer_limit=schedule.buffer_limit,
        )
        self._slots[slot].append(process)
        process.subscriber.start()
        return process

    def replace(self, process: Process, after: float) -> None:
        """Start another process in the place of a dead one, after some seconds."""
        self.reviving += 1
        self.loop.at(self.loop.now + after, None, self._revive, process)

    def _revive(self, process: Process) -> None:
        self.reviving -= 1
        self._new_process(process.slot, f"{process.name[0]}{next(self._births)}")

    def fork(self, process: Process) -> None:
        """Fork a process: the child inherits nothing of its instance."""
        if len(self._slots[process.slot]) < 3:
            child = self._new_process(process.slot, f"{process.name[0]}{next(self._births)}")
            self.note(child.name, f"forked from {process.name}")

    # -- servers ---------------------------------------------------------------------------------------------------

    def _new_server(self, data: list[ShardData] | None = None) -> Server:
        server = Server(
            next(self._run_ids),
            shards=self.schedule.shards,
            clock=self._server_clock,
            entropy=self.entropy,
            log_length=self.schedule.log_length,
            replay_limit=self.schedule.replay_limit,
            on_changed=self._on_changed,
            on_half_run=self._on_half_run,
        )
        if data is not None:
            server.data = data
        return server

    def _server_clock(self) -> float:
        return self.server_offset + self.loop.now

    def _on_changed(self, server: Server, shard: int, keys: Sequence[str] | None) -> None:
        self.look(server, shard, self.keys_by_shard[shard] if keys is None else keys)
        if self._replicates and server is self.primary and self._rng.random() < self.schedule.replicates:
            self.loop.at(self.loop.now + self._rng.uniform(0, 0.2), None, self.replicate)

    def _on_half_run(self, server: Server, shard: int, published: bool) -> None:  # noqa: FBT001
        """Note that a write died half-way; if it was not published, only a heartbeat can find that."""
        self.half_run = True
        if published:
            return
        for process in self.running():
            link = process.subscriber.link
            if link is not None and link.server is server:
                link.taint(shard)

    def look(self, server: Server, shard: int, keys: Sequence[str]) -> None:
        """Let the oracle look at keys of a server."""
        gone, history, now = server.data[shard].gone, self.history, self.loop.now
        for key in keys:
            if key in gone:
                # What a stranger took away counts as current, again if what came after it was discarded by a failover.
                was = gone[key]
                if server is self.primary and was is not history.last[key]:
                    history.record(key, was.value, now, was.expires, was.tags)
                    gone[key] = history.last[key]
                continue
            live = server.live(shard, key)
            if server is self.primary:
                expires = live.expires_ms / 1000 - self.server_offset if live is not None and live.expires_ms else inf
                number, tags = (None, ()) if live is None else (self.number_of(live), live.tags)
                history.record(key, number, now, expires, tags)
            elif live is not None:
                history.record_orphan(key, self.number_of(live), self.deposed.get(server, now))

    def look_at_all(self) -> None:
        """Let the oracle look at all keys of the primary."""
        if self.primary is not None:
            for shard, keys in enumerate(self.keys_by_shard):
                self.look(self.primary, shard, keys)

    def replicate(self) -> None:
        """Let the replica, and demoted servers, catch up with the primary; they forward what it has published.

        A server that was demoted keeps its old subscribers, and forwards to them though its own history ended.
        """
        if self.primary is None:
            return
        for server in (self.replica, *self._followers):
            if server is self.primary:
                continue
            before, server.data = server.data, [data.copy() for data in self.primary.data]
            for shard, (old, new) in enumerate(zip(before, server.data, strict=True)):
                if old.epoch == new.epoch:
                    for message in [message for at, message in new.log if at > old.seq]:
                        for link in tuple(server.links):
                            link.push("message", shard, message)

    def fail_over(self, mode: str, notice: float) -> None:
        """Let the replica take over, with what it has.

        Args:
            mode: what becomes of the old primary: ``crash``, ``demote`` (it becomes a replica and keeps its
                connections), or ``zombie`` (pooled connections still reach it, and it goes on answering).
            notice: seconds until its subscribers learn that it is gone; above 0.85 they never do.
        """
        old = self.primary
        if old is None:
            return
        self.deposed[old] = self.loop.now
        self.loaded.forgive()
        self.zombie = old if mode == "zombie" else None
        self.primary = self.replica
        self.primary.refuse = ""
        if mode == "demote":
            old.refuse = "READONLY"
            self._followers.append(old)
        else:
            self._sever(old, notice, pools=mode == "crash")
        if mode == "crash":
            old.alive = False
        self.replica = self._new_server([data.copy() for data in self.primary.data])
        self.replica.refuse = "READONLY"
        self.note(self.primary.run_id, f"takes over from {old.run_id} ({mode})")
        if mode != "crash":
            # It goes on answering, and an instance that has not learnt of the failover cannot tell whom to believe.
            for process in self.running():
                process.exempt.update(range(self.schedule.shards))
        self.look_at_all()

    def restart(self, data: list[ShardData] | None, *, downtime: float) -> None:
        """Restart the primary with the given data, None for none."""
        old = self.primary
        if old is None:
            return
        self.deposed[old] = self.loop.now
        self.loaded.forgive()
        old.alive = False
        self._sever(old, downtime, pools=True)
        self.primary = None
        self.loop.at(self.loop.now + downtime, None, self._come_up, data)

    def _come_up(self, data: list[ShardData] | None) -> None:
        self.primary = self._new_server(data)
        self.note(self.primary.run_id, "is up")
        self.look_at_all()

    def _sever(self, server: Server, notice: float, *, pools: bool) -> None:
        for process in self.running():
            link = process.subscriber.link
            if link is not None and link.server is server:
                link.cut(LOST if notice > 0.85 else notice)
            if pools:
                process.pool.cut_all(server, noticed=notice < 0.5)
