"""The page in a browser: what it shows of a real fleet, and that hostile names stay text."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from html import unescape

import pytest

from coherent_cache.cli.web import History, PageServer, page
from integration.waiting import wait_until

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
LIMIT = 100.0  # seconds for a browser to start, on a busy machine, and to show a page

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
    pytest.mark.timeout(300),
]

HOSTILE = "<img src=x onerror=\"document.title='pwned'\"></script><script>document.title='pwned'</script>"


@pytest.fixture
def browse(tmp_path):
    """Load a page; return its document after a while, and what its scripts complained about."""

    def load(url, *options):
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=4000",
            "--window-size=1440,900", "--dump-dom", *options, url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
        complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return done.stdout, complaints

    return load


def cells(document):
    """Return the texts of the table, row by row."""
    body = re.search(r'<tbody id="rows">(.*?)</tbody>', document, re.DOTALL)[1]
    return [
        [unescape(re.sub(r"<[^>]+>", " ", cell)).split() for cell in re.findall(r"<td\b.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
    ]


def test_the_page_follows_a_real_fleet(browse, coherent_cache_factory, coherent_cache_url, namespace):
    writer, reader = (coherent_cache_factory(coherent_cache_url, instance_id=name) for name in ("writer", "reader"))
    writer.set("a", 1)
    assert reader.get("a") == 1
    wait_until(lambda: len(writer.fleet().instances) == 2, 20.0, "both report themselves")
    command = [sys.executable, "-m", "coherent_cache", "top", "--web", "--every", "0.2"]
    options = ["--url", coherent_cache_url, "--namespace", namespace]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as top:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+/", top.stdout.readline())[0]
            document, complaints = browse(url)
        finally:
            top.terminate()
    assert top.returncode == 128 + 15
    assert complaints == []
    assert f"<title>{namespace} · coherent-cache</title>" in document
    assert re.search(r'id="live" class="pill live">live<', document)
    assert [row[0][0] for row in cells(document)] == ["reader", "writer"]
    assert [row[1] for row in cells(document)] == [["coherent"], ["coherent"]]
    assert document.count('<path d="M') >= 2


def test_a_report_needs_no_server(browse, coherent_cache_factory, coherent_cache_url, namespace, tmp_path):
    cache = coherent_cache_factory(coherent_cache_url, instance_id="alone")
    wait_until(lambda: len(cache.fleet().instances) == 1, 20.0, "it reports itself")
    file = tmp_path / "fleet.html"
    command = [sys.executable, "-m", "coherent_cache", "top", "--web-report", file, "--every", "0.2", "--seconds", "1"]
    options = ["--url", coherent_cache_url, "--namespace", namespace]
    subprocess.run([*command, *options], timeout=60, check=True)
    document, complaints = browse(file.as_uri())
    assert complaints == []
    assert re.search(r'id="live" class="pill ?">report<', document)
    assert [row[0][0] for row in cells(document)] == ["alone"]


def hostile_look():
    report = dict.fromkeys(("member", "instance", "version", "host", "state"), HOSTILE)
    report |= {
        "pid": 7, "uptime": 10.0, "horizon_age": 0.5, "bound": 5.0, "entries": 3, "bytes": 900, "hits": 80,
        "invalidations": 5, "resyncs": 1, "flushes": 0, "errors": 0, "propagation_p50": None, "propagation_p99": None,
        "requests": 100, "hit_rate": 0.8,
    }  # fmt: skip
    totals = {"states": {HOSTILE: 1}, "hit_rate": 0.8, "requests": 100, "invalidations": 5, "bytes": 900, "errors": 0}
    return {
        "namespace": HOSTILE, "server": HOSTILE, "exists": True, "instances": [report], "silent": [HOSTILE],
        "totals": totals | {"resyncs": 1, "flushes": 0},
    }  # fmt: skip


@pytest.mark.parametrize("form", ["live", "report"])
def test_hostile_names_stay_text(browse, tmp_path, form):
    history = History(every=0.1)
    history.add(hostile_look(), at=time.time())
    history.fail(HOSTILE)
    if form == "live":
        with PageServer(history) as server:
            document, complaints = browse(server.url)
    else:
        file = tmp_path / "fleet.html"
        file.write_text(page(history.since(0)), "utf-8")
        document, complaints = browse(file.as_uri())
    assert complaints == []
    title = unescape(re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1])
    assert title == f"{HOSTILE} · coherent-cache"  # and not what the name's script would make of it
    assert "<img" not in document
    assert document.count("<script") == 2
    assert unescape(document).count(HOSTILE) >= 5
