"""What a server's settings mean, and that every finding that is not fine says what to do."""

from dataclasses import replace

import pytest

from coherent_cache.core.diagnosing import Facts, Finding, Level, SelfTest, as_dict, diagnose, number

INFO = {
    "redis_version": "7.2.4", "redis_mode": "standalone", "role": "master", "connected_slaves": "0", "maxmemory": "0",
    "maxmemory_policy": "noeviction", "used_memory": "1000", "connected_clients": "5", "maxclients": "10000",
}  # fmt: skip
CONFIG = {
    "client-output-buffer-limit": "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
    "timeout": "0", "tcp-keepalive": "300", "notify-keyspace-events": "", "min-replicas-to-write": "0",
}  # fmt: skip
FACTS = Facts(
    info=INFO,
    config=CONFIG,
    round_trips=(0.001, 0.002, 0.003),
    server_seconds=1.0,
    local_seconds=1.0,
    user="worker",
    lacking=(),
    namespace="shop",
    exists=True,
    clock_ttl=None,
    instances=2,
    self_test=SelfTest(seconds=(0.001, 0.002, 0.003), transport="resp3"),
)


def info(**changes):
    return replace(FACTS, info=INFO | changes)


def config(**changes):
    return replace(FACTS, config=CONFIG | {name.replace("_", "-"): value for name, value in changes.items()})


def findings(facts):
    """Return what is not fine."""
    return {(each.level, each.topic): each for each in diagnose(facts) if each.level is not Level.OK}


def test_a_server_that_is_fine():
    found = diagnose(FACTS)

    assert {each.level for each in found} == {Level.OK}
    assert [each.topic for each in found] == [
        "version", "mode", "maxmemory-policy", "replicas", "output buffers", "permissions", "latency", "clock",
        "namespace", "self-test",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "level", "topic", "words"),
    [
        (info(redis_version=""), Level.NOTE, "version", "does not tell"),
        (info(redis_version="4.0.9"), Level.PROBLEM, "version", "Redis 4.0.9"),
        (info(redis_version="5.0.14"), Level.NOTE, "version", "no RESP3"),
        (info(redis_mode="cluster"), Level.PROBLEM, "mode", "node of a cluster"),
        (info(redis_mode="sentinel"), Level.PROBLEM, "mode", "Sentinel"),
        (info(loading="1"), Level.PROBLEM, "loading", "still loading"),
        (info(maxmemory_policy="allkeys-lru"), Level.NOTE, "maxmemory-policy", "may be evicted"),
        (info(maxmemory_policy="allkeys-lfu", maxmemory="9000"), Level.WARNING, "maxmemory-policy", "may be evicted"),
        (info(maxmemory="9000"), Level.NOTE, "maxmemory-policy", "writes are refused"),
        (info(maxmemory="1050", maxmemory_policy="volatile-lru"), Level.WARNING, "memory", "1,000 of 1,050"),
        (info(role="slave", master_host="db", master_port="6380"), Level.PROBLEM, "role", "a replica"),
        (config(min_replicas_to_write="1"), Level.PROBLEM, "replicas", "0 of the 1"),
        (info(connected_slaves="2"), Level.NOTE, "replicas", "failover discards"),
        (info(rdb_last_bgsave_status="err"), Level.PROBLEM, "persistence", "MISCONF"),
        (info(aof_last_write_status="err"), Level.PROBLEM, "persistence", "MISCONF"),
        (info(connected_clients="9500"), Level.WARNING, "clients", "9,500 of 10,000"),
        (replace(FACTS, config=None), Level.NOTE, "settings", "CONFIG GET"),
        (config(client_output_buffer_limit="pubsub 0 0 0"), Level.WARNING, "output buffers", "no limit"),
        (config(client_output_buffer_limit="pubsub 65536 0 0"), Level.PROBLEM, "output buffers", "burst"),
        (config(client_output_buffer_limit="pubsub 33554432 1024 60"), Level.PROBLEM, "output buffers", "burst"),
        (config(timeout="30"), Level.NOTE, "timeout", "30 s"),
        (config(tcp_keepalive="0"), Level.NOTE, "tcp-keepalive", "off"),
        (config(notify_keyspace_events="AKE"), Level.NOTE, "notify-keyspace-events", "AKE"),
        (replace(FACTS, lacking=("+xadd", "~cc:*")), Level.PROBLEM, "permissions", "lacks +xadd ~cc:*"),
        (replace(FACTS, lacking=None), Level.NOTE, "permissions", "cannot be found out"),
        (replace(FACTS, round_trips=(0.02, 0.03, 0.04)), Level.WARNING, "latency", "30.0 ms"),
        (replace(FACTS, server_seconds=2.0), Level.WARNING, "clock", "+1.00 s"),
        (replace(FACTS, server_seconds=-3.0), Level.WARNING, "clock", "-4.00 s"),
        (replace(FACTS, exists=False), Level.NOTE, "namespace", "nothing is there"),
        (replace(FACTS, clock_ttl=5000), Level.PROBLEM, "namespace", "expire in 5 s"),
        (replace(FACTS, self_test=SelfTest(error="it did not")), Level.PROBLEM, "self-test", "it did not"),
        (replace(FACTS, self_test=SelfTest(error="No permissions")), Level.NOTE, "self-test", "scratch namespace"),
        (replace(FACTS, self_test=SelfTest(seconds=(0.1, 2.0))), Level.WARNING, "self-test", "2000.0 ms"),
        (replace(FACTS, self_test=SelfTest(seconds=(0.1,), transport="marks")), Level.NOTE, "transport", "RESP3"),
    ],
)
def test_what_is_not_fine_says_what_to_do(facts, level, topic, words):
    found = findings(facts)

    assert list(found) == [(level, topic)]
    finding = found[level, topic]
    assert words in finding.found
    assert finding.advice or topic == "timeout"


@pytest.mark.parametrize(
    ("facts", "topic"),
    [
        (replace(FACTS, round_trips=()), "latency"),
        (replace(FACTS, self_test=None), "self-test"),
        (info(maxmemory_policy=""), "maxmemory-policy"),
        (info(redis_mode=""), "mode"),
        (config(client_output_buffer_limit=""), "output buffers"),
    ],
)
def test_what_is_not_known_is_not_judged(facts, topic):
    assert topic not in {each.topic for each in diagnose(facts)}


def test_replicas_are_counted_as_redis_counts_them():
    found = findings(
        replace(info(connected_slaves="2", min_slaves_good_slaves="1"), config=CONFIG | {"min-replicas-to-write": "2"})
    )
    assert "1 of the 2" in found[Level.PROBLEM, "replicas"].found
    fine = replace(
        info(connected_slaves="2", min_slaves_good_slaves="2"), config=CONFIG | {"min-replicas-to-write": "2"}
    )
    assert not findings(fine)


def test_small_things():
    assert [number(text) for text in ("12", "-1", None, "many", "")] == [12, -1, 0, 0, 0]
    assert as_dict(Finding(Level.NOTE, "a", "b", "c")) == {"level": "note", "topic": "a", "found": "b", "advice": "c"}
