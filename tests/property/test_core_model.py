"""The core against the contract: two instances over a fake Redis, every interleaving that hypothesis can think of.

The machine stops operations between request, execution and reply, delivers messages one by one, loses connections,
history and time, and checks after every step what users were promised. An oracle follows what Redis holds: every
change of a key's live value gets the next number, so that "older" and "newer" need no versions.
"""

import itertools
from collections import defaultdict
from math import inf
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coherent_cache.core.local_tier import RemovalCause
from coherent_cache.core.operations import MISSING
from coherent_cache.core.requests import DeleteRequest
from coherent_cache.core.states import State
from coherent_cache.errors import CacheUnavailable, VersionConflict
from coherent_cache.wire import Kind, decode_message
from tests.unit.core.model import ABSENT, World

KEYS = ("k1", "k2")
KEYS_READ = [["k1"], ["k1"], ["k2"], ["k1", "k2"]]
TAGS = [(), ("t1",), ("t1",), ("t1", "t2")]
WHO = st.integers(0, 1)
OPERATIONS = {
    "read": 8,
    "store": 6,
    "store both": 2,
    "delete": 2,
    "batch": 2,
    "touch": 1,
    "update": 1,
    "clear": 2,
    "invalidate": 3,
}
EVENTS = {
    "deliver": 5,
    "deliver one": 2,
    "evict": 3,
    "clear local": 1,
    "hit": 3,
    "reconnect": 3,
    "lose log": 2,
    "cut": 1,
    "tick": 1,
    "beat": 1,
    "answered beat": 2,
    "time": 1,
    "lose clock": 1,
    "flushall": 1,
}
FAILURES = ["refused", "lost before", "lost after", "lost and late", "cancelled"]


def weighted(weights):
    return st.sampled_from([what for what, weight in weights.items() for _ in range(weight)])


OPERATION = weighted(OPERATIONS)
EVENT = weighted(EVENTS)
ANYTHING = st.tuples(weighted({**OPERATIONS, **EVENTS}), WHO, st.integers(0, 11))
ENDING = weighted({"on": 20, **dict.fromkeys(FAILURES, 1)})


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

    def give_up_if_failed(self, member):
        if member.session is not None and member.session.failure is not None:
            member.cut()

    def check_hit(self, member, key, value):
        number, seen = self.oracle.number[value], self.seen[member.name]
        assert number >= seen[key], "contract 1: went backwards"
        assert all(number > seen[tag] for tag in self.tags.get(value, ())), "contract 1: invalidated before"
        assert self.oracle.ended.get(value, inf) >= self.clock.now - member.settings.max_staleness, "contract 2"

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule(what=ANYTHING)
    def happen(self, what):
        """Something happens, from its beginning to its end."""
        name, who, chance = what
        if name in OPERATIONS:
            self.let_finish(self.begin(name, self.members[who], chance))
        else:
            self.events[name](self, self.members[who])
        self.look()

    @rule(what=OPERATION, who=WHO, chance=st.integers(0, 11), executed=st.integers(0, 2), ending=ENDING, data=st.data())
    def race(self, what, who, chance, executed, ending, data):
        """An operation takes its time, and other things happen before and after Redis executes it."""
        doing = self.begin(what, self.members[who], chance)
        meanwhile = data.draw(st.lists(ANYTHING, min_size=1, max_size=5), label="meanwhile")
        for at, event in enumerate(meanwhile):
            if at == executed:
                self.let_execute(doing)
            self.happen(event)
        self.end(doing, ending)

    @precondition(lambda self: len(self.doing) < 3)
    @rule(what=OPERATION, who=WHO, chance=st.integers(0, 11), executed=st.booleans())
    def start(self, what, who, chance, executed):
        """An operation begins, and ends when its time has come."""
        doing = self.begin(what, self.members[who], chance)
        self.doing.append(doing)
        if executed:
            self.let_execute(doing)

    @precondition(lambda self: self.doing or self.late)
    @rule(pick=st.integers(0, 2), ending=ENDING)
    def go_on(self, pick, ending):
        if self.doing:
            self.end(self.doing.pop(pick % len(self.doing)), ending)
        else:
            self.execute_late()

    # -- operations ------------------------------------------------------------------------------------------------

    def begin(self, what, member, chance):
        """Begin an operation; ``chance`` decides about its details."""
        keys, tags = ["k1" if chance % 4 else "k2"], ()
        match what:
            case "read":
                keys = KEYS_READ[chance % 4]
                flight = member.read(*keys)
            case "store":
                value = next(self.values)
                self.tags[value] = TAGS[chance % 4]
                flight = member.store({keys[0]: value}, tags=TAGS[chance % 4], ttl=[None, None, 1.5][chance % 3])
            case "store both":
                keys = KEYS
                flight = member.store({key: next(self.values) for key in KEYS})
            case "batch":
                keys, value = KEYS, next(self.values)
                self.tags[value] = TAGS[chance % 4]
                gone = KEYS[chance % 2]
                writes = {key: MISSING if key == gone else value for key in KEYS}
                flight = member.batch(writes, tags=TAGS[chance % 4], ttl=[None, None, 1.5][chance % 3])
            case "delete":
                flight = member.delete(*keys)
            case "touch":
                flight = member.touch(keys[0], 2.0)
            case "update":
                flight = member.update(keys[0], lambda _: next(self.values), attempts=2)
            case "clear":
                keys = KEYS
                flight = member.clear()
            case "invalidate":
                keys, tags = (), ("t1",)
                flight = member.invalidate("t1")
        return Doing(flight, keys, dict(self.seen[member.name]), reads=what == "read", tags=tags)

    def let_execute(self, doing):
        asked = doing.keys
        if doing.reads:  # the second question about tags is about some of the keys only
            asked = [key.decode() for request in doing.flight.requests for key in request.keys]
        doing.flight.execute()
        self.look()
        doing.snapshot.update((key, self.oracle.now[key]) for key in asked)
        doing.number = next(self.oracle.count)

    def end(self, doing, how):
        """Bring an operation to its end, good or bad."""
        flight = doing.flight
        if how == "on" or (how == "refused" and flight.executed):
            self.let_finish(doing)
            return
        if how == "lost after" and not flight.executed:
            self.let_execute(doing)
        if how == "lost and late" and not flight.executed:
            self.late.append(flight.requests)
        if how == "cancelled":
            flight.close()
            return
        with pytest.raises(CacheUnavailable):
            flight.fail(CacheUnavailable(how, maybe_applied=how != "refused"))

    def let_finish(self, doing):
        flight = doing.flight
        try:
            while not flight.done:
                if not flight.executed:
                    self.let_execute(doing)
                flight.finish()
        except VersionConflict:
            return
        if doing.zombie:
            return
        seen = self.seen[flight.member.name]
        for key, (number, value) in doing.snapshot.items():
            if doing.reads:
                assert flight.result.get(key, ABSENT) == value, "a read returns what Redis had"
            assert number >= doing.floor.get(key, 0), "never backwards"
            seen[key] = max(seen[key], number)
        for tag in doing.tags:
            seen[tag] = max(seen[tag], doing.number)

    def execute_late(self):
        self.world.server.execute(self.late.pop(0))
        self.look()

    # -- events ----------------------------------------------------------------------------------------------------

    def deliver(self, member, count=99):
        if member.session is None:
            member.open()
        member.tick()
        member.send()
        for _ in range(min(count, len(member.link.items))):
            member.deliver()
            self.give_up_if_failed(member)
            if member.session is None:
                return

    def hit(self, member):
        for key in KEYS:
            value = member.hit(key)
            if value is not ABSENT:
                self.check_hit(member, key, value)
                self.seen[member.name][key] = self.oracle.number[value]

    def tick(self, member):
        if member.session is None:
            member.shard.tick(self.clock.now)
        else:
            member.tick()
            self.give_up_if_failed(member)

    def beat(self, member):
        """A heartbeat is asked; its answer is late."""
        self.wait(1.0)
        self.tick(member)
        if member.session is not None:
            member.send()

    def answered_beat(self, member):
        self.beat(member)
        self.deliver(member)

    def wait(self, seconds):
        self.clock.now += seconds
        self.look()

    events: ClassVar = {
        "deliver": deliver,
        "deliver one": lambda self, member: self.deliver(member, 1),
        "evict": lambda self, member: member.shard.tier.remove("k1", RemovalCause.SIZE),
        "clear local": lambda self, member: member.shard.clear_local(),
        "hit": hit,
        "reconnect": lambda self, member: member.connect(),
        "lose log": lambda self, _: self.world.server.lose_log(),
        "cut": lambda self, member: member.cut(),
        "tick": tick,
        "beat": beat,
        "answered beat": answered_beat,
        "time": lambda self, _: self.wait(1.5),
        "lose clock": lambda self, _: self.world.server.lose_clock(),
        "flushall": lambda self, _: self.world.server.flushall(),
    }

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
            self.let_finish(self.doing.pop(0))
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
    def let_the_replica_catch_up(self):
        self.replicate()

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
    @rule(who=WHO, chance=st.integers(0, 3), which=st.integers(0, 3))
    def read_from_an_old_server(self, who, chance, which):
        """A pooled connection leads to a server that is no primary any more: it goes on answering (P16)."""
        member = self.members[who]
        if member.link is not None and member.link.server in self.old:
            return  # nobody here can know yet, and what the read returns is outside of the contract
        doing = self.begin("read", member, chance)
        doing.zombie = True
        doing.flight.execute(self.old[which % len(self.old)])
        self.let_finish(doing)


@pytest.mark.parametrize("machine", [CoherenceMachine, FailoverMachine])
def test_the_core_keeps_its_contract(machine):
    case = machine.TestCase
    case.settings = settings(
        max_examples=int(__import__("os").environ.get("EX", "200")), stateful_step_count=40, deadline=None
    )
    case("runTest").runTest()
