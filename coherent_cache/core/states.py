"""The states of a shard's connection to its invalidation stream, as a table (rule P5).

::

    CONNECTING    no proof of freshness yet, or the history was lost: nothing local is served or inserted
    COHERENT      every message up to the horizon is applied: local hits, insertions
    SUSPECT       something is late or missing, the bound still holds: local hits, no insertions
    DISCONNECTED  past the bound: ``on_disconnect`` decides about reads, no insertions
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    """State of one shard; the public ``state`` of a cache is the worst of its shards'."""

    COHERENT = "coherent"
    SUSPECT = "suspect"
    CONNECTING = "connecting"
    DISCONNECTED = "disconnected"


class Trigger(StrEnum):
    """What makes a shard change its state."""

    PROVEN = "proven"  # a resync, or a heartbeat whose clock equals what was applied here
    DOUBTED = "doubted"  # connection lost, a message missing, a heartbeat late
    FORGOTTEN = "forgotten"  # another epoch was seen
    LAPSED = "lapsed"  # no proof for max_staleness


TRANSITIONS: Final = MappingProxyType(
    {
        State.CONNECTING: MappingProxyType(
            {
                Trigger.PROVEN: State.COHERENT,
                Trigger.DOUBTED: State.CONNECTING,
                Trigger.FORGOTTEN: State.CONNECTING,
                Trigger.LAPSED: State.DISCONNECTED,
            }
        ),
        State.COHERENT: MappingProxyType(
            {
                Trigger.PROVEN: State.COHERENT,
                Trigger.DOUBTED: State.SUSPECT,
                Trigger.FORGOTTEN: State.CONNECTING,
                Trigger.LAPSED: State.DISCONNECTED,
            }
        ),
        State.SUSPECT: MappingProxyType(
            {
                Trigger.PROVEN: State.COHERENT,
                Trigger.DOUBTED: State.SUSPECT,
                Trigger.FORGOTTEN: State.CONNECTING,
                Trigger.LAPSED: State.DISCONNECTED,
            }
        ),
        State.DISCONNECTED: MappingProxyType(
            {
                Trigger.PROVEN: State.COHERENT,
                Trigger.DOUBTED: State.DISCONNECTED,
                Trigger.FORGOTTEN: State.DISCONNECTED,
                Trigger.LAPSED: State.DISCONNECTED,
            }
        ),
    }
)
"""Next state for each state and trigger. docs/explanation/protocol.md's diagram is drawn from this table."""

SEVERITY: Final = (State.COHERENT, State.SUSPECT, State.CONNECTING, State.DISCONNECTED)
"""From best to worst."""


def worst(states: list[State]) -> State:
    """Return the worst of the given states."""
    return max(states, key=SEVERITY.index)
