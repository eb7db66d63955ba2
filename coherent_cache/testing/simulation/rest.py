"""Lets everything come to rest at the end of a schedule, and checks what must hold then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from coherent_cache.testing.simulation.checks import check_quiet
from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.testing.simulation.schedule import Step
from coherent_cache.testing.simulation.server import Server

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.world import World

PATIENCE: Final = 30.0
"""Seconds after which everything must have come to rest."""

TICK: Final = 0.25
"""Seconds between two looks whether everything has come to rest."""


def settle(world: World) -> None:
    """End all faults, let everything come to rest, and check what must hold then (contract 3)."""
    world.note("-", "all faults end")
    _end_faults(world)
    loop = world.loop
    deadline = loop.now + PATIENCE
    quiet_since = loop.now
    while not _is_settled(world, quiet_since):
        if loop.now > deadline:
            raise Violation("contract 3", f"nothing settles within {PATIENCE:g} s")
        if loop.flying or any(process.calls for process in world.running()):
            quiet_since = loop.now + TICK
        loop.run_until(loop.now + TICK)
    world.note("-", "all is quiet")
    check_quiet(world)
    primary = world.primary
    assert primary is not None
    keys = tuple(key for key in world.schedule.keys if _is_readable(world, primary, key))
    if keys:
        for process in world.running():
            process.pool.forget()
            loop.at(loop.now, process, world.call, process, Step(loop.now, process.slot, "read", (keys,)))
        loop.run_until(loop.now + 0.05)
        check_quiet(world)
        _check_held(world, primary, keys)


def _end_faults(world: World) -> None:
    world.loop.preempt_chance = 0.0
    world.weather.slow = 0.0
    for server in (world.primary, world.replica):
        if server is not None:
            server.abort_after = None
            server.refuse = "READONLY" if server is world.replica else ""
    for process in world.running():
        process.misrouted_until = 0.0
        link = process.subscriber.link
        if link is not None:
            link.drop = 0
        # Servers that are not in office are gone at last.
        for connection in process.pool.all:
            if connection.server in world.deposed or connection.server is world.replica:
                connection.cut = connection.noticed = True
        process.pool.forget()


def _is_readable(world: World, server: Server, key: str) -> bool:
    data = server.data[world.shard_of(key)]
    stored = data.values.get(key)
    return key not in data.gone and (stored is None or stored.envelope)


def _is_settled(world: World, quiet_since: float) -> bool:
    if world.primary is None or world.loop.flying or world.reviving:
        return False
    for process in world.running():
        if process.calls or process.paused_until > world.loop.now or not process.subscriber.settled:
            return False
        link = process.subscriber.link
        if link is None or link.server is not world.primary:
            return False
        for shard in process.core.shards:
            if not shard.synced or process.to_global(shard.tier.horizon) < quiet_since:
                return False
    return True


def _check_held(world: World, primary: Server, keys: Sequence[str]) -> None:
    """Check that what was just read is served locally from now on."""
    # A clear that died half-way has raised the floor here and not in Redis: nothing below it is kept.
    if world.schedule.max_entries < len(keys) * world.schedule.shards or world.half_run:
        return
    for process in world.running():
        for key in keys:
            live = primary.live(world.shard_of(key), key)
            entry = process.core.shard_of(key.encode()).tier.entries.get(key)
            soon = live is not None and 0 < live.expires_ms / 1000 - world.server_offset < world.loop.now + 0.1
            if live is not None and not soon and (entry is None or entry.seq != live.seq):
                raise Violation("contract 3", f"{process.name} does not keep {key}@{live.seq}, which it just read")
