"""The command line, in this process and without a Redis."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import types
import warnings

import pytest

from coherent_cache import __version__, errors
from coherent_cache.cli import main as cli
from coherent_cache.cli.common import Terminated, from_text, to_json
from coherent_cache.versions import Version


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for variable in ("COHERENT_CACHE_URL", "COHERENT_CACHE_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def url():
    return f"memory://cli-{secrets.token_hex(4)}"


@pytest.fixture
def shop(run, url):
    """Run a command on one cache."""
    return lambda *argv: run(*argv, "--url", url, "--namespace", "shop")


@pytest.fixture
def failing(monkeypatch):
    """Make a command ``fail`` that raises what it is given."""

    def add(error):
        def fail(_):
            raise error

        command = types.SimpleNamespace(__doc__="Fail.", add_arguments=lambda _: None, run=fail)
        monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "fail": command})

    return add


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        [], ["bake"], ["get"], ["get", "a", "b"], ["set", "a"], ["delete"], ["clear", "now"], ["get", "--nope", "a"],
        ["set", "a", "1", "--ttl", "soon"], ["get", "a", "--shards", "many"],
        ["demo", "--seconds", "0"], ["demo", "--workers", "0"], ["demo", "--workers", "1.5"], ["demo", "--keys", "0"],
    ],
)  # fmt: skip
def test_unusable_arguments_exit_with_2_and_say_how_it_is_used(run, argv):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: coherent-cache")


def test_version(run):
    assert run("--version") == (0, f"coherent-cache {__version__}\n", "")


def test_help_lists_every_command_and_the_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"    {name} " in out or f"    {name}\n" in out for name in cli.COMMANDS)
    assert "3 no Redis" in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself_and_speaks_json(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "--json" in out
    first_line = cli.COMMANDS[name].__doc__.partition("\n")[0]
    assert first_line in out
    assert first_line.endswith(".")


def test_the_sabotage_of_the_demo_is_not_advertised(run):
    assert "sabotage" not in run("demo", "--help")[1]


def test_help_never_shows_the_url_of_the_environment(run, monkeypatch):
    monkeypatch.setenv("COHERENT_CACHE_URL", "redis://user:secret@example.org")
    assert all("secret" not in run(name, "--help")[1] for name in cli.COMMANDS)


def test_python_m():
    output = subprocess.run(
        [sys.executable, "-m", "coherent_cache", "--version"], capture_output=True, check=True, text=True
    ).stdout
    assert output == f"coherent-cache {__version__}\n"


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("hello world", "hello world"), ("42", "42"), ('"42"', "42"), ('{"b": [null, true]}', '{"b": [null, true]}'),
        ("null", "null"), ("NaN", "NaN"), ("007", "007"), ("{broken", "{broken"), ("grün", "grün"), ("", ""),
    ],
)  # fmt: skip
def test_set_then_get(shop, text, printed):
    code, out, err = shop("set", "a", text)
    assert (code, err) == (0, "")
    assert out.startswith("stored 'a', version ")
    assert shop("get", "a") == (0, f"{printed}\n", "")


def test_set_then_get_as_json(shop):
    code, out, _ = shop("set", "a", "[1]", "--ttl", "60", "--json")
    stored = json.loads(out)
    assert (code, stored["key"]) == (0, "a")
    code, out, _ = shop("get", "a", "--json")
    found = json.loads(out)
    assert 0 < found.pop("expires_in") <= 60
    assert (code, found) == (0, {"key": "a", "found": True, "value": [1], "version": stored["version"]})
    assert Version.parse(stored["version"]).seq == 1


def test_without_expiry(shop):
    shop("set", "a", "1", "--ttl", "none")
    assert json.loads(shop("get", "a", "--json")[1])["expires_in"] is None


def test_an_absent_value_exits_with_1(shop):
    assert shop("get", "a") == (1, "", "coherent-cache: there is no value under key 'a'\n")
    assert shop("get", "a", "--json") == (1, '{"key": "a", "found": false}\n', "")


def test_delete_says_how_many_there_were(shop):
    shop("set", "a", "1")
    shop("set", "b", "2")
    assert shop("delete", "a", "c") == (0, "deleted 1 of 2\n", "")
    assert shop("delete", "b", "b", "--json") == (0, '{"asked": 1, "deleted": 1}\n', "")
    assert shop("delete", "b") == (0, "deleted 0 of 1\n", "")


def test_clear(shop):
    shop("set", "a", "1")
    code, out, _ = shop("clear")
    assert code == 0
    assert out.startswith("cleared namespace 'shop', version ")
    assert shop("get", "a")[0] == 1
    assert json.loads(shop("clear", "--json")[1])["namespace"] == "shop"


def test_url_and_namespace_from_the_environment(run, url, monkeypatch):
    monkeypatch.setenv("COHERENT_CACHE_URL", url)
    monkeypatch.setenv("COHERENT_CACHE_NAMESPACE", "shop")
    assert run("set", "a", "1")[0] == 0
    assert run("get", "a") == (0, "1\n", "")
    assert run("get", "a", "--namespace", "other")[0] == 1, "an option wins"
    assert run("get", "a", "--url", f"{url}-other")[0] == 1, "an option wins"


def test_values_that_json_does_not_have():
    value = {1: b"\x00\xff", "inf": float("inf"), "tuple": (1, {2}), "object": Version(b"e" * 16, 1)}
    assert json.loads(to_json(value)) == {
        "1": "AP8=", "inf": None, "tuple": [1, [2]], "object": repr(Version(b"e" * 16, 1)),
    }  # fmt: skip


def test_a_value_nested_too_deeply_is_text():
    text = "[" * 200_000
    assert from_text(text) == text


# -- errors ------------------------------------------------------------------------------------------------------------


def one_line(err):
    assert err.startswith("coherent-cache: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def test_no_namespace(run, url):
    code, out, err = run("get", "a", "--url", url)
    assert (code, out) == (2, "")
    assert "COHERENT_CACHE_NAMESPACE" in one_line(err)


@pytest.mark.parametrize(
    "argv",
    [
        ["get", ""], ["get", "k" * 1025], ["set", "a", "1", "--ttl", "-5"], ["set", "a", "1", "--ttl", "nan"],
        ["get", "a", "--shards", "0"], ["clear", "--namespace", "no spaces"], ["set", "a", '"' + "x" * 2**20 + '"'],
        ["get", "a", "--url", "ftp://user:secret@host"], ["get", "a", "--url", "redis://host:port"],
    ],
)  # fmt: skip
def test_what_the_library_refuses_is_wrong_usage(run, url, argv):
    options = {"--url": url, "--namespace": "shop"}
    given = [*argv, *(word for option, value in options.items() if option not in argv for word in (option, value))]
    code, out, err = run(*given)
    assert (code, out) == (2, "")
    assert "secret" not in one_line(err)


@pytest.mark.parametrize("command", [["get", "a"], ["set", "a", "1"], ["delete", "a"], ["clear"], ["demo"], ["tail"]])
def test_no_redis_exits_with_3(run, tmp_path, command):
    code, out, err = run(*command, "--url", f"unix://{tmp_path}/nobody-is-here", "--namespace", "shop")
    assert (code, out) == (3, "")
    assert "cannot connect to Redis" in one_line(err)


def test_another_number_of_shards_is_a_problem(shop):
    shop("set", "a", "1")
    code, _, err = shop("get", "a", "--shards", "2")
    assert code == 1
    assert "shards" in one_line(err)


def test_the_demo_does_not_run_in_memory(run):
    code, _, err = run("demo", "--url", "memory://x")
    assert code == 2
    assert "one process" in one_line(err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("ttl", "is odd"), 2),
        (errors.InvalidKey("odd"), 2),
        (errors.ValueTooLarge("a", 2, 1), 2),
        (errors.SerializationError("odd"), 1),
        (errors.VersionConflict("a", None, None), 1),
        (errors.LoaderTimeout("k", 1.0), 1),
        (errors.NotCoherent(1.0), 1),
        (errors.NamespaceMismatch("shop", "1/1", "1/2"), 1),
        (errors.ForeignValue("a", "odd"), 1),
        (errors.CoherentCacheError("of\nseveral\n\tlines"), 1),
        (errors.CacheUnavailable("gone\nTraceback (most recent call last):"), 3),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(run, failing, error, code):
    failing(error)
    found, out, err = run("fail")
    assert (found, out) == (code, "")
    assert " ".join(str(error).split()) in one_line(err)


def test_other_errors_are_not_hidden(failing):
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


@pytest.mark.parametrize(
    ("signalled", "code"),
    [(KeyboardInterrupt(), 130), (Terminated(signal.SIGTERM), 143), (Terminated(signal.SIGHUP), 129)],
)
def test_a_signal_ends_it_quietly(run, failing, signalled, code):
    failing(signalled)
    assert run("fail") == (code, "", "")


def test_signal_handlers_are_put_back(run, failing, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    during = []
    command = types.SimpleNamespace(
        __doc__="Look.",
        add_arguments=lambda _: None,
        run=lambda _: during.append(signal.getsignal(signal.SIGTERM)) or 0,
    )
    monkeypatch.setattr(cli, "COMMANDS", {"look": command})
    assert run("look")[0] == 0
    assert during != before[:1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_warning_is_one_line(run, monkeypatch):
    def warn(_):
        warnings.simplefilter("always")  # put back by main
        warnings.warn("mind the gap", RuntimeWarning, stacklevel=1)
        return 0

    command = types.SimpleNamespace(__doc__="Warn.", add_arguments=lambda _: None, run=warn)
    monkeypatch.setattr(cli, "COMMANDS", {"warn": command})
    assert run("warn") == (0, "", "coherent-cache: warning: mind the gap\n")


def test_the_parser_is_made_of_the_table(monkeypatch):
    command = types.SimpleNamespace(
        __doc__="Add.",
        add_arguments=lambda parser: parser.add_argument("number", type=int),
        run=lambda args: args.number,
    )
    monkeypatch.setattr(cli, "COMMANDS", {"add": command})
    args = cli.make_parser().parse_args(["add", "7"])
    assert isinstance(args, argparse.Namespace)
    assert args.run(args) == 7
