"""Interleavings told step by step: the shortest trails of the model checker, and what the catalogue adds.

Times are virtual seconds. Heartbeats are sent about every second, at 0.002, 1.002...; a packet to a subscriber takes a
millisecond unless said otherwise. Processes are 0 ("a") and 1 ("b"). The delays of an operation: from the token to the
sending, there, back.
"""

from coherent_cache.testing.simulation import Schedule, Step
from coherent_cache.testing.simulation.network import LOST

A, B = 0, 1
QUICK = (0.0, 0.001, 0.001)


def trail(*steps, **options):
    """Make a schedule of steps given as (at, process, action, arguments, delays)."""
    made = []
    for number, (at, slot, action, *rest) in enumerate(steps, 1):
        args = rest[0] if rest else ()
        delays = rest[1] if len(rest) > 1 else QUICK
        gap = rest[2] if len(rest) > 2 else 0.0
        made.append(Step(at, slot, action, args, delays, gap, number))
    made.append(Step(made[-1].at + 1.5, -1, "rest"))
    return Schedule(seed=1, steps=tuple(made), **({"fixed": 0.001} | options))


def put(at, slot, *keys, tags=(), ttl=None, delays=QUICK):
    return (at, slot, "set", (keys or ("k1",), ttl, tags), delays)


def get(at, slot, key="k1", delays=QUICK, gap=0.0):
    return (at, slot, "get", (key,), delays, gap)


def load(at, slot, seconds=0.5, *, how="value", tags=(), refresh=False, delays=QUICK):
    return (at, slot, "load", ("k1", seconds, how, tags, None, None, refresh), delays)


def set_wait(at, slot, *, delays=QUICK):
    return (at, slot, "set_wait", ("k1", 20.0), delays)


def fault(at, slot, action, *numbers, key="k1"):
    return (at, slot, action, (key, *(*numbers, 0.0, 0.0, 0.0)[:3]))


SLOWLY_BACK = (0.0, 0.01, 0.4)
CRASH, DEMOTE, ZOMBIE = 0.1, 0.5, 0.9  # how a primary is replaced
DISK_FULL = 0.6  # why writes are refused

TRAILS = {
    # a reads v1; b writes v2; its message marks the token, there is nothing to evict; a would insert v1 for ever.
    "token_mark": trail(put(0.5, B), get(1.2, A, delays=SLOWLY_BACK), put(1.3, B)),
    "token_late": trail(put(0.5, B), get(1.2, A, delays=SLOWLY_BACK), put(1.3, B)),
    # a reads v1; v2 is written while a is not connected; the resync flushes an empty tier; a would insert v1.
    "generation": trail(
        put(0.5, B), get(1.2, A, delays=(0.0, 0.005, 0.9)), fault(1.21, A, "cut"), put(1.211, B), replay_limit=0
    ),
    # The break is noticed; then a registers a token and reads v1; v2 is written and lost; resync; a would insert v1.
    "generation_early": trail(
        put(0.5, B), fault(1.2, A, "cut"), get(1.205, A, delays=(0.0, 0.005, 0.9)), put(1.215, B), replay_limit=0
    ),
    # a reads v1; a's own write of v2 returns; its entry is evicted; the first read inserts v1: a goes backwards.
    "observe": trail(
        put(0.5, B), fault(1.15, A, "stall", 0.25), get(1.2, A, delays=SLOWLY_BACK), put(1.25, A),
        (1.4, A, "evict", ("k1",)),
    ),
    # The same with an absence that another thread was told of.
    "absence": trail(
        put(0.5, B), fault(1.15, A, "stall", 0.25), get(1.2, A, delays=SLOWLY_BACK), (1.25, B, "delete", (("k1",),)),
        get(1.3, A),
    ),
    # Redis forgets everything; a is told so of k1, and must not go on to serve what it has.
    "epoch_of_replies": trail(
        put(0.5, B), get(0.9, A), fault(1.2, A, "flush"), (1.3, A, "read", (("k1",),)), get(1.4, A)
    ),
    # The heartbeat is answered before the write, the answer arrives after it, the message later still.
    "horizon_at_pong": trail(put(0.5, B), get(0.9, A), put(2.35, B), fixed=0.1),
    # An entry is looked up; a message evicts it; the horizon moves on; then it is checked.
    "look_up_first": trail(put(0.5, B), get(0.9, A), get(1.5, A, gap=2.0), put(1.6, B)),
    # A message is lost in silence; the heartbeat must find out.
    "clock_compare": trail(put(0.5, B), get(0.9, A), fault(1.1, A, "lose_messages", 0.05), put(1.2, B)),
    # Silent loss again; the next message shows the gap.
    "gap": trail(
        put(0.5, B), get(0.9, A), fault(1.1, A, "lose_messages", 0.05), put(1.2, B), put(1.5, B, "k2"),
        put(1.6, B, "k2"),
    ),
    # A failover to a replica that lags: other writes get the numbers that a has applied.
    "nonce": trail(
        put(0.5, B), fault(0.6, B, "replicate"), put(0.7, B), get(0.9, A), fault(1.2, A, "fail_over", CRASH, 0.3),
        put(1.3, B, "k2"),
    ),
    # a fills k1@2 while it has applied 1 only; the primary is lost; the new one's own 2 is another write.
    "drop_above": trail(
        put(0.5, B), fault(0.6, B, "replicate"), fault(1.1, A, "stall", 0.5), put(1.15, B), get(1.2, A),
        fault(1.3, A, "fail_over", CRASH, 0.3), put(1.4, B, "k2"),
    ),
    # After a failover the old primary goes on answering command connections.
    "binding": trail(
        put(0.5, B), fault(0.6, B, "replicate"), fault(1.0, A, "fail_over", ZOMBIE, 0.2),
        fault(1.05, A, "misroute_commands", 0.9), put(1.6, B), get(1.8, A),
    ),
    # After a failover a reads k1 from the new primary; what it holds of the old one has no order with that.
    "order_of_servers": trail(
        put(0.5, B), fault(0.6, B, "replicate"), put(0.7, B), get(0.9, A), fault(1.2, A, "fail_over", CRASH, 0.9),
        (1.4, A, "read", (("k1",),)), (1.5, A, "read", (("k1",),)), get(1.6, A),
    ),
    # a's loader reads the database; it is changed, and b deletes and begins to load itself; a would store (I3).
    "lease_token": trail(load(1.1, A), (1.2, B, "delete", (("k1",),)), load(1.3, B, 1.0)),
    # The same with a clear, and with the invalidation of a tag that only the loaded value carries (I14).
    "lease_floor": trail(load(1.1, A), (1.2, B, "clear")),
    "lease_tag_floor": trail(load(1.1, A, tags=("t1",)), (1.2, B, "invalidate", ("t1",))),
    # The invalidation is the very next write after the lease was taken.
    "lease_seq": trail(load(1.1, A, tags=("t1",)), (1.2, B, "invalidate", ("t1",))),
    # b deletes; then a renews its lease, where there is none any more.
    "renewal_revives": trail(load(1.1, A, 1.2), (1.2, B, "delete", (("k1",),))),
    # a refreshes v1; the database is changed and b stores v2; a would put what it has read over it.
    "refresh_version": trail(put(0.5, B), load(1.1, A, refresh=True), put(1.2, B)),
    # a has proven its freshness; then it hears nothing more: b's write must wait until a has ceased to serve (P12).
    "receipts": trail(put(0.5, B), get(3.9, A), fault(4.05, A, "black_hole"), set_wait(4.1, B)),
    "receivers_only": trail(put(0.5, B), get(3.9, A), fault(4.05, A, "black_hole"), set_wait(4.1, B)),
    # a's process is stopped: the message arrives, and nobody reads it.
    "confirm_early": trail(put(0.5, B), get(3.9, A), fault(4.05, A, "pause", 0.5), set_wait(4.1, B)),
    # a hears nothing more; then the registry is lost; b alone enters the new one.
    "young_registry": trail(
        put(0.5, B), get(3.9, A), fault(4.02, A, "black_hole"), fault(4.03, B, "lose_registry"), set_wait(5.1, B)
    ),
    # b's child enters after the last replication and notices nothing of the failover; a and b find a registry that
    # lacks it.
    "young_epoch": trail(
        put(0.5, B), fault(0.9, B, "replicate"), fault(1.0, B, "fork"), fault(1.1, A, "rest"), get(4.0, B),
        fault(4.09, B, "cut"), fault(4.091, A, "cut"), fault(4.1, A, "fail_over", CRASH, 0.9),
        fault(4.13, A, "cut_commands"), set_wait(5.2, A),
    ),
    # a proves its freshness while b's write is on its way to Redis, and hears nothing more.
    "wait_from_send": trail(
        put(0.5, B), get(0.9, A), set_wait(1.5, B, delays=(0.0, 0.6, 0.001)), fault(2.05, A, "black_hole")
    ),
    # b's clock runs faster than a's.
    "clock_margin": trail(put(0.5, B), get(3.9, A), fault(4.16, A, "black_hole"), set_wait(4.17, B), drift=0.05),
    # a's child begins while Redis can enter nobody, between two heartbeats of b, and hears nothing more.
    "enter_first": trail(
        put(0.5, B), fault(4.1, B, "refuse", 0.05, DISK_FULL), fault(4.11, A, "fork"), fault(4.12, B, "rest"),
        get(4.2, A), fault(4.25, B, "rest"), fault(4.26, A, "black_hole"), set_wait(4.4, B),
    ),
    # Redis can enter nobody for so long that a counts as silent; then a hears nothing more.
    "note_registry": trail(
        put(0.5, B), get(3.9, A), fault(4.0, B, "refuse", 3.0, DISK_FULL), fault(15.5, A, "black_hole"),
        set_wait(16.1, B),
    ),
    # A thread of a loads; the database is changed and a deletes; another thread of a must not get what the first read.
    "early": trail(load(1.1, A), (1.2, A, "delete", (("k1",),)), load(1.3, A)),
    # The log was trimmed while a was away: what is left of it must not be replayed over the hole.
    "replay_whole": trail(
        put(0.5, B), get(0.9, A), fault(1.2, A, "cut"), put(1.205, B), fault(1.21, B, "trim_log", 1.0),
        put(1.215, B, "k2"),
    ),
    # A clear passes a fill under way; so does the invalidation of a tag.
    "floor_of_fills": trail(put(0.5, B), get(1.2, A, delays=SLOWLY_BACK), (1.3, B, "clear")),
    "tag_floor_of_fills": trail(
        put(0.5, B, tags=("t1",)), get(1.2, A, delays=SLOWLY_BACK), (1.3, B, "invalidate", ("t1",))
    ),
    # a's write is executed long after a has given it up, and has read the old value again.
    "own_messages": trail(put(0.5, B), put(1.1, A, delays=(0.0, 1.6, 0.01)), get(2.5, A)),
    # While a is away v2 is written; a message comes between SUBSCRIBE and the answer to the resync.
    "early_position": trail(
        put(0.5, B), get(0.9, A), fault(1.2, A, "cut"), put(1.21, B), put(1.45, B, "k2"), fixed=0.1
    ),
    # a's write is executed, its answer is lost, its message is late: a must not serve what it had before.
    "distrust": trail(
        put(0.5, B), get(0.9, A), fault(1.1, A, "stall", 0.4), put(1.2, A, delays=(0.0, 0.01, LOST)), get(2.5, A)
    ),
    # A write dies after its first step; if that was the value, nobody is told, and the next write makes it live.
    "publish_first": trail(put(0.5, B), get(0.9, A), fault(1.1, B, "abort", 0.25), put(1.2, B), put(1.3, B, "k2")),
    # A peer of a newer release writes: its message cannot be understood.
    "damage": trail(put(0.5, B), get(0.9, A), fault(1.1, A, "damage", 0.1), put(1.2, B)),
    # a's subscriber lands on a replica that lags behind: its heartbeats prove nothing.
    "probe": trail(
        put(0.5, B), get(0.9, A), fault(1.0, A, "replicate"), fault(1.1, A, "misroute", 1.0), put(1.5, B), get(2.0, A)
    ),
    # R1 is demoted and takes a copy of R2, which lacks a's 2 and has another one; then it forwards R2's 3 to a, on the
    # connection that a has had all the time: 3 follows 2, so by the number a would be at R2's 3, and a resync agrees.
    "chain": trail(
        put(0.5, B), fault(0.6, B, "replicate"), put(0.7, B, "k2"), get(0.9, A), fault(1.1, A, "fail_over", DEMOTE),
        fault(1.11, B, "cut"), fault(1.12, B, "cut_commands", 0.1), put(1.2, B), fault(1.25, B, "replicate"),
        put(1.3, B, "k2"), fault(1.35, B, "replicate"),
    ),
}  # fmt: skip
