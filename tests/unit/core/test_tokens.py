"""Tokens remember what was learnt about their keys while a command is under way (rule P7)."""

from __future__ import annotations

import itertools
import random

import pytest

from coherent_cache.core.tokens import NEWER_THAN_ANYTHING, Token, TokenTable
from coherent_cache.versions import MAX_SEQ

GENERATION = 4


@pytest.fixture
def table() -> TokenTable:
    return TokenTable()


KEY_SETS = [("a",), ["a"], {"a"}, ("a", "b"), ["a", "b", "c"], {"a", "b"}]


def test_newer_than_anything_is_newer_than_any_version():
    assert NEWER_THAN_ANYTHING > MAX_SEQ


@pytest.mark.parametrize("keys", [*KEY_SETS, ()])
def test_a_new_token_knows_its_keys_and_generation_and_has_no_marks(table, keys):
    token = table.register(keys, GENERATION)

    assert isinstance(token, Token)
    assert sorted(token.keys) == sorted(keys)
    assert token.generation == GENERATION
    assert token.marks == {}


@pytest.mark.parametrize("keys", KEY_SETS)
def test_p7_a_message_marks_the_token_of_its_key(table, keys):
    token = table.register(keys, GENERATION)

    assert table.mark("a", 7) is True
    assert token.marks == {"a": 7}


@pytest.mark.parametrize("keys", KEY_SETS)
def test_a_message_for_another_key_marks_nothing(table, keys):
    token = table.register(keys, GENERATION)

    assert table.mark("other", 7) is False
    assert token.marks == {}


@pytest.mark.parametrize("keys", KEY_SETS)
@pytest.mark.parametrize("seqs", list(itertools.permutations([3, 7, 5])))
def test_p7_the_newest_version_counts_in_whatever_order_they_come(table, keys, seqs):
    token = table.register(keys, GENERATION)

    for seq in seqs:
        assert table.mark("a", seq) is True

    assert token.marks == {"a": 7}


@pytest.mark.parametrize("keys", KEY_SETS)
def test_p1_an_unknown_outcome_outlasts_every_version(table, keys):
    token = table.register(keys, GENERATION)

    table.mark("a", NEWER_THAN_ANYTHING)
    table.mark("a", MAX_SEQ)

    assert token.marks == {"a": NEWER_THAN_ANYTHING}


def test_all_tokens_of_a_key_are_marked(table):
    tokens = [table.register(keys, GENERATION) for keys in (("a",), ("a",), ("a", "b"), ("a", "c"))]
    bystanders = [table.register(keys, GENERATION) for keys in (("b",), ("b", "c"))]

    table.mark("a", 7)

    assert [token.marks for token in tokens] == [{"a": 7}] * 4
    assert [token.marks for token in bystanders] == [{}] * 2


def test_the_keys_of_one_token_are_marked_each_for_itself(table):
    token = table.register(("a", "b", "c"), GENERATION)

    table.mark("a", 7)
    table.mark("b", 5)

    assert token.marks == {"a": 7, "b": 5}


@pytest.mark.parametrize("keys", KEY_SETS)
def test_a_mark_may_spare_one_token(table, keys):
    # A command's own version is no reason to refuse its own value.
    own, others = table.register(keys, GENERATION), [table.register(k, GENERATION) for k in (("a",), ("a", "z"))]

    assert table.mark("a", 7, but=own) is True

    assert own.marks == {}
    assert [token.marks for token in others] == [{"a": 7}] * 2


@pytest.mark.parametrize("keys", KEY_SETS)
def test_a_mark_that_spares_the_only_token_tells_that_there_was_no_other(table, keys):
    own = table.register(keys, GENERATION)

    assert table.mark("a", 7, but=own) is False
    assert own.marks == {}


@pytest.mark.parametrize("keys", [*KEY_SETS, ()])
def test_a_released_token_is_marked_no_more(table, keys):
    token = table.register(keys, GENERATION)
    assert table

    table.release(token)

    assert not table
    assert table.mark("a", 7) is False
    assert token.marks == {}


@pytest.mark.parametrize("keys", [*KEY_SETS, ()])
def test_a_second_release_does_nothing(table, keys):
    token, other = table.register(keys, GENERATION), table.register(keys, GENERATION)

    table.release(token)
    table.release(token)

    assert table  # the other one is still there
    table.release(other)
    table.release(other)
    assert not table


def test_release_takes_the_token_itself_not_an_equal_one(table):
    first, second = table.register(("a",), GENERATION), table.register(("a",), GENERATION)

    table.release(second)
    table.mark("a", 7)

    assert (first.marks, second.marks) == ({"a": 7}, {})


def test_a_token_that_was_never_registered_can_be_released(table):
    table.release(Token(("a",), GENERATION))
    table.release(Token(("a", "b"), GENERATION))

    assert not table


def test_marks_outlive_the_release(table):
    # The insertion is judged by the marks; whether the token is still in the table does not matter to it.
    token = table.register(("a",), GENERATION)
    table.mark("a", 7)

    table.release(token)

    assert token.marks == {"a": 7}


def test_what_the_caller_does_to_its_keys_later_changes_no_bulk_token(table):
    keys = ["a", "b"]
    token = table.register(keys, GENERATION)

    keys.clear()

    assert table.mark("b", 7) is True
    table.release(token)
    assert not table


def test_a_key_named_twice_is_one_key(table):
    token = table.register(["a", "a"], GENERATION)

    assert table.mark("a", 7) is True
    table.release(token)

    assert not table  # else it would be asked for ever


# --- is_alone ---


def test_a_bulk_token_is_alone_only_without_any_other(table):
    token = table.register(("a", "b"), GENERATION)
    assert table.is_alone(token)

    for keys in (("z",), ("y", "z")):
        other = table.register(keys, GENERATION)
        assert not table.is_alone(token)
        table.release(other)
        assert table.is_alone(token)


def test_nobody_is_alone_in_a_table_without_it(table):
    token = table.register(("a", "b"), GENERATION)
    table.release(token)
    assert not table.is_alone(token)

    table.register(("c", "d"), GENERATION)
    assert not table.is_alone(token)


@pytest.mark.parametrize("keys", [("a",), ("b",), ("b", "c"), ("a", "b")])
def test_a_single_token_beside_another_is_not_alone(table, keys):
    token = table.register(("a",), GENERATION)
    assert table.is_alone(token)

    other = table.register(keys, GENERATION)
    assert not table.is_alone(token)

    table.release(other)
    assert table.is_alone(token)
    table.release(token)
    assert not table.is_alone(token)


# --- against a model ---


def test_the_table_agrees_with_a_list_of_all_tokens():
    rng = random.Random(7)
    table, held, released = TokenTable(), [], []
    expected: dict[int, dict[str, int]] = {}
    for _ in range(3000):
        action = rng.random()
        if action < 0.35:
            keys = rng.sample("abcde", rng.choice([1, 1, 1, 2, 3]))
            token = table.register(keys, GENERATION)
            held.append(token)
            expected[id(token)] = {}
        elif action < 0.65 and held:
            token = held.pop(rng.randrange(len(held)))
            released.append(token)  # keeps it, so that no id is used twice
            table.release(token)
        else:
            key, seq = rng.choice("abcdef"), rng.randrange(1, 50)
            but = rng.choice([None, *held])
            concerned = [token for token in held if key in token.keys and token is not but]
            assert table.mark(key, seq, but=but) is bool(concerned)
            for token in concerned:
                marks = expected[id(token)]
                marks[key] = max(seq, marks.get(key, 0))
        assert bool(table) is bool(held)
        assert all(token.marks == expected[id(token)] for token in held)
    assert len(released) > 500
