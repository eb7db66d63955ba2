"""What is known of one key in both tiers, and in words what the next read will do and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any, Final

from coherent_cache.core.questions import ShardFacts, shard_of_body
from coherent_cache.core.states import State
from coherent_cache.core.stored import Presence, Snapshot, Stored
from coherent_cache.wire import Kind, Message, WireError

LOG_SHOWN: Final = 10
"""Latest messages of the log about a key that are shown."""


class Next(StrEnum):
    """What the next read of a key does on an instance."""

    LOCAL = "local"  # returns what is held there
    REDIS = "redis"  # asks Redis
    RAISES = "raises"  # raises NotCoherent


@dataclass(frozen=True, slots=True)
class Held:
    """An entry on an instance.

    Attributes:
        seq: its version.
        expires_in: seconds that it has left; ``inf`` for no end, 0 or less if its time is over.
        tags: its tags.
    """

    seq: int
    expires_in: float
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyOnInstance:
    """A key on one instance.

    Attributes:
        instance: the instance's id.
        member: its name among the members (P12).
        facts: the key's shard, as it sees it.
        held: what it holds in its local tier; None if nothing.
        kept: its last known value, for calls with ``fail_safe``; None if there is none.
        commands: commands under way there that may bring a value.
        loading: whether a loader is running there.
        recent: the latest messages that concern the key, or may, newest first.
        next: what the next read does there.
        why: why, in words.
    """

    instance: str
    member: str
    facts: ShardFacts
    held: Held | None
    kept: Held | None
    commands: int
    loading: bool
    recent: tuple[Mapping[str, Any], ...]
    next: Next
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dict of plain values."""
        return {
            "instance": self.instance,
            "member": self.member,
            "state": self.facts.state,
            "serves": self.facts.serves,
            "position": self.facts.position,
            "horizon_age": self.facts.horizon_age,
            "held": _held_dict(self.held),
            "kept": _held_dict(self.kept),
            "commands": self.commands,
            "loading": self.loading,
            "recent": [dict(each) for each in self.recent],
            "next": self.next.value,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is known of one key.

    Attributes:
        namespace: the namespace.
        server: where Redis is, for people.
        key: the key.
        shard: number of its shard.
        snapshot: what Redis holds of it, and the clock of its shard.
        refresh: seconds that the lease of who refreshes it has left; None if nobody does.
        log: the latest messages of the log that concern it, or may, newest first.
        instances: the key on each instance that has answered.
        unanswered: instances that report themselves and have not answered.
    """

    namespace: str
    server: str
    key: str
    shard: int
    snapshot: Snapshot
    refresh: float | None
    log: tuple[Mapping[str, Any], ...]
    instances: tuple[KeyOnInstance, ...]
    unanswered: tuple[str, ...]

    @property
    def stored(self) -> Stored:
        """What Redis holds of it."""
        return self.snapshot.found[0]

    @property
    def in_redis(self) -> str:
        """What who asks Redis finds, in words."""
        return describe_stored(self.stored, self.snapshot)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dict of plain values."""
        stored, snapshot = self.stored, self.snapshot
        return {
            "namespace": self.namespace,
            "server": self.server,
            "key": self.key,
            "shard": self.shard,
            "redis": {
                "presence": stored.presence.value,
                "version": stored.seq or None,
                "expires_in": stored.expires_in,
                "clock": snapshot.seq,
                "floor": snapshot.floor,
                "epoch": snapshot.epoch.hex(),
                "refresh_lease": self.refresh,
                "why": self.in_redis,
            },
            "log": [dict(each) for each in self.log],
            "instances": [each.as_dict() for each in self.instances],
            "unanswered": list(self.unanswered),
        }


def _held_dict(held: Held | None) -> dict[str, Any] | None:
    return None if held is None else {"version": held.seq, "expires_in": held.expires_in, "tags": list(held.tags)}


def describe_stored(stored: Stored, snapshot: Snapshot) -> str:  # noqa: PLR0911  # one per case
    """Say what who asks Redis finds."""
    left = "without an end" if stored.expires_in == inf else f"for {stored.expires_in:.1f} s more"
    match stored.presence:
        case Presence.VALUE:
            return f"version {stored.seq}, {left}"
        case Presence.LEASE:
            return (
                f"no value; somebody is loading it, with a lease for {stored.expires_in:.1f} s more: get returns the "
                "default, get_or_set waits for what is loaded"
            )
        case Presence.NOTHING:
            return f"that a loader has found no such thing, {left}: get_or_set returns that, get the default"
        case Presence.FOREIGN:
            return "bytes of another program: a read raises ForeignValue, or finds nothing with on_foreign='miss'"
        case Presence.DEAD if stored.least > stored.seq and stored.seq <= snapshot.floor:
            return f"no value: that of version {stored.seq} was cleared at version {snapshot.floor}"
        case Presence.DEAD:
            return "no value: what lies there was invalidated by a tag, or is of a history that was lost"
        case Presence.ABSENT if not snapshot.epoch:
            return "nothing, nor anything else in this shard"
        case _:
            return "no value: get returns the default, get_or_set loads"


def describe_message(message: Message, key: str, now_us: int) -> dict[str, Any] | None:
    """Return a message of the log as plain values; None if it does not concern a key."""
    certain = message.kind is Kind.CLEAR or (message.kind is not Kind.TAG and key in message.names)
    if not certain and message.kind is not Kind.TAG:
        return None
    return {
        "seconds_ago": (now_us - message.time_us) / 1e6,
        "kind": message.kind.name.lower(),
        "seq": message.seq,
        "origin": message.origin,
        "certain": certain,
        "names": len(message.names),
    }


def explain_instance(member: str, told: object, stored: Stored, snapshot: Snapshot) -> KeyOnInstance:
    """Make sense of what an instance has answered about a key.

    Args:
        member: the instance's name among the members.
        told: one item of its answer, see :meth:`coherent_cache.core.reporting.Reporter.explain`.
        stored: what Redis holds of the key.
        snapshot: the clock of its shard.

    Raises:
        WireError: the answer is none.
    """
    try:
        assert isinstance(told, dict)
        facts = shard_of_body(told["shard"])
        held, kept = _held(told["held"]), _held(told["kept"])
        policy, limit = str(told["on_disconnect"]), float(told["stale_limit"])
        recent = tuple([_recent(each) for each in told["recent"]])
        commands, loading = int(told["commands"]), bool(told["loading"])
    except WireError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise WireError(f"an answer's explanation is of other types ({type(error).__name__})") from None
    does, why = _next(facts, held, recent, policy, limit)
    if does is Next.LOCAL and held is not None:
        why = f"{why}; {_compared(held, facts, stored, snapshot)}"
    if does is Next.REDIS and loading:
        why = f"{why}; a loader is running there, and get_or_set waits for it"
    return KeyOnInstance(
        member.rpartition(":")[0], member, facts, held, kept, commands, loading, recent, does, why
    )  # fmt: skip


def _held(raw: Any) -> Held | None:
    if raw is None:
        return None
    left = raw["expires_in"]
    return Held(int(raw["seq"]), inf if left is None else float(left), tuple([str(tag) for tag in raw["tags"]]))


def _recent(raw: Any) -> dict[str, Any]:
    return {
        "seconds_ago": float(raw["seconds_ago"]), "kind": str(raw["kind"]), "seq": int(raw["seq"]),
        "origin": str(raw["origin"]), "applied": bool(raw["applied"]), "certain": bool(raw["certain"]),
        "names": int(raw["names"]),
    }  # fmt: skip


def _next(
    facts: ShardFacts, held: Held | None, recent: Sequence[Mapping[str, Any]], policy: str, limit: float
) -> tuple[Next, str]:
    age = "never" if facts.horizon_age == inf else f"{facts.horizon_age:.2f} s ago"
    if not facts.serves:
        if facts.state != State.DISCONNECTED:
            return Next.REDIS, f"its connection is {facts.state}, freshness was last proven {age}"
        if policy == "fail":
            return Next.RAISES, f"it is disconnected, freshness was last proven {age}, and on_disconnect='fail'"
        past = f" for longer than stale_limit ({limit:g} s)" if policy == "serve_stale" else ""
        return Next.REDIS, f"it is disconnected{past}, freshness was last proven {age}, on_disconnect='{policy}'"
    if held is None:
        return Next.REDIS, f"it holds nothing under this key{_removed_by(recent)}"
    if held.expires_in <= 0:
        return Next.REDIS, f"the time of what it holds, version {held.seq}, is over"
    left = "" if held.expires_in == inf else f" for {held.expires_in:.1f} s more"
    proof = f"freshness was proven {age}, and is good for {facts.bound:g} s"
    if facts.state == State.DISCONNECTED:
        proof = f"it is disconnected, freshness was last proven {age}, and it serves stale values for {limit:g} s"
    return Next.LOCAL, f"it holds version {held.seq}{left}; {proof}"


def _removed_by(recent: Sequence[Mapping[str, Any]]) -> str:
    for each in recent:
        if each["applied"] and each["kind"] != "release":
            sure = "" if each["certain"] else "perhaps "
            return (
                f", {sure}since a {each['kind']} at version {each['seq']} by {each['origin']} came "
                f"{each['seconds_ago']:.1f} s ago"
            )
    return ""


def _compared(held: Held, facts: ShardFacts, stored: Stored, snapshot: Snapshot) -> str:
    if (facts.epoch, facts.server) != (snapshot.epoch, snapshot.server):
        return "Redis has another history or server now, and versions have no order: it will notice"
    if stored.presence is Presence.VALUE and held.seq == stored.seq:
        return "that is what Redis has"
    if held.seq < stored.least:
        return (
            f"OUTDATED: version {stored.least} or newer is due. If it stays for longer than {facts.bound:g} s, "
            "something is wrong: run audit"
        )
    if stored.presence is Presence.VALUE:
        return f"Redis has version {stored.seq}, an older one: something is wrong unless it was written just now"
    return "Redis has no value: it has expired there, was evicted for lack of memory, or was deleted just now"
