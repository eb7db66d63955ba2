"""Faults: what a schedule may do to processes, connections and servers besides calling operations.

Each takes the world, the process of the step's slot and the step's arguments: a key and three numbers from 0 to 1 that
say how, so that drawn and hand-written schedules are of one kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from coherent_cache.testing.simulation.network import LOST, Link
from coherent_cache.testing.simulation.server import Stored
from coherent_cache.wire import CODE_LEASE, Kind, Message, encode_message

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.process import Process
    from coherent_cache.testing.simulation.server import Server
    from coherent_cache.testing.simulation.world import World

Fault = Callable[["World", "Process", str, float, float, float], None]

LONGEST: Final = 4.0
"""Seconds that a fault lasts, at most."""


def _notice(how: float) -> float:
    """Return after how many seconds a client learns that its connection has ended: often at once, at times never."""
    return 0.0 if how < 0.4 else LOST if how > 0.85 else how


def _rest(_world: World, _process: Process, _key: str, _a: float, _b: float, _c: float) -> None:
    """Do nothing: a schedule that ends with it goes on until then."""


def _cut(_world: World, process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Cut the subscriber connection (I4)."""
    if process.subscriber.link is not None:
        process.subscriber.link.cut(_notice(how))


def _black_hole(_world: World, process: Process, _key: str, _a: float, _b: float, _c: float) -> None:
    """Let packets of the subscriber connection vanish, without a close (I6)."""
    if process.subscriber.link is not None:
        process.subscriber.link.cut(LOST)


def _stall(world: World, process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Hold up the subscriber connection; then everything arrives, in order."""
    link = process.subscriber.link
    if link is not None:
        link.stalled_until = world.loop.now + LONGEST * how


def _lose_messages(world: World, process: Process, _key: str, how: float, many: float, _c: float) -> None:
    """Let messages vanish in silence for a while (I5, I13)."""
    link = process.subscriber.link
    if link is not None:
        link.drop = 1 if many < 0.5 else 2
        world.loop.at(world.loop.now + LONGEST * how, None, _mend, link)


def _mend(link: Link) -> None:
    link.drop = 0


def _cut_commands(_world: World, process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    process.pool.cut_all(None, noticed=how < 0.5)


def _cancel(world: World, process: Process, _key: str, which: float, _b: float, _c: float) -> None:
    """Cancel an operation under way (review A25): a step of the process' own, which may be killed within it."""
    if process.calls:
        call = process.calls[int(which * len(process.calls)) % len(process.calls)]
        world.loop.at(world.loop.now, process, call.cancel)


def _pause(world: World, process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Stop a process, e.g. by SIGSTOP or a long garbage collection (review A23)."""
    process.paused_until = world.loop.now + LONGEST * how


def _lag(world: World, _process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Hold up all subscriber connections at once."""
    for other in world.running():
        _stall(world, other, "", how / 2, 0, 0)


def _damage(world: World, process: Process, key: str, how: float, _b: float, _c: float) -> None:
    """Publish what cannot be understood (P8), or what belongs to no history here."""
    server = world.primary
    if server is None:
        return
    data = server.data[world.shard_of(key)]
    if how < 0.4:
        server.garble = True  # the next write is of a newer release
        return
    if how < 0.6:
        junk = b"\x07" + bytes(20)
    elif how < 0.8:
        junk = b"\x01not msgpack"
    else:
        junk = encode_message(
            Message(Kind.SET, world.entropy(), data.seq + 1, b"n" * 8, b"p" * 8, 0, "stranger", (key,))
        )
    for link in tuple(server.links):
        link.push("message", world.shard_of(key), junk)
    world.note(process.name, "a damaged message is published")


def _crash(world: World, process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Kill a process; another one takes its place a little later."""
    process.kill()
    world.replace(process, how)


def _fork(world: World, process: Process, _key: str, _a: float, _b: float, _c: float) -> None:
    """Fork: the child begins with an instance of its own (P13); the schedule's steps go to both in turn."""
    world.fork(process)


# -- servers -----------------------------------------------------------------------------------------------------------


def _restart_empty(world: World, _process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Restart the primary without its data (I19)."""
    world.restart(None, downtime=how)


def _restart_full(world: World, _process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Restart the primary with all its data."""
    if world.primary is not None:
        world.restart([data.copy() for data in world.primary.data], downtime=how)


def _restart_old(world: World, _process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Restart the primary with an old snapshot: numbers are handed out twice (review A4)."""
    world.restart([data.copy() for data in world.replica.data], downtime=how)


def _replicate(world: World, _process: Process, _key: str, _a: float, _b: float, _c: float) -> None:
    """Let the replica catch up."""
    world.replicate()


def _fail_over(world: World, _process: Process, _key: str, mode: float, notice: float, _c: float) -> None:
    """Let the replica take over as it is (I16, I19)."""
    world.fail_over("crash" if mode < 0.4 else "demote" if mode < 0.6 else "zombie", notice)


def _misroute(world: World, process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Let new connections of a process lead to the replica for a while (I11, review A1)."""
    process.misrouted, process.misrouted_commands = world.replica, None
    process.misrouted_until = world.loop.now + 2 * how
    _cut(world, process, "", 0, 0, 0)
    process.pool.cut_all(None, noticed=True)


def _misroute_commands(world: World, process: Process, _key: str, how: float, b: float, _c: float) -> None:
    """Let new command connections of a process lead to the replica, or to a primary of the past (review A6)."""
    process.misrouted, process.misrouted_commands = None, world.zombie if b < 0.7 and world.zombie else world.replica
    process.misrouted_until = world.loop.now + 3 * how
    process.pool.cut_all(None, noticed=True)


def _flush(world: World, _process: Process, _key: str, _a: float, _b: float, _c: float) -> None:
    """FLUSHALL by somebody else (I12)."""
    if world.primary is not None:
        for data in world.primary.data:
            data.lose_clock()
            data.log.clear()
            data.values.clear()
            data.refreshes.clear()
            data.lose_registry()
            data.gone.clear()
        world.look_at_all()


def _lose_clock(world: World, _process: Process, key: str, _a: float, _b: float, _c: float) -> None:
    """Let Redis evict the clock hash alone (review A9)."""
    if world.primary is not None:
        data = world.primary.data[world.shard_of(key)]
        data.lose_clock()
        data.gone.clear()
        world.look_at_all()


def _lose_registry(world: World, _process: Process, key: str, _a: float, _b: float, _c: float) -> None:
    """Let Redis evict the registry of members."""
    if world.primary is not None:
        world.primary.data[world.shard_of(key)].lose_registry()


def _lose_log(world: World, _process: Process, key: str, _a: float, _b: float, _c: float) -> None:
    """Let Redis evict the log (review A30)."""
    if world.primary is not None:
        world.primary.data[world.shard_of(key)].log.clear()


def _trim_log(world: World, _process: Process, key: str, how: float, _b: float, _c: float) -> None:
    """Trim the log."""
    if world.primary is not None:
        log = world.primary.data[world.shard_of(key)].log
        del log[: int(how * len(log))]


def _evict_value(world: World, _process: Process, key: str, _a: float, _b: float, _c: float) -> None:
    """Let Redis evict a value, or another program delete it: nobody is told (P15)."""
    if world.primary is not None:
        data = world.primary.data[world.shard_of(key)]
        if key in data.values and data.values.pop(key).codec != CODE_LEASE:
            data.gone[key] = world.history.last[key]


def _foreign(world: World, _process: Process, key: str, how: float, _b: float, _c: float) -> None:
    """Let another program write over a value (P15)."""
    if world.primary is not None:
        data = world.primary.data[world.shard_of(key)]
        data.values[key] = Stored.of(None if how < 0.3 else b"" if how < 0.4 else b"raw")
        data.gone[key] = world.history.last[key]


def _refuse(world: World, _process: Process, _key: str, how: float, why: float, _c: float) -> None:
    """Let the primary refuse writes for a while (I8, I18)."""
    server = world.primary
    if server is not None:
        server.refuse = "OOM" if why < 0.5 else "MISCONF" if why < 0.75 else "NOREPLICAS"
        world.loop.at(world.loop.now + LONGEST * how, None, _accept, server)


def _accept(server: Server) -> None:
    if server.refuse != "READONLY":
        server.refuse = ""


def _abort(world: World, _process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Let the next write die half-way (review A7)."""
    if world.primary is not None:
        world.primary.abort_after = int(how * 4)


def _stall_server(world: World, _process: Process, _key: str, how: float, _b: float, _c: float) -> None:
    """Stop the primary for a while."""
    if world.primary is not None:
        world.primary.stalled_until = world.loop.now + LONGEST / 2 * how


FAULTS: Final[dict[str, Fault]] = {
    "rest": _rest,
    "cut": _cut,
    "black_hole": _black_hole,
    "stall": _stall,
    "lose_messages": _lose_messages,
    "cut_commands": _cut_commands,
    "cancel": _cancel,
    "pause": _pause,
    "lag": _lag,
    "damage": _damage,
    "crash": _crash,
    "fork": _fork,
    "restart_empty": _restart_empty,
    "restart_full": _restart_full,
    "restart_old": _restart_old,
    "replicate": _replicate,
    "fail_over": _fail_over,
    "misroute": _misroute,
    "misroute_commands": _misroute_commands,
    "flush": _flush,
    "lose_clock": _lose_clock,
    "lose_registry": _lose_registry,
    "lose_log": _lose_log,
    "trim_log": _trim_log,
    "evict_value": _evict_value,
    "foreign": _foreign,
    "refuse": _refuse,
    "abort": _abort,
    "stall_server": _stall_server,
}
"""What a schedule's action may be, besides an operation."""
