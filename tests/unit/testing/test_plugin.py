"""The fixtures as users have them: each test here runs pytest in a folder of its own. No server is needed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from coherent_cache.remote import memory

pytest_plugins = ["pytester"]

PLUGIN = "coherent_cache.testing.plugin"


@pytest.fixture
def run(pytester):
    """Run pytest on a conftest.py and a test module, with the plugin be it installed or not."""

    def run(module, *args, conftest=""):
        pytester.makepyfile(module)
        pytester.makeconftest(conftest)
        return pytester.runpytest_subprocess("-p", PLUGIN, "--strict-markers", "-Werror", *args, timeout=60)

    return run


def test_memory(run):
    result = run(
        """
        import pytest
        from coherent_cache import CacheUnavailable
        from coherent_cache.remote import memory
        from coherent_cache.testing import assert_coherent

        seen = {}

        @pytest.mark.parametrize("number", [1, 2])
        def test_each_has_a_fresh_one(number, coherent_cache_memory, coherent_cache_namespace):
            assert coherent_cache_memory.state == "coherent"
            assert coherent_cache_memory.namespace == coherent_cache_namespace
            assert coherent_cache_memory.get("a") is None
            coherent_cache_memory.set("a", number)
            assert coherent_cache_namespace not in seen
            assert all(name not in memory._servers for name in seen)
            for cache in seen.values():
                with pytest.raises(CacheUnavailable, match="closed"):
                    cache.set("a", 1)
            seen[coherent_cache_namespace] = coherent_cache_memory

        def test_peers(coherent_cache_memory, coherent_cache_factory):
            peer = coherent_cache_factory(max_entries=7)
            assert peer.stats().max_entries == 7
            assert peer.instance_id != coherent_cache_memory.instance_id
            coherent_cache_memory.set("a", 1)
            assert peer.get("a") == 1
            peer.set("a", 2)
            assert_coherent([peer, coherent_cache_memory], ["a"])

        def test_another_server(coherent_cache_memory, coherent_cache_factory):
            coherent_cache_memory.set("a", 1)
            assert coherent_cache_factory("memory://another").get("a") is None

        def test_not_ready(coherent_cache_factory):
            assert coherent_cache_factory(ready=False).state == "connecting"

        def test_a_very_long_name_with_letters_that_no_namespace_takes__äöü(coherent_cache_namespace):
            assert len(coherent_cache_namespace) <= 64
        """
    )
    result.assert_outcomes(passed=6)


def test_options_come_from_fixture_markers_and_calls(run):
    result = run(
        """
        import pytest

        pytestmark = pytest.mark.coherent_cache(max_entries=2, ttl=20)

        def test_module(coherent_cache_memory):
            settings = coherent_cache_memory._settings
            assert (settings.max_entries, settings.ttl, settings.policy, settings.heartbeat) == (2, 20, "lfu", 0.1)

        @pytest.mark.coherent_cache(max_entries=3, heartbeat=0.2)
        def test_function(coherent_cache_memory, coherent_cache_factory):
            settings = coherent_cache_memory._settings
            assert (settings.max_entries, settings.ttl, settings.policy, settings.heartbeat) == (3, 20, "lfu", 0.2)
            assert coherent_cache_factory(max_entries=4)._settings.max_entries == 4

        @pytest.mark.coherent_cache(3)
        def test_by_position(coherent_cache_memory):
            pass

        @pytest.mark.coherent_cache(max_entries=0)
        def test_unusable(coherent_cache_memory):
            pass
        """,
        conftest="""
        import pytest

        @pytest.fixture
        def coherent_cache_options():
            return {"policy": "lfu", "max_entries": 1}
        """,
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines_random(["*takes options by name*", "*ConfigError: max_entries: *"])


def test_without_a_server_the_error_names_the_remedies(run):
    result = run(
        """
        def test_it(fleet):
            pass
        """,
        conftest="""
        from coherent_cache.remote import embedded

        embedded.find_redis_server = lambda: None
        """,
    )
    result.assert_outcomes(errors=1)
    for remedy in ("apt-get install redis-server", "--coherent-cache-url redis://", "override the fixture"):
        result.stdout.fnmatch_lines([f"*{remedy}*"])


def test_the_url_is_an_option_or_a_fixture(run):
    module = """
        def test_it(coherent_cache_url):
            assert coherent_cache_url == "redis://192.0.2.1/3"
        """
    run(module, "--coherent-cache-url", "redis://192.0.2.1/3").assert_outcomes(passed=1)
    override = """
        import pytest

        @pytest.fixture(scope="session")
        def coherent_cache_url():
            return "redis://192.0.2.1/3"
        """
    run(module, conftest=override).assert_outcomes(passed=1)


def test_a_url_that_no_proxy_can_stand_before(run):
    result = run(
        """
        def test_it(fault_proxy):
            pass
        """,
        "--coherent-cache-url",
        "memory://n",
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ConfigError: upstream: must be a URL like redis://*"])


def test_a_redis_that_is_not_there(run):
    result = run(
        """
        from coherent_cache.testing import plugin

        def test_it(coherent_cache_factory, coherent_cache_url, monkeypatch):
            monkeypatch.setattr(plugin, "READY_SECONDS", 0.2)
            coherent_cache_factory(coherent_cache_url)
        """,
        "--coherent-cache-url",
        "unix:///nowhere/at/all",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*CacheUnavailable: the cache at /nowhere/at/all/0 is not coherent after 0.2 s*"])


def test_named_again_it_is_loaded_once(run):
    """By ``-p``, by a conftest, and by its entry point where it is installed."""
    result = run("def test_it(coherent_cache_memory): pass", conftest=f"pytest_plugins = ['{PLUGIN}']")
    result.assert_outcomes(passed=1)


def test_the_entry_point_bears_the_name_of_the_module():
    """Else pytest would load it a second time where ``-p`` or a conftest names it, and fail."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}


def test_a_forgotten_server_begins_anew(coherent_cache_factory):
    one = coherent_cache_factory("memory://forgotten")
    one.set("a", 1)
    memory.forget_server("forgotten")
    memory.forget_server("forgotten")
    assert coherent_cache_factory("memory://forgotten").get("a") is None
    assert one.get("a") == 1
    memory.forget_server("forgotten")
