"""The core against the contract: two instances over a fake Redis, every interleaving that hypothesis can think of.

The machine stops operations between request, execution and reply, delivers messages one by one, loses connections,
history and time, and checks after every step what users were promised. An oracle follows what Redis holds: every
change of a key's live value gets the next number, so that "older" and "newer" need no versions.
"""

import itertools
from collections import defaultdict
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coherent_cache.core.local_tier import RemovalCause
from coherent_cache.core.requests import DeleteRequest, ReadRequest
from coherent_cache.core.states import State
from coherent_cache.errors import CacheUnavailable, VersionConflict
from coherent_cache.wire import Kind, decode_message
from tests.unit.core.model import ABSENT, World

KEYS = ("k1", "k2")
MOST_DOING = 2  # operations under way: more would wait for each other's turn, and few things would happen to each
KEY = st.sampled_from(["k1", "k1", "k1", "k2"])
KEYS_READ = st.sampled_from([["k1"], ["k1"], ["k2"], ["k1", "k2"]])
WHO = st.integers(0, 1)
PICK = st.integers(0, 3)
TAGS = st.sampled_from([(), ("t1",), ("t1",), ("t1", "t2")])
TTL = st.sampled_from([None, None, None, 1.5, 4.0])
WRITE = st.sampled_from(
    ["store", "delete", "touch", "update", "clear", "clear", "invalidate", "invalidate", "invalidate"]
)
FAR = st.sampled_from(["started", "executed", "executed", "finished", "finished", "finished"])
FAR_READ = st.sampled_from(["started", "executed", "executed", "executed", "finished", "finished"])
HOW = st.sampled_from(
    ["on"] * 8 + ["through"] * 12 + ["refused", "lost before", "lost after", "lost and late", "cancelled"]
)
EVENT = st.sampled_from(
    ["cut", "tick", "beat", "answered beat", "answered beat", "time", "lose log", "lose clock", "flushall"]
)


class Oracle:
    """What each key's live value is and was, in Redis.

    Attributes:
        count: the numbers of changes.
        now: per key: number of the last change, and the value since (ABSENT if there is none).
        number: per value: number of the change that made it current.
        ended: per value: when it ceased to be current.
    """

    def __init__(self, loads):
        self._loads = loads
        self.count = itertools.count(1)
        self._expiry = {}
        self.now = dict.fromkeys(KEYS, (0, ABSENT))
        self.number = {}
        self.ended = {}

    def look(self, server):
        """Take in what a server holds now; called after everything that may have changed it."""
        for key in KEYS:
            live = server.live(key)
            value = ABSENT if live is None else self._loads(live.payload)
            before = self.now[key][1]
            if value != before:
                number = next(self.count)
                if before is not ABSENT:
                    self.ended[before] = min(server.clock.now, self._expiry[before])
                self.now[key] = (number, value)
                self.number[value] = number
                self.ended.pop(value, None)
            if live is not None:
                self._expiry[value] = live.expires_ms / 1000 if live.expires_ms else inf


class Doing:
    """An operation that a machine has started.

    Attributes:
        flight: the operation.
        keys: the keys that its result is about.
        floor: per key, the number below which its result must not be.
        reads: whether its result is what it found.
        tags: the tags that it invalidates.
        number: number of the latest change when its latest request was executed.
        snapshot: per key that its success tells about, what Redis had when its latest request was executed.
        zombie: whether a server answered that is no primary any more.
    """

    def __init__(self, flight, keys, floor, *, reads, tags):
        self.flight = flight
        self.tags = tags
        self.number = 0
        self.keys = keys
        self.floor = floor
        self.reads = reads
        self.snapshot = {}
        self.zombie = False


class CoherenceMachine(RuleBasedStateMachine):
    """Two instances, one shard, two keys, no failover."""

    @initialize(replay_limit=st.sampled_from([0, 1, 3]))
    def start_world(self, replay_limit):
        self.world = World(max_entries=2, max_staleness=8.0, log_length=4, replay_limit=replay_limit)
        self.clock = self.world.clock
        self.members = self.world.members
        self.values = itertools.count(1)
        self.tags = {}  # of values
        self.oracle = Oracle(self.members[0].instance.codec.loads)
        self.seen = {member.name: defaultdict(int) for member in self.members}
        self.doing = []
        self.late = []  # requests of operations that gave up, which a server may still execute
        self.old = []  # servers that are no primary any more
        self.replicas = itertools.count(1)
        for key in KEYS:
            value = next(self.values)
            self.tags[value] = ("t1",)
            self.members[0].set(key, value, tags=("t1",))
        self.world.settle()
        self.look()
        self.replicate()

    # -- helpers ---------------------------------------------------------------------------------------------------

    def replicate(self):
        self.replica = self.world.server.replica(f"replica {next(self.replicas)}")

    def look(self):
        self.oracle.look(self.world.server)

    def start(self, flight, keys, far, *, reads=False, tags=()):
        doing = Doing(flight, keys, dict(self.seen[flight.member.name]), reads=reads, tags=tags)
        self.doing.append(doing)
        if far != "started":
            self.let_execute(doing)
        if far == "finished":
            self.let_finish(doing)

    def let_execute(self, doing):
        asked = doing.keys
        if doing.reads:  # the second question about tags is about some of the keys only
            asked = [key.decode() for request in doing.flight.requests for key in request.keys]
        doing.flight.execute()
        self.look()
        doing.snapshot.update((key, self.oracle.now[key]) for key in asked)
        doing.number = next(self.oracle.count)

    def let_finish(self, doing):
        flight = doing.flight
        try:
            flight.finish()
        except VersionConflict:
            self.doing.remove(doing)
            return
        if not flight.done:
            return
        self.doing.remove(doing)
        if doing.zombie:
            return
        seen = self.seen[flight.member.name]
        for key, (number, value) in doing.snapshot.items():
            if doing.reads:
                found = flight.result.get(key)
                assert (ABSENT if found is None else found[0]) == value, "a read returns what Redis had"
            assert number >= doing.floor.get(key, 0), "never backwards"
            seen[key] = max(seen[key], number)
        for tag in doing.tags:
            seen[tag] = max(seen[tag], doing.number)

    def give_up_if_failed(self, member):
        if member.session is not None and member.session.failure is not None:
            member.cut()

    def check_hit(self, member, key, value):
        number, seen = self.oracle.number[value], self.seen[member.name]
        assert number >= seen[key], "contract 1: went backwards"
        assert all(number > seen[tag] for tag in self.tags.get(value, ())), "contract 1: invalidated before"
        assert self.oracle.ended.get(value, inf) >= self.clock.now - member.settings.max_staleness, "contract 2"

    # -- operations, step by step ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.doing) < MOST_DOING)
    @rule(who=WHO, keys=KEYS_READ, far=FAR_READ)
    def read(self, who, keys, far):
        self.start(self.members[who].read(*keys), keys, far, reads=True)

    @rule(who=WHO, key=KEY, tags=TAGS, ttl=TTL, far=FAR)
    def store(self, who, key, tags, ttl, far):
        far = far if len(self.doing) < MOST_DOING else "finished"
        value = next(self.values)
        self.tags[value] = tags
        self.start(self.members[who].store({key: value}, tags=tags, ttl=ttl), [key], far)

    @rule(who=WHO, far=FAR, what=WRITE)
    def write(self, who, far, what):
        member = self.members[who]
        far = far if len(self.doing) < MOST_DOING else "finished"
        match what:
            case "store":
                self.start(member.store({key: next(self.values) for key in KEYS}), KEYS, far)
            case "delete":
                self.start(member.delete("k1"), ["k1"], far)
            case "touch":
                self.start(member.touch("k1", 2.0), ["k1"], far)
            case "update":
                self.start(member.update("k1", lambda _: next(self.values), attempts=2), ["k1"], far)
            case "clear":
                self.start(member.clear(), KEYS, far)
            case "invalidate":
                self.start(member.invalidate("t1"), (), far, tags=("t1",))

    @precondition(lambda self: self.doing or self.late)
    @rule(pick=PICK, how=HOW)
    def go_on(self, pick, how):
        """Let an operation that is under way take its next step, or fail."""
        if not self.doing:
            self.execute_late()
            return
        doing = self.doing[pick % len(self.doing)]
        if how not in {"on", "through"}:
            self.fail(doing, how)
            return
        was_executed = doing.flight.executed
        if not was_executed:
            self.let_execute(doing)
        if was_executed or how == "through":
            self.let_finish(doing)

    def fail(self, doing, how):
        flight = doing.flight
        if how == "refused" and flight.executed:
            return
        if how == "lost after" and not flight.executed:
            self.let_execute(doing)
        if how == "lost and late" and not flight.executed:
            self.late.append(flight.requests)
        self.doing.remove(doing)
        if how == "cancelled":
            flight.close()
            return
        with pytest.raises(CacheUnavailable):
            flight.fail(CacheUnavailable(how, maybe_applied=how != "refused"))

    def execute_late(self):
        self.world.server.execute(self.late.pop(0))
        self.look()

    # -- the local tier --------------------------------------------------------------------------------------------

    @rule(who=WHO, key=KEY, what=st.sampled_from(["hit", "hit", "hit", "evict", "evict", "clear"]))
    def local(self, who, key, what):
        member = self.members[who]
        if what == "evict":
            member.shard.tier.remove(key, RemovalCause.SIZE)
        elif what == "clear":
            member.shard.clear_local()
        else:
            value = member.hit(key)
            if value is not ABSENT:
                self.check_hit(member, key, value)
                self.seen[member.name][key] = self.oracle.number[value]

    # -- the stream ------------------------------------------------------------------------------------------------

    @rule(who=WHO, count=st.sampled_from([1, 99, 99]))
    def deliver(self, who, count):
        member = self.members[who]
        if member.session is None:
            member.open()
        member.send()
        for _ in range(min(count, len(member.link.items))):
            member.deliver()
            self.give_up_if_failed(member)
            if member.session is None:
                return

    @rule(who=WHO, lose_log=st.booleans())
    def reconnect(self, who, lose_log):
        if lose_log:
            self.world.server.lose_log()
        self.members[who].connect()

    @rule(who=WHO, what=EVENT)
    def happen(self, who, what):
        """Something happens to a member, or to the server."""
        member, server = self.members[who], self.world.server
        match what:
            case "cut":
                member.cut()
            case "tick":
                self.tick(member)
            case "beat" | "answered beat":
                self.wait(1.0)
                self.tick(member)
                if member.session is not None:
                    member.send()
                    if what == "answered beat":
                        self.deliver(who, 99)
            case "time":
                self.wait(1.5)
            case "lose log":
                server.lose_log()
            case "lose clock":
                server.lose_clock()
            case "flushall":
                server.flushall()
        self.look()

    def wait(self, seconds):
        self.clock.now += seconds
        self.look()

    def tick(self, member):
        if member.session is None:
            member.shard.tick(self.clock.now)
        else:
            member.tick()
            self.give_up_if_failed(member)

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def local_entries_keep_the_contract(self):
        for member in self.members:
            tier = member.shard.tier
            tier.check_invariants()
            for key, entry in tier.entries.items():
                if not entry.is_expired(self.clock.now):
                    value = member.value_of(entry)
                    if tier.valid_until >= self.clock.now:
                        self.check_hit(member, key, value)
                    assert self.oracle.ended.get(value, inf) >= tier.horizon, "I2: outdated before the horizon"
                    self.check_on_its_way(member, key, entry)

    def check_on_its_way(self, member, key, entry):
        """I1: an entry older than Redis' value has its message still in front of it."""
        server, shard, link = self.world.server, member.shard, member.link
        if link is None or link.server is not server or not shard.synced or shard.epoch != server.shards[0].epoch:
            return
        live = server.live(key)
        if live is None or live.seq != entry.seq or member.value_of(entry) != self.oracle.now[key][1]:
            queued = [decode_message(data) for kind, _, data in link.items if kind == "message"]
            assert any(concerns(message, key, entry) for message in queued), "I1: nothing will evict it"

    def converge(self):
        """Let everything come to rest; then each instance holds and reads what Redis holds, and serves it locally."""
        while self.doing:
            doing = self.doing[0]
            if not doing.flight.executed:
                self.let_execute(doing)
            self.let_finish(doing)
        while self.late:
            self.execute_late()
        for member in self.members:
            if member.session is None or member.link.server is not self.world.server:
                member.open()
            member.settle()
        self.wait(1.0)
        for member in self.members:
            member.tick()
            if member.session.failure is not None:
                member.connect()
            member.settle()
        for member in self.members:
            assert member.instance.state(self.clock.now) is State.COHERENT
            assert member.tokens() == 0
            for key, entry in member.shard.tier.entries.items():
                if not entry.is_expired(self.clock.now):
                    live = self.world.server.live(key)
                    assert live is not None, "contract 3"
                    assert live.seq == entry.seq, "contract 3"
                    assert member.value_of(entry) == self.oracle.now[key][1], "contract 3"
            for key in KEYS:
                value = self.oracle.now[key][1]
                assert member.get(key) == value
                assert member.hit(key) == value, "what was read is served locally from now on"

    def teardown(self):
        if hasattr(self, "replica"):
            self.converge()


def concerns(message, key, entry):
    """Tell whether a message that waits in the stream will evict an entry."""
    if message.seq <= entry.seq:
        return False
    if message.kind is Kind.CLEAR:
        return True
    return bool(set(message.names) & set(entry.tags)) if message.kind is Kind.TAG else key in message.names


class FailoverMachine(CoherenceMachine):
    """With replicas that lag and take over: numbers are handed out twice, and old connections go on answering."""

    @rule()
    def let_a_replica_catch_up(self):
        self.replicate()

    @rule(who=WHO, far=FAR, what=st.sampled_from(["store", "delete", "clear"]))
    def write(self, who, far, what):
        super().write(who, far, what)

    @rule(who=WHO, what=st.sampled_from(["cut", "tick", "beat", "answered beat"]))
    def happen(self, who, what):
        super().happen(who, what)

    @rule(half_open=st.booleans(), writes=st.sampled_from([0, 1, "as many"]))
    def fail_over(self, half_open, writes):
        """The replica takes over, without what it lacks; subscribers learn it at once, or not at all."""
        old, new = self.world.server, self.replica
        self.old.append(old)
        if half_open:
            old.silent = True
            old.links.clear()
            for member in self.members:
                member.server = new
            self.world.server = new
        else:
            self.world.fail_over(new)
        self.look()
        if writes == "as many":  # the numbers that the old one handed out are handed out again (A4)
            writes = max(0, old.shards[0].seq - new.shards[0].seq)
        for _ in range(min(writes, 5)):
            new.execute([DeleteRequest(0, ("unknown",))])
        self.replicate()

    @precondition(lambda self: self.old)
    @rule(who=WHO, key=KEY, which=PICK)
    def read_from_an_old_server(self, who, key, which):
        """A pooled connection leads to a server that is no primary any more: it goes on answering (P16)."""
        member = self.members[who]
        if member.link is not None and member.link.server in self.old:
            return  # nobody here can know yet, and what the read returns is outside of the contract
        self.start(member.read(key), [key], "started", reads=True)
        doing = self.doing[-1]
        doing.zombie = True
        doing.flight.execute(self.old[which % len(self.old)])
        assert all(isinstance(request, ReadRequest) for request in doing.flight.requests)


@pytest.mark.parametrize("machine", [CoherenceMachine, FailoverMachine])
def test_the_core_keeps_its_contract(machine):
    case = machine.TestCase
    case.settings = settings(
        max_examples=int(__import__("os").environ.get("EX", "200")), stateful_step_count=40, deadline=None
    )
    case("runTest").runTest()
