"""Acknowledged writes (P12): a write returns when nobody can serve an older value any more.

Who may serve one: a member that has proven its freshness before the write was executed, for each proof made after it
shows the write. Each proof also enters its member in the shard's registry, by the same script. So, once the write is
executed, whoever is in the registry must have applied it, and says so by a receipt.

The write returns

* when all members but this instance have sent their receipts (``answers``), once this instance has known epoch and
  server for longer than the bound, and the registry is older than the bound as well: entries that another history,
  another server or a registry that was lost had belong to members that have ceased to serve by then (review W5);
* or when the bound is over since the *reply* came (``bound``): who has not confirmed, and has not proven its freshness
  since, has ceased to serve (P4);
* or when the caller wants to wait no longer (``timeout``): then nothing is known of those that have not confirmed.

The bound is the longest time that any member may serve what it has without a proof, by a clock that is slow as far as
clocks are (``CLOCK_MARGIN``). An instance without a local tier hears no receipts: it always waits for the bound.

Of the server's clock two things are expected: that it runs roughly like others, and that it does not jump forward by
more than a bound. Members count as silent, and a registry as old, by differences of its own times.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal, NamedTuple, Protocol

from coherent_cache.core.instance import Instance
from coherent_cache.core.requests import (
    MembersReply,
    MembersRequest,
    Operation,
    Reply,
    Request,
    WaitRequest,
    Woken,
    WriteReply,
)
from coherent_cache.core.shard import Shard
from coherent_cache.core.waiting import Collector, Waiter
from coherent_cache.errors import CacheUnavailable
from coherent_cache.versions import EPOCH_BYTES, NONCE_BYTES, Version

CLOCK_MARGIN: Final = 0.11
"""Part by which the bound is waited for longer: enough for two clocks of which one runs 5 % too fast, one too slow."""

SILENT_BOUNDS: Final = 3
"""Bounds after which a member that has not been seen need not be waited for: it ceased to serve after one."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """How an acknowledged write went.

    Attributes:
        version: the write's version (of the last shard's, if there are several).
        existed: for a deletion, whether the value was there; None for other writes.
        members: instances with a local tier that were known and had to confirm, without the writer's own.
        confirmed: how many of them have confirmed.
        by: ``answers``: all have; ``bound``: whoever has not serves nothing older any more, because it has not proven
            its freshness for too long; ``timeout``: ``wait`` was over before either was certain.
        seconds: time that was waited after Redis had executed the write.
    """

    version: Version
    existed: bool | None
    members: int
    confirmed: int
    by: Literal["answers", "bound", "timeout"]
    seconds: float

    @property
    def acknowledged(self) -> bool:
        """Whether nobody can serve an older value any more."""
        return self.by != "timeout"


class Script(NamedTuple):
    """One script of a write, and who has confirmed it.

    Attributes:
        shard: its shard.
        nonce: the write's nonce; receipts name it. Versions would not do: a failover may hand one out twice.
        collector: takes the receipts.
    """

    shard: Shard
    nonce: bytes
    collector: Collector


class Receipts:
    """The receipts for one write, collected from before each of its scripts is sent.

    Attributes:
        scripts: those that were sent, with their replies.
    """

    def __init__(self, instance: Instance) -> None:
        """Collect for an instance; :meth:`close` must follow."""
        self._rng = instance.rng
        self._begun: list[Script] = []
        self.scripts: list[tuple[Script, WriteReply]] = []

    def begin(self, shard: Shard) -> bytes:
        """Collect for a script that is about to be sent; return the random bytes that it is to bring."""
        entropy = self._rng.randbytes(EPOCH_BYTES)
        nonce = entropy[:NONCE_BYTES]
        self._begun.append(Script(shard, nonce, shard.collect(nonce)))
        return entropy

    def executed(self, reply: WriteReply) -> None:
        """Take in the reply to the script that was begun last."""
        self.scripts.append((self._begun[-1], reply))

    def close(self) -> None:
        """Collect no more."""
        for script in self._begun:
            script.shard.stop_collecting(script.nonce)


class Write(Protocol):
    """A write of :mod:`coherent_cache.core.operations` with all its arguments."""

    def __call__(self, *, receipts: Receipts) -> Operation[Any]:
        """Begin it."""


def acknowledge(instance: Instance, write: Write, wait: float) -> Operation[Acknowledgement]:
    """Write, then wait until nobody can serve an older value any more (P12).

    Args:
        instance: the instance.
        write: the write.
        wait: seconds to wait for that, at most, from when Redis has executed it.

    Raises:
        As the write does; what fails after it only makes the wait longer.
    """
    receipts = Receipts(instance)
    try:
        yield from write(receipts=receipts)
        (clock,) = yield (WaitRequest(None, 0.0),)
        assert isinstance(clock, Woken)
        return (yield from _wait(instance, receipts.scripts, wait, clock.now))
    finally:
        receipts.close()


class _Case:
    """One script of the write: who must confirm it, and from when on their receipts are proof."""

    def __init__(self, script: Script, write: WriteReply, reply: MembersReply | None) -> None:
        self.script = script
        self.write = write
        # What another server or history knows of members says nothing about this one.
        known = reply is not None and (reply.epoch, reply.server) == (write.epoch, write.server)
        self.reply = reply if known else None
        self.members: frozenset[str] = frozenset()
        self._registry_from = inf

    def expect(self, instance: Instance, bound: float, now: float) -> None:
        """Say who must confirm."""
        reply = self.reply
        if reply is None:
            return
        silent_ms = reply.now_ms - SILENT_BOUNDS * bound * 1000
        self.members = frozenset(
            [each.name for each in reply.members if each.name != instance.member and each.seen_ms >= silent_ms]
        )
        self._registry_from = now + bound - (reply.now_ms - reply.created_ms) / 1000
        self.script.shard.expect(self.script.collector, self.members)

    def proof_from(self, bound: float, now: float) -> float:
        """Local clock from which on receipts of all members are proof; ``inf`` if they are none (W5)."""
        registered_since = self.script.shard.registered_since(self.write.epoch, self.write.server, now)
        return max(self._registry_from, registered_since + bound)


def _wait(
    instance: Instance, scripts: Sequence[tuple[Script, WriteReply]], wait: float, replied_at: float
) -> Operation[Acknowledgement]:
    cases, longest, now = yield from _ask_for_members(instance, scripts)
    bound = longest * (1 + CLOCK_MARGIN)
    bound_at, over_at = replied_at + bound, replied_at + wait
    for case in cases:
        case.expect(instance, bound, now)
    while True:
        open_cases = [
            case for case in cases if not (case.script.collector.complete and now >= case.proof_from(bound, now))
        ]
        if not open_cases:
            by: Literal["answers", "bound", "timeout"] = "answers"
            break
        if now >= bound_at:
            by = "bound"
            break
        if now >= over_at:
            by = "timeout"
            break
        case = open_cases[0]
        collector, until = case.script.collector, min(bound_at, over_at)
        request = WaitRequest(collector.waiter, until)
        if collector.complete:
            request = WaitRequest(Waiter(), min(until, case.proof_from(bound, now)))
        (woken,) = yield (request,)
        assert isinstance(woken, Woken)
        now = woken.now
    members = frozenset().union(*(case.members for case in cases))
    missing = frozenset().union(*(case.members - case.script.collector.received for case in cases))
    _, last = scripts[-1]
    return Acknowledgement(
        version=Version(last.epoch, last.seq),
        existed=any(last.existed) if last.existed else None,
        members=len(members),
        confirmed=len(members - missing),
        by=by,
        seconds=now - replied_at,
    )


def _ask_for_members(
    instance: Instance, scripts: Sequence[tuple[Script, WriteReply]]
) -> Generator[Sequence[Request], Sequence[Reply], tuple[list[_Case], float, float]]:
    """Ask who must confirm; return that per script, the longest bound in seconds, and the local clock."""
    replies: Sequence[Reply | None]
    try:
        replies = yield tuple([MembersRequest(script.shard.index) for script, _ in scripts])
    except CacheUnavailable:
        # The write is done, whatever has become of the question.
        replies = [None] * len(scripts)
    (clock,) = yield (WaitRequest(None, 0.0),)
    assert isinstance(clock, Woken)
    longest = instance.settings.longest_age
    cases = []
    for (script, write), reply in zip(scripts, replies, strict=True):
        assert reply is None or isinstance(reply, MembersReply)
        cases.append(_Case(script, write, reply))
        if reply is not None:
            longest = max([longest, *[each.bound_ms / 1000 for each in reply.members]])
    return cases, longest, clock.now
