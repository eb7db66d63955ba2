"""What lies in ``compose/``, as far as it needs no engine: ``compose/check.sh`` starts it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from coherent_cache.config import Settings
from coherent_cache.remote.topology import resolve

COMPOSE = Path(__file__).parents[2] / "compose"
TEXT = (COMPOSE / "compose.yaml").read_text("utf-8")
SENTINEL = (COMPOSE / "compose.sentinel.yaml").read_text("utf-8")


def services(text):
    """Return what the services are called, and the text of each."""
    _, *parts = re.split(r"^  ([\w-]+):", re.split(r"^\w+:\n", text, flags=re.MULTILINE)[1], flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


SERVICES = list(services(TEXT))


@pytest.fixture
def worker(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(COMPOSE / "app"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    import worker  # noqa: PLC0415  # only now it can be found

    yield worker
    for name in ("worker", "shop"):
        sys.modules.pop(name)


def test_images_from_a_registry_are_pinned():
    images = re.findall(r"image: (?:\$\{\w+:-)?([^}\s]+)", TEXT)
    assert len(images) == 4
    for image in images:
        name, _, tag = image.partition(":")
        assert re.match(r"v?\d+\.\d+\.\d+", tag) or tag == "local", f"{name} is not pinned"


def test_ports_are_of_this_machine_alone():
    assert re.findall(r"- (\S+):\d+:\d+", TEXT) == ["127.0.0.1"] * 2


def test_prometheus_asks_everybody_who_has_metrics():
    text = (COMPOSE / "prometheus/prometheus.yaml").read_text("utf-8")
    targets = re.findall(r"([\w-]+):9100", text)
    assert targets == [name for name in SERVICES if name.startswith("w")] != []
    assert "audit:9793" in text
    assert "audit" in SERVICES
    assert '"--port", "9793"' in TEXT
    assert "METRICS_PORT = 9100" in (COMPOSE / "app/shop.py").read_text("utf-8")


def test_all_programs_ask_the_sentinels_that_there_are():
    parts = services(SENTINEL)
    programs = {name for name, text in services(TEXT).items() if re.search(r"\*(program|worker)\b", text)}
    assert {name for name, text in parts.items() if "*program" in text} == programs != set()
    sentinels = [name for name, text in parts.items() if "*sentinel" in text]
    (url,) = re.findall(r"COHERENT_CACHE_URL: (\S+)", SENTINEL)
    assert resolve(url, Settings(namespace="shop")).sentinels.addresses == tuple((name, 26379) for name in sentinels)
    assert re.findall(r"(sentinel-\d): .*ready", SENTINEL) == sentinels
    assert len(sentinels) == 3


def test_sentinels_and_replicas_begin_with_the_master_that_there_is():
    addresses = {name: re.findall(r"ipv4_address: (\S+)", text) for name, text in services(SENTINEL).items()}
    given = [address for (address,) in filter(None, addresses.values())]
    assert len(set(given)) == len(given) == 6
    begun_with = re.findall(r'(?:--replicaof", "|sentinel monitor shop )([\d.]+)', SENTINEL)
    assert begun_with == addresses["redis"] * 2


def test_replicas_have_the_options_of_the_master():
    master, replica = (re.search(r'command: (\["redis-server".*?\])', text, re.DOTALL)[1] for text in (TEXT, SENTINEL))
    assert json.loads(replica)[:-3] == json.loads(master)


def test_what_grafana_is_given_exists():
    for folder in re.findall(r"- \./(\S+?):", TEXT):
        assert (COMPOSE / folder).is_dir()
    assert "dashboards/coherent-cache.json" in TEXT
    assert (COMPOSE / "grafana/dashboards/coherent-cache.json").is_file()


class Fake:
    """Stands for a cache whose values the test chooses."""

    instance_id = "fake"

    def __init__(self, **stats):
        self.values = {}
        self._stats = types.SimpleNamespace(**stats)

    def get(self, key):
        return self.values.get(key)

    def stats(self):
        return self._stats


@pytest.fixture
def checker(worker, monkeypatch):
    monkeypatch.setattr(worker.time, "time", lambda: 1000.0)
    local, redis = Fake(), Fake()
    found = worker.Checker(local, redis)

    def read(served, current=None):
        local.values["k"] = None if served is None else {"written_at": served}
        redis.values["k"] = None if current is None else {"written_at": current}
        found.read("k", compare=current is not None)
        return found.violations

    found.see = read
    return found


def test_the_worker_finds_nothing_wrong_with_what_is_allowed(checker):
    assert checker.see(None) == 0
    assert checker.see(990.0) == 0
    assert checker.see(990.0, current=990.0) == 0
    assert checker.see(990.0, current=999.0) == 0  # outdated for a second
    assert checker.stalest == 1.0
    assert checker.see(None, current=995.0) == 0
    assert checker.see(996.0, current=995.0) == 0  # overtaken between the two reads


def test_the_worker_notices_a_value_that_goes_backwards(checker):
    checker.see(990.0)
    assert checker.see(989.0) == 1


def test_the_worker_notices_a_value_that_was_outdated_for_too_long(checker):
    assert checker.see(900.0, current=994.0) == 1
    assert checker.stalest == 6.0


GOOD = {
    "state": "coherent", "total_requests": 10, "hit_rate": 0.5, "invalidations_applied": 3, "propagation_p99": 0.001,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "violations", "expected"),
    [
        ({}, 0, True),
        ({"state": "suspect"}, 0, False),
        ({"hit_rate": 0.0}, 0, False),
        ({"invalidations_applied": 0}, 0, False),
        ({}, 1, False),
    ],
)
def test_the_health_check_says_what_the_last_report_says(worker, capsys, change, violations, expected):
    assert not worker.healthy()
    checker = types.SimpleNamespace(stalest=0.0, violations=violations)
    worker.report(Fake(**(GOOD | change)), checker)
    assert worker.healthy() is expected
    assert '"worker": "fake"' in capsys.readouterr().out


def test_an_old_report_is_no_health(worker, monkeypatch):
    worker.report(Fake(**GOOD), types.SimpleNamespace(stalest=0.0, violations=0))
    now = worker.time.time()
    monkeypatch.setattr(worker.time, "time", lambda: now + 11)
    assert not worker.healthy()


@pytest.mark.parametrize("name", ["build-worker-image.sh", "check.sh"])
def test_scripts_explain_themselves_and_refuse_what_they_do_not_know(name):
    told = subprocess.run([COMPOSE / name, "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert told.stdout.startswith("Usage: compose/")
    refused = subprocess.run([COMPOSE / name, "--nonsense"], capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Usage: compose/")
