"""Which rights a user needs, and which one a refusal is about."""

from __future__ import annotations

import pytest

from coherent_cache.keys import shard_names
from coherent_cache.remote.connection import ReplyError
from coherent_cache.remote.rights import Rights, acl_rule, is_denial

KEYS, CHANNELS = "~cc:{shop/*", "&cc:{shop/*"


@pytest.fixture
def rights() -> Rights:
    return Rights("shop", shard_names("shop", 0, 0))


def test_the_rule_names_keys_channels_and_commands():
    keys, channels, *commands = acl_rule("shop").split()
    assert (keys, channels) == (KEYS, CHANNELS)
    assert commands == sorted(commands)
    assert {"+get", "+xadd", "+client|setname"} < set(commands)
    assert "+select" not in commands
    assert "+select" in acl_rule("shop", database=1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        # Redis' own words, of 6.2, 7.0 and 7.2.
        ("NOPERM this user has no permissions to run the 'get' command", ("+get",)),
        ("NOPERM User eve has no permissions to run the 'client|setname' command", ("+client|setname",)),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", (KEYS,)),
        ("NOPERM No permissions to access a key", (KEYS,)),
        ("NOPERM this user has no permissions to access one of the channels used as arguments", (CHANNELS,)),
        ("ERR The user executing the script can't publish to the channel mentioned in the command", (CHANNELS,)),
        ("ERR ACL failure in script: User eve has no permissions to run the 'xadd' command", ("+xadd",)),
        ("ERR The user executing the script can't run this command or subcommand script: 1f", ()),
        (
            "EXECABORT Transaction discarded because of: NOPERM this user has no permissions to run the 'exec' command",
            ("+exec",),
        ),
    ],
)
def test_what_redis_says_is_a_denial_and_may_name_the_right(rights, text, named):
    assert is_denial(text)
    assert rights.named(text) == named


@pytest.mark.parametrize("text", ["READONLY You can't write against a read only replica.", "OOM no", "ERR no"])
def test_other_refusals_are_none(text):
    assert not is_denial(ReplyError(text))


def test_all_that_lacks_is_told_once(rights):
    replies = [b"QUEUED"] * rights.replies
    assert rights.lacking(replies) == ()
    replies[0] = replies[1] = ReplyError("NOPERM this user has no permissions to access one of the keys")
    replies[2] = ReplyError("NOPERM what is new")
    replies[3] = ReplyError("ERR something else")
    assert rights.lacking(replies) == (KEYS, "+getrange")
