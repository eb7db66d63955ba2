"""The exporter's server and errors; ``integration/test_telemetry.py`` scrapes a real fleet."""

from __future__ import annotations

import http.client
import sys

import pytest

from coherent_cache.cli.exporter import MetricsServer
from coherent_cache.cli.main import main
from coherent_cache.errors import CacheUnavailable


def scrape(server, path="/metrics"):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://").rstrip("/"), timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_a_scrape_is_what_there_is_now():
    told = iter((b"a 1\n", b"a 2\n"))
    with MetricsServer(lambda: next(told), "text/x", "127.0.0.1", 0) as server:
        assert scrape(server) == (200, "text/x", "a 1\n")
        assert scrape(server, "/") == (200, "text/x", "a 2\n")
        assert scrape(server, "/else")[0] == 404


def test_a_scrape_fails_while_redis_is_away():
    def away():
        raise CacheUnavailable("<b>away</b>")

    with MetricsServer(away, "text/x", "127.0.0.1", 0) as server:
        status, _, text = scrape(server)
    assert status == 503
    assert "&lt;b&gt;away" in text


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--url", "redis://127.0.0.1:1/0"], 3, "Redis"),
        (["--url", "memory://exporter", "--port", "70000"], 2, "port"),
        (["--url", "memory://exporter", "--audit", "0"], 2, "audit"),
        (["--url", "memory://exporter", "--audit", "nan"], 2, "audit"),
        (["--url", "memory://exporter", "--audit", "1e99"], 2, "audit"),
        (["--url", "memory://exporter", "--host", "not an address"], 2, "port"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(capsys, options, code, word):
    assert main(["exporter", "--namespace", "shop", *options]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word in captured.err
    assert captured.err.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["exporter", "--namespace", "shop", "--url", "memory://exporter"]) == 2
    assert "pip install 'coherent-cache[prometheus]'" in capsys.readouterr().err
