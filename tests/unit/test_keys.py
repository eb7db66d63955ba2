"""Names in Redis: what is allowed, what it becomes, and that it never changes."""

from __future__ import annotations

import itertools
from hashlib import blake2b

import pytest

from coherent_cache.errors import ConfigError, InvalidKey
from coherent_cache.keys import (
    MAX_KEY_BYTES,
    MAX_TAG_BYTES,
    MAX_TAGS,
    check_key,
    check_tags,
    key_digest,
    shard_names,
    shard_of,
)


class Text(str):
    __slots__ = ()


def hash_tag(name: bytes) -> bytes:
    """Return what Redis Cluster hashes of a name: what is between the first { and the next }."""
    return name.partition(b"{")[2].partition(b"}")[0]


# --- names of a shard ---


def test_a_shard_has_the_documented_names():
    names = shard_names("shop", 3, 5)

    assert names.clock == b"cc:{shop/3}:clock"
    assert names.log == b"cc:{shop/3}:log"
    assert names.probe == b"cc:{shop/3}:probe"
    assert names.channel == b"cc:{shop/3}:messages:5"
    assert names.values == b"cc:{shop/3}:v:"
    assert names.value("grün".encode()) == b"cc:{shop/3}:v:gr\xc3\xbcn"


def test_all_names_of_a_shard_share_one_hash_tag_whatever_the_key():
    names = shard_names("shop", 3, 5)

    of_keys = [names.value(key) for key in (b"plain", b"{other}", b"}", b"{", b"a{b}c")]

    assert {hash_tag(name) for name in (names.clock, names.log, names.probe, names.channel, *of_keys)} == {b"shop/3"}


def test_only_the_channel_depends_on_the_database():
    # Pub/Sub ignores the database number, keys do not.
    first, second = shard_names("shop", 0, 0), shard_names("shop", 0, 1)

    assert first.channel != second.channel
    assert (first.clock, first.log, first.probe, first.values) == (
        second.clock,
        second.log,
        second.probe,
        second.values,
    )


def test_no_two_shards_share_a_name():
    shards = [
        shard_names(namespace, shard, 0)
        for namespace, shard in itertools.product(("shop", "shop.1", "shop-1", "1", "a"), (0, 1, 10, 11))
    ]

    for attribute in ("clock", "log", "probe", "channel", "values"):
        assert len({getattr(names, attribute) for names in shards}) == len(shards)


@pytest.mark.parametrize("key", [b"clock", b"log", b"probe", b"messages:0", b":clock", b""])
def test_no_key_can_be_taken_for_the_data_of_its_shard(key):
    names = shard_names("shop", 0, 0)

    assert names.value(key) not in {names.clock, names.log, names.probe, names.channel}


# --- user keys ---


@pytest.mark.parametrize("key", ["a", " ", "\0", "grün", "𝄞", "a" * MAX_KEY_BYTES, "ü" * (MAX_KEY_BYTES // 2)])
def test_a_key_is_any_text_of_1_to_1024_bytes(key):
    assert check_key(key) == key.encode("utf-8")


def test_a_subclass_of_str_is_a_key():
    assert check_key(Text("a")) == b"a"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "must be a str, not NoneType"),
        (b"bytes", "must be a str, not bytes"),
        (1, "must be a str, not int"),
        (("a",), "must be a str, not tuple"),
        (["a"], "must be a str, not list"),
        ("", "this one has 0"),
        ("a" * (MAX_KEY_BYTES + 1), "this one has 1,025"),
        ("ü" * 513, "this one has 1,026"),
        ("a\ud800", "lone surrogates"),
    ],
)
def test_anything_else_is_no_key(key, says):
    with pytest.raises(InvalidKey, match=says) as caught:
        check_key(key)

    assert caught.value.__cause__ is None


def test_the_error_of_a_key_does_not_show_it():
    with pytest.raises(InvalidKey) as caught:
        check_key("secret" * 500)

    assert "secret" not in str(caught.value)


# --- tags ---


@pytest.mark.parametrize(
    "tags", [(), [], ["a"], ("a", "grün"), {"a": 1}, {"a"}, frozenset(), iter(["a", "b"]), (t for t in "ab"), range(0)]
)
def test_tags_are_any_collection_of_str(tags):
    assert all(type(tag) is str for tag in check_tags(tags))


def test_tags_keep_their_order_and_come_once():
    assert check_tags(["b", "a", "b", "c", "a"]) == ("b", "a", "c")


def test_a_tag_has_1_to_255_bytes():
    longest = ["t" * MAX_TAG_BYTES, "ü" * (MAX_TAG_BYTES // 2)]

    assert check_tags(longest) == tuple(longest)


def test_an_entry_has_at_most_1000_tags():
    tags = [str(number) for number in range(MAX_TAGS)]

    assert len(check_tags(tags * 2)) == MAX_TAGS
    with pytest.raises(ConfigError, match="at most 1,000 tags per entry, not 1,001"):
        check_tags([*tags, "one more"])


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("red", r"not one str: write \('red',\)"),
        (b"red", "not one bytes"),
        (None, "not NoneType"),
        (5, "not int"),
        ([1], "a tag must be a str, not int"),
        ([b"red"], "a tag must be a str, not bytes"),
        ([None], "a tag must be a str, not NoneType"),
        ([""], "1 to 255"),
        (["t" * (MAX_TAG_BYTES + 1)], "1 to 255"),
        (["ü" * 128], "1 to 255"),
        (["\ud800"], "1 to 255"),
        ([["red"]], "must be a collection of str"),
    ],
)
def test_anything_else_is_no_tags(tags, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check_tags(tags)

    assert caught.value.option == "tags"


# --- shards and digests: the same for ever ---


@pytest.mark.parametrize("shards", [1, 2, 3, 16, 1024])
def test_every_key_has_one_shard(shards):
    keys = [b"key%d" % number for number in range(5000)]

    found = [shard_of(key, shards) for key in keys]

    assert set(found) <= set(range(shards))
    assert found == [shard_of(key, shards) for key in keys]


@pytest.mark.parametrize("shards", [2, 3, 16])
def test_shards_get_equal_parts(shards):
    counts = [0] * shards
    for number in range(8000):
        counts[shard_of(b"user:%d" % number, shards)] += 1

    assert max(counts) < 1.15 * 8000 / shards
    assert min(counts) > 0.85 * 8000 / shards


def test_the_shard_of_a_key_never_changes():
    # CRC-32 as of zlib; written out, so that another way to compute it cannot slip in.
    assert [shard_of(b"123456789", shards) for shards in (1, 2, 7, 1000)] == [0, 0xCBF43926 % 2, 0xCBF43926 % 7, 262]


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (b"", "e4a6a0577479b2b4"),
        (b"a", "40f89e395b66422f"),
        ("grün".encode(), "e9e9074a36a4690f"),
        (bytes(range(256)) * 4, "3711058fb1ef188a"),
    ],
)
def test_the_digest_of_a_key_never_changes(key, digest):
    assert key_digest(key).hex() == digest
    assert key_digest(key) == blake2b(key, digest_size=8).digest()


def test_keys_have_different_digests():
    assert len({key_digest(b"key%d" % number) for number in range(5000)}) == 5000
