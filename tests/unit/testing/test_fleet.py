"""Fleets without a server: what is refused before a process starts, and the process' own side, in this process."""

from __future__ import annotations

import pickle
import queue
import subprocess
import sys
import threading
import time

import pytest

from coherent_cache import ConfigError
from coherent_cache.testing import Fleet, fleet, fleet_worker

PATIENCE = 20.0
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from coherent_cache.testing import fleet
import {module}
data = fleet._pickled("function", ({module}.{function}, {module}.{argument}))
open({target!r}, "wb").write(data)
"""


class Weird(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def double(cache, key):
    return cache.update(key, lambda value: value * 2, default=1)


def fail(cache):
    raise KeyError("missing")


def give_up(cache):
    raise SystemExit(3)


def return_lock(cache):
    return {"threads": threading.Lock()}


def raise_weird(cache):
    raise Weird("one", "two")


class Refuses:
    def __reduce__(self):
        raise RuntimeError("never")


@pytest.fixture
def worker(coherent_cache_memory, tmp_path):
    """Do a task in this process, as a worker would; return kind, outcome and text."""
    orders = queue.SimpleQueue()
    numbers = iter(range(1, 100))

    def do(function, *args, **kwargs):
        number = next(numbers)
        (tmp_path / f"w.{number}.task").write_bytes(fleet._pickled("function", (function, args, kwargs)))
        orders.put(b"%d\n" % number)
        outcome = tmp_path / f"w.{number}.outcome"
        deadline = time.monotonic() + PATIENCE
        while not outcome.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        kind, payload, text = pickle.loads(outcome.read_bytes())
        return kind, pickle.loads(payload) if kind == "returned" else payload, text

    thread = threading.Thread(
        target=fleet_worker.serve, args=(coherent_cache_memory, tmp_path, "w", iter(orders.get, b""))
    )
    thread.start()
    yield do
    orders.put(b"end\n")
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert (tmp_path / "w.ready").exists()


class TestWorker:
    def test_it_returns(self, worker):
        assert worker(double, "a") == ("returned", 2, "")
        assert worker(double, key="a") == ("returned", 4, "")

    @pytest.mark.parametrize(("function", "error"), [(fail, KeyError), (give_up, SystemExit)])
    def test_it_raises(self, worker, function, error):
        kind, payload, text = worker(function)
        assert (kind, type(pickle.loads(payload))) == ("raised", error)
        assert f"in {function.__name__}" in text

    def test_what_cannot_be_pickled_is_told(self, worker):
        kind, _, text = worker(return_lock)
        assert kind == "failed"
        assert text.startswith("returned a dict, which cannot be pickled: TypeError")

    def test_what_cannot_be_unpickled_is_noticed_by_the_caller(self, worker):
        kind, payload, text = worker(raise_weird)
        assert kind == "raised"
        with pytest.raises(TypeError):
            pickle.loads(payload)
        assert "raise Weird" in text

    def test_it_ends_with_its_input(self, coherent_cache_memory, tmp_path):
        fleet_worker.serve(coherent_cache_memory, tmp_path, "w", [])


class TestLoad:
    """Functions of modules that cannot be imported by name, as pytest's importlib mode makes them."""

    def pickled(self, tmp_path, source, function="f", argument="A"):
        module = f"made_up_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        target = tmp_path / "data"
        script = SCRIPT.format(
            folder=str(tmp_path), module=module, function=function, argument=argument, target=str(target)
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        return module, target.read_bytes()

    def test_the_module_is_loaded_from_its_file(self, tmp_path):
        module, data = self.pickled(tmp_path, "class C: pass\ndef f(cache): return 7\nA = C()")
        function, argument = fleet_worker.load(data)
        assert function(None) == 7
        assert type(argument) is sys.modules.pop(module).C

    def test_a_module_that_lacks_something_says_what(self, tmp_path):
        source = "import sys\nA = 1\ndef f(cache): pass\nif 'pytest' in sys.modules: import never_heard_of"
        module, data = self.pickled(tmp_path, source)
        sys.path.insert(0, str(tmp_path))
        try:
            with pytest.raises(ModuleNotFoundError, match="never_heard_of"):
                fleet_worker.load(data)
        finally:
            sys.path.remove(str(tmp_path))
        assert module not in sys.modules

    def test_a_module_whose_file_is_no_source(self, tmp_path):
        with pytest.raises(ModuleNotFoundError):
            fleet_worker._import("made_up", str(tmp_path / "made_up.txt"))


class TestStopping:
    def test_a_process_is_stopped_when_it_returns(self):
        with subprocess.Popen(["sleep", "600"]) as sleeper:
            fleet.stop_process(sleeper.pid)
            assert fleet._is_stopped(sleeper.pid)
            sleeper.kill()

    def test_one_that_does_not_stop(self, monkeypatch):
        monkeypatch.setattr(fleet, "_is_stopped", lambda pid: False)
        monkeypatch.setattr(fleet, "KILL_SECONDS", 0.0)
        with subprocess.Popen(["sleep", "600"]) as sleeper:
            with pytest.raises(TimeoutError, match=f"process {sleeper.pid} was not stopped within 0 s"):
                fleet.stop_process(sleeper.pid)
            sleeper.kill()

    def test_without_proc_the_signal_is_enough(self):
        assert fleet._is_stopped(-1)


class TestRefused:
    @pytest.mark.parametrize("number", [0, -1, True, 1.5, "3"])
    def test_number(self, number):
        with pytest.raises(ConfigError, match="number: must be an integer from 1"):
            Fleet(number, "redis://localhost", namespace="n")

    @pytest.mark.parametrize("url", ["memory://n", None, 3])
    def test_url(self, url):
        with pytest.raises(ConfigError, match="url: must be the URL of a Redis"):
            Fleet(1, url, namespace="n")

    def test_options_of_caches(self):
        with pytest.raises(ConfigError, match="max_entries"):
            Fleet(1, "redis://localhost", namespace="n", max_entries=0)

    def test_instance_id(self):
        with pytest.raises(ConfigError, match="instance_id"):
            Fleet(1, "redis://localhost", namespace="n", instance_id="one")

    @pytest.mark.parametrize("function", [lambda cache: None, Refuses(), double.__get__(Refuses())])
    def test_what_pickle_does_not_take(self, function):
        with pytest.raises(ConfigError, match="function: cannot be sent to another process"):
            fleet._pickled("function", (function, (), {}))

    def test_what_has_no_file_needs_none(self):
        data = fleet._pickled("function", (dict, [double]))
        assert list(pickle.loads(data)[0]) == [__name__]

    def test_functions_of_the_program_itself(self, monkeypatch):
        monkeypatch.setattr(fail, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], "fail", fail, raising=False)
        with pytest.raises(ConfigError, match="fail is of the program itself; move it into a module"):
            fleet._pickled("function", (fail, (), {}))
