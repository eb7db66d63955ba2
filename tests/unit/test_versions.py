"""Versions: ordered within a history, never across."""

from __future__ import annotations

import itertools
import operator
import pickle
from dataclasses import FrozenInstanceError

import pytest

from coherent_cache.errors import ConfigError
from coherent_cache.versions import EPOCH_BYTES, MAX_SEQ, Version

EPOCH = bytes(range(EPOCH_BYTES))
OTHER = bytes(reversed(range(EPOCH_BYTES)))
ORDER = [operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("compare", [*ORDER, operator.eq, operator.ne])
@pytest.mark.parametrize(("left", "right"), list(itertools.product([1, 2, 3], repeat=2)))
def test_versions_of_one_history_compare_as_their_numbers(compare, left, right):
    assert compare(Version(EPOCH, left), Version(bytes(EPOCH), right)) is compare(left, right)


@pytest.mark.parametrize("compare", ORDER)
def test_versions_of_different_histories_have_no_order(compare):
    with pytest.raises(TypeError, match="not supported"):
        compare(Version(EPOCH, 1), Version(OTHER, 2))
    assert Version(EPOCH, 1) != Version(OTHER, 1)


@pytest.mark.parametrize("compare", ORDER)
@pytest.mark.parametrize("other", [1, None, "1", (EPOCH, 2), b""])
def test_a_version_compares_with_nothing_else(compare, other):
    with pytest.raises(TypeError, match="not supported"):
        compare(Version(EPOCH, 1), other)
    with pytest.raises(TypeError, match="not supported"):
        compare(other, Version(EPOCH, 1))
    assert Version(EPOCH, 1) != other


def test_versions_are_sorted_by_number():
    assert [v.seq for v in sorted(Version(EPOCH, seq) for seq in (3, 10, 2))] == [2, 3, 10]


def test_versions_are_frozen_hashable_and_pickled():
    version = Version(EPOCH, 5)

    with pytest.raises(FrozenInstanceError):
        version.seq = 6
    assert {version: "found"}[Version(EPOCH, 5)] == "found"
    assert pickle.loads(pickle.dumps(version)) == version


@pytest.mark.parametrize("seq", [1, 42, 10**15, MAX_SEQ])
def test_a_version_is_written_and_read(seq):
    version = Version(EPOCH, seq)

    assert str(version) == f"000102030405060708090a0b0c0d0e0f:{seq}"
    assert Version.parse(str(version)) == version


def test_a_version_shows_what_parse_reads():
    assert repr(Version(EPOCH, 7)) == "Version('000102030405060708090a0b0c0d0e0f:7')"


def test_upper_case_is_read_too():
    assert Version.parse(f"{OTHER.hex().upper()}:7") == Version(OTHER, 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        EPOCH.hex(),
        f"{EPOCH.hex()}:",
        f"{EPOCH.hex()}:0",
        f"{EPOCH.hex()}:-1",
        f"{EPOCH.hex()}:{MAX_SEQ + 1}",
        f"{EPOCH.hex()}:{'9' * 5000}",
        f"{EPOCH.hex()}:1.0",
        f"{EPOCH.hex()}:1:2",
        f"{EPOCH.hex()}:x",
        f"{EPOCH.hex()[:-2]}:1",
        f"{EPOCH.hex()}00:1",
        f"{EPOCH.hex()[:-1]}g:1",
        ":1",
        "version",
    ],
)
def test_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="is no version; expected 32 hex digits, a colon and a number") as caught:
        Version.parse(text)

    assert caught.value.option == "version"


@pytest.mark.parametrize(
    "text",
    [
        f"{EPOCH.hex()}:+1",
        f"{EPOCH.hex()}: 1",
        f"{EPOCH.hex()}:1\n",
        f"{EPOCH.hex()}:1_0",
        f"{EPOCH.hex()}:٣",
        f" {EPOCH.hex()}:1",
        f"{EPOCH.hex(' ')}:1",
    ],
)
def test_what_int_and_fromhex_would_take_is_refused_too(text):
    with pytest.raises(ConfigError):
        Version.parse(text)
