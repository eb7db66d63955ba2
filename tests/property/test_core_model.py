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
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coherent_cache.core.entries import RemovalCause
from coherent_cache.core.requests import ReadRequest
from coherent_cache.core.states import State
from coherent_cache.errors import CacheUnavailable, VersionConflict
from coherent_cache.wire import Kind, decode_message
from tests.unit.core.model import ABSENT, World

KEYS = ("k1", "k2", "k3")
KEY = st.sampled_from(KEYS)
WHO = st.integers(0, 1)
PICK = st.integers(0, 5)
TAGS = st.sampled_from([(), (), ("t1",), ("t1", "t2")])
TTL = st.sampled_from([None, None, 1.5, 4.0])


class Oracle:
    """What each key's live value is and was, in Redis.

    Attributes:
        now: per key: number of the last change, and the value since (ABSENT if there is none).
        number: per value: number of the change that made it current.
        ended: per value: when it ceased to be current.
    """

    def __init__(self):
        self._count = itertools.count(1)
        self._expiry = {}
        self.now = dict.fromkeys(KEYS, (0, ABSENT))
        self.number = {}
        self.ended = {}

    def look(self, server, time):
        """Take in what a server holds now; called after everything that may have changed it."""
        for key in KEYS:
            live = server.live(key)
            value = ABSENT if live is None else server.codec.loads(live.payload)
            before = self.now[key][1]
            if value != before:
                number = next(self._count)
                if before is not ABSENT:
                    self.ended[before] = min(time, self._expiry[before])
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
        snapshot: per key, what Redis had when its latest request was executed.
        zombie: whether a server answered that is no primary any more.
    """

    def __init__(self, flight, keys, floor, *, reads):
        self.flight = flight
        self.reads = reads
        self.keys = keys
        self.floor = floor
        self.snapshot = {}
        self.zombie = False


class CoherenceMachine(RuleBasedStateMachine):
    """Two instances, one shard, three keys, no failover."""

    def __init__(self):
        super().__init__()
        self.world = World(max_entries=2, log_length=6, replay_limit=4)
        self.clock = self.world.clock
        self.members = self.world.members
        for server in (self.world.server,):
            server.codec = self.members[0].instance.codec
        self.values = itertools.count(1)
        self.oracle = Oracle()
        self.seen = {member.name: defaultdict(int) for member in self.members}
        self.doing = []
        self.late = []  # requests of operations that gave up, which a server may still execute

    # -- helpers ---------------------------------------------------------------------------------------------------

    def look(self):
        self.oracle.look(self.world.server, self.clock.now)

    def start(self, member, keys, flight, *, reads=False):
        self.doing.append(Doing(flight, keys, dict(self.seen[member.name]), reads=reads))
        return self.doing[-1]

    def let_execute(self, doing, server=None):
        doing.flight.execute(server)
        self.look()
        doing.snapshot.update((key, self.oracle.now[key]) for key in doing.keys)

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
        seen = self.seen[flight.member.name]
        if doing.zombie:
            return
        for key in doing.keys:
            number, value = doing.snapshot[key]
            if doing.reads:
                found = flight.result.get(key)
                assert (ABSENT if found is None else found[0]) == value, "a read returns what Redis had"
            assert number >= doing.floor.get(key, 0), "never backwards"
            seen[key] = max(seen[key], number)

    def end_if_failed(self, member):
        if member.session is not None and member.session.failure is not None:
            member.cut()

    def pick(self, number, *, executed):
        fitting = [doing for doing in self.doing if doing.flight.executed is executed]
        return fitting[number % len(fitting)] if fitting else None

    # -- operations, step by step ----------------------------------------------------------------------------------

    @rule(who=WHO, keys=st.lists(KEY, min_size=1, max_size=3, unique=True))
    def start_read(self, who, keys):
        member = self.members[who]
        self.start(member, keys, member.read(*keys), reads=True)

    @rule(who=WHO, keys=st.lists(KEY, min_size=1, max_size=2, unique=True), tags=TAGS, ttl=TTL)
    def start_store(self, who, keys, tags, ttl):
        member = self.members[who]
        self.start(member, keys, member.store({key: next(self.values) for key in keys}, tags=tags, ttl=ttl))

    @rule(who=WHO, keys=st.lists(KEY, min_size=1, max_size=2, unique=True))
    def start_delete(self, who, keys):
        member = self.members[who]
        self.start(member, keys, member.delete(*keys))

    @rule(who=WHO, key=KEY, ttl=TTL)
    def start_touch(self, who, key, ttl):
        member = self.members[who]
        self.start(member, [key], member.touch(key, ttl))

    @rule(who=WHO, tag=st.sampled_from([None, "t1", "t2"]))
    def start_floor(self, who, tag):
        member = self.members[who]
        self.start(member, KEYS, member.clear() if tag is None else member.invalidate(tag))

    @rule(who=WHO, key=KEY)
    def start_update(self, who, key):
        member = self.members[who]
        self.start(member, [key], member.update(key, lambda _: next(self.values), attempts=2))

    @precondition(lambda self: self.doing)
    @rule(pick=PICK)
    def execute(self, pick):
        doing = self.pick(pick, executed=False)
        if doing is not None:
            self.let_execute(doing)

    @precondition(lambda self: self.doing)
    @rule(pick=PICK)
    def finish(self, pick):
        doing = self.pick(pick, executed=True)
        if doing is not None:
            self.let_finish(doing)

    @precondition(lambda self: self.doing)
    @rule(pick=PICK, how=st.sampled_from(["refused", "lost before", "lost after", "lost and late", "cancelled"]))
    def fail(self, pick, how):
        doing = self.doing[pick % len(self.doing)]
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

    @precondition(lambda self: self.late)
    @rule()
    def execute_late(self):
        self.world.server.execute(self.late.pop(0))
        self.look()

    @rule(who=WHO, key=KEY)
    def write_at_once(self, who, key):
        member = self.members[who]
        doing = self.start(member, [key], member.store({key: next(self.values)}))
        self.let_execute(doing)
        self.let_finish(doing)

    @rule(who=WHO, key=KEY)
    def read_at_once(self, who, key):
        member = self.members[who]
        if member.hit(key) is not ABSENT:
            self.note_hit(member, key)
            return
        doing = self.start(member, [key], member.read(key), reads=True)
        while not doing.flight.done:
            self.let_execute(doing)
            self.let_finish(doing)

    # -- the local tier --------------------------------------------------------------------------------------------

    @rule(who=WHO, key=KEY)
    def hit(self, who, key):
        self.note_hit(self.members[who], key)

    def note_hit(self, member, key):
        value = member.hit(key)
        if value is not ABSENT:
            self.check_hit(member, key, value)
            seen = self.seen[member.name]
            seen[key] = max(seen[key], self.oracle.number[value])

    def check_hit(self, member, key, value):
        assert self.oracle.number[value] >= self.seen[member.name][key], "contract 1: went backwards"
        assert self.oracle.ended.get(value, inf) >= self.clock.now - member.settings.max_staleness, "contract 2"

    @rule(who=WHO, key=KEY)
    def evict_locally(self, who, key):
        self.members[who].shard.tier.remove(key, RemovalCause.SIZE)

    @rule(who=WHO)
    def clear_local(self, who):
        self.members[who].shard.clear_local()

    # -- the stream ------------------------------------------------------------------------------------------------

    @rule(who=WHO, count=st.integers(1, 4))
    def deliver(self, who, count):
        member = self.members[who]
        if member.session is None:
            member.open()
        member.send()
        for _ in range(min(count, len(member.link.items))):
            member.deliver()
            self.end_if_failed(member)
            if member.session is None:
                return

    @rule(who=WHO)
    def cut(self, who):
        self.members[who].cut()

    @rule(who=WHO)
    def reconnect(self, who):
        self.members[who].connect()

    @rule(who=WHO)
    def tick(self, who):
        member = self.members[who]
        if member.session is not None:
            member.tick()
            self.end_if_failed(member)
        else:
            member.shard.tick(self.clock.now)

    @rule(who=WHO)
    def heartbeat(self, who):
        """The next heartbeat's question and all that precedes its answer; the answer itself may be late."""
        member = self.members[who]
        if member.session is not None:
            self.pass_time(1.0)
            member.tick()
            self.end_if_failed(member)
        if member.session is not None:
            member.send()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]))
    def pass_time(self, seconds):
        self.clock.now += seconds
        self.look()

    # -- Redis forgets ---------------------------------------------------------------------------------------------

    @rule()
    def lose_log(self):
        self.world.server.lose_log()

    @precondition(lambda self: self.oracle.number)
    @rule()
    def lose_clock(self):
        self.world.server.lose_clock()
        self.look()

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def local_entries_keep_the_contract(self):
        server = self.world.server
        data = server.shards[0]
        for member in self.members:
            shard = member.shard
            tier = shard.tier
            tier.check_invariants()
            queued = None
            for key, entry in tier.entries.items():
                if entry.is_expired(self.clock.now):
                    continue
                value = member.value_of(entry)
                if tier.valid_until >= self.clock.now:
                    self.check_hit(member, key, value)
                assert self.oracle.ended.get(value, inf) >= tier.horizon, "I2: ended before the horizon"
                connected = member.link is not None and member.link.server is server
                if connected and shard.synced and shard.epoch == data.epoch:
                    live = server.live(key)
                    if live is None or live.seq != entry.seq:
                        queued = queued or [decode_message(item) for kind, _, item in member.link.items if kind == "message"]
                        assert any(concerns(message, key, entry) for message in queued), "I1: nothing will evict it"

    @precondition(lambda self: len(self.doing) > 2)
    @rule()
    def settle(self):
        self.converge()

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
        self.pass_time(1.0)
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
                    assert live is not None
                    assert live.seq == entry.seq, "contract 3"
            for key in KEYS:
                value = self.oracle.now[key][1]
                assert member.get(key) == value
                assert member.hit(key) == value, "what was read is served locally from now on"

    def teardown(self):
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

    def __init__(self):
        super().__init__()
        self.replica = self.copy()
        self.old = []

    def copy(self):
        replica = self.world.server.replica(f"server {next(self.values)}")
        replica.codec = self.world.server.codec
        return replica

    @rule()
    def replicate(self):
        self.replica = self.copy()

    @rule(half_open=st.booleans())
    def fail_over(self, half_open):
        """The replica takes over, without what it lacks; subscribers learn it at once, or not at all."""
        self.old.append(self.world.server)
        if half_open:
            self.world.server.silent = True
            self.world.server.links.clear()
            for member in self.members:
                member.server = self.replica
            self.world.server = self.replica
        else:
            self.world.fail_over(self.replica)
        self.replica = self.copy()
        self.look()

    @precondition(lambda self: self.old and self.doing)
    @rule(pick=PICK, which=PICK)
    def execute_on_an_old_server(self, pick, which):
        """A pooled connection leads to a server that is no primary any more: it goes on answering reads."""
        doing = self.pick(pick, executed=False)
        if doing is not None and all(isinstance(request, ReadRequest) for request in doing.flight.requests):
            doing.zombie = True
            doing.flight.execute(self.old[which % len(self.old)])


@pytest.mark.parametrize("machine", [CoherenceMachine, FailoverMachine])
def test_the_core_keeps_its_contract(machine):
    case = machine.TestCase
    case.settings = settings(max_examples=int(__import__("os").environ.get("EX","100")), stateful_step_count=40, deadline=None)
    case("runTest").runTest()
