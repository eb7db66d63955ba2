"""One operation of a user's thread, from its call to its return: local hit, requests, replies, waits, loads, failures.

The local hit mirrors ``CoherentCache.get``; its three reads (horizon, clock, entry) are steps of their own. What is
left to the real core begins with a miss. ``tests/simulation/test_front.py`` compares this order with the front's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final

from coherent_cache.core import batching, loading, operations
from coherent_cache.core.acknowledging import Acknowledgement, acknowledge
from coherent_cache.core.entries import Entry, RemovalCause
from coherent_cache.core.leasing import LoaderError, Result
from coherent_cache.core.load_options import LoadOptions
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.operations import MISSING
from coherent_cache.core.requests import (
    FRONT_REQUESTS,
    Condition,
    FillRequest,
    FloorRequest,
    Lease,
    LeaseReply,
    LeaseRequest,
    LeaseStatus,
    LeaveRequest,
    Left,
    Loaded,
    LoadRequest,
    MembersReply,
    MembersRequest,
    Operation,
    ReadRequest,
    RedisReply,
    RedisRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    Reply,
    Request,
    Spawned,
    SpawnRequest,
    TouchRequest,
    WaitRequest,
    Woken,
    WriteReply,
)
from coherent_cache.core.states import State
from coherent_cache.core.waiting import Waiter
from coherent_cache.errors import CacheUnavailable, ForeignValue, LoaderTimeout, NotCoherent, VersionConflict
from coherent_cache.testing.simulation.checks import check_hit, check_result, check_seen, number_of
from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.testing.simulation.network import Exchange
from coherent_cache.versions import Version
from coherent_cache.wire import Kind

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.process import Process
    from coherent_cache.testing.simulation.schedule import Step
    from coherent_cache.testing.simulation.server import Server
    from coherent_cache.testing.simulation.world import World

UPDATE_ATTEMPTS: Final = 3

ROUNDING: Final = 1e-9
"""Seconds by which a wait is longer, so that the clock that ends it has come to its end."""


class Cancelled(BaseException):
    """Stands for KeyboardInterrupt, a cancelled task, and the like."""


class LoadingFails(Exception):
    """What a loader raises."""


class Call:
    """An operation under way.

    Attributes:
        process: whose.
        step: the schedule's step that started it.
        floors: the process' floors when it was called: what it returns must not be older.
        seen: per key, index and value of what the primary had when the latest request was executed.
        tag_floors: the same for tags.
        exempt: the process' exempt shards when it was called.
        invalidated: per shard and tag, index of the latest change when the primary invalidated it.
        elsewhere: whether a server executed a request that was not the primary in office.
        reads: keys whose values it returns.
        began: when it was called, in virtual seconds.
    """

    HIT: ClassVar[tuple[str, ...]] = ("horizon", "clock", "look up")
    """The order of a local hit (P4)."""

    def __init__(self, process: Process, step: Step, owner: Call | None = None) -> None:
        """Prepare a call; ``owner`` is the one whose loader it runs in the background."""
        self.process = process
        self.step = step
        self.floors = process.floors.copy()
        self.tag_floors = process.tag_floors.copy()
        self.exempt = process.exempt.copy()
        self.seen: dict[str, tuple[int, int | None]] = {}
        self.invalidated: dict[tuple[int, str], int] = {}
        self.elsewhere = False
        self.reads: Sequence[str] = ()
        self.began = process.loop.now
        self._told: dict[str, tuple[int, int | None]] = {}
        self._stage = 0
        self._generator: Operation[Any] | None = None
        self._exchange: Exchange | None = None
        self._running = False
        self._given_up = False
        self._turn = 0
        self._tier: LocalTier | None = None
        self._valid_until = 0.0
        self._now = 0.0
        self._hit_at = 0.0
        self._entry: Entry | None = None
        self._database: Any = None
        self._owner = owner or self
        self._again = step.action == "load"

    def __str__(self) -> str:
        args = " ".join("+".join(arg) if isinstance(arg, tuple) else str(arg) for arg in self.step.args)
        return f"{self.step.action} {args}".strip()

    def begin(self) -> None:
        """Call the operation."""
        process, args = self.process, self.step.args
        self._note("called")
        if self.step.action == "clear_local":
            process.core.clear_local()
        elif self.step.action == "evict":
            process.core.shard_of(args[0].encode()).tier.remove(args[0], RemovalCause.SIZE)
        else:
            process.calls.append(self)
            if self.step.action == "get":
                self.reads = args
                self._hit(0)
            elif self.step.action == "load":
                self._hit(0)
            else:
                if self.step.action == "read":
                    self.reads = args[0]
                self._start(OPERATIONS[self.step.action](self, *args))

    def begin_background(self, generator: Operation[Any]) -> None:
        """Run what another operation has left to the background."""
        self._note("goes on in the background")
        self._again = False
        self.process.calls.append(self)
        self._start(generator)

    # -- the local hit ---------------------------------------------------------------------------------------------

    def _hit(self, at: int) -> None:
        """Go on with the hit's steps from number ``at``, in one go unless the schedule wants pauses between them."""
        key = self.step.args[0]
        process, gap = self.process, self.step.gap
        shard = process.core.shard_of(key.encode())
        for number in range(at, len(self.HIT)):
            match self.HIT[number]:
                case "horizon":
                    self._tier = tier = shard.tier
                    self._valid_until = tier.valid_until
                case "clock":
                    self._now = process.local()
                    self._hit_at = process.loop.now
                case _:
                    self._entry = (self._tier or shard.tier).entries.get(key)
            if gap and number < len(self.HIT) - 1:
                process.loop.at(process.loop.now + gap, process, self._hit, number + 1)
                return
        try:
            if not self._served(self._valid_until, self._now):
                self._miss(key)
                return
        except NotCoherent:
            self._end("not coherent")
            return
        entry = self._entry
        if entry is None or entry.is_expired(self._now):
            if entry is not None:
                shard.remove_expired(key, self._now)
            self._miss(key)
            return
        tier = self._tier or shard.tier
        tier.ticks = entry.used = tier.ticks + 1
        value = process.number_of(entry)
        self._end(f"hits v{value}@{entry.seq}")
        check_hit(self, key, value, self._hit_at)

    def _miss(self, key: str) -> None:
        core = self.process.core
        if self.step.action == "get":
            self._start(operations.read_one(core, key))
            return
        options = LoadOptions(
            ttl=self.step.args[4], tags=self.step.args[3], negative_ttl=0.5, hard_timeout=self.step.args[5]
        )
        call = loading.LoadCall(key, self._loader, options, self.process.local())
        self._start(loading.get_or_set(core, call))

    def _refresh(self, key: str, seq: int) -> None:
        """Load anew what was found, in the background, as a front does before its time is over."""
        process = self.process
        if process.core.flights.claim_refresh(key, process.local()):
            options = LoadOptions(ttl=self.step.args[4], tags=self.step.args[3])
            call = loading.LoadCall(key, self._loader, options, process.local())
            Call(process, self.step, self).begin_background(loading.refresh(process.core, call, seq))

    def _loader(self, _context: object) -> Any:
        """Return what the database had when :meth:`_load` began."""
        if self.step.args[2] == "error":
            raise LoadingFails
        return MISSING if self.step.args[2] == "nothing" else self._database

    def _served(self, valid_until: float, now: float) -> bool:
        """Tell whether a local value may be served, as ``CoherentCache._local_entry`` does.

        Raises:
            NotCoherent: ``on_disconnect="fail"``.
        """
        if valid_until >= now:
            return True
        settings = self.process.settings
        shard = self.process.core.shard_of(self.step.args[0].encode())
        if shard.state_at(now) is not State.DISCONNECTED or settings.on_disconnect == "bypass":
            return False
        age = now - (self._tier or shard.tier).horizon
        if settings.on_disconnect == "fail":
            raise NotCoherent(age)
        return age <= settings.stale_limit

    # -- the driver of the generators ------------------------------------------------------------------------------

    def _start(self, generator: Operation[Any]) -> None:
        self._generator = generator
        self._advance(partial(next, generator))

    def _advance(self, go_on: Callable[[], Sequence[Request]]) -> None:
        """Let the operation go on to its next request or its end."""
        self._running = True
        self._stage += 1  # whatever else was to wake it comes too late
        try:
            requests = go_on()
        except StopIteration as stop:
            if stop.value is None and self.step.action == "load" and self._again:
                self._note("looks again")
                self._generator = None
                loop = self.process.loop
                loop.at(loop.now, self.process, self._hit, 0)
                return
            self._end("returns", stop.value)
            check_result(self, stop.value)
            if isinstance(stop.value, Result) and stop.value.version is not None and self.step.args[6]:
                self._refresh(self.step.args[0], stop.value.version.seq)
        except VersionConflict:
            self._end("conflict")
            check_seen(self)
        except CacheUnavailable as error:
            self._end(f"fails: {error}")
            if error.maybe_applied:
                check_seen(self)
        except (ForeignValue, LoadingFails, LoaderError, LoaderTimeout) as error:
            self._end(type(error).__name__)
        except Cancelled:
            self._end("cancelled")
            if self._exchange is not None and self._exchange.writes:
                check_seen(self)
        else:
            loop = self.process.loop
            if type(requests[0]) in FRONT_REQUESTS:
                self._serve(requests[0])
            else:
                loop.at(loop.now + self._delay(), self.process, self._send, requests, self._stage)
        finally:
            self._running = False

    # -- what the front does itself --------------------------------------------------------------------------------

    def _serve(self, request: Request) -> None:
        loop, process = self.process.loop, self.process
        match request:
            case LoadRequest():
                self._load(request)
            case WaitRequest(waiter, until):
                if waiter is None:
                    loop.at(loop.now, process, self._wake, None, self._stage)
                    return
                self._note("waits")
                stage = self._stage
                waiter.listen(lambda: loop.at(loop.now, process, self._wake, waiter, stage))
                if until < inf:
                    loop.at(max(loop.now, process.to_global(until) + ROUNDING), process, self._wake, waiter, stage)
            case SpawnRequest(operation):
                Call(process, self.step, self).begin_background(operation)
                self._advance(partial(self._resume, Spawned(running=True)))

    def _wake(self, waiter: Waiter | None, stage: int) -> None:
        if stage == self._stage and self._generator is not None:
            woken = Woken(waiter is not None and waiter.woken, self.process.local())
            self._advance(partial(self._resume, woken))

    def _load(self, request: LoadRequest) -> None:
        """Let the loader read the database now, and return later; renew its leases meanwhile."""
        process, loop = self.process, self.process.loop
        process.check_unlocked()
        value = self._owner._database = self.value()  # noqa: SLF001  # the loader is the owner's
        process.world.loaded.begin(number_of(value), self.step.args[0], loop.now)
        self._note(f"loads v{number_of(value)}")
        loop.at(loop.now + self.step.args[1], process, self._loaded, request, self._stage)
        for lease in request.leases:
            self._renew(lease, self._stage)

    def _loaded(self, request: LoadRequest, stage: int) -> None:
        if stage != self._stage or self._generator is None:
            return
        try:
            value = request.load()
        except LoadingFails as error:
            self._advance(partial(self._generator.throw, error))
        else:
            self._advance(partial(self._resume, Loaded(value)))

    def _renew(self, lease: Lease, stage: int) -> None:
        """Renew a lease after a third of its time, as long as the loader runs and it is still there."""
        process = self.process

        def ask() -> None:
            if stage == self._stage and self._generator is not None:
                request = RenewRequest(lease.shard, lease, round(process.settings.lease * 1000))
                exchange = Exchange(
                    process.loop, process, process.pool, done=done, writes=True,
                    delays=(self.step.delays[1], self.step.delays[2]),
                    work=lambda server: server.execute(request, origin=process.name, sent_at=0.0),
                )  # fmt: skip
                exchange.start(process.settings.timeout)

        def done(outcome: Any, _run_id: str) -> None:
            if isinstance(outcome, CacheUnavailable) or outcome.held:
                self._renew(lease, stage)

        process.loop.at(process.loop.now + process.settings.lease / 3, process, ask)

    def _resume(self, reply: Reply) -> Sequence[Request]:
        assert self._generator is not None
        return self._generator.send((reply,))

    # -- what goes to Redis ----------------------------------------------------------------------------------------

    def _send(self, requests: Sequence[RedisRequest], stage: int) -> None:
        if self._generator is None or stage != self._stage:
            return  # cancelled meanwhile
        process = self.process
        process.check_unlocked()
        sent_at = process.local()
        self._note("asks")
        self._exchange = Exchange(
            process.loop,
            process,
            process.pool,
            work=lambda server: self._execute(server, requests, sent_at),
            done=partial(self._take, stage),
            writes=not isinstance(requests[0], ReadRequest),
            delays=(self._delay(), self._delay()),
        )
        self._exchange.start(process.settings.timeout)

    def _execute(self, server: Server, requests: Sequence[RedisRequest], sent_at: float) -> list[RedisReply]:
        """Run in the server: execute, and note what the primary in office has at that moment."""
        process = self.process
        world = process.world
        replies: list[RedisReply] = []
        for request in requests:
            reply = server.execute(request, origin=process.name, sent_at=sent_at)
            replies.append(reply)
            if server is not world.primary:
                self.elsewhere = True
            else:
                world.loaded.executed(request, reply, _number_stored(world, server, request))
                if not (self._given_up or (isinstance(reply, WriteReply) and reply.foreign)):
                    self._see(server, request, reply)
        if world.trace is not None:
            world.note(server.run_id, f"executes for {process.name}: {self} -> {_summary(replies)}")
        return replies

    def _see(self, server: Server, request: RedisRequest, reply: RedisReply) -> None:
        world = self.process.world
        last = world.history.last
        # What a lease's reply tells is known when it arrives, and not at all if it is lost.
        seen = self._told if isinstance(request, LeaseRequest) else self.seen
        for key in self._concerned(request, reply):
            live = server.live(request.shard, key)
            value = world.number_of(live) if live is not None else None
            if value not in (None, last[key].value):
                raise Violation("I4", f"{key}=v{value} is alive in Redis again, where {last[key]} was the latest")
            seen[key] = (last[key].index, value)
        if isinstance(request, FloorRequest) and request.kind is Kind.TAG:
            self.invalidated[request.shard, request.tags[0]] = world.history.index

    def _concerned(self, request: RedisRequest, reply: RedisReply) -> Iterable[str]:  # noqa: PLR0911  # one per request
        match request:
            case LeaseRequest():
                assert isinstance(reply, LeaseReply)
                told_nothing = reply.status is LeaseStatus.FOREIGN or (
                    request.version and reply.status is not LeaseStatus.VALUE
                )
                return () if told_nothing else (request.key,)
            case FillRequest():
                assert isinstance(reply, WriteReply)
                return request.keys if reply.applied else ()
            case ReleaseRequest() | RenewRequest() | MembersRequest() | LeaveRequest():
                return ()
            case ReadRequest():
                return [key.decode() for key in request.keys]
            case TouchRequest():
                return (request.key,)
            case FloorRequest():
                # Of a tag, what was written meanwhile may not be known here: the tagged values count, see `checks`.
                return self.process.keys_of(request.shard) if request.kind is Kind.CLEAR else ()
            case _:
                return request.keys

    def _take(self, stage: int, outcome: Any, run_id: str) -> None:
        """Take the replies, or the failure."""
        generator = self._generator
        if generator is None or stage != self._stage:
            return
        told, self._told = self._told, {}
        if isinstance(outcome, CacheUnavailable):
            self._note(f"gets an error from {run_id or 'nobody'}")
            # What is executed from now on counts as "may still happen": nobody here can know of it.
            self._given_up = True
            self._advance(partial(generator.throw, outcome))
        else:
            self._note(f"gets the answer of {run_id}")
            self.seen |= told
            self.process.subscriber.nudge()
            self._advance(partial(generator.send, outcome))

    def cancel(self) -> None:
        """Cancel it: an exception comes up where it waits."""
        if self._generator is not None and not self._running:
            if self._exchange is not None:
                self._exchange.abandon()
            self._given_up = True
            self._advance(partial(self._generator.throw, Cancelled()))

    def _delay(self) -> float:
        delays = self.step.delays
        self._turn += 1
        return delays[(self._turn - 1) % len(delays)]

    def _end(self, how: str, result: Any = None) -> None:
        self._generator = None
        if self in self.process.calls:
            self.process.calls.remove(self)
        if self.process.world.trace is not None:
            self._note(f"{how} {_result(result)}".rstrip())

    def _note(self, text: str) -> None:
        world = self.process.world
        if world.trace is not None:
            world.note(self.process.name, f"{self} #{self.step.number}: {text}")

    def value(self) -> Any:
        """Make a value that was never used before."""
        return self.process.world.new_value()


def _store(call: Call, keys: Sequence[str], ttl: float | None, tags: tuple[str, ...]) -> Operation[Any]:
    return operations.store(call.process.core, {key: call.value() for key in keys}, ttl=ttl, tags=tags)


def _batch(call: Call, keys: Sequence[str], ttl: float | None, tags: tuple[str, ...]) -> Operation[Any]:
    """Store every other key, delete the rest."""
    core = call.process.core
    writes = dict.fromkeys(keys, batching.DELETE)
    for key in keys[::2]:
        writes[key] = batching.collect(core, key, call.value(), ttl=ttl, tags=tags)
    return batching.send(core, writes, [])


def _add(call: Call, key: str) -> Operation[Any]:
    return operations.store(call.process.core, {key: call.value()}, ttl=None, condition=Condition())


def _update(call: Call, key: str) -> Operation[Any]:
    return operations.update(
        call.process.core, key, lambda _: call.value(), default=0, ttl=None, tags=(), attempts=UPDATE_ATTEMPTS
    )


def _remove(call: Call, key: str) -> Operation[Any]:
    return operations.update(
        call.process.core, key, lambda _: MISSING, default=0, ttl=None, tags=(), attempts=UPDATE_ATTEMPTS
    )


def _acknowledged(call: Call, wait: float, write: Callable[..., Any], *args: Any, **options: Any) -> Operation[Any]:
    return acknowledge(call.process.core, partial(write, call.process.core, *args, **options), wait)


OPERATIONS: Final[dict[str, Callable[..., Operation[Any]]]] = {
    "read": lambda call, keys: operations.read(call.process.core, keys),
    "set": _store,
    "add": _add,
    "update": _update,
    "remove": _remove,
    "delete": lambda call, keys: operations.delete(call.process.core, keys),
    "batch": _batch,
    "touch": lambda call, key, ttl: operations.touch(call.process.core, key, ttl),
    "clear": lambda call: operations.raise_floor(call.process.core, Kind.CLEAR),
    "invalidate": lambda call, tag: operations.raise_floor(call.process.core, Kind.TAG, (tag,)),
    "set_wait": lambda call, key, wait: _acknowledged(
        call, wait, operations.store_one, key, call.value(), ttl=None, tags=("t1",), condition=None
    ),
    "delete_wait": lambda call, key, wait: _acknowledged(call, wait, operations.delete, (key,)),
    "clear_wait": lambda call, wait: _acknowledged(call, wait, operations.raise_floor, Kind.CLEAR),
    "invalidate_wait": lambda call, tag, wait: _acknowledged(call, wait, operations.raise_floor, Kind.TAG, (tag,)),
}
"""What goes to the core, by the name of a schedule's action."""


def _number_stored(world: World, server: Server, request: RedisRequest) -> int | None:
    """Return the number of the value that a fill has stored; None for anything else."""
    if not isinstance(request, FillRequest):
        return None
    live = server.live(request.shard, request.lease.key)
    return None if live is None else world.number_of(live)


def _summary(replies: Sequence[RedisReply]) -> str:
    parts = []
    for reply in replies:
        if isinstance(reply, LeaseReply):
            parts.append(f"{reply.status} at clock {reply.read.seq}")
        elif isinstance(reply, RenewReply):
            parts.append("renewed" if reply.held else "not there")
        elif isinstance(reply, MembersReply):
            parts.append(f"members {' '.join(sorted(member.name[:2] for member in reply.members))}")
        elif isinstance(reply, Left):
            parts.append("left")
        elif isinstance(reply, WriteReply):
            parts.append(f"@{reply.seq}" if reply.applied else f"not applied, clock {reply.seq}")
        else:
            parts.append(f"clock {reply.seq}, {sum(each is not None for each in reply.envelopes)} values")
    return "; ".join(parts)


def _result(result: Any) -> str:
    if isinstance(result, Result):
        value = "nothing" if result.value is MISSING else f"v{number_of(result.value)}"
        return f"{value} from {result.tier}"
    if isinstance(result, Acknowledgement):
        return f"by {result.by}, {result.confirmed} of {result.members} confirmed, {result.seconds:.3f} s"
    if isinstance(result, operations.Found):
        return f"v{number_of(result.value)}@{result.version.seq}"
    if isinstance(result, dict):
        return " ".join(f"{key}={_item(item)}" for key, item in result.items()) or "nothing"
    return "" if result is None else str(result)[:60]


def _item(item: Any) -> str:
    return f"@{item.seq}" if isinstance(item, Version) else f"v{number_of(item)}"
