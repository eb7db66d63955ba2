"""The page: its data, its server, and that nothing from outside becomes markup."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import threading
from math import inf

import pytest

from coherent_cache.cli.main import main
from coherent_cache.cli.web import KEPT_LOOKS, History, PageServer, page
from coherent_cache.errors import ConfigError

HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=alert(1)>&\u2028"


def report(name, **changes):
    """Return an instance's report, as the fleet shows it."""
    found = {
        "member": f"{name}:1", "instance": name, "version": "1", "host": "web", "pid": 7, "started": 1.0,
        "uptime": 10.0, "state": "coherent", "horizon_age": 0.5, "bound": 5.0, "interval": 2.0, "entries": 3,
        "bytes": 900, "hits": 80,
        "misses": 20, "redis_hits": 0, "loads": 0, "invalidations": 50, "applied": 5, "resyncs": 1, "flushes": 0,
        "errors": 0, "propagation_p50": 0.001, "propagation_p99": 0.002, "options": {}, "requests": 100,
        "hit_rate": 0.8,
    }  # fmt: skip
    return found | changes


def fleet(*reports, **changes):
    found = {
        "namespace": "shop", "server": "localhost:6379/0", "exists": True, "instances": list(reports), "silent": [],
        "totals": {
            "states": {"coherent": len(reports)}, "hit_rate": 0.8, "requests": 100, "invalidations": 50, "bytes": 900,
            "errors": 0, "resyncs": 1, "flushes": 0,
        },
    }  # fmt: skip
    return found | changes


@pytest.fixture
def history():
    return History(every=0.5)


def rows(history):
    return [look["rows"] for look in history.since(0)["history"]]


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_rates_are_of_the_time_between_two_reports(history):
    history.add(fleet(report("a")), at=1.0)
    later = report("a", uptime=12.0, hits=140, requests=200, invalidations=60)
    history.add(fleet(later), at=2.0)
    first, second = (row["a:1"] for row in rows(history))
    assert (first["reads"], first["hit_rate"], first["invalidations"]) == (None, None, None)
    assert (second["reads"], second["hit_rate"], second["invalidations"]) == (50.0, 0.6, 5.0)
    assert (second["p99"], second["horizon"], second["entries"]) == (0.002, 0.5, 3)


def test_a_look_that_finds_the_same_report_repeats_its_rates(history):
    later = report("a", uptime=12.0, hits=140, requests=200, invalidations=60)
    for number, each in enumerate((report("a"), later, later)):
        history.add(fleet(each), at=float(number))
    assert rows(history)[2] == rows(history)[1]


def test_an_instance_that_reads_nothing_has_no_hit_rate(history):
    history.add(fleet(report("a")), at=1.0)
    history.add(fleet(report("a", uptime=12.0)), at=2.0)
    assert (rows(history)[1]["a:1"]["reads"], rows(history)[1]["a:1"]["hit_rate"]) == (0.0, None)


def test_instances_come_and_go(history):
    history.add(fleet(report("a"), report("b")), at=1.0)
    history.add(fleet(report("b", uptime=12.0)), at=2.0)
    history.add(fleet(report("a", uptime=14.0), report("b", uptime=14.0)), at=3.0)
    assert [sorted(row) for row in rows(history)] == [["a:1", "b:1"], ["b:1"], ["a:1", "b:1"]]
    assert rows(history)[2]["a:1"]["reads"] is None  # who was away is new


def test_only_the_looks_after_a_number_are_told(history):
    for number in range(3):
        history.add(fleet(), at=float(number))
    assert [look["seq"] for look in history.since(1)["history"]] == [2, 3]
    assert history.since(3)["history"] == []
    assert history.since(3)["every"] == 500


def test_a_bounded_number_of_looks_is_kept(history):
    for number in range(KEPT_LOOKS + 5):
        history.add(fleet(), at=float(number))
    assert [look["seq"] for look in history.since(0)["history"]] == list(range(6, KEPT_LOOKS + 6))


def test_a_look_that_fails_is_told_until_one_succeeds(history):
    history.fail("away")  # nothing to show yet
    assert history.since(0)["latest"] is None
    history.add(fleet(), at=1.0)
    history.fail("away")
    assert (history.since(0)["latest"]["problem"], history.since(0)["latest"]["at"]) == ("away", 1.0)
    history.add(fleet(), at=2.0)
    assert history.since(0)["latest"]["problem"] is None


# -- the document ------------------------------------------------------------------------------------------------------


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_report_holds_its_data(history):
    history.add(fleet(report("a", horizon_age=inf)), at=1.0)
    found = data_of(page(history.since(0)))
    assert found["latest"]["instances"][0]["instance"] == "a"
    assert found["latest"]["instances"][0]["horizon_age"] is None  # JSON has no infinity
    assert data_of(page()) is None


def test_the_page_is_self_contained(history):
    text = page(history.since(0))
    assert not re.search(r"(?:src|href)\s*=|@import|url\(", text)
    assert "@POLICY@" not in text
    assert "@DATA@" not in text
    # The one address is the name of SVG's elements.
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}


def test_hostile_names_stay_text(history):
    history.add(fleet(report(HOSTILE, host=HOSTILE), namespace=HOSTILE, silent=[HOSTILE]), at=1.0)
    text = page(history.since(0))
    assert text.count("<script") == page().count("<script") == 2
    assert "<img" not in text
    assert data_of(text)["latest"]["instances"][0]["instance"] == HOSTILE


def test_the_policy_allows_the_pages_own_script_and_style_alone(history):
    live, saved = page(), page(history.since(0))
    for text, asks in ((live, "'self'"), (saved, "'none'")):
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["connect-src"] == asks
        assert all(re.fullmatch(r"'sha256-[\w+/]{43}='", rules[name]) for name in ("script-src", "style-src"))


def test_the_script_makes_no_markup_of_text():
    script = re.search(r"<script>(.*)</script>", page(), re.DOTALL)[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", script)


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(history):
    with PageServer(history) as server:
        yield server


def ask(server, path, **headers):
    host = server.url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_it_serves_the_page_and_its_data(served, history):
    history.add(fleet(report("a")), at=1.0)
    status, headers, text = ask(served, "/")
    assert (status, text) == (200, page())
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Frame-Options"] == "DENY"
    status, headers, text = ask(served, "/data.json?since=0")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == json.loads(json.dumps(history.since(0)))
    assert json.loads(ask(served, "/data.json?since=1")[2])["history"] == []


def test_it_listens_on_this_machine_alone(served):
    assert served.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("path", ["/nothing", "/page.html", "/../web.py", "/data.json/", "/data"])
def test_it_serves_nothing_else(served, path):
    assert ask(served, path)[0] == 404


@pytest.mark.parametrize("since", ["-1", "x", "1e3", "9" * 16, "%00"])
def test_a_question_that_cannot_be_is_refused(served, since):
    assert ask(served, f"/data.json?since={since}")[0] == 400


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:80", ""])
def test_a_page_elsewhere_cannot_ask_under_its_own_name(served, host):
    assert ask(served, "/data.json", Host=host)[0] == 403


def test_localhost_is_its_name_too(served):
    assert ask(served, "/", Host="localhost:1234")[0] == 200


def test_it_ends_with_its_block(history):
    before = threading.active_count()
    with PageServer(history) as server:
        assert ask(server, "/")[0] == 200
    assert not server._thread.is_alive()
    assert threading.active_count() <= before + 1  # a request's own thread may be at its end
    with pytest.raises(ConnectionRefusedError):
        ask(server, "/")


@pytest.mark.parametrize("port", [70_000, -1])
def test_a_port_that_cannot_be_is_told(history, port):
    with pytest.raises(ConfigError, match="port"):
        PageServer(history, port=port)


def test_a_port_that_is_taken_is_told(history, served):
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=str(port)):
        PageServer(history, port=port)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def top(capsys):
    """Run ``top`` on a server inside this process; give exit code, standard output and standard error."""
    url = f"memory://web-{secrets.token_hex(4)}"

    def run(*options, url=url):
        code = main(["top", "--url", url, "--namespace", "shop", "--every", "0.1", *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_report_about_nobody_is_written_and_is_a_problem(top, tmp_path):
    file = tmp_path / "fleet.html"
    code, _, _ = top("--web-report", file, "--seconds", "0")
    assert code == 1
    assert data_of(file.read_text("utf-8"))["latest"]["exists"] is False


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--web-report", "/nowhere/fleet.html"], "web-report"),
        (["--web-report", "/"], "web-report"),
        (["--web-report", "fleet.html", "--seconds", "-1"], "seconds"),
        (["--web-report", "fleet.html", "--seconds", "nan"], "seconds"),
        (["--web", "--port", "70000"], "port"),
        (["--web", "--every", "0"], "every"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(top, options, word, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = top(*options, *(["--seconds", "0"] if "--seconds" not in options else []))
    assert (code, out) == (2, "")
    assert err.startswith(f"coherent-cache: {word}: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [["--web"], ["--web-report", "fleet.html"]])
def test_without_redis_there_is_no_page(top, form, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = top(*form, url="redis://127.0.0.1:1/0")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_form_at_a_time(top, capsys):
    with pytest.raises(SystemExit) as refused:
        top("--web", "--web-report", "fleet.html")
    assert refused.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
