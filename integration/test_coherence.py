"""The headline: many processes write and read the same keys, and none of them breaks the contract."""

from __future__ import annotations

import os
import time

import pytest

from coherent_cache import CoherentCache
from integration.coherence_workers import KEYS, QUIET, give_signal
from integration.history import KILL, SET, TOUCH, Read, Write, dump, load, violations

SOAK_SECONDS = float(os.environ.get("COHERENT_CACHE_SOAK_SECONDS", "30"))
SHORT_SECONDS = SOAK_SECONDS / 10
START_SECONDS = 60.0  # until the processes must be there
# An answer may take half of the bound before its connection is given up: longer than a loaded machine stands still.
HEARTBEAT, MAX_STALENESS = 0.1, 3.0


class Run:
    """One soak: starts the processes, waits for the end, reads what they left."""

    def __init__(self, processes, server, namespace, folder, *, count, threads, seconds, query="", **options):
        self.namespace, self.server, self.folder = namespace, server, folder
        self.options = options
        self.workers = [
            processes.spawn(
                "soak", index=index, count=count, url=server.url + query, threads=threads,
                seed=int(namespace[-8:], 16), folder=str(folder),
                options={"namespace": namespace, "heartbeat": HEARTBEAT, "max_staleness": MAX_STALENESS, **options},
            )
            for index in range(count)
        ]  # fmt: skip
        for worker in self.workers:
            worker.wait_message(lambda message: "ready" in message, timeout=START_SECONDS)
        self.until = time.monotonic() + seconds
        give_signal(folder, "go", str(self.until))

    def finish(self):
        for worker in self.workers:
            worker.wait_message(lambda message: "stopped" in message, timeout=self.until - time.monotonic() + QUIET)
        give_signal(self.folder, "quiet")
        self.results = [worker.result(timeout=QUIET + 30) for worker in self.workers]
        self.writes, self.reads = load(self.folder / f"history-{index}" for index in range(len(self.workers)))
        print(
            f"{len(self.writes)} writes, {len(self.reads)} reads,",
            "hit rates", [round(result["stats"]["hit_rate"], 2) for result in self.results],
            "held", [len(result["held"]) for result in self.results],
            "resyncs", [result["stats"]["resyncs"] for result in self.results],
            "replays", [result["stats"]["replays"] for result in self.results],
            "flushes", [result["stats"]["flushes"] for result in self.results],
            "refused fills", [result["stats"]["fills_refused"] for result in self.results],
        )  # fmt: skip

    def assert_contract(self):
        faults = violations(self.writes, self.reads, max_staleness=MAX_STALENESS)
        assert not faults, f"{len(faults)} violations, seed {self.namespace}:\n" + "\n".join(faults[:10])

    def assert_convergence(self):
        """Every local entry of every process is what Redis holds now."""
        different = []
        options = self.options | {"local_enabled": False}
        with CoherentCache(self.server.url, namespace=self.namespace, **options) as remote:
            for key in KEYS:
                entry = remote.get_entry(key)
                redis = None if entry is None else [entry.version.epoch.hex(), entry.version.seq, entry.value]
                different += [
                    f"{key}: process {process} holds {held}, Redis {redis}"
                    for process, result in enumerate(self.results)
                    if (held := result["held"].get(key)) is not None and held != redis
                ]
        assert not different, "\n".join(different)

    def assert_meaningful(self, *, hit_rate, held=True):
        """The soak has put to the test what it is about."""
        for result in self.results:
            assert result["stats"]["hit_rate"] > hit_rate, result["stats"]
        assert not held or any(result["held"] for result in self.results), "empty local tiers agree with anything"
        kinds = {kind: sum(write.kind == kind for write in self.writes) for kind in (SET, TOUCH, KILL)}
        assert min(kinds.values()) > 5, kinds
        writers = {write.process for write in self.writes}
        assert writers == set(range(len(self.workers)))


@pytest.mark.slow
@pytest.mark.timeout(SOAK_SECONDS + 120)
def test_four_processes_write_and_read_the_same_keys(redis_server, namespace, processes, tmp_path):
    run = Run(processes, redis_server, namespace, tmp_path, count=4, threads=1, seconds=SOAK_SECONDS)
    run.finish()
    run.assert_contract()
    run.assert_convergence()
    run.assert_meaningful(hit_rate=0.3)
    for result in run.results:
        assert result["failures"] == 0
        # Nobody was cut off: messages made it coherent, not the heartbeats' resyncs.
        assert result["stats"]["replays"] < result["stats"]["invalidations_received"] / 10, result["stats"]
        assert result["stats"]["flushes"] == 0, result["stats"]


@pytest.mark.timeout(SOAK_SECONDS + 120)
@pytest.mark.parametrize(
    ("threads", "query", "options"),
    [
        pytest.param(4, "", {}, id="many-threads"),
        pytest.param(2, "", {"shards": 4}, id="four-shards"),
        pytest.param(2, "?protocol=2", {"copy_values": False}, id="marks"),
        pytest.param(2, "", {"max_entries": 20, "policy": "lfu"}, id="small-tier"),
    ],
)
def test_variants_of_the_soak(redis_server, namespace, processes, tmp_path, threads, query, options):
    run = Run(
        processes, redis_server, namespace, tmp_path,
        count=3, threads=threads, seconds=SHORT_SECONDS, query=query, **options,
    )  # fmt: skip
    run.finish()
    run.assert_contract()
    run.assert_convergence()
    run.assert_meaningful(hit_rate=0.2)


@pytest.mark.timeout(SOAK_SECONDS + 120)
@pytest.mark.parametrize(
    ("query", "options", "outcome"),
    [
        pytest.param("", {}, "replays", id="resp3-replays"),
        pytest.param("?protocol=2", {"log_length": 5, "replay_limit": 1}, "flushes", id="marks-flushes"),
    ],
)
def test_a_soak_with_subscribers_cut_all_the_time(
    redis_server, namespace, processes, tmp_path, query, options, outcome
):
    """I4: whoever is cut off for a moment misses messages; nobody serves what they would have evicted."""
    run = Run(
        processes, redis_server, namespace, tmp_path,
        count=3, threads=2, seconds=SHORT_SECONDS, query=query, **options,
    )  # fmt: skip
    cuts = 0
    with redis_server.client() as plain:
        while time.monotonic() < run.until:
            for client in plain.client_list():
                if client["name"].endswith(":subscriber"):
                    cuts += plain.client_kill_filter(_id=client["id"])
                    time.sleep(0.1)
            time.sleep(0.05)
    run.finish()
    run.assert_contract()
    run.assert_convergence()
    # The last cut may have flushed everybody, if cuts flush.
    run.assert_meaningful(hit_rate=0.05, held=outcome == "replays")
    assert cuts > 5, [result["stats"] for result in run.results]
    assert sum(result["stats"][outcome] for result in run.results) > 3


# -- the checker finds what it must find -------------------------------------------------------------------------------


def write(seq, ended, *, process=0, kind=SET, began=None):
    began = ended - 0.1 if began is None else began
    return Write(process, "key-1", kind, seq, f"stamp-{seq}" if kind == SET else None, began, ended)


def read(seq, began, *, process=1, tier="local", age=0.2, ended=None):
    return Read(
        process, "key-1", seq is not None, seq, None, tier, age, began, began + 0.01 if ended is None else ended
    )


def read_value(seq, began, *, process=1):
    return Read(process, "key-1", True, None, f"stamp-{seq}", None, None, began, began + 0.01)


HEALTHY = [write(1, 10.0), write(2, 20.0), write(3, 30.0, kind=KILL), write(4, 40.0), write(5, 50.0, kind=TOUCH)]


@pytest.mark.parametrize(
    ("reads", "fault"),
    [
        pytest.param([read(2, 30.1), read(None, 30.3, tier="redis"), read(4, 40.1)], None, id="healthy"),
        pytest.param([read(1, 20.5, age=0.6)], None, id="stale-within-its-age"),
        pytest.param([read(1, 20.7, age=0.6)], "0.600 s before", id="stale-beyond-its-age"),
        pytest.param([read(1, 21.1, age=5.0)], "1.000 s before", id="stale-beyond-max-staleness"),
        pytest.param([read(1, 20.1, tier="redis")], "0.000 s before", id="stale-from-redis"),
        pytest.param([read(2, 30.7, age=0.6)], "0.600 s before", id="deleted-before"),
        pytest.param([read_value(1, 21.1)], "1.000 s before", id="a-value-without-version"),
        pytest.param([read_value(4, 51.5)], None, id="a-touched-value-is-not-stale"),
        pytest.param([read(1, 20.1, process=0)], "own process' write", id="own-write-not-read"),
        pytest.param([read(2, 20.05), read(1, 20.15)], "had returned", id="backwards"),
        pytest.param([read(2, 20.05, ended=20.2), read(1, 20.15)], None, id="overlapping-reads-have-no-order"),
        pytest.param([read(2, 20.05), read(1, 20.15, process=2)], None, id="other-processes-have-no-order"),
        pytest.param([read(2, 29.95), read(None, 29.97, tier="redis"), read(2, 30.05)], "had returned", id="risen"),
        pytest.param([read(None, 21.0, tier="redis")], "nothing can have removed it", id="lost"),
        pytest.param([read(None, 29.9, tier="redis")], None, id="absent-while-it-is-deleted"),
        pytest.param([read(None, 9.95, tier="redis")], None, id="absent-before-the-first-write"),
    ],
)  # fmt: skip
def test_the_checker(tmp_path, reads, fault):
    dump(tmp_path / "history", HEALTHY, reads)
    found = violations(*load([tmp_path / "history"]), max_staleness=1.0)
    if fault is None:
        assert found == []
    else:
        assert len(found) == 1
        assert fault in found[0]


def test_the_checker_excuses_what_an_unknown_outcome_may_have_done():
    absent = [read(None, 21.0, tier="redis")]
    unknown = Write(2, "key-1", KILL, None, None, 20.5, None)
    assert violations([*HEALTHY, unknown], absent, max_staleness=1.0) == []
    assert violations([*HEALTHY, unknown._replace(began=22.0)], absent, max_staleness=1.0)
