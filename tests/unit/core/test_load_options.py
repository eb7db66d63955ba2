"""Options of a load: each has a range, and an error names the option and the remedy."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

from coherent_cache.core.load_options import LoadContext, LoadOptions, with_context
from coherent_cache.errors import ConfigError

# option: (values that are taken, values that are refused)
RANGES = {
    "ttl": ([None, 0.001, 300], [0, -1, "5", True, math.nan]),
    "tags": ([(), ["a"], ("a", "b")], ["a", [""], 5, None]),
    "jitter": ([None, 0.001, 0.5, 0.999], [0, 1, -0.1, "0.1", True, math.nan]),
    "negative_ttl": ([None, 0.001, 5], [0, -1, "5", True]),
    "fail_safe": ([None, 0.001, 86_400], [0, -1, "5", True, math.inf]),
    "throttle": ([0, 0.5, 60], [-1, "1", None, True]),
    "error_ttl": ([None, 0.001, 5], [0, -1, "5", True]),
    "hard_timeout": ([None, 0, 0.5], [-1, "1", True]),
    "refresh_ahead": ([None, 0.001, 0.999], [0, 1, 2, "0.5", True]),
}


def options(**given):
    return LoadOptions(**({"ttl": 300.0} | given))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (good, _) in RANGES.items() for value in good])
def test_what_is_in_range_is_taken(name, value):
    taken = getattr(options(**{name: value}), name)
    assert taken == (tuple(value) if name == "tags" else value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, bad) in RANGES.items() for value in bad])
def test_what_is_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError) as caught:
        options(**{name: value})
    assert caught.value.option == name


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"soft_timeout": 1}, "soft_timeout: needs fail_safe"),
        ({"soft_timeout": 2, "hard_timeout": 1, "fail_safe": 1}, "soft_timeout: 2 s must not exceed hard_timeout=1"),
        ({"refresh_ahead": 0.5, "ttl": None}, "refresh_ahead: .*give a ttl"),
    ],
)
def test_options_that_need_each_other(given, remedy):
    with pytest.raises(ConfigError, match=remedy):
        options(**given)


def test_what_follows_from_them():
    assert not options().timed
    assert options(hard_timeout=1).timed
    assert options(soft_timeout=0, fail_safe=1).timed
    assert options().refresh_window == 0
    assert options(refresh_ahead=0.2, ttl=50).refresh_window == 10
    with pytest.raises(FrozenInstanceError):
        options().ttl = 5


def test_a_loader_is_called_with_or_without_its_context():
    context = LoadContext("k", 5.0, ())
    assert with_context(lambda given: given)(context) is context
    assert with_context(lambda: 7)(context) == 7
