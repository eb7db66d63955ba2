"""``coherent-cache tail`` in this process: its options, its lines, and an output that takes them or does not."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import sys
import threading

import pytest

from coherent_cache import CoherentCache
from coherent_cache.cli import main as cli
from coherent_cache.cli import tail_output
from coherent_cache.cli.tail import Screen, duration
from coherent_cache.cli.tail_explain import Explainer, Fates
from coherent_cache.cli.tail_output import JsonLines, Output, Pretty, describe_gap, painter, plain, printable
from coherent_cache.core.questions import Answer, Ask
from coherent_cache.core.tailing import Filter, Gap, GapCause, Shown
from coherent_cache.errors import CacheUnavailable
from coherent_cache.remote.inquiry import Answers
from coherent_cache.remote.tailing import Notice
from coherent_cache.wire import Kind
from tests.unit.core.model import message

NOW = 1_700_000_000_123_456


@pytest.fixture
def url():
    return f"memory://tail-{secrets.token_hex(4)}"


@pytest.fixture
def run(run, url):
    return lambda *argv: run("tail", *argv, "--url", url, "--namespace", "shop")


@pytest.fixture
def shop(url):
    with CoherentCache(url, namespace="shop", instance_id="worker-1") as cache:
        yield cache


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


# -- the command -------------------------------------------------------------------------------------------------------


def test_lines_of_json_have_these_fields(run, shop):
    version = shop.set("user:7", 1)
    shop.invalidate_tags("red")
    code, out, err = run("--last", "10", "--no-follow")
    assert (code, err) == (0, "")
    first, second = lines(out)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "event": "invalidation", "namespace": "shop", "shard": 0, "kind": "set", "version": 1,
        "epoch": version.epoch.hex(), "origin": "worker-1", "names": ["user:7"], "replayed": True,
    }  # fmt: skip
    assert (second["kind"], second["names"]) == ("tag", ["red"])


def test_filters_and_ends(run, shop):
    for name in ("user:1", "page:1", "user:2", "user:3"):
        shop.set(name, 1)
    assert [line["names"] for line in lines(run("--since", "1h", "--no-follow", "--key", "user:*")[1])] == [
        ["user:1"], ["user:2"], ["user:3"],
    ]  # fmt: skip
    assert len(lines(run("--last", "9", "--count", "2")[1])) == 2
    assert run("--last", "9", "--no-follow", "--origin", "nobody") == (0, "", "")
    assert run("--seconds", "0.01") == (0, "", "")


def test_a_namespace_that_is_not_there(run):
    assert run() == (1, "", "coherent-cache: nothing was ever written in namespace 'shop' there; --wait waits for it\n")
    assert run("--wait", "--seconds", "0.01")[0] == 1


def test_a_shard_that_was_never_written_hides_no_other(run, url):
    with CoherentCache(url, namespace="shop", shards=4, local_enabled=False) as cache:
        cache.set("first", 1)  # of shard 3
    assert [line["shard"] for line in lines(run("--last", "9", "--no-follow")[1])] == [3]


def test_another_number_of_shards_is_a_problem(run, shop):
    shop.set("k", 1)
    code, out, err = run("--shards", "2")
    assert (code, out) == (1, "")
    assert "shards" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["--since", "soon"], ["--since", "-5"], ["--since", "0"], ["--since", "5w"], ["--last", "0"], ["--last", "x"],
        ["--last", "1000001"], ["--count", "0"], ["--kind", "evict"], ["--seconds", "99999d"], ["extra"],
        ["--no-follow"], ["--shards", "0"],
    ],
)  # fmt: skip
def test_unusable_options_exit_with_2(run, argv):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err


def test_no_namespace(capsys, monkeypatch, url):
    monkeypatch.delenv("COHERENT_CACHE_NAMESPACE", raising=False)
    assert cli.main(["tail", "--url", url]) == 2
    assert "COHERENT_CACHE_NAMESPACE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("500ms", 0.5), (" 3 ", 3)],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


def test_a_duration_that_is_none_says_how():
    with pytest.raises(argparse.ArgumentTypeError, match="10m"):
        duration("ten")


# -- lines -------------------------------------------------------------------------------------------------------------


def shown(kind, *names, shard=0, replayed=False):
    return Shown(shard, message(kind, 42, *names, time_us=NOW, origin="worker-1"), replayed)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (shown(Kind.SET, "user:7"), " set          42  user:7  by worker-1"),
        (shown(Kind.CLEAR), " clear        42  (everything)  by worker-1"),
        (shown(Kind.TAG, "red", "blue", replayed=True), " tag          42  red  blue  by worker-1  from the log"),
        (shown(Kind.BATCH, *"abcdefg"), " batch        42  a  b  c  d  e  and 2 more  by worker-1"),
    ],
)
def test_lines_for_people(record, text):
    line = Pretty(plain, 1).line(record)
    assert re.match(r"2023-11-1\d \d\d:\d\d:\d\d\.123 ", line), "long ago: with its date"
    assert line.endswith(text)


def test_lines_tell_the_shard_if_there_are_several():
    assert " s3   set " in Pretty(plain, 4).line(shown(Kind.SET, "k", shard=3))


@pytest.mark.parametrize("cause", GapCause)
def test_gaps_are_told_in_words(cause):
    known = describe_gap(Gap(2, cause, 1234, 5, 1240, NOW))
    assert "gap on shard 2: 1,234 messages missed: " in known
    assert "1 message missed: " in describe_gap(Gap(None, cause, 1, 5, 7, NOW))
    unknown = describe_gap(Gap(0, cause, None, 5, None, NOW))
    assert "messages missed" in unknown
    assert not any(character.isdigit() for character in unknown.replace("shard 0", ""))
    assert "before version 7" in describe_gap(Gap(0, cause, None, None, 7, NOW))
    assert known in Pretty(plain, 1).line(Gap(2, cause, 1234, 5, 1240, NOW))


def test_gaps_as_json():
    line = json.loads(JsonLines("shop").line(Gap(2, GapCause.LOG, 3, 5, 9, NOW)))
    assert line == {
        "event": "gap", "time": "2023-11-14T22:13:20.123456+00:00", "namespace": "shop", "shard": 2, "cause": "log",
        "missed": 3, "after": 5, "before": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("user:7", "user:7"), ("grün 漢字", "grün 漢字"), ("a\x1b[31mb", r"'a\x1b[31mb'"), ("a\nb", r"'a\nb'"),
        (" a", "' a'"), ("x" * 500, "x" * 119 + "…"), ("\u202eb", r"'\u202eb'"),
    ],
)  # fmt: skip
def test_what_keys_contain_is_not_for_the_terminal_to_obey(name, text):
    assert printable(name) == text


def test_without_a_terminal_nothing_is_painted(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert painter()("text", "red") == "text"


def test_colours_by_rich(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert painter()("text", "red") == "\x1b[31mtext\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in painter()("text", "red")


def test_without_rich_there_are_no_colours(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert painter() is plain


# -- the output --------------------------------------------------------------------------------------------------------


class Pipe:
    """A pipe, and what writes to it."""

    def __init__(self):
        reading, writing = os.pipe()
        self.reader = os.fdopen(reading, "rb")
        self.stream = os.fdopen(writing, "w", encoding="utf-8")
        self.output = Output(self.stream)

    def screen(self, *keys):
        return Screen(self.output, JsonLines("shop"), Filter(keys=keys), 1e9)

    def fill(self):
        """Fill it up; return how many lines of 10,000 bytes it took."""
        taken = 0
        while self.output.has_room():
            self.output.put("x" * 9_999)
            taken += 1
        return taken


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setattr(tail_output, "MOST_BYTES", 1_000_000)
    pipe = Pipe()
    yield pipe
    pipe.reader.close()
    pipe.output.close(10)
    pipe.stream.close()


def test_lines_come_out_in_their_order(pipe):
    for number in range(1000):
        pipe.output.put(f"line {number}")
    assert [pipe.reader.readline() for _ in range(1000)] == [b"line %d\n" % number for number in range(1000)]


def test_what_waits_is_bounded_and_there_is_room_again_when_half_is_free(pipe):
    assert 100 < pipe.fill() < 100 + 16 + 2 * tail_output.CHUNK_BYTES // 10_000
    read = 0
    while not pipe.output.has_room():
        read += len(pipe.reader.read(10_000))
    assert 300_000 < read < 700_000


def test_a_reader_that_has_gone_is_an_error(pipe):
    pipe.output.check()
    pipe.reader.close()
    with pytest.raises(BrokenPipeError):
        pipe.output.check()


def test_who_waits_for_room_is_told_that_the_reader_has_gone(pipe):
    pipe.fill()
    pipe.reader.close()
    pipe.output.put("y")  # returns
    with pytest.raises(BrokenPipeError):
        pipe.output.check()


def test_an_output_that_is_slow_loses_messages_counted(pipe):
    screen, record = pipe.screen("k*"), shown(Kind.SET, "k" * 1000)
    screen.show([record] * 3000)
    screen.show([shown(Kind.SET, "unwanted")] * 1000)
    received = 0
    while not pipe.output.has_room():
        received += json.loads(pipe.reader.readline())["event"] == "invalidation"
    screen.show([record])
    gap = None
    while gap is None:
        line = json.loads(pipe.reader.readline())
        if line["event"] == "gap":
            gap = line
        else:
            received += 1
    assert json.loads(pipe.reader.readline()) == json.loads(JsonLines("shop").line(record))
    assert (gap["cause"], gap["shard"]) == ("output", None)
    assert received + gap["missed"] == 3000


def test_a_gap_is_told_when_there_is_room_though_nothing_comes(pipe):
    screen = pipe.screen()
    screen.show([shown(Kind.SET, "k" * 1000)] * 3000)
    while not pipe.output.has_room():
        pipe.reader.readline()
    screen.show([])
    while json.loads(pipe.reader.readline())["event"] != "gap":
        pass


def test_what_was_dropped_at_the_end_is_told_on_standard_error(pipe, monkeypatch, capsys):
    monkeypatch.setattr("coherent_cache.cli.tail.FLUSH_SECONDS", 0.01)
    screen = pipe.screen()
    screen.show([shown(Kind.SET, "k" * 1000)] * 3000)
    screen.close()
    assert "messages missed: the output is slower" in capsys.readouterr().err


def test_what_comes_from_the_log_waits_instead(pipe):
    screen = pipe.screen()
    record = shown(Kind.SET, "k" * 1000, replayed=True)
    thread = threading.Thread(target=screen.show, args=([record] * 3000,))
    thread.start()
    for _ in range(3000):
        assert json.loads(pipe.reader.readline())["event"] == "invalidation"
    thread.join()


def test_notices_go_to_standard_error(pipe, capsys):
    pipe.screen().show([Notice("connected again")])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "coherent-cache: connected again\n")


# -- what became of messages -------------------------------------------------------------------------------------------


class Fleet:
    """Answers questions as some instances would."""

    def __init__(self, answers, *, asked=None, away=False):
        self.answers, self.asked, self.away = answers, asked, away
        self.questions = []

    def ask(self, kind, *, timeout, keys):
        if self.away:
            raise CacheUnavailable("gone")
        self.questions.append(keys)
        answers = tuple(Answer(b"12345678", member, kind, body) for member, kind, body in self.answers(len(keys)))
        return Answers(answers, len(answers) if self.asked is None else self.asked, 0)


def everywhere(fate):
    return lambda count: [("a:1", Ask.MESSAGES, [fate] * count), ("b:2", Ask.MESSAGES, ["ignored"] * count)]


def test_what_became_of_each_message_is_asked_of_all():
    fleet = Fleet(everywhere("applied"))
    assert Explainer(fleet).fates([shown(Kind.SET, "k")] * 450) == [Fates({"a": "applied", "b": "ignored"}, 0)] * 450
    assert list(map(len, fleet.questions)) == [200, 200, 50]
    assert fleet.questions[0][0].startswith("0:")


def test_nobody_could_be_asked():
    assert Explainer(Fleet(None, away=True)).fates([shown(Kind.SET, "k")] * 3) == [None] * 3


def test_answers_that_say_nothing_and_none_at_all():
    fleet = Fleet(
        lambda _: [
            ("old:1", "unknown", []), ("short:1", Ask.MESSAGES, []), ("odd:1", Ask.MESSAGES, [["x"]]),
            ("twin:1", Ask.MESSAGES, ["behind"]), ("twin:2", Ask.MESSAGES, ["passed"]),
        ], asked=7,
    )  # fmt: skip
    (fates,) = Explainer(fleet).fates([shown(Kind.SET, "k")])
    assert fates == Fates(
        {"old": "unknown", "short": "unknown", "odd": "unknown", "twin:1": "behind", "twin:2": "passed"}, 2
    )
    assert str(fates) == "passed: twin:2; behind: twin:1; unknown: odd, old, short; no answer: 2"


def test_many_instances_are_counted():
    assert str(Fates({f"web-{number}": "applied" for number in range(9)}, 0)) == (
        "applied: web-0, web-1, web-2, web-3 and 5 more"
    )
    assert str(Fates({}, 0)) == "no instance"


def test_explained_lines():
    record, fates = shown(Kind.SET, "k"), Fates({"a": "applied"}, 1)
    line = json.loads(JsonLines("shop").line(record, fates))
    assert (line["instances"], line["silent"]) == ({"a": "applied"}, 1)
    assert Pretty(plain, 1).line(record, fates).endswith("  by worker-1  [applied: a; no answer: 1]")


def test_only_what_is_shown_is_asked_about(pipe):
    fleet = Fleet(everywhere("applied"))
    screen = Screen(pipe.output, JsonLines("shop"), Filter(keys=["k"]), 2, Explainer(fleet))
    screen.show(
        [Notice("hello"), *[shown(Kind.SET, "other"), shown(Kind.SET, "k")] * 5, Gap(0, GapCause.LOG, 1, 2, 3, NOW)]
    )
    assert list(map(len, fleet.questions)) == [2]
    assert [json.loads(pipe.reader.readline())["instances"]["a"] for _ in range(2)] == ["applied"] * 2


def test_explain_asks_the_instances(run, url):
    with CoherentCache(url, namespace="shop", instance_id="web-1") as cache:
        assert cache.wait_ready(10)
        cache.set("user:7", 1)
        code, out, err = run("--last", "1", "--no-follow", "--explain")
    assert (code, err) == (0, "")
    (line,) = lines(out)
    assert line["instances"].keys() == {"web-1"}
    assert line["instances"]["web-1"] in {"applied", "ignored"}
    assert line["silent"] == 0
