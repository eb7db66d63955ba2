"""``doctor`` on servers that have something, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from coherent_cache import CoherentCache, acl_rule
from coherent_cache.cli import main as cli
from coherent_cache.keys import shard_names
from integration.waiting import wait_until

PATIENCE = 20.0


@pytest.fixture
def examined(namespace, capsys):
    def examined(url, *arguments):
        code = cli.main(["doctor", "--json", "--url", url, "--namespace", namespace, *arguments])
        out = json.loads(capsys.readouterr().out)
        return code, {each["topic"]: each for each in out["findings"]}

    return examined


@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
def test_a_server_that_is_fine(redis_server, namespace, examined, query):
    with CoherentCache(redis_server.url, namespace=namespace, shards=2) as cache:
        cache.set("a", 1)
        code, found = examined(redis_server.url + query)

    assert code == 0
    assert found["self-test"]["level"] in {"ok", "warning"}, "only the load of this machine may be in the way"
    assert ("transport" in found) is bool(query)
    assert found["namespace"]["level"] == "ok"
    with redis_server.client() as plain:
        wait_until(lambda: not plain.keys("cc:{doctor-*"), PATIENCE, "nothing of the self-test is left")


def test_what_is_wrong_with_a_server(fresh_server, namespace, examined):
    with CoherentCache(fresh_server.url, namespace=namespace, local_enabled=False) as cache:
        cache.set("a", 1)
    with fresh_server.client() as plain:
        plain.pexpire(shard_names(namespace, 0, 0).clock, 60_000)
        for name, value in (
            ("maxmemory", "1gb"),
            ("maxmemory-policy", "allkeys-lru"),
            ("client-output-buffer-limit", "pubsub 1024 1024 1"),
            ("timeout", "60"),
            ("notify-keyspace-events", "KEA"),
            ("min-replicas-to-write", "1"),
        ):
            plain.config_set(name, value)
        code, found = examined(fresh_server.url)

    assert code == 1
    assert {topic: each["level"] for topic, each in found.items() if each["level"] != "ok"} == {
        "maxmemory-policy": "warning", "replicas": "problem", "output buffers": "problem", "timeout": "note",
        "notify-keyspace-events": "note", "namespace": "problem", "self-test": "problem",
    }  # fmt: skip


def test_permissions(redis_server, namespace, examined):
    pattern = f"cc:{{{namespace}/*"
    with redis_server.client() as plain:
        plain.acl_setuser(
            "worker", enabled=True, passwords=["+secret"], keys=[pattern], channels=[pattern],
            categories=["+@all", "-@admin", "-@dangerous"], commands=["+info", "-xadd"],
        )  # fmt: skip
        try:
            code, found = examined(redis_server.url, "--user", "worker", "--no-self-test")
            assert code == 1
            assert found["permissions"]["found"] == "user 'worker' lacks +xadd"
            plain.execute_command("ACL", "SETUSER", "worker", "+xadd")
            code, found = examined(redis_server.url, "--user", "worker", "--no-self-test")
            assert (code, found["permissions"]["level"]) == (0, "ok"), found

            # As the user itself, who may look at little.
            code, found = examined(redis_server.url.replace("redis://", "redis://worker:secret@", 1))
            assert code == 0
            assert {topic for topic, each in found.items() if each["level"] == "note"} == {
                "settings", "self-test", "namespace",
            }  # fmt: skip
        finally:
            plain.acl_deluser("worker")


def test_who_has_the_least_rights_can_look_on(redis_server, namespace, examined):
    with redis_server.client() as plain:
        plain.execute_command("ACL", "SETUSER", "least", "on", "nopass", *acl_rule(namespace).split())
        try:
            url = redis_server.url.replace("redis://", "redis://least:any@", 1)
            options = {"namespace": namespace, "heartbeat": 0.1, "max_staleness": 5.0}
            with CoherentCache(url, **options) as one, CoherentCache(url, **options) as two:
                assert one.wait_ready(PATIENCE)
                assert two.wait_ready(PATIENCE)
                one.set("a", 1)
                assert two.get("a") == 1
                assert (one.audit().coherent, one.audit(["a"]).checked) == (True, 2)
                assert one.explain("a").stored.seq == 1
                wait_until(lambda: one.fleet().totals.instances == 2, PATIENCE, "both report themselves")
                assert (one.stats().errors, two.stats().errors) == (0, 0)
            code, found = examined(url)
            assert (code, found["permissions"]["level"]) == (0, "ok")
        finally:
            plain.acl_deluser("least")


def test_without_redis_and_for_people(redis_server, namespace, capsys):
    assert cli.main(["doctor", "--url", "redis://127.0.0.1:1", "--namespace", namespace]) == 3
    assert (
        cli.main(
            ["doctor", "--url", redis_server.url.replace("redis://", "redis://nobody:wrong@", 1), "--namespace", "n"]
        )
        == 3
    )
    capsys.readouterr()

    assert cli.main(["doctor", "--url", redis_server.url, "--namespace", namespace, "--no-self-test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{namespace} at ")
    assert any("nothing is there" in line for line in lines)
    assert lines[-1] == "0 problems, 0 warnings"
