"""Metrics of a forked child are its own; one process can show those of all."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request

from integration.waiting import wait_until


def hits(document):
    [resource] = document["resource_metrics"]
    [scope] = resource["scope_metrics"]
    [metric] = [metric for metric in scope["metrics"] if metric["name"] == "coherent_cache.hits"]
    return [(point["attributes"]["cache.instance"], point["value"]) for point in metric["data"]["data_points"]]


def test_who_was_instrumented_before_a_fork_shows_its_own_numbers(redis_server, processes, namespace):
    options = {"namespace": namespace, "heartbeat": 0.1, "max_staleness": 3.0}
    told = processes.spawn("fork_instrumented", url=redis_server.url, options=options).result()
    assert told["parent"]["id"] != told["child"]["id"]
    for side in told.values():
        assert side["shown"] == [
            f'coherent_cache_hits_total{{cache_instance="{side["id"]}",cache_namespace="{namespace}"}} {side["hits"]}.0'
        ]
    assert hits(told["child"]["otel"]) == [(told["child"]["id"], told["child"]["hits"])]


def test_the_exporter_shows_the_whole_fleet(coherent_cache_factory, coherent_cache_url, namespace):
    one, two = (coherent_cache_factory(coherent_cache_url, instance_id=name) for name in ("one", "two"))
    one.set("a", 1)
    assert two.get("a") == two.get("a") == 1
    command = [sys.executable, "-m", "coherent_cache", "exporter", "--port", "0", "--audit", "0.2"]
    options = ["--url", coherent_cache_url, "--namespace", namespace]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as exporter:
        try:
            url = exporter.stdout.readline().strip()

            def shown():
                with urllib.request.urlopen(url, timeout=20) as answer:
                    return answer.read().decode()

            hit = (
                f'coherent_cache_hits_total{{cache_instance="two",cache_namespace="{namespace}"}} {two.stats().hits}.0'
            )
            wait_until(lambda: hit in shown(), 20.0, "the hits are reported")
            assert 'cache_instance="one"' in shown()
            held = one.stats().size + two.stats().size
            audited = f'coherent_cache_audit_checked{{cache_namespace="{namespace}"}} {held}.0'
            wait_until(lambda: audited in shown(), 30.0, "an audit has compared it")
            assert f'coherent_cache_audit_beyond_bound{{cache_namespace="{namespace}"}} 0.0' in shown()
        finally:
            exporter.terminate()
    assert exporter.returncode == 128 + signal.SIGTERM
