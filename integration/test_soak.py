"""The long soak, with every fault there is, and the checker's own tests: it finds what it is there to find."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from integration.soak.checker import check
from integration.soak.faults import ALL
from integration.soak.plot import make_plot
from integration.soak.records import (
    AMBIGUOUS,
    CONFLICT,
    KILL,
    LOCAL,
    OK,
    REDIS,
    REFUSED,
    SET,
    TOUCH,
    Fault,
    History,
    Loss,
    Process,
    Read,
    Write,
)
from integration.soak.report import hit_rate, make_report, totals
from integration.soak.run import OVERTIME, soak

SECONDS = float(os.environ.get("COHERENT_CACHE_SOAK_SECONDS", "75"))
SEED = os.environ.get("COHERENT_CACHE_SOAK_SEED")
STREAM = ("lose-messages", "small-buffer", "trim-log", "flushall", "garbage", "pause-worker")
END = 150.0  # seconds that the end and the checking may take


@pytest.mark.slow
@pytest.mark.timeout(OVERTIME * SECONDS + END)
def test_no_fault_breaks_the_contract(tmp_path):
    history, seed = soak(seconds=SECONDS, seed=SEED, folder=tmp_path)
    findings = check(history)
    report = make_report(history, findings, seed=seed)
    print(report)
    assert not findings.violations, report
    # A soak that puts nothing to the test proves nothing.
    effects: Counter[str] = Counter()
    for fault in history.faults:
        effects[fault.name] += fault.effect
    assert not [name for name in ALL if not effects[name]], report
    assert len(history.losses) >= 5, report
    assert hit_rate(history) > 0.3, report
    assert findings.staleness, "no read was ever outdated: nobody was behind"
    assert findings.checked["entries in the end"] > 20, report
    assert findings.checked["acknowledged writes"] > 10, report
    outcomes = Counter(write.outcome for write in history.writes)
    assert min(outcomes[each] for each in (OK, CONFLICT, REFUSED, AMBIGUOUS)) > 0, report
    sums = totals(history)
    assert min(sums[each] for each in ("resyncs", "replays", "flushes", "fills_refused", "expirations")) > 0, report
    assert make_plot(history, findings, seed=seed).startswith("<svg")


@pytest.mark.slow
@pytest.mark.timeout(OVERTIME * SECONDS + END)
def test_no_fault_breaks_the_contract_of_marks():
    """The other transport: RESP2, heartbeats published by script. With the faults that concern the stream."""
    faults = [name for name in ALL if "subscriber" in name or "fail-over" in name or name in STREAM]
    history, seed = soak(seconds=SECONDS / 3, seed=SEED, faults=faults, query="?protocol=2")
    findings = check(history)
    report = make_report(history, findings, seed=seed)
    assert not findings.violations, report
    assert {fault.name for fault in history.faults if fault.effect} == set(faults), report
    assert hit_rate(history) > 0.3, report


# -- the checker -------------------------------------------------------------------------------------------------------

A, B = "epoch-a", "epoch-b"
ONE, TWO = "server-1", "server-2"


def write(
    seq,
    ended,
    *,
    process="p",
    kind=SET,
    began=None,
    outcome=OK,
    stamp=None,
    ttl=3600.0,
    condition=None,
    epoch=A,
    server=ONE,
):
    return Write(
        process, kind, kind, ["k"], [stamp or f"{process}/{seq}"] if kind == SET else [], ttl,
        ended - 0.1 if began is None else began, ended, outcome, epoch, seq, server, condition,
    )  # fmt: skip


def read(stamp, seq, began, *, process="q", age=0.2, epoch=A, server=ONE, ended=None, key="k"):
    ended = began + 0.01 if ended is None else ended
    return Read(process, "get_entry", key, stamp, epoch, seq, LOCAL, age, server, "", 0, began, ended)


def value(stamp, began, **options):
    """A local read that tells neither version nor age."""
    return read(stamp, 0, began, **options)._replace(operation="get", epoch="", age=None)


def remote(stamp, seq, clock, began, *, process="q", epoch=A, server=ONE):
    """A read from Redis, answered together with the clock; of an absence if there is no stamp."""
    return Read(
        process, "get_entry", "k", stamp, epoch if stamp else "", seq if stamp else 0, REDIS,
        0.0 if stamp else None, server, epoch, clock, began, began + 0.01,
    )  # fmt: skip


def history(writes, reads, *, losses=(), epochs=(A,), servers=({ONE},), faults=(), connected=(), **fields):
    processes = {name: Process() for name in ("p", "q", "r")}
    for name, moment, server in connected:
        processes[name].events.append((moment, "subscriber_connected", {"server": server}))
    return History(
        1.0, list(writes), list(reads), processes, list(losses), list(epochs), [set(each) for each in servers],
        list(faults), **fields,
    )  # fmt: skip


def rules(*arguments, **options):
    return [violation.rule for violation in check(history(*arguments, **options)).violations]


HEALTHY = [write(1, 10.0), write(2, 20.0), write(3, 30.0, kind=KILL), write(4, 40.0), write(5, 50.0, kind=TOUCH)]
REPEATED = write(9, 60.0)
CASES = {
    "healthy": ([read("p/2", 2, 30.1), remote(None, 0, 3, 30.3), read("p/4", 4, 40.1), read("p/4", 5, 50.1)], []),
    "stale-within-its-age": ([read("p/1", 1, 20.5, age=0.6)], []),
    "stale-beyond-its-age": ([read("p/1", 1, 20.7, age=0.6)], ["stale"]),
    "stale-beyond-max-staleness": ([read("p/1", 1, 21.1, age=5.0)], ["stale"]),
    "deleted-before-its-horizon": ([read("p/2", 2, 30.7, age=0.6)], ["stale"]),
    "touched-before-its-horizon": ([read("p/4", 4, 50.7, age=0.6)], ["stale"]),
    "a-value-without-version-within": ([value("p/1", 20.9)], []),
    "a-value-without-version-beyond": ([value("p/1", 21.1)], ["stale"]),
    "a-touched-value-is-current": ([value("p/4", 59.0)], []),
    "stale-from-redis": ([remote("p/1", 1, 2, 19.9)], ["redis"]),
    "redis-goes-back": ([remote("p/1", 1, 1, 20.1)], ["redis", "order"]),
    "own-write-not-read": ([read("p/1", 1, 20.1, process="p")], ["own-write"]),
    "own-delete-not-read": ([read("p/2", 2, 30.1, process="p")], ["own-write"]),
    "backwards": ([read("p/2", 2, 20.05), read("p/1", 1, 20.15)], ["backwards"]),
    "backwards-without-versions": ([value("p/2", 20.05), value("p/1", 20.15)], ["backwards"]),
    "overlapping-reads-have-no-order": ([read("p/2", 2, 20.05, ended=20.2), read("p/1", 1, 20.15)], []),
    "other-processes-have-no-order": ([read("p/2", 2, 20.05), read("p/1", 1, 20.15, process="r")], []),
    "risen-from-the-dead": ([remote(None, 0, 3, 30.02), read("p/2", 2, 30.1)], ["backwards"]),
    "lost": ([remote(None, 0, 2, 21.0)], ["lost"]),
    "absent-after-its-delete": ([remote(None, 0, 3, 29.95)], []),
    "absent-before-the-first-write": ([remote(None, 0, 0, 9.85)], []),
    "nobody-wrote-it": ([read("x/1", 1, 20.0)], ["unknown"]),
    "of-another-key": ([read("of j: p/2", 2, 20.1)], ["unknown"]),
    "with-another-version": ([read("p/2", 1, 20.05)], ["version"]),
    "with-the-version-of-no-touch": ([read("p/2", 4, 40.05)], ["version"]),
    "with-a-version-that-is-none": ([read("p/2", 7, 20.05)], ["version"]),
    "of-a-history-that-nobody-knows": ([remote("p/2", 2, 2, 20.1, epoch="?")], ["version", "unknown"]),
}  # fmt: skip


@pytest.mark.parametrize(("reads", "expected"), [pytest.param(*case, id=name) for name, case in CASES.items()])
def test_the_checker_finds_what_is_planted_in_reads(reads, expected):
    assert rules(HEALTHY, reads) == expected


def test_nothing_older_is_read_after_an_acknowledged_write():
    acknowledged = write(2, 20.0)
    acknowledged.acknowledged = True
    writes = [write(1, 10.0), acknowledged]
    assert rules(writes, [read("p/1", 1, 19.95, age=0.6), read("p/2", 2, 20.1)]) == []
    assert rules(writes, [read("p/1", 1, 20.1, age=0.6)]) == ["acknowledged"]
    assert rules(writes, [value("p/1", 20.1)]) == ["acknowledged"]


def test_a_refused_write_is_never_seen():
    refused = write(0, 15.0, stamp="p/x", outcome=REFUSED, epoch="")
    assert rules([*HEALTHY, refused], [read("p/x", 2, 16.0)]) == ["refused"]
    lost = write(1, 15.0, stamp="p/x", outcome=CONFLICT, condition=(A, 7))
    assert rules([*HEALTHY, lost], [read("p/x", 2, 16.0)]) == ["refused"]


def test_a_value_is_not_seen_after_its_time():
    brief = [write(1, 10.0, ttl=1.0)]
    assert rules(brief, [read("p/1", 1, 10.9)]) == []
    assert rules(brief, [read("p/1", 1, 11.2)]) == ["expired"]
    assert rules(brief, [remote(None, 0, 1, 11.0)]) == []
    assert rules(brief, [remote(None, 0, 1, 10.5)]) == ["lost"]


def test_the_order_of_writes():
    assert rules([write(2, 10.0), write(1, 20.0)], []) == ["order"]
    assert rules([write(2, 10.0), write(1, 10.05)], []) == []  # at the same time
    assert rules([write(1, 10.0), write(1, 20.0, process="q")], []) == ["order"]


def test_compare_and_set_has_one_winner():
    first = write(1, 10.0)
    won, also = write(2, 20.0, process="q", condition=(A, 1)), write(3, 20.05, process="r", condition=(A, 1))
    lost = write(2, 20.05, process="r", condition=(A, 1), outcome=CONFLICT)
    assert rules([first, won], []) == []
    assert rules([first, won, lost], []) == []
    assert rules([first, won, also], []) == ["conflict"]
    assert rules([first, lost], []) == ["conflict"]  # nobody was faster
    assert rules([first, write(2, 20.0, condition=("", 0))], []) == ["conflict"]  # it was there
    assert rules([first, write(2, 15.0, kind=KILL), write(3, 20.0, condition=("", 0))], []) == []
    assert rules([write(2, 15.0, kind=KILL), write(2, 20.0, condition=("", 0), outcome=CONFLICT)], []) == ["conflict"]


def doubtful(kind, began, *, process="r", ended=None):
    return write(0, began + 0.5 if ended is None else ended, kind=kind, began=began, outcome=AMBIGUOUS, epoch="",
                 stamp="r/x", process=process, server=None)  # fmt: skip


def test_an_unknown_outcome_excuses_what_it_may_have_done():
    absent = [remote(None, 0, 2, 21.0)]
    assert rules([*HEALTHY[:2], doubtful(KILL, 20.2)], absent) == []
    assert rules([*HEALTHY[:2], doubtful(KILL, 22.0)], absent) == ["lost"]  # it came later
    assert rules([*HEALTHY[:2], doubtful(KILL, 15.0)], absent) == ["lost"]  # it was over
    held_up = Fault("hold-worker", 15.2, 19.0, "r", 1, "")
    assert rules([*HEALTHY[:2], doubtful(KILL, 15.0)], absent, faults=[held_up]) == []
    # Seen once it has a version, and then may not vanish any more.
    seen = remote("r/x", 3, 3, 21.0)
    assert rules([*HEALTHY[:2], doubtful(SET, 20.5)], [seen]) == []
    assert rules([*HEALTHY[:2], doubtful(SET, 20.5)], [seen, read("p/2", 2, 21.1)]) == ["backwards"]
    assert rules([*HEALTHY[:2], doubtful(SET, 20.5)], [seen, remote(None, 0, 3, 25.0, process="p")]) == ["lost"]


def test_a_flush_excuses_an_absence_and_nothing_else():
    flush = {"losses": [Loss("flushall", 25.0, 25.1)], "epochs": (A, B), "servers": ({ONE}, {ONE})}
    two = HEALTHY[:2]
    new = write(1, 26.0, process="p", epoch=B, stamp="p/new")
    assert rules(two, [remote(None, 0, 0, 25.2, epoch=B)], **flush) == []
    assert rules(two, [remote(None, 0, 0, 25.05, epoch="")], **flush) == []  # no clock yet
    assert rules(two, [remote(None, 0, 2, 24.0)], **flush) == ["lost"]
    assert rules(two, [read("p/2", 2, 25.2, age=0.3)], **flush) == []
    assert rules(two, [read("p/2", 2, 25.5, age=0.3)], **flush) == ["stale"]  # forgotten by Redis, not by the cache
    assert rules([*two, new], [read("p/2", 2, 26.1, age=0.9)], **flush) == ["stale"]
    assert rules([*two, new], [read("p/new", 1, 26.1, epoch=B), read("p/2", 2, 26.12, age=5)], **flush) == [
        "stale", "backwards"
    ]  # fmt: skip
    assert rules(two, [read("p/2", 2, 25.2), read("p/1", 1, 25.25, age=0.9)], **flush) == ["stale", "backwards"]
    assert rules([*two, new], [remote("p/2", 2, 2, 26.2)], **flush) == ["redis", "order"]
    assert rules([*two, write(2, 26.0, process="q", epoch=B, condition=(A, 2))], [], **flush) == ["conflict"]


FORK = Loss("fail-over", 25.0, 25.5, 1, ONE)
FAIL_OVER = {"losses": [FORK], "epochs": (A, A), "servers": ({ONE}, {TWO})}


def test_a_fail_over_excuses_what_it_discarded():
    two = HEALTHY[:2]  # version 1 survives, version 2 does not
    back = read("p/1", 1, 25.6, server=TWO)
    assert rules(two, [back], **FAIL_OVER) == []
    assert rules(two, [read("p/2", 2, 24.0), back], **FAIL_OVER) == []  # the value may go back once
    assert rules(two, [back._replace(process="p")], **FAIL_OVER) == []
    assert rules(two, [back._replace(began=24.0, ended=24.1, server=ONE)], **FAIL_OVER) == ["stale"]  # too early
    assert rules(two, [read("p/2", 2, 25.8, age=0.5)], **FAIL_OVER) == []
    assert rules(two, [read("p/2", 2, 26.2, age=0.5)], **FAIL_OVER) == ["stale"]  # it was discarded
    assert rules(two, [remote(None, 0, 1, 25.6, server=TWO)], **FAIL_OVER) == ["lost"]  # version 1 survived
    # The same number is given again.
    again = write(2, 26.0, process="r", stamp="r/again", server=TWO)
    assert rules([*two, again], [remote("r/again", 2, 2, 26.1, server=TWO)], **FAIL_OVER) == []
    assert rules([*two, again], [read("p/2", 2, 27.2, server=TWO)], **FAIL_OVER) == ["stale"]
    there_and_back = [read("r/again", 2, 26.1, server=TWO), read("p/1", 1, 26.2, server=TWO)]
    assert rules([*two, again], there_and_back, **FAIL_OVER) == ["backwards"]


def test_a_write_of_unknown_outcome_that_a_fail_over_kept():
    fork = {**FAIL_OVER, "losses": [FORK._replace(fork=3)]}
    writes = [write(1, 10.0), doubtful(SET, 15.0), write(3, 20.0)]
    # First seen after the fail-over, with a version from before the fork: made before what replaced it.
    old = read("r/x", 2, 25.6, age=0.9, server=TWO)
    assert rules(writes, [old, remote("p/3", 3, 3, 25.7, server=TWO)], **fork) == ["stale"]
    assert rules(writes, [remote("p/3", 3, 3, 25.6, server=TWO), old._replace(began=25.7)], **fork) == [
        "stale", "backwards"
    ]  # fmt: skip


def test_an_old_primary_excuses_those_who_have_not_left_it():
    two = HEALTHY[:2]
    new = write(2, 25.3, process="p", stamp="p/new", server=TWO)
    found = {"connected": [("q", 26.0, TWO)], **FAIL_OVER}
    assert rules([*two, new], [read("p/2", 2, 25.6, age=0.2)], **found) == []
    assert rules([*two, new], [read("p/2", 2, 25.9, age=0.2)], **found) == ["stale"]  # cut off since 25.5
    assert rules([*two, new], [remote("p/2", 2, 2, 25.9)], **found) == []
    assert rules([*two, new], [remote("p/2", 2, 2, 26.1)], **found) == ["redis", "order"]  # it knows better
    there_and_back = [remote("p/new", 2, 2, 25.7, server=TWO), remote("p/2", 2, 2, 25.8)]
    assert rules([*two, new], there_and_back, **found) == ["backwards", "order"]
    assert rules([*two, write(3, 25.9, process="q")], [], **found) == []
    assert rules([*two, write(3, 26.3, process="q")], [], **found) == ["order", "bound"]


def test_convergence():
    entry = [A, 2, "p/2"]
    assert rules(HEALTHY[:2], [], held={"q": {"k": entry}}, remote={"k": entry}) == []
    assert rules(HEALTHY[:2], [], held={"q": {"k": entry}}, remote={"k": [A, 3, "p/3"]}) == ["convergence"]
    assert rules(HEALTHY[:2], [], held={"q": {"k": entry}}, remote={}) == ["convergence"]


def test_the_report_names_what_was_found():
    made = history(HEALTHY, [read("p/1", 1, 20.7, age=0.6), read("p/1", 1, 20.5, age=0.9)], began=0.0, ended=60.0)
    findings = check(made)
    text = make_report(made, findings, seed="s-1")
    assert "1 violations" in text.splitlines()[0]
    assert "seed s-1" in text
    assert "[stale] k: (0, 1) though (0, 2) was acknowledged 0.700 s before (0.600 allowed)" in text
    assert "worst 0.500 s" in text  # within its bound
    assert "[stale]" not in make_plot(made, findings, seed="s-1")
