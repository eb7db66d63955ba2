"""The staleness catalogue of the protocol, I1 to I21, on the real core. Each line is a scenario; most have a twin with
the rule that stands against it switched off, which must fail: the scenario is not empty.
"""

import pytest

from coherent_cache.testing.simulation import Violation, World, search, violation_of
from tests.simulation.mutations import MUTATIONS
from tests.simulation.trails import TRAILS, A, B, fault, get, load, put, trail

RULES = {mutation.name: mutation for mutation in MUTATIONS}


def play(schedule):
    """Run a schedule that must be safe; return its world."""
    world = World(schedule, trace=True)
    world.run()
    return world


def lines(world, who, text):
    """Return what a process did, of those lines of the timeline that contain a text."""
    return [line for _, name, line in world.trace if name == who and text in line]


def safe_only_with(rule, schedule):
    world = play(schedule)
    with RULES[rule].applied(), pytest.raises(Violation):
        World(schedule).run()
    return world


def test_i1_old_value_inserted_after_its_invalidation_had_come():
    safe_only_with("token_mark", TRAILS["token_mark"])
    safe_only_with("token_late", TRAILS["token_late"])


@pytest.mark.parametrize("write", ["set", "delete"])
def test_i2_own_write_between_own_read_and_insertion(write):
    own = put(1.25, A) if write == "set" else (1.25, A, "delete", (("k1",),))
    slowly_back = get(1.2, A, delays=(0.0, 0.01, 0.4))
    late = fault(1.15, A, "stall", 0.25)
    safe_only_with("observe", trail(put(0.5, B), late, slowly_back, own, (1.4, A, "evict", ("k1",))))


@pytest.mark.parametrize(
    "rule", ["lease_token", "lease_floor", "lease_tag_floor", "renewal_revives", "refresh_version"]
)
def test_i3_what_was_loaded_before_an_invalidation_is_stored_after_it(rule):
    world = safe_only_with(rule, TRAILS[rule])
    assert any("not applied" in line for _, name, line in world.trace if name == "R1"), "the fill is refused"
    returned = lines(world, "a", "load k1 ") if rule != "refresh_version" else lines(world, "a", "not applied")
    assert rule == "refresh_version" or any("returns v1 from loader" in line for line in returned), "its caller gets it"


def test_i3_in_one_process():
    """Another thread that asks after the invalidation is not given what was read before it."""
    world = safe_only_with("early", TRAILS["early"])
    assert lines(world, "a", "#1: returns v1 from loader")
    assert lines(world, "a", "#3: returns v2 from loader")


def test_p11_who_waits_for_another_process_is_woken_by_the_fill():
    world = play(trail(load(1.1, A, 0.3), load(1.2, B, 0.3)))
    (woken,) = [at for at, name, line in world.trace if name == "b" and "#2: returns v1 from redis" in line]
    assert woken < 1.42, "at once, not when the lease would have ended"
    assert len(lines(world, "R1", "load k1 0.3")) == 6, "each reads and asks for the lease; one fills, one asks again"


def test_p11_who_waits_is_woken_when_the_loader_fails():
    world = play(trail(load(1.1, A, 0.3, how="error"), load(1.2, B, 0.3)))
    (loads,) = [at for at, name, line in world.trace if name == "b" and "loads v" in line]
    assert loads < 1.42


def test_p11_a_long_load_keeps_its_lease():
    """The lease lives 0.9 s; the loader takes 3."""
    world = play(trail(load(1.1, A, 3.0), load(1.2, B, 0.3), (4.5, B, "rest")))
    assert not lines(world, "b", "loads v")
    assert lines(world, "b", "#2: returns v1 from redis")


def test_p11_the_death_of_a_holder_ends_its_lease_with_its_time():
    world = play(trail(load(1.1, A, 3.0), load(1.2, B, 0.3), fault(1.3, A, "crash", 1.0), (3.5, B, "rest")))
    (loads,) = [at for at, name, line in world.trace if name == "b" and "loads v" in line]
    assert 1.3 < loads < 1.3 + 0.9 + 0.02


@pytest.mark.parametrize("lost", ["cut", "black_hole"])
def test_p11_a_waiter_whose_stream_is_lost_asks_again(lost):
    world = play(trail(load(1.1, A, 0.5), load(1.2, B, 0.3), fault(1.3, B, lost), (4.5, B, "rest")))
    assert lines(world, "b", "#2: returns v1 from redis")
    assert not lines(world, "b", "loads v")


def test_i3_update():
    """The same by compare-and-set.

    a refreshes k1 from a database by ``update``, whose condition is what it has read; b writes meanwhile: a's first
    attempt must be refused, and what it stores in the end is made from what b wrote.
    """
    world = play(trail(put(0.5, B), (1.2, A, "update", ("k1",), (0.0, 0.01, 0.1)), put(1.28, B)))
    assert any("not applied" in line for _, _, line in world.trace)
    assert lines(world, "a", "update k1 #2: returns")


def test_i4_subscription_drops_and_comes_back():
    safe_only_with("generation", TRAILS["generation"])
    safe_only_with("early_position", TRAILS["early_position"])
    world = play(trail(put(0.5, B), get(0.9, A), fault(1.2, A, "cut"), put(1.205, B)))
    assert lines(world, "a", "outcome='replayed'"), "a short disconnection costs no flush"


def test_i5_slow_subscriber_cut_by_the_output_buffer_limit():
    writes = [put(1.2 + at / 100, B) for at in range(8)]
    schedule = trail(put(0.5, B), get(0.9, A), fault(1.15, A, "stall", 0.25), *writes, get(2.6, A), buffer_limit=4)
    world = play(schedule)
    assert lines(world, "a", "closed by the server")


def test_i6_half_open_link():
    """Packets vanish: hits end with the bound, the connection with its patience."""
    world = play(trail(put(0.5, B), get(0.9, A), fault(1.2, A, "black_hole"), put(1.3, B), get(1.5, A), get(4.5, A)))
    assert lines(world, "a", "get k1 #5: hits v1"), "within the bound"
    assert lines(world, "a", "get k1 #6: asks"), "past it"


def test_i7_writer_dies_between_write_and_publication():
    """The script publishes before it stores; the writer's death after sending changes nothing."""
    safe_only_with("publish_first", TRAILS["publish_first"])
    killed = trail(
        put(0.5, B), get(0.9, A), put(1.2, B, delays=(0.0, 0.1, 0.1)), fault(1.25, B, "crash", 0.5), get(1.6, A)
    )
    world = play(killed)
    assert lines(world, "a", "get k1 #5: returns v2"), "it was written, and everybody knows"


@pytest.mark.parametrize("step", range(4))
def test_i7_a_write_that_dies_after_any_step_only_invalidates_too_much(step):
    play(trail(put(0.5, B), get(0.9, A), fault(1.1, B, "abort", step / 4), put(1.2, B), put(1.3, B, "k2"), get(1.5, A)))


def test_i8_redis_refuses_a_delete():
    """The error comes up, nothing local changes; a full memory refuses no delete at all."""
    misconf, full = (
        trail(put(0.5, B), get(0.9, A), fault(1.1, A, "refuse", 0.2, why), (1.2, A, "delete", (("k1",),)), get(1.3, A))
        for why in (0.6, 0.1)
    )
    world = play(misconf)
    assert lines(world, "a", "delete k1 #4: fails")
    assert lines(world, "a", "get k1 #5: hits v1")
    assert lines(play(full), "a", "delete k1 #4: returns 1")


def test_i9_clocks_of_hosts_differ():
    """No rule compares clocks of two hosts: any offset and any rate will do."""
    steps = [put(0.5, B), get(0.9, A), put(1.2, B), get(1.3, A), fault(1.4, A, "black_hole"), put(1.5, B), get(4.8, A)]
    for drift in (0.0, 0.05, 0.3):
        play(trail(*steps, drift=drift))
    safe_only_with("horizon_at_pong", TRAILS["horizon_at_pong"])


def test_i10_messages_and_replies_out_of_order():
    """Two senders: the reply to a's older write comes after the message of b's newer one."""
    world = play(trail(put(0.5, B), put(1.2, A, delays=(0.0, 0.01, 0.3)), put(1.25, B), get(1.7, A)))
    assert lines(world, "a", "get k1 #4: returns v3")
    safe_only_with("token_mark", trail(put(1.2, A, delays=(0.0, 0.01, 0.3)), put(1.25, B)))


def test_i11_message_first_then_a_read_from_a_lagging_replica():
    lagging = trail(
        put(0.5, B), fault(0.6, B, "replicate"), fault(1.1, A, "misroute_commands", 0.5, 0.9), put(1.2, B), get(1.3, A)
    )
    world = safe_only_with("binding", lagging)
    assert lines(world, "a", "get k1 #5: returns v1"), "returned, as a replica's answer"
    safe_only_with("probe", TRAILS["probe"])


@pytest.mark.parametrize("what", ["flush", "lose_clock", "evict_value", "foreign", "lose_log"])
def test_i12_foreign_hands_on_redis(what):
    """FLUSHALL, eviction of clock, log or value, a raw value in place of ours."""
    play(trail(put(0.5, B), get(0.9, A), fault(1.2, B, what), get(1.3, A), put(1.4, B, "k2"), get(1.5, A), put(1.6, B)))
    safe_only_with("epoch_of_replies", TRAILS["epoch_of_replies"])


def test_i13_not_one_lost_message_is_tolerated():
    safe_only_with("clock_compare", TRAILS["clock_compare"])
    safe_only_with("gap", TRAILS["gap"])


@pytest.mark.parametrize("by", ["clear", "invalidate"])
def test_i14_markers_are_forgotten(by):
    """The floors go together with the clock: what they had killed stays dead, for its epoch is gone."""
    kill = (1.2, B, "clear") if by == "clear" else (1.2, B, "invalidate", ("t1",))
    world = play(trail(put(0.5, B, tags=("t1",)), get(0.9, A), kill, fault(1.3, B, "lose_clock"), get(1.4, A)))
    assert lines(world, "a", "get k1 #5: returns") == ["get k1 #5: returns"], "nothing"
    safe_only_with("floor_of_fills", TRAILS["floor_of_fills"])
    safe_only_with("tag_floor_of_fills", TRAILS["tag_floor_of_fills"])
    safe_only_with("lease_tag_floor", TRAILS["lease_tag_floor"])


def test_i15_a_message_taken_for_ones_own_echo():
    safe_only_with("own_messages", TRAILS["own_messages"])


@pytest.mark.parametrize("name", ["nonce", "drop_above", "binding", "order_of_servers"])
def test_i16_failover(name):
    safe_only_with(name, TRAILS[name])


def test_i17_filled_before_the_subscription_is_confirmed():
    """What a reads while it connects is returned and not kept; the write meanwhile is not missed."""
    world = play(trail(get(0.02, A), put(0.05, B), get(0.1, A), get(1.0, A), get(1.1, A), fixed=0.1))
    assert lines(world, "a", "FillRefused") or lines(world, "a", "get k1 #3: asks")
    safe_only_with("generation_early", TRAILS["generation_early"])


def test_i18_local_value_after_a_refused_write():
    world = play(trail(put(0.5, B), get(0.9, A), fault(1.1, A, "refuse", 0.2, 0.1), put(1.2, A), get(1.3, A)))
    assert lines(world, "a", "set k1 None #4: fails")
    assert lines(world, "a", "get k1 #5: hits v1"), "the refused value is nowhere"


@pytest.mark.parametrize("what", ["restart_empty", "restart_old", "restart_full"])
def test_i19_redis_loses_data_and_counts_again(what):
    steps = [put(0.5, B), fault(0.6, B, "replicate"), put(0.7, B), get(0.9, A), fault(1.2, B, what, 0.3)]
    play(trail(*steps, get(1.3, A), put(1.6, B, "k2"), put(1.7, B, "k2"), get(1.8, A), put(1.9, B), get(2.0, A)))
    safe_only_with("nonce", TRAILS["nonce"])


def test_i20_a_forked_child_begins_anew():
    """Nothing is inherited: the child reads k1 for itself, and hears of b's write by its own connection."""
    before, after = ([get(start + at / 50, A) for at in range(4)] for start in (1.2, 1.6))
    schedule = trail(put(0.5, B), get(0.9, A), fault(1.0, A, "fork"), *before, put(1.5, B), *after)
    world = play(schedule)
    (child,) = [process for process in world.running() if process.name.startswith("a") and process.name != "a"]
    assert lines(world, child.name, "Resynced(shard=0, cause='first connection', outcome='first'")
    assert lines(world, child.name, "asks"), "the parent's entry is not the child's"


def test_i21_sixteen_readers_six_hot_keys_one_writer():
    """The dead-lock is the client library's (pool lock against cache lock); the form that applies: nobody waits for
    Redis with a shard's lock held, which the simulator checks at every request, and all of them come to an end.
    """
    keys = tuple(f"k{number}" for number in range(1, 7))
    readers = [
        get(1.0 + number / 200, A, keys[number % 6], delays=(0.0, 0.01, 0.001 * (number % 7 + 1)))
        for number in range(96)
    ]
    writes = [put(1.0 + number / 40, B, keys[number % 6]) for number in range(24)]
    steps = sorted([put(0.5, B, *keys), *readers, *writes], key=lambda step: step[0])
    world = play(trail(*steps, keys=keys, preempt_chance=0.2))
    assert not any(process.calls for process in world.running())


def test_a_crash_between_any_two_steps():
    """a is killed at each of many moments of a life with a fill, a write and messages under way."""
    for at in range(60):
        life = [
            put(1.0, B),
            get(1.01, A, delays=(0.005, 0.01, 0.05)),
            put(1.03, A, delays=(0.005, 0.01, 0.05)),
            put(1.06, B),
        ]
        killed = fault(1.0 + at / 500, A, "crash", 0.1)
        steps = sorted([*life, killed], key=lambda step: step[0])
        assert violation_of(trail(*steps, get(1.4, A), get(1.5, B))) is None


def test_pauses_of_a_whole_process():
    """A paused process finds its horizon lapsed before it serves anything."""
    world = play(trail(put(0.5, B), get(0.9, A), fault(1.2, A, "pause", 0.95), put(1.3, B), get(1.4, A), get(5.2, A)))
    assert not lines(world, "a", "hits v1")


@pytest.mark.parametrize("profile", ["life", "chaos"])
def test_rare_kinds_of_schedules_are_safe(profile):
    assert search(range(50_000, 50_100), profile=profile) is None
