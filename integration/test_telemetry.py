"""Metrics of a forked child are its own."""

from __future__ import annotations


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
