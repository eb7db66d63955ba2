"""Settings: every option has a range, and an error names the option and the range."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace
from fractions import Fraction

import pytest

from coherent_cache import config
from coherent_cache.config import HEARTBEATS_PER_BOUND, MAX_SHARDS, Settings, check_instance_id, check_ttl
from coherent_cache.errors import CoherentCacheError, ConfigError

# option: (values that are taken, values that are refused)
RANGES = {
    "namespace": (
        ["a", "A-z_0.9", "a" * 64, "..", "-"],
        ["", "a" * 65, "a b", "a/b", "a{b}", "a:b", "grün", "a\n", "\na", None, 5, b"shop"],
    ),
    "shards": ([1, 2, MAX_SHARDS], [0, -1, MAX_SHARDS + 1, 1.0, "1", None, True]),
    "max_entries": ([1, 10**9], [0, -1, 10**9 + 1, 1e3, "10", None, True]),
    "max_bytes": ([None, 1, 2**50], [0, -1, 2**50 + 1, 1e6, "1", False]),
    "policy": (["lru", "lfu", "fifo", "random"], ["LRU", "", "arc", None, 1, ["lru"]]),
    "ttl": ([None, 0.001, 1, 300.0, 315_360_000], [0, 0.0009, -1, 315_360_001, "300", True]),
    "local_ttl": ([None, 0.001, 1, 300.0, 315_360_000], [0, 0.0009, -1, 315_360_001, "300", True]),
    "local_enabled": ([True, False], [0, 1, None, "yes"]),
    "copy_values": ([True, False], [0, 1, None, "no"]),
    "report": ([True, False], [0, 1, None, "no"]),
    "heartbeat": ([0.005, 1, 1.5], [0, 0.004, 3601, "1", None, True]),
    "max_staleness": ([3.0, 5, 86_400], [0, 0.014, 86_401, "5", None, True]),
    "on_disconnect": (["bypass", "serve_stale", "fail"], ["BYPASS", "", None, True]),
    "stale_limit": ([0, 0.5, 10**7], [-1, -0.001, 10**7 + 1, "60", None, False]),
    "on_foreign": (["raise", "miss"], ["", "ignore", None]),
    "max_value_bytes": ([1, 512 * 1024 * 1024], [0, -1, 512 * 1024 * 1024 + 1, 1e6, None, True]),
    "compress": ([None, "zlib", "zstd"], ["gzip", "", "ZLIB", 1, True, ["zlib"]]),
    "compress_above": ([0, 1024, 512 * 1024 * 1024], [-1, 512 * 1024 * 1024 + 1, 1e3, None, True]),
    "schema": ([0, 1, 65_535], [-1, 65_536, 1.0, "1", None, True]),
    "timeout": ([0.01, 2, 600], [0, 0.009, 601, None, "2", True]),
    "max_connections": ([1, 100_000], [0, 100_001, 1.0, None, True]),
    "log_length": ([2000, 10**7], [0, 10**7 + 1, 1e4, None, True]),
    "replay_limit": ([0, 1, 10_000], [-1, 60_001, 1.0, None, True]),
    "lease": ([0.05, 10, 3600], [0, 0.04, 3601, "10", None, True]),
    "lease_wait": ([0, 0.5, 86_400], [-1, 86_401, "60", None, True]),
    "log_keys": (["plain", "hash", "redact"], ["", "none", "HASH", None, True, 1]),
}
NOT_FINITE = [math.nan, math.inf, -math.inf]
SECONDS = ["ttl", "local_ttl", "heartbeat", "max_staleness", "stale_limit", "timeout", "lease", "lease_wait"]


def settings(**options) -> Settings:
    return Settings(**({"namespace": "shop"} | options))


def cases(which: int):
    return [
        pytest.param(option, value, id=f"{option}={value!r:.30}")
        for option, values in RANGES.items()
        for value in values[which]
    ]


def test_every_option_has_its_cases():
    assert set(RANGES) == {field.name for field in fields(Settings)}


@pytest.mark.parametrize(("option", "value"), cases(0))
def test_values_in_range_are_taken_as_they_are(option, value):
    assert getattr(settings(**{option: value}), option) == value


@pytest.mark.parametrize(("option", "value"), cases(1))
def test_values_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=rf"^{option}: must be ") as caught:
        settings(**{option: value})

    assert caught.value.option == option
    assert repr(value) in str(caught.value)  # what was given


@pytest.mark.parametrize("option", SECONDS)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_durations_are_finite(option, value):
    with pytest.raises(ConfigError, match=rf"^{option}: must be .*seconds from"):
        settings(**{option: value})


@pytest.mark.parametrize("option", SECONDS)
@pytest.mark.parametrize("value", [10**400, -(10**400), Fraction(1, 2), 1j])
def test_durations_are_plain_numbers_of_any_size(option, value):
    # 10**400 is no float: comparing is fine, converting raises OverflowError.
    with pytest.raises(ConfigError, match=rf"^{option}: "):
        settings(**{option: value})


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("shards", 0, "an integer from 1 to 1,024"),
        ("ttl", 0, "None for no expiry, or seconds from 0.001 to 315360000"),
        ("heartbeat", 0, "seconds from 0.005 to 3600"),
        ("policy", "arc", "one of 'lru', 'lfu', 'fifo', 'random'"),
        ("on_disconnect", "x", "one of 'bypass', 'serve_stale', 'fail'"),
        ("on_foreign", "x", "one of 'raise', 'miss'"),
        ("namespace", "a b", "1 to 64 of the characters A-Z a-z 0-9 _ . -"),
        ("local_enabled", 1, "True or False"),
        ("replay_limit", 60_001, "an integer from 0 to 60,000"),
    ],
)
def test_an_error_names_the_allowed_range(option, value, says):
    with pytest.raises(ConfigError, match=says):
        settings(**{option: value})


def test_the_defaults_are_the_named_constants():
    assert Settings(namespace="shop") == Settings(
        namespace="shop",
        shards=1,
        max_entries=config.DEFAULT_MAX_ENTRIES,
        max_bytes=None,
        policy="lru",
        ttl=config.DEFAULT_TTL,
        local_ttl=None,
        local_enabled=True,
        copy_values=True,
        heartbeat=config.DEFAULT_HEARTBEAT,
        max_staleness=config.DEFAULT_MAX_STALENESS,
        on_disconnect="bypass",
        stale_limit=config.DEFAULT_STALE_LIMIT,
        on_foreign="raise",
        max_value_bytes=config.DEFAULT_MAX_VALUE_BYTES,
        compress=None,
        compress_above=config.DEFAULT_COMPRESS_ABOVE,
        schema=0,
        timeout=config.DEFAULT_TIMEOUT,
        max_connections=config.DEFAULT_MAX_CONNECTIONS,
        log_length=config.DEFAULT_LOG_LENGTH,
        replay_limit=config.DEFAULT_REPLAY_LIMIT,
    )


def test_the_defaults_that_the_documents_promise():
    made = Settings(namespace="shop")

    assert (made.max_entries, made.ttl, made.heartbeat, made.max_staleness) == (10_000, 300.0, 1.0, 5.0)
    assert (made.max_bytes, made.policy, made.local_ttl, made.on_disconnect) == (None, "lru", None, "bypass")
    assert made.max_value_bytes == 2**20


def test_the_namespace_has_no_default():
    with pytest.raises(TypeError, match="namespace"):
        Settings()


def test_options_are_given_by_name():
    with pytest.raises(TypeError):
        Settings("shop")


def test_settings_are_frozen_hashable_and_replaced_with_a_check():
    made = settings(ttl=5)

    with pytest.raises(FrozenInstanceError):
        made.ttl = 6
    assert hash(made) == hash(settings(ttl=5))
    assert replace(made, ttl=6).ttl == 6
    with pytest.raises(ConfigError):
        replace(made, ttl=0)


# --- options that depend on one another ---


def test_max_staleness_spans_three_heartbeats():
    assert settings(heartbeat=2.0, max_staleness=6.0).max_staleness == 6.0
    with pytest.raises(ConfigError, match=f"at least {HEARTBEATS_PER_BOUND} heartbeats") as caught:
        settings(heartbeat=2.0, max_staleness=5.99)

    assert caught.value.option == "max_staleness"
    assert "lower 'heartbeat'" in str(caught.value)


@pytest.mark.parametrize("option", ["max_entries", "max_bytes"])
def test_every_shard_has_room_for_something(option):
    assert getattr(settings(shards=8, **{option: 8}), option) == 8
    with pytest.raises(ConfigError, match=f"{option}: must be an integer from 8"):
        settings(shards=8, **{option: 7})


def test_a_short_log_needs_no_other_option():
    assert settings(log_length=100).log_length == 100


def test_a_replay_fits_into_one_answer():
    # sync.lua writes the number of messages in two bytes, one of them for the position that is asked for.
    assert settings(log_length=10**7, replay_limit=60_000).replay_limit == 60_000
    with pytest.raises(ConfigError, match="from 0 to 60,000"):
        settings(log_length=10**7, replay_limit=60_001)


# --- checks that others use ---


@pytest.mark.parametrize("ttl", [None, 0.001, 1, 5.5, 315_360_000])
def test_a_time_to_live_in_range(ttl):
    check_ttl("ttl", ttl)


@pytest.mark.parametrize("ttl", [0, 0.0001, -5, True, "5", math.nan, math.inf, 315_360_001, 10**400])
def test_a_time_to_live_out_of_range(ttl):
    with pytest.raises(ConfigError, match=r"^local_ttl: must be None for no expiry, or seconds") as caught:
        check_ttl("local_ttl", ttl)

    assert caught.value.option == "local_ttl"


@pytest.mark.parametrize("name", ["a", "host-12-3f9c", "!~", "x" * 120])
def test_an_instance_id_in_range(name):
    check_instance_id(name)


@pytest.mark.parametrize("name", ["", "a b", "grün", "a\n", "x" * 121, "\x7f", None, 5, b"a"])
def test_an_instance_id_out_of_range(name):
    with pytest.raises(ConfigError, match=r"^instance_id: must be 1 to 120 printable ASCII") as caught:
        check_instance_id(name)

    assert caught.value.option == "instance_id"


def test_errors_belong_to_the_tree_and_are_value_errors():
    with pytest.raises(CoherentCacheError):
        settings(ttl=0)
    with pytest.raises(ValueError, match="ttl"):
        settings(ttl=0)
