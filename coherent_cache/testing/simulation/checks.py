"""What users were promised, and what must hold inside, checked between any two steps.

* contract 1: nothing older than what a completed operation of the same process returned or wrote;
* contract 2, and I2: whatever is held was current at the horizon, so a hit is not staler than ``max_staleness``;
* contract 3: once quiet, every local entry equals Redis, and every instance is coherent again;
* contract 4: nothing older than what an acknowledged write of any process has written (as contract 1, everywhere);
* contract 5: no value is returned or held that the primary did not store;
* I4: what was invalidated in Redis does not come back;
* I1: what is older than Redis' value has its message still in front of it;
* the local tier's own invariants, and no token left behind.

After a failover that lost writes the history of the present primary counts: until an instance is synchronised with it,
its values may go back (once).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from coherent_cache.core import operations
from coherent_cache.core.acknowledging import Acknowledgement
from coherent_cache.core.entries import Entry
from coherent_cache.core.leasing import Result
from coherent_cache.core.operations import MISSING
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.wire import Kind, WireError, decode_message

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.calls import Call
    from coherent_cache.testing.simulation.history import Change
    from coherent_cache.testing.simulation.process import Process
    from coherent_cache.testing.simulation.world import World

EPSILON: Final = 1e-6
"""Seconds that two clocks may differ by rounding."""


def number_of(value: Any) -> int:
    """Return the number that a value of the simulation carries; some are wrapped, to be kept in coded form."""
    number: int = value[0] if isinstance(value, list) else value
    return number


def check_process(process: Process) -> None:
    """Check everything that a process holds."""
    local = process.local()
    for shard in process.core.shards:
        tier = shard.tier
        entries = tier.entries
        index = shard.index
        mark = (tier, tier.births, len(entries))
        if process.checked[index] != mark:
            process.checked[index] = mark
            try:
                tier.check_invariants()
            except AssertionError as error:
                raise Violation("local tier", f"{process.name}: {error}") from error
        if not entries:
            continue
        held = _Held(
            process, shard, process.to_global(tier.horizon), tier.valid_until >= local, _watched(process, shard)
        )
        for key, entry in entries.items():
            if local < entry.expires_at:
                held.check(key, entry)


class _Held(NamedTuple):
    """What is known about all entries of a shard while they are checked.

    Attributes:
        process: the process.
        shard: the shard.
        horizon: its horizon in virtual time.
        servable: whether a hit would be served now.
        watched: whether I1 can be checked.
    """

    process: Process
    shard: Shard
    horizon: float
    servable: bool
    watched: bool

    def check(self, key: str, entry: Entry) -> None:
        process, index = self.process, self.shard.index
        value = process.number_of(entry)
        change = process.world.history.of_value.get(value)
        if change is None:
            raise Violation("contract 5", f"{process.name} holds {key}=v{value}, which no Redis stored")
        if change.end + EPSILON < self.horizon:
            text = f"{process.name} holds {key}=v{value}@{entry.seq}, current until {change.end:.4f} only, with the"
            raise Violation("I2", f"{text} horizon at {self.horizon:.4f}")
        if self.servable and index not in process.exempt:
            if change.index < process.floors.get(key, 0):
                raise Violation("contract 1", f"{process.name} would serve {key}=v{value}, older than it has seen")
            if change.tags:
                _check_tags(process, change, index, process.tag_floors)
        if self.watched:
            _check_message_comes(process, self.shard, key, entry)


def _watched(process: Process, shard: Shard) -> bool:
    """Tell whether I1 can be checked: the stream is whole, and of the history that the primary is in."""
    link, primary = process.subscriber.link, process.world.primary
    return (
        link is not None
        and primary is not None
        and shard.synced
        and link.server is primary
        and link.sound
        and shard.epoch == primary.data[shard.index].epoch
        and link.proven[shard.index] == link.taints[shard.index]
    )


def _check_message_comes(process: Process, shard: Shard, key: str, entry: Entry) -> None:
    primary = process.world.primary
    assert primary is not None
    live = primary.live(shard.index, key)
    if live is not None and live.seq == entry.seq:
        return
    data = primary.data[shard.index]
    if live is None and (key in data.gone or process.world.history.last[key].expires <= process.loop.now):
        return
    link = process.subscriber.link
    assert link is not None
    for item in link.on_its_way():
        if item.kind != "message" or item.shard != shard.index:
            continue
        try:
            message = decode_message(item.data)
        except WireError:
            return  # it will flush
        if message.seq <= entry.seq or message.kind is Kind.RELEASE:
            continue
        if message.kind is Kind.CLEAR or key in message.names:
            return
        if message.kind is Kind.TAG and set(message.names) & set(entry.tags):
            return
    have = "nothing" if live is None else f"version {live.seq}"
    raise Violation("I1", f"{process.name} holds {key}@{entry.seq}, Redis has {have}, and no message is on its way")


def check_hit(call: Call, key: str, value: int, at: float) -> None:
    """Check what a local hit returned, whose clock was read at virtual time ``at``."""
    process = call.process
    change = _known(process, key, value)
    index = process.core.shard_of(key.encode()).index
    exempt = index in call.exempt or index in process.exempt
    if change.index < call.floors.get(key, 0) and not exempt:
        raise Violation("contract 1", f"{process.name} served {key}=v{value}, older than it had seen when asked")
    if change.tags and not exempt:
        _check_tags(process, change, index, call.tag_floors)
    bound = process.settings.longest_age
    if change.end + EPSILON < process.to_global(process.local() - bound) - (process.loop.now - at):
        raise Violation("contract 2", f"{process.name} served {key}=v{value}, current until {change.end:.4f} only")
    process.floors[key] = max(process.floors.get(key, 0), change.first)


def _check_tags(process: Process, change: Change, shard: int, tag_floors: dict[tuple[int, str], int]) -> None:
    for tag in change.tags:
        if tag_floors.get((shard, tag), 0) >= change.index:
            raise Violation("contract 1", f"{process.name} serves {change}, though it has invalidated {tag}")


def _known(process: Process, key: str, value: int) -> Change:
    change = process.world.history.of_value.get(value)
    if change is None or change.key != key:
        raise Violation("contract 5", f"{process.name} returned {key}=v{value}, which no Redis stored")
    return change


def check_result(call: Call, result: Any) -> None:
    """Check what an operation returned that has asked Redis, and note what its process has seen by that."""
    process = call.process
    if call.elsewhere:
        return  # a server that was not in office answered: no promise is made for that
    if isinstance(result, Result):
        _check_load(call, result)
    if isinstance(result, operations.Found):
        result = {call.reads[0]: result.value}
    for key in call.reads:
        found = None if result is None else result.get(key)
        number = None if found is None else number_of(found)
        if number != call.seen[key][1]:
            text = f"{process.name} read {key} as {number}, Redis had {call.seen[key][1]}"
            raise Violation("read", text)
    check_seen(call)
    if isinstance(result, Acknowledgement) and result.acknowledged:
        # No process may serve or read anything older from now on, as if it had written that itself.
        for other in process.world.running():
            _learn(other, call)
            other.check()


def _check_load(call: Call, result: Result) -> None:
    """Check what ``get_or_set`` returned: what Redis had, or what was loaded after it was asked for (P11)."""
    key, name = call.step.args[0], call.process.name
    number = None if result.value is MISSING else number_of(result.value)
    if result.tier == "redis":
        if key in call.seen and number != call.seen[key][1]:
            raise Violation("read", f"{name} read {key} as {number}, Redis had {call.seen[key][1]}")
    elif number is not None:
        read_at = call.process.world.loaded.read_at(number)
        if read_at is None or read_at < call.began:
            raise Violation("contract 1", f"{name} was given {key}=v{number}, loaded before it had asked")


def check_seen(call: Call) -> None:
    """Note what a process has learnt by an operation, or brought about by one that failed."""
    process = call.process
    if call.elsewhere:
        return
    for key, (index, _) in call.seen.items():
        if index < call.floors.get(key, 0):
            raise Violation("contract 1", f"{process.name} got {key} from Redis older than it had seen")
    _learn(process, call)


def _learn(process: Process, call: Call) -> None:
    for key, (index, _) in call.seen.items():
        process.floors[key] = max(process.floors.get(key, 0), index)
    for tag, index in call.invalidated.items():
        process.tag_floors[tag] = max(process.tag_floors.get(tag, 0), index)


def check_quiet(world: World) -> None:
    """Check contract 3: nothing is going on any more, so all instances hold what Redis holds."""
    primary = world.primary
    assert primary is not None
    for process in world.running():
        if len(process.core.flights):
            raise Violation("tokens", f"{process.name} has flights left behind")
        for shard in process.core.shards:
            if shard.state is not State.COHERENT:
                raise Violation("contract 3", f"{process.name} is {shard.state} though all is quiet")
            if shard._tokens or shard._waiters:  # noqa: SLF001  # nobody else may look at them
                raise Violation("tokens", f"{process.name} has tokens or waiters left behind")
            for key, entry in shard.tier.entries.items():
                live = primary.live(shard.index, key)
                expires = process.to_global(entry.expires_at)
                excused = key in primary.data[shard.index].gone or expires <= world.loop.now + 0.02
                if (live is None or live.seq != entry.seq) and not excused:
                    have = "nothing" if live is None else f"version {live.seq}"
                    raise Violation("contract 3", f"{process.name} holds {key}@{entry.seq} for ever, Redis has {have}")
