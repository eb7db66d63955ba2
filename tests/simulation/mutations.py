"""Rules switched off, one at a time, by rewriting the text of the real code: production has no switch.

Each mutation replaces a piece of a function's text; if that piece is not there any more, the mutation fails loudly and
has to be thought over. ``schedules`` says where to look for what it breaks.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from coherent_cache.core import acknowledging, batching, loading, operations
from coherent_cache.core.session import Receipt, Session
from coherent_cache.core.shard import Shard
from coherent_cache.core.tokens import TokenTable
from coherent_cache.core.waiting import Collector
from coherent_cache.testing.simulation.calls import Call
from coherent_cache.testing.simulation.network import Link
from coherent_cache.testing.simulation.server import Server
from coherent_cache.wire import WireError, decode_message


@dataclass(frozen=True)
class Mutation:
    """One rule switched off.

    Attributes:
        name: of the mutation.
        rule: what it takes away.
        patches: (owner, attribute, replacement, or pairs of old and new text).
        profile: kind of schedules that shows it; None for the mixture.
        seeds: how many of them must suffice; 0 for what is so rare that a trail alone shows it.
    """

    name: str
    rule: str
    patches: tuple
    profile: str | None = None
    seeds: int = 2000

    @contextmanager
    def applied(self):
        with ExitStack() as stack:
            for owner, attribute, *change in self.patches:
                new = change[0] if not isinstance(change[0], tuple) else rewritten(owner, attribute, change)
                stack.enter_context(patch.object(owner, attribute, new))
            yield


def rewritten(owner, attribute, changes):
    """Return a function with pieces of its text replaced."""
    function = inspect.getattr_static(owner, attribute)
    text = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        assert text.count(old) >= 1, f"{owner.__name__}.{attribute} does not contain {old!r} any more"
        text = text.replace(old, new)
    module = sys.modules[function.__module__]
    namespace = {}
    exec(
        compile(text, f"<mutation of {attribute}>", "exec", dont_inherit=True, flags=0x1000000), vars(module), namespace
    )
    return namespace[attribute]


RELEASE_AND_TAKE = "self._lock.__exit__(None, None, None); self._lock.__enter__(); self.tier.insert(key, entry, now)"

REGISTERING_ONE = """\
        token = shard.register((key,))
        try:
"""
SENDING_ONE = "            (reply,) = yield (request,)\n"
SENDING = "            replies = yield requests\n"
REGISTERING = """\
            for shard, chunk in chunks:
                tokens.append((shard, shard.register([key for key, _ in chunk])))
"""
IGNORE_OWN = """\
own = message.origin == self._origin and message.epoch == held.epoch
        sound = held._move(message) if own else held.apply(message, now=now)"""
EQUALITY = "(reply.epoch, reply.seq, reply.nonce) != (self.epoch, self.position, self.nonce)"

REVIVE = (
    "return RenewReply(False)",
    """if lease.version or not request.lease_ms:
            return RenewReply(False)
        dead = bytes(EXPIRY_END) + lease.content
        data.values[lease.key] = Stored(dead, True, lease.epoch, lease.seq, 0, (), CODE_LEASE)""",
)

FAST = ('getattr(reply, "floor", -1) >= self._floor', "True")

ARRIVE = Link._arrive


def confirm_on_arrival(link):
    """Let a link confirm what it has received, whether anybody has applied it or not."""
    before = len(link.arrived)
    ARRIVE(link)
    if len(link.arrived) > before and link.arrived[-1].kind == "message":
        shard, data = link.arrived[-1][1:3]
        try:
            message = decode_message(data)
        except WireError:
            return
        if message.wants_receipts and message.origin != link.origin:
            link.run(Receipt(shard, message.origin, message.nonce), link.server)


MUTATIONS = [
    Mutation(
        "token_mark", "P7: a message marks the tokens of its keys",
        ((TokenTable, "mark", lambda _self, _key, _seq, *, but=None: False),), "races", 200,
    ),
    Mutation(
        "generation", "P7: a token of an older generation inserts nothing",
        ((Shard, "_forbidden", ("token.generation != self.generation", "False")),), "network", 2000,
    ),
    Mutation(
        "generation_early", "P6: the generation starts when the resync is complete, not when the break is noticed",
        (
            (Shard, "resync", ("self._new_generation()", "pass")),
            (Shard, "doubt", ("self.synced = False", "self.synced = False; self.generation += 1")),
        ),
        "reconnect", 5000,
    ),
    Mutation(
        "observe", "P7: a version learnt from any reply works like a message",
        ((Shard, "absorb", ("tier.evict_older(key, seq)", "pass"), ("tokens.mark(key, seq, but=token)", "pass")),),
        "races", 2000,
    ),
    Mutation(
        "absence", "P7: an absence is knowledge too",
        ((operations, "take", ("items.append((key, absent, None))", "pass")),), "races", 2000,
    ),
    Mutation(
        "atomic_insert", "P7: check and insertion are one step",
        ((Shard, "absorb", ("tier.insert(key, entry, now)", RELEASE_AND_TAKE)),), "races", 2000,
    ),
    Mutation(
        "token_late", "P7: the token is registered before the request is sent",
        (
            (
                operations, "read",
                (REGISTERING + SENDING, SENDING + REGISTERING),
            ),
            (
                operations, "read_one",
                (REGISTERING_ONE + SENDING_ONE, SENDING_ONE[4:] + REGISTERING_ONE),
            ),
        ),
        "races", 200,
    ),
    Mutation(
        "epoch_of_replies", "P9: another epoch in a reply ends the history",
        ((Shard, "_is_comparable", lambda self, reply: reply.server == self.server),), "server", 2000,
    ),
    Mutation(
        "horizon_at_pong", "P4: the horizon is the moment of sending, not of the answer's arrival",
        ((Session, "_learn", ("sent_at=question.sent_at", "sent_at=now")),), "races", 500,
    ),
    Mutation(
        "look_up_first", "P4: the horizon is checked before the look-up",
        ((Call, "HIT", ["look up", "horizon", "clock"]),), None, 3000,
    ),
    Mutation(
        "clock_compare", "P4: a heartbeat compares the clock with what was applied (PING only)",
        ((Shard, "prove", (EQUALITY, "False")),),
        "network", 1000,
    ),
    Mutation(
        "nonce", "P6: the nonce proves the same history",
        (
            (
                Shard, "_missed",
                ("[] if reply.nonce == self.nonce else None", "[]"),
                ("log[0].nonce != self.nonce or log[-1].nonce != reply.nonce", "False"),
            ),
            (Shard, "prove", (", reply.nonce)", ")"), (", self.nonce)", ")")),
        ),
        "failover", 3000,
    ),
    Mutation(
        "chain", "P6: a message continues the position if it names the write there as its predecessor",
        ((Shard, "_move", (" or message.previous != self.nonce", "")),), "demotion", 4000,
    ),
    Mutation(
        "drop_above", "P6: entries above the proven position go",
        ((Shard, "resync", ("self.tier.drop_above(self.position)", "0")),), "failover", 3000,
    ),
    Mutation(
        "replay_whole", "P6: the log must hold the position and all that follows it",
        (
            (
                Shard, "_missed",
                ("len(log) != count or", "False and"),
                ("log[0].nonce != self.nonce or log[-1].nonce != reply.nonce", "False"),
                ("return log[1:]", "return [each for each in log if each.seq > self.position]"),
            ),
        ),
        "network", 2000,
    ),
    Mutation(
        "binding", "P16: fills come from the server that the stream comes from",
        ((Shard, "_is_comparable", ("return reply.server == self.server", "return True")),), "failover", 3000,
    ),
    Mutation(
        "floor_of_fills", "P10: the floor holds for fills under way",
        ((Shard, "absorb", FAST, ("and seq > self._floor", "")), (Shard, "_refusal", ("seq <= self._floor", "False"))),
        "races", 2000,
    ),
    Mutation(
        "tag_floor_of_fills", "P10: the tags' floors hold for fills under way",
        (
            (Shard, "absorb", ("and not self._tag_floors", "")),
            (Shard, "_refusal", ("self._tag_floors.get(tag, 0) >= seq", "False")),
        ),
        "races", 3000,
    ),
    Mutation(
        "own_messages", 'P7: messages are never dropped because "I sent it"',
        (
            (
                Session, "message",
                ("sound = held.apply(message, now=now)", IGNORE_OWN),
            ),
        ),
        "races", 2000,
    ),
    Mutation(
        "early_position", "P6: messages before the resync's reply do not move the position",
        (
            (
                Shard, "_move",
                (
                    "if not self.synced:\n",
                    "if not self.synced:\n        self.position, self.nonce = message.seq, message.nonce\n",
                ),
            ),
        ),
        "network", 2000,
    ),
    Mutation(
        "distrust", "P1: an ambiguous write makes its keys distrusted",
        (
            (Shard, "distrust_keys", lambda _self, _keys: None),
            (Shard, "distrust_all", lambda _self: None),
        ),
        "races", 1000,
    ),
    Mutation(
        "batch_deletes", "P7: what a batch has deleted goes here at once",
        (
            (
                batching, "_send",
                ("learnt.append((key, reply.seq, entry))", "learnt += [(key, reply.seq, entry)] if entry else []"),
            ),
        ),
        "batches", 500,
    ),
    Mutation(
        "publish_first", "P1: publish, then store",
        ((Server, "COMMANDS", ["put", "append", "bump", "publish"]),), "server", 3000,
    ),
    Mutation(
        "damage", "P8: what cannot be understood flushes",
        (
            (
                Session, "message",
                ("held.distrust(str(error))\n        sound = False", "sound = True"),
                ("held.distrust_newer(str(error), now)\n        sound = False", "sound = True"),
            ),
        ),
        "network", 2000,
    ),
    Mutation(
        "gap", "P6: a gap in the stream needs a resync",
        ((Shard, "_move", ("message.seq != self.position + 1 or message.previous != self.nonce", "False")),),
        "loss", 2000,
    ),
    Mutation(
        "probe", "P4: only a primary that accepts writes proves anything",
        (
            (
                Session, "answer",
                ("reply.status and (question.resync or reply.status not in WRITABLE_STATUSES)", "False"),
            ),
        ),
        "failover", 3000,
    ),
    Mutation(
        "order_of_servers", "P16: versions of another server have no order with those held",
        ((Shard, "absorb", ("self._distrust(key)", "pass")),), "failover", 3000,
    ),
    Mutation(
        "lease_token", "P11: the fill needs its own lease, not any",
        ((Server, "_holds", (" and data.values[lease.key].content == lease.content", "")),), "loads", 500,
    ),
    Mutation(
        "lease_floor", "P11: a clear voids every lease",
        ((Server, "_live", ("max(data.floor,", "max(0 if stored.codec == CODE_LEASE else data.floor,")),),
        "loads", 1000,
    ),
    Mutation(
        "lease_tag_floor", "P11: the invalidation of a tag voids the fill of what carries it",
        ((Server, "_holds", ("data.tag_floors.get(tag, 0) < lease.seq", "True")),), "loads", 500,
    ),
    Mutation(
        "lease_seq", "P11: the floor that is raised next is not below the lease",
        ((Server, "_holds", ("< lease.seq", "<= lease.seq")),), "loads", 500,
    ),
    Mutation(
        "renewal_revives", "P11: a renewal never brings back a lease that is gone", ((Server, "_renew", REVIVE),),
        "loads", 500,
    ),
    Mutation(
        "refresh_version", "P11: a refresh replaces the version that was there when it began, and no other",
        ((Server, "_holds", ("seq == lease.version", "True")),), "loads", 1000,
    ),
    Mutation(
        "receipts", "P12: the write waits until all members have confirmed",
        ((Collector, "_look", ("if self.complete", "self.received |= self._expected or set()\n    if self.complete")),),
        "acknowledged", 500,
    ),
    Mutation(
        "confirm_early", "P12: a member confirms after it has applied, not when the message arrives",
        ((Link, "_arrive", confirm_on_arrival),), "acknowledged", 500,
    ),
    Mutation(
        "receivers_only", "P12: members are those that may serve something, not those that the message has reached",
        (
            (
                Server, "_members",
                ("if entry[1] >= last", "if any(link.instance.member == name for link in self.links)"),
            ),
        ),
        "acknowledged", 500,
    ),
    Mutation(
        "young_epoch", "P12: what this instance has not known for long may lack members (W5)",
        ((acknowledging._Case, "proof_from", ("registered_since + bound", "-inf")),), "acknowledged faults", 0,
    ),
    Mutation(
        "young_registry", "P12: a registry that was begun just now lacks members",
        ((acknowledging._Case, "expect", ("now + bound - (reply.now_ms - reply.created_ms) / 1000", "now")),),
        "acknowledged", 0,
    ),
    Mutation(
        "wait_from_send", "P12: the bound runs from when the reply came",
        ((acknowledging, "_wait", ("replied_at + bound", "scripts[0][1].sent_at + bound")),), "acknowledged", 0,
    ),
    Mutation(
        "clock_margin", "P12: clocks run at different rates",
        ((acknowledging, "CLOCK_MARGIN", 0.0),), "acknowledged", 0,
    ),
    Mutation(
        "enter_first", "P12: who cannot be entered proves nothing new",
        ((Session, "answer", ("question.resync or ", "")),), "acknowledged faults", 0,
    ),
    Mutation(
        "note_registry", "P12: while members could not be entered, a registry says nothing",
        ((Shard, "note_registry", ("if not entered:", "if False:")),), "acknowledged faults", 0,
    ),
    Mutation(
        "members_of_another", "P12: the members of another server, or of another history, are not those of this one",
        (
            (acknowledging._Case, "__init__", ("and (reply.epoch, reply.server) == (write.epoch, write.server)", "")),
            (Shard, "registered_since", ("(epoch, server) == (self.epoch, self.server)", "True")),
        ),
        "acknowledged faults", 1000,
    ),
    Mutation(
        "early", "P11: who asks while a loader runs is not given what it returns, but looks again",
        ((loading, "_get_or_set", ("early=early", "early=True")),), "loads", 500,
    ),
]  # fmt: skip

REDUNDANT = [
    Mutation(
        "epoch_of_messages",
        "P9: another epoch in a message ends the history. Without this a message of a new epoch is taken for one of "
        "the old: its seq begins at 1 again, so it is a step back (P6) and leads to a resync, which compares epochs; "
        "where it is none (position 0) nothing is held that it could fail to evict. The rule only makes it faster.",
        ((Shard, "apply", ("if message.epoch == self.epoch:", "if self.epoch is not None:")),), "server", 500,
    ),
    Mutation(
        "insert_in_doubt",
        "P5: only a coherent shard inserts. Without this a value read while the stream is in doubt is served within "
        "the old horizon, which is older than the value; the resync that ends the doubt flushes it, evicts it by the "
        "replay, or drops it as above the proven position. The rule only keeps out what would go anyway.",
        ((Shard, "_forbidden", ("self.state is not State.COHERENT or now > self.tier.valid_until", "False")),),
        None, 500,
    ),
    Mutation(
        "newer_entry",
        "P7: an older value does not replace a newer entry. Whoever inserted the entry marked all tokens of its key "
        "that were registered then, and a token registered later reads Redis later: what it brings is not older.",
        ((Shard, "_refusal", ("held is not None and held.seq > seq", "False")),), "races", 500,
    ),
]  # fmt: skip
"""Rules whose removal nobody can see, and why: other rules make up for them."""
