"""Schedules: what happens when, as plain data, so that they can be written by hand, drawn, replayed and shrunk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, NamedTuple

from coherent_cache.testing.simulation.network import LOST

SECONDS: Final = 6.0
"""Virtual length of a drawn schedule, without the time in which everything comes to rest."""

HEARTBEAT: Final = 1.0
MAX_STALENESS: Final = 3.0
TIMEOUT: Final = 1.2
LEASE: Final = 0.9
LEASE_WAIT: Final = 4.0


class Step(NamedTuple):
    """One thing that happens.

    Attributes:
        at: when, in virtual seconds.
        slot: in which process; -1 for none.
        action: an operation (see ``calls``) or a fault (see ``faults``).
        args: its arguments.
        delays: for an operation, in turn: from registering a token to sending, there, back. Used over and over.
        gap: for a local hit: seconds between its steps.
        number: for reports.
    """

    at: float
    slot: int
    action: str
    args: tuple[Any, ...] = ()
    delays: tuple[float, ...] = (0.0, 0.001, 0.001)
    gap: float = 0.0
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One run.

    Attributes:
        seed: of everything that the steps do not say.
        steps: what happens.
        processes: processes at the start.
        keys: user keys.
        tags: tags.
        shards: shards of the namespace.
        wrapped: whether values are containers, which the local tier keeps in coded form.
        marks: per process (repeated), whether its heartbeats go through a command connection.
        preempt_chance: how often a thread is descheduled where it takes a lock.
        slow: how many of a hundred packets to a subscriber take long.
        fixed: seconds that each of them takes; None for random ones.
        drift: how much faster or slower than the server's the processes' clocks run, at most.
        buffer_limit: messages on their way to a subscriber after which the server closes the connection.
        log_length: entries that the log keeps.
        replay_limit: missed messages up to which a resync replays.
        replicates: how often a write is followed by a replication at once, if there is any need for a replica.
        max_entries: size of the local tiers.
        on_disconnect: as in the settings.
        stale_limit: as in the settings.
        settle: whether to let everything come to rest at the end, and check contract 3.
    """

    seed: int = 0
    steps: tuple[Step, ...] = ()
    processes: int = 2
    keys: tuple[str, ...] = ("k1", "k2")
    tags: tuple[str, ...] = ("t1", "t2")
    shards: int = 1
    wrapped: bool = False
    marks: tuple[bool, ...] = (False,)
    preempt_chance: float = 0.0
    slow: float = 0.0
    fixed: float | None = None
    drift: float = 0.0
    buffer_limit: int = 1000
    log_length: int = 1000
    replay_limit: int = 100
    replicates: float = 0.0
    max_entries: int = 10
    on_disconnect: Any = "bypass"
    stale_limit: float = 10.0
    settle: bool = True

    def with_steps(self, steps: tuple[Step, ...]) -> Schedule:
        """Return this schedule with other steps."""
        return replace(self, steps=steps)


@dataclass(frozen=True, slots=True)
class Profile:
    """What kind of schedules to draw.

    Attributes:
        faults: weights of the faults.
        most: most faults of one schedule.
        share: how many of a thousand schedules are of this kind.
        replicates: how often a write is followed by a replication at once.
        operations: weights of the operations; None for the usual ones.
        seconds: virtual length.
    """

    faults: dict[str, int] = field(default_factory=dict)
    most: int = 0
    share: int = 1
    replicates: float = 0.3
    operations: dict[str, int] | None = None
    seconds: float = SECONDS


_NETWORK: Final = {
    "cut": 6, "black_hole": 3, "stall": 3, "lose_messages": 5, "cut_commands": 2, "cancel": 3, "pause": 4, "damage": 3,
    "lag": 2,
}  # fmt: skip
_SERVER: Final = {
    "restart_empty": 2, "restart_full": 1, "flush": 3, "lose_clock": 4, "lose_log": 3, "trim_log": 3, "evict_value": 3,
    "foreign": 3, "refuse": 3, "abort": 5, "stall_server": 2, "cut": 4, "lose_messages": 2, "cancel": 1, "damage": 1,
}  # fmt: skip
_FAILOVER: Final = {
    "replicate": 6, "fail_over": 8, "restart_old": 3, "misroute": 3, "misroute_commands": 4,
    "cut": 3, "pause": 2, "lose_messages": 1, "lose_log": 1,
}  # fmt: skip
_DEMOTION: Final = {"fail_over": 3, "cut": 1, "cut_commands": 2, "replicate": 1}
_LIFE: Final = {"crash": 4, "fork": 3, "cut": 3, "pause": 4, "cancel": 4, "cut_commands": 2, "stall": 2}

_BATCHES: Final = {
    "batch": 30, "get": 40, "read": 6, "set": 10, "delete": 3, "update": 4, "add": 3, "clear": 2, "invalidate": 6,
    "evict": 3,
}  # fmt: skip

_LOADS: Final = {
    "load": 40, "get": 12, "read": 3, "set": 8, "delete": 14, "touch": 2, "update": 2, "clear": 4, "invalidate": 8,
    "evict": 3, "clear_local": 1,
}  # fmt: skip

_ACKNOWLEDGED: Final = {
    "set_wait": 16, "delete_wait": 5, "clear_wait": 2, "invalidate_wait": 4, "get": 45, "read": 4, "set": 8, "evict": 2,
}  # fmt: skip

PROFILES: Final = {
    "races": Profile(share=210),
    "network": Profile(_NETWORK, 5, 210),
    "loss": Profile({"lose_messages": 1}, 8, 40),
    "reconnect": Profile({"cut": 1}, 12, 40),
    "server": Profile(_SERVER, 5, 180),
    "failover": Profile(_FAILOVER, 6, 130),
    "demotion": Profile(_DEMOTION, 8, 30, replicates=0.75),
    "life": Profile(_LIFE, 5, 60),
    "batches": Profile(_NETWORK | _SERVER | _FAILOVER | _LIFE, 4, 60, operations=_BATCHES),
    "chaos": Profile(_NETWORK | _SERVER | _FAILOVER | _LIFE, 9, 100),
    "loads": Profile({"cancel": 1}, 2, 120, operations=_LOADS),
    "load faults": Profile(_NETWORK | _SERVER | _FAILOVER | _LIFE, 6, 80, operations=_LOADS),
    "acknowledged": Profile(
        _NETWORK | {"crash": 2, "fork": 3, "lose_registry": 3}, 5, 90, operations=_ACKNOWLEDGED, seconds=12.0
    ),
    "acknowledged faults": Profile(
        _NETWORK | _SERVER | _FAILOVER | _LIFE | {"lose_registry": 4}, 6, 70, operations=_ACKNOWLEDGED, seconds=12.0
    ),
}
"""Kinds of schedules."""

_OPERATIONS: Final = {
    "get": 40, "read": 6, "set": 20, "delete": 6, "touch": 3, "update": 4, "add": 3, "remove": 1, "clear": 2,
    "invalidate": 4, "clear_local": 1, "evict": 3,
}  # fmt: skip


def profile_of(seed: int) -> str:
    """Return the kind of schedule that a seed stands for."""
    draw = Random(seed ^ 0x5EED).randrange(sum(profile.share for profile in PROFILES.values()))  # noqa: S311
    for name, profile in PROFILES.items():
        draw -= profile.share
        if draw < 0:
            return name
    raise AssertionError("unreachable")


def draw(seed: int, profile: str | None = None) -> Schedule:
    """Draw a schedule.

    Args:
        seed: the same seed draws the same schedule.
        profile: a kind of ``PROFILES``; None for the one that the seed stands for.
    """
    rng = Random(seed)  # noqa: S311  # simulation
    kind = PROFILES[profile or profile_of(seed)]
    processes = rng.choice((1, 2, 2, 2, 3))
    keys = ("k1", "k2", "k3")[: rng.choice((1, 2, 2, 3))]
    shards = 2 if rng.random() < 0.1 else 1
    has_ttl = rng.random() < 0.3
    maker = _Maker(
        rng,
        processes,
        keys,
        has_ttl=has_ttl,
        slow=rng.choice((0.0, 0.02, 0.08)),
        weights=kind.operations or _OPERATIONS,
        seconds=kind.seconds,
    )
    steps = maker.operations(rng.randint(10, 34)) + maker.faults(kind)
    steps.sort()
    log_length = rng.choice((3, 6, 1000))
    return Schedule(
        seed=seed,
        steps=tuple([step._replace(number=number) for number, step in enumerate(steps, 1)]),
        processes=processes,
        keys=keys,
        shards=shards,
        wrapped=rng.random() < 0.15,
        marks=rng.choice(((False,), (False,), (False,), (True,), (False, True))),
        preempt_chance=rng.choice((0.0, 0.0, 0.02, 0.08)),
        slow=rng.choice((0.0, 0.03, 0.1)),
        drift=1e-4 if has_ttl else 0.05,
        buffer_limit=rng.choice((4, 1000, 1000)),
        log_length=log_length,
        replay_limit=min(log_length, rng.choice((0, 3, 100, 100))),
        replicates=kind.replicates,
        max_entries=max(shards, rng.choice((1, 2, 10, 10))),
        on_disconnect=rng.choice(("bypass", "bypass", "bypass", "serve_stale", "fail")),
    )


class _Maker:
    """Draws steps. They come in bursts around a few moments, each with a favourite key, so that they meet."""

    def __init__(
        self,
        rng: Random,
        processes: int,
        keys: tuple[str, ...],
        *,
        has_ttl: bool,
        slow: float,
        weights: dict[str, int],
        seconds: float,
    ) -> None:
        self._rng = rng
        self._processes = processes
        self._keys = keys
        self._has_ttl = has_ttl
        self._slow = slow
        self._seconds = seconds
        self._bursts = [(rng.uniform(0.3, seconds), rng.choice(keys)) for _ in range(rng.randint(3, 7))]
        self._names = list(weights)
        self._weights = list(weights.values())

    def operations(self, count: int) -> list[Step]:
        rng = self._rng
        steps = []
        for action in rng.choices(self._names, self._weights, k=count):
            at, favourite = rng.choice(self._bursts)
            key = favourite if rng.random() < 0.8 else rng.choice(self._keys)
            at += rng.expovariate(12) if rng.random() < 0.8 else rng.uniform(0, 1)
            gap = 10 ** rng.uniform(-3, 0.5) if rng.random() < 0.1 else 0.0
            delays: tuple[float, ...] = (
                min(2.0, self._delay()) if rng.random() < 0.2 else 0.0,
                self._delay(),
                self._delay(),
            )
            if rng.random() < 0.1:
                delays += (0.0, self._delay(), self._delay())
            steps.append(Step(at, rng.randrange(self._processes), action, self._args(action, key), delays, gap))
        return steps

    def _args(self, action: str, key: str) -> tuple[Any, ...]:  # noqa: PLR0911  # one per operation
        rng = self._rng
        match action:
            case "get" | "add" | "update" | "remove" | "evict":
                return (key,)
            case "read" | "delete":
                return (self._several(key, 0.5 if action == "read" else 0.15),)
            case "set" | "batch":
                tags: tuple[str, ...] = rng.choice(((), (), (), ("t1",), ("t1", "t2")))
                return (self._several(key, 0.15 if action == "set" else 0.8), self._ttl(), tags)
            case "touch":
                return (key, self._ttl())
            case "load":
                how = rng.choice(("value", "value", "value", "value", "error", "nothing"))
                tags = rng.choice(((), (), ("t1",), ("t1", "t2")))
                seconds = 10 ** rng.uniform(-2.5, 0.5)
                return (key, seconds, how, tags, self._ttl(), rng.choice((None, None, None, 0.3)), rng.random() < 0.2)
            case "set_wait" | "delete_wait":
                return (key, self._wait())
            case "clear_wait":
                return (self._wait(),)
            case "invalidate_wait":
                return (rng.choice(("t1", "t1", "t2")), self._wait())
            case "invalidate":
                return (rng.choice(("t1", "t1", "t2")),)
            case _:
                return ()

    def _several(self, key: str, chance: float = 0.15) -> tuple[str, ...]:
        return tuple(dict.fromkeys((key, *self._keys))) if self._rng.random() < chance else (key,)

    def _ttl(self) -> float | None:
        return self._rng.choice((None, 0.4, 1.5, 3.0)) if self._has_ttl else None

    def _wait(self) -> float:
        return self._rng.choice((0.5, 20.0, 20.0, 20.0))

    def _delay(self) -> float:
        rng = self._rng
        draw = rng.random()
        if draw < 0.55:
            return rng.uniform(0.0005, 0.015)
        if draw < 0.9 - self._slow:
            return rng.uniform(0.01, 0.3)
        if draw < 0.97 - self._slow / 2:
            return rng.uniform(0.3, 1.1)
        return rng.choice((rng.uniform(1.0, 3.0), LOST))

    def faults(self, profile: Profile) -> list[Step]:
        rng = self._rng
        if not profile.most:
            return []
        names, weights = list(profile.faults), list(profile.faults.values())
        steps = []
        for action in rng.choices(names, weights, k=rng.randint(1, profile.most)):
            at = rng.uniform(0.2, self._seconds)
            if rng.random() < 0.5:
                at = max(0.0, rng.choice(self._bursts)[0] + rng.uniform(-0.3, 0.5))
            # A fault says with three numbers from 0 to 1 what exactly it does.
            args = (rng.choice(self._keys), rng.random(), rng.random(), rng.random())
            steps.append(Step(at, rng.randrange(self._processes), action, args))
        return steps
