"""``stats`` and ``top``: rows, order, rates and remarks, without a Redis."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from coherent_cache import CacheUnavailable, CoherentCache
from coherent_cache.cli import audit, explain, fleet_table, top
from coherent_cache.cli.fleet_table import SORTS, document, matches, plain, remarks, rows_of
from coherent_cache.core.auditing import AuditReport, Offender
from coherent_cache.core.explaining import Explanation, Held, KeyOnInstance, Next
from coherent_cache.core.overview import FleetStatus
from coherent_cache.core.questions import InstanceReport, ShardFacts
from coherent_cache.core.stored import Presence, Snapshot, Stored

PATIENCE = 20.0

QUIET = InstanceReport(
    member="web-1:aa", instance="web-1", host="alpha", version="1.0", pid=1, state="coherent", horizon_age=0.5,
    uptime=100.0, interval=2.0, entries=10, bytes=5_000, hits=90, misses=10, invalidations=50, resyncs=1,
    propagation_p50=0.001, propagation_p99=0.02,
)  # fmt: skip
BUSY = replace(
    QUIET, member="web-2:bb", instance="web-2", host="beta", uptime=200_000.0, entries=3_000_000, bytes=2_500_000_000,
    hits=0, misses=1000, state="disconnected", errors=7, propagation_p50=None, propagation_p99=None,
)  # fmt: skip


def status(*instances, silent=(), exists=True):
    return FleetStatus(namespace="shop", server="here", exists=exists, instances=instances, silent=silent)


@pytest.fixture
def shop(run):
    """Run a command on a namespace with one live instance."""
    url = f"memory://{secrets.token_hex(4)}"
    with CoherentCache(url, namespace="shop", heartbeat=0.02, max_staleness=10.0, instance_id="web-1") as cache:
        assert cache.wait_ready(PATIENCE)
        cache.set("a", 1)
        until = time.monotonic() + PATIENCE
        while not cache.fleet().totals.entries:
            assert time.monotonic() < until
        yield lambda *argv: run(*argv, "--url", url, "--namespace", "shop")


def test_every_column_sorts_the_worst_first():
    def order(sort):
        return [row.report.instance for row in rows_of(status(QUIET, BUSY), sort=sort)]

    assert {sort for sort in SORTS if order(sort) == ["web-2", "web-1"]} == {
        "state", "entries", "bytes", "errors", "uptime",
    }  # fmt: skip
    assert rows_of(status(BUSY, QUIET))[0].report.instance == "web-1"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("web", True), ("alph", True), ("coher", True), ("web-*", True), ("*-2", False), ("x", False)],
)
def test_instances_are_chosen_by_what_they_are_called(pattern, expected):
    assert matches(QUIET, pattern) is expected
    assert (len(rows_of(status(QUIET), pattern=pattern)) == 1) is expected


def test_rates_are_counted_from_an_earlier_report():
    later = replace(QUIET, uptime=102.0, hits=130, misses=30, invalidations=54)
    (row,) = rows_of(status(later), before=[QUIET])
    assert (row.reads, row.invalidations) == (30.0, 2.0)
    (unknown,) = rows_of(status(later), before=[later])
    assert (unknown.reads, unknown.invalidations) == (None, None)
    assert document(status(later), [row])["totals"]["reads_per_second"] == 30.0


def test_the_table_says_it_in_columns_of_one_width():
    heading, quiet, busy, total = plain(status(QUIET, BUSY), rows_of(status(QUIET, BUSY)))

    assert heading.split()[:4] == ["instance", "state", "horizon", "entries"]
    assert quiet.split() == [
        "web-1", "coherent", "0.50s", "10", "5.0kB", "90.0%", "-", "-", "1.0", "20.0", "1", "0", "0", "1m40s", "1.0",
    ]  # fmt: skip
    assert busy.split()[3:5] == ["3,000,000", "2.5GB"]
    assert "2d07h" in busy
    assert total.startswith("2 instances  1 coherent/1 disconnected")
    assert heading.index("state") == quiet.index("coherent") == busy.index("disconnected")


@pytest.mark.parametrize(("seconds", "text"), [(float("inf"), "-"), (None, "-"), (0.123, "0.12s"), (250.0, "250s")])
def test_seconds(seconds, text):
    assert fleet_table._seconds(seconds) == text


def test_what_is_not_in_the_table_is_said():
    assert remarks(status(QUIET)) == []
    assert "nothing is there" in remarks(status(exists=False))[0]
    nobody, more = remarks(status(silent=tuple(f"m{number}" for number in range(7))))
    assert "no instance reports" in nobody
    assert more.startswith("7 more")
    assert more.endswith("m4 ...")


def test_stats(shop):
    code, out, err = shop("stats")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("shop at memory://")
    assert out.splitlines()[2].split()[:2] == ["web-1", "coherent"]

    code, out, _ = shop("stats", "--json", "--filter", "nobody")
    assert code == 0
    assert json.loads(out)["totals"]["instances"] == 0
    assert json.loads(shop("stats", "--json")[1])["totals"]["entries"] == 1


@pytest.mark.parametrize("command", [("stats",), ("top", "--once", "--every", "0.1")])
def test_a_namespace_that_nobody_uses_is_said_to_be_none(run, command):
    code, _, err = run(*command, "--url", f"memory://{secrets.token_hex(4)}", "--namespace", "shpo")
    assert code == 1
    assert err.startswith("coherent-cache: nothing is there: no cache has ever used namespace 'shpo'")


@pytest.mark.parametrize("command", ["stats", "top", "audit"])
def test_without_redis(run, command):
    code, out, err = run(command, "--url", "redis://127.0.0.1:1", "--namespace", "shop")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--every", "0"), ("--every", "nan"), ("--sort", "nothing")])
def test_top_wants_what_it_can_do(shop, arguments):
    assert shop("top", *arguments)[0] == 2


def test_top_once(shop):
    code, out, err = shop("top", "--once", "--every", "0.1")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line] == ["shop", "instance", "web-1", "1"]


@pytest.fixture
def looks(monkeypatch):
    """Let ``top`` look a few times, then be interrupted; what happens before each look is the test's."""

    def script(*actions):
        steps = iter(actions)

        def sleep(_):
            action = next(steps, None)
            if action is None:
                raise KeyboardInterrupt
            action()

        # Not the sleep of everybody: the cache's thread sleeps as well.
        monkeypatch.setattr(top, "time", SimpleNamespace(sleep=sleep, time=time.time, strftime=time.strftime))

    return script


def test_top_for_programs_is_a_line_per_look(shop, looks):
    looks(lambda: None, lambda: None)
    code, out, _ = shop("top", "--json")
    assert code == 130
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["instances"][0]["instance"] for line in lines] == ["web-1"] * 3
    assert [line["problem"] for line in lines] == [None] * 3


def test_top_in_a_pipe_goes_on_when_redis_does_not_answer(shop, looks, monkeypatch):
    def away(_):
        raise CacheUnavailable("gone")

    looks(lambda: monkeypatch.setattr(CoherentCache, "fleet", away))
    code, out, err = shop("top")
    assert code == 130
    assert out.count("web-1") == 2
    assert "the table is old: gone" in err


def test_the_picture_for_terminals():
    console = Console(file=StringIO(), width=160, force_terminal=False)
    console.print(top._picture(status(QUIET, BUSY), rows_of(status(QUIET, BUSY)), ["something to say"]))
    text = console.file.getvalue()
    assert text.startswith("shop at here")
    assert text.index("web-1") < text.index("web-2") < text.index("2 instances") < text.index("something to say")


def test_top_draws_on_terminals(shop, looks, monkeypatch):
    drawn = []

    class Screen:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            drawn.append("restored")

        def update(self, picture, *, refresh):
            drawn.append(picture)

    monkeypatch.setattr(top, "_screen", Screen)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    looks(lambda: None)
    assert shop("top")[0] == 130
    assert len(drawn) == 3
    assert drawn[-1] == "restored"


def test_a_look_that_finds_an_old_report_counts_from_the_one_before():
    looks = top.Looks()
    second, third = replace(QUIET, uptime=102.0), replace(QUIET, uptime=104.0)
    assert looks.before([QUIET]) == []
    assert looks.before([QUIET]) == []
    assert looks.before([second, BUSY]) == [QUIET]
    assert looks.before([second]) == [QUIET]
    assert looks.before([third]) == [second]
    assert looks.before([]) == []


# -- audit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sample", "0"), ("--sample", "1001"), ("--every", "-1"), ("--count", "2"), ("--every", "1", "--count", "0"),
        ("--keys-file", "/nowhere/keys"), ("--key", ""),
    ],
)  # fmt: skip
def test_audit_wants_what_it_can_do(shop, arguments):
    code, out, err = shop("audit", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_file_without_keys_is_no_choice(shop, tmp_path):
    (tmp_path / "keys").write_text("\n")
    assert shop("audit", "--keys-file", str(tmp_path / "keys"))[0] == 2


def test_audit(shop):
    code, out, err = shop("audit")
    assert (code, err) == (0, "")
    first, *rest, verdict = out.splitlines()
    assert first.startswith("shop: 1 of 1 instances answered; 1 entries of 1 keys compared")
    assert [line.split()[-3:] for line in rest[:3]] == [["none", "of", "1"]] * 3
    assert verdict == "coherent: nothing was outdated for 11.10 s, which the options allow"


OFFENDER = Offender(
    "web-1", "web-1:aa", "a", 0, 5, 9, "outdated", 6.0,
    ({"seconds_ago": 1.25, "kind": "set", "seq": 9, "origin": "web-2", "applied": False},),
)  # fmt: skip


def test_an_audit_that_found_something_says_what():
    report = AuditReport(
        namespace="shop", asked=3, answered=2, keys=10, checked=1000, behind=7, not_served=1, undecided=0, gone=2,
        stale={0.1: 10, 1.0: 2, 10.0: 2}, bound=5.55, beyond=2,
        offenders=(OFFENDER, replace(OFFENDER, least=0, recent=())), seconds=10.0,
    )  # fmt: skip
    lines = audit._lines(report)

    assert lines[1].endswith("99.0000 %   2.0 nines, 10 entries")
    assert "  web-1 holds 'a' at version 5; version 9 or newer is due" in lines
    assert "    1.2 s ago: set at version 9 by web-2, which changed nothing there" in lines
    assert "  web-1 holds 'a' at version 5; Redis does not have that version" in lines
    assert lines[-2] == "    it has had no message about this key lately"
    assert lines[-1] == "NOT COHERENT: 2 entries were outdated for more than 5.55 s"


# -- explain -----------------------------------------------------------------------------------------------------------


def test_explain(shop):
    code, out, err = shop("explain", "a")
    assert (code, err) == (0, "")
    heading, redis, *_, last = out.splitlines()
    assert heading.startswith("a in shop at memory://")
    assert redis.startswith("Redis has version 1, for ")
    assert "set at version 1 by web-1" in last


def test_explain_says_what_is_known(shop):
    message = {
        "seconds_ago": 1.0, "kind": "tag", "seq": 3, "origin": "web-2", "certain": False, "names": 2, "applied": True,
    }  # fmt: skip
    there = Stored("a", Presence.VALUE, 5, 5, 9.0)
    facts = ShardFacts(0, "coherent", True, b"e", 5, 0.1, "run", 5.0)
    instance = KeyOnInstance(
        "web-1", "web-1:aa", facts, Held(5, 9.0, ("t",)), Held(4, 90.0, ()), 2, False, (message,), Next.LOCAL, "why"
    )
    explanation = Explanation(
        namespace="shop", server="here", key="a", shard=0, snapshot=Snapshot(0, b"e", 7, 2, 0, "run", (there,)),
        refresh=3.0, log=(), instances=(instance,), unanswered=("web-9:bb",),
    )  # fmt: skip

    assert explain._lines(explanation) == [
        "a in shop at here, shard 0 at version 7, cleared at version 2",
        "Redis has version 5, for 9.0 s more",
        "  somebody is refreshing it, with a lease for 3.0 s more",
        "  the log has no message about it",
        "web-1 (coherent): the next read is served from there: why",
        "  tags: t",
        "  a last known value is kept for fail_safe, version 4",
        "  2 commands are under way that may bring a value",
        "    1.0 s ago: tag at version 3 by web-2 (of 2 names; perhaps not of this key)",
        "not answered: web-9:bb",
    ]
