"""The state table is total, and makes no transition that its documentation does not name (rule P5)."""

from __future__ import annotations

import inspect
import itertools
import random
import re

import pytest

from coherent_cache.core import states
from coherent_cache.core.states import SEVERITY, TRANSITIONS, State, Trigger, worst

# Said a second time, as whole sentences would: what a proof, a doubt, a lost history and a lapse do to each state.
DOCUMENTED = {
    (State.CONNECTING, Trigger.PROVEN): State.COHERENT,
    (State.CONNECTING, Trigger.DOUBTED): State.CONNECTING,
    (State.CONNECTING, Trigger.FORGOTTEN): State.CONNECTING,
    (State.CONNECTING, Trigger.LAPSED): State.DISCONNECTED,
    (State.COHERENT, Trigger.PROVEN): State.COHERENT,
    (State.COHERENT, Trigger.DOUBTED): State.SUSPECT,
    (State.COHERENT, Trigger.FORGOTTEN): State.CONNECTING,
    (State.COHERENT, Trigger.LAPSED): State.DISCONNECTED,
    (State.SUSPECT, Trigger.PROVEN): State.COHERENT,
    (State.SUSPECT, Trigger.DOUBTED): State.SUSPECT,
    (State.SUSPECT, Trigger.FORGOTTEN): State.CONNECTING,
    (State.SUSPECT, Trigger.LAPSED): State.DISCONNECTED,
    (State.DISCONNECTED, Trigger.PROVEN): State.COHERENT,
    (State.DISCONNECTED, Trigger.DOUBTED): State.DISCONNECTED,
    (State.DISCONNECTED, Trigger.FORGOTTEN): State.DISCONNECTED,
    (State.DISCONNECTED, Trigger.LAPSED): State.DISCONNECTED,
}
PAIRS = list(itertools.product(State, Trigger))


def test_the_table_is_total():
    assert set(TRANSITIONS) == set(State)
    for state in State:
        assert set(TRANSITIONS[state]) == set(Trigger)


@pytest.mark.parametrize(("state", "trigger"), PAIRS)
def test_p5_every_transition_is_the_documented_one(state, trigger):
    assert TRANSITIONS[state][trigger] is DOCUMENTED[state, trigger]


@pytest.mark.parametrize("state", State)
def test_p5_only_a_proof_makes_a_shard_coherent(state):
    leading = {trigger for trigger in Trigger if TRANSITIONS[state][trigger] is State.COHERENT}

    assert leading == {Trigger.PROVEN}


@pytest.mark.parametrize("state", State)
def test_p5_no_state_but_coherent_becomes_suspect(state):
    # SUSPECT serves what is held: who has no proof has nothing to serve, and gets nothing by being doubted.
    doubted = TRANSITIONS[state][Trigger.DOUBTED]

    assert (doubted is State.SUSPECT) is (state in {State.COHERENT, State.SUSPECT})


@pytest.mark.parametrize(("state", "trigger"), PAIRS)
def test_p5_nothing_but_a_proof_makes_anything_better(state, trigger):
    after = TRANSITIONS[state][trigger]

    if trigger is not Trigger.PROVEN:
        assert SEVERITY.index(after) >= SEVERITY.index(state)


@pytest.mark.parametrize("state", State)
def test_p4_past_the_bound_a_shard_is_disconnected_from_whatever_state(state):
    assert TRANSITIONS[state][Trigger.LAPSED] is State.DISCONNECTED


@pytest.mark.parametrize("state", State)
def test_p9_a_lost_history_ends_service(state):
    assert TRANSITIONS[state][Trigger.FORGOTTEN] in {State.CONNECTING, State.DISCONNECTED}


def test_every_state_can_be_reached_and_left():
    reached = {State.CONNECTING}  # where a shard begins
    while new := {TRANSITIONS[state][trigger] for state in reached for trigger in Trigger} - reached:
        reached |= new

    assert reached == set(State)
    for state in State:
        assert any(TRANSITIONS[state][trigger] is not state for trigger in Trigger)


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TRANSITIONS[State.COHERENT] = {}
    with pytest.raises(TypeError):
        TRANSITIONS[State.COHERENT][Trigger.DOUBTED] = State.COHERENT


def test_the_public_names_are_stable():
    # `cache.state` and the events carry these.
    assert {state.name: str(state) for state in State} == {
        "COHERENT": "coherent",
        "SUSPECT": "suspect",
        "CONNECTING": "connecting",
        "DISCONNECTED": "disconnected",
    }
    assert [str(trigger) for trigger in Trigger] == ["proven", "doubted", "forgotten", "lapsed"]


def test_the_docstring_explains_every_state():
    explained = re.findall(r"^ {4}([A-Z]+) ", inspect.getsource(states), re.MULTILINE)

    assert sorted(set(explained) & {state.name for state in State}) == sorted(state.name for state in State)


# --- worst ---


def test_severity_orders_all_states():
    assert SEVERITY == (State.COHERENT, State.SUSPECT, State.CONNECTING, State.DISCONNECTED)
    assert set(SEVERITY) == set(State)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(State, repeat=2)))
def test_the_worse_of_two_states_counts(first, second):
    expected = SEVERITY[max(SEVERITY.index(first), SEVERITY.index(second))]

    assert worst([first, second]) is expected


def test_one_bad_shard_among_many_counts():
    shards = [State.COHERENT] * 99
    for bad in (State.SUSPECT, State.CONNECTING, State.DISCONNECTED):
        shards.append(bad)
        random.shuffle(shards)
        assert worst(shards) is bad


def test_one_shard_is_its_own_worst():
    for state in State:
        assert worst([state]) is state
