"""The log goes where the application sends its logs: structlog, standard logging, or nowhere."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import subprocess
import sys
import textwrap

import pytest
import structlog

from coherent_cache import events
from coherent_cache.events import KEY_FIELDS, QUOTING_FIELDS
from coherent_cache.logs import (
    DEBUG_LINES_PER_WINDOW,
    LINES_PER_WINDOW,
    LOGGER_NAME,
    REDACTED,
    WINDOW_SECONDS,
    EventLog,
    hash_key,
)

DEBUG = events.FillRefused(shard=0, key="k", version=9, cause="newer")
INFO = events.Resynced(shard=0, cause="first connection", outcome="first", version=9, replayed=0, dropped=0)
WARNING = events.HistoryLost(shard=0, dropped=3, cause="read")
ERROR = events.InternalError(where="thread", error="ValueError", text="100% of it\nfailed")
ALL = [DEBUG, INFO, WARNING, ERROR]


@pytest.fixture(autouse=True)
def _unconfigured_logging():
    structlog.reset_defaults()
    standard = logging.getLogger(LOGGER_NAME)
    level = standard.level
    yield
    structlog.reset_defaults()
    standard.setLevel(level)


@pytest.fixture
def captured() -> list:
    """Configure structlog to keep its events, and return the list of them."""
    kept = []

    def keep(logger, method, event):
        kept.append(event | {"level": method})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    return kept


def run(configuration: str) -> subprocess.CompletedProcess:
    """Write an event of each level in a process of its own, after ``configuration``."""
    program = """
    import logging, structlog
    from coherent_cache import events
    from coherent_cache.logs import EventLog
    {configuration}
    log = EventLog(instance="me")
    log.write(events.FillRefused(shard=0, key="k", version=9, cause="newer"))
    log.write(events.Resynced(shard=0, cause="", outcome="", version=9, replayed=0, dropped=0))
    log.write(events.HistoryLost(shard=0, dropped=3, cause="read"))
    log.write(events.InternalError(where="thread", error="KeyError", text="x"))
    """
    text = textwrap.dedent(program).format(configuration=configuration)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)


# --- an application that configured nothing ---


def test_without_any_configuration_nothing_is_printed():
    # logging's last resort would print warnings; so would structlog's own default.
    done = run("")

    assert (done.stdout, done.stderr) == ("", "")


def test_without_any_configuration_nothing_is_traced():
    assert EventLog().traces() is False


# --- an application that uses standard logging ---


def test_with_standard_logging_lines_go_to_its_handlers():
    done = run("logging.basicConfig(format='%(levelname)s|%(name)s|%(message)s', level='INFO')")

    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "INFO|coherent_cache|event='resynced' instance='me' shard=0 cause='' outcome='' version=9 replayed=0 dropped=0",
        "WARNING|coherent_cache|event='history_lost' instance='me' shard=0 dropped=3 cause='read'",
        "ERROR|coherent_cache|event='internal_error' instance='me' where='thread' error='KeyError' text='x'",
    ]


@pytest.mark.parametrize(
    ("level", "names"),
    [
        (logging.DEBUG, ["fill_refused", "resynced", "history_lost", "internal_error"]),
        (logging.INFO, ["resynced", "history_lost", "internal_error"]),
        (logging.WARNING, ["history_lost", "internal_error"]),
        (logging.ERROR, ["internal_error"]),
        (logging.CRITICAL, []),
    ],
)
def test_the_level_of_the_standard_logger_decides(caplog, level, names):
    caplog.set_level(level, LOGGER_NAME)
    log = EventLog()

    for event in ALL:
        log.write(event)

    assert [record.message.split("'")[1] for record in caplog.records] == names
    assert log.traces() is (level <= logging.DEBUG)


def test_the_level_of_a_parent_counts_too(caplog):
    caplog.set_level(logging.DEBUG)

    assert EventLog().traces() is True


def test_each_event_is_one_record_at_its_level(caplog):
    caplog.set_level(logging.DEBUG, LOGGER_NAME)
    log = EventLog()

    for event in ALL:
        log.write(event)

    assert [(record.levelname.lower(), record.name) for record in caplog.records] == [
        (event.level, LOGGER_NAME) for event in ALL
    ]
    for record in caplog.records:
        assert "\n" not in record.getMessage()


def test_percent_signs_are_no_placeholders(caplog):
    EventLog().write(ERROR)

    assert "100% of it" in caplog.records[0].getMessage()


def test_a_level_that_changes_later_counts(caplog):
    # Applications configure logging after they import, and make, caches.
    caplog.set_level(logging.ERROR, LOGGER_NAME)
    log = EventLog()
    log.write(INFO)
    assert caplog.records == []

    caplog.set_level(logging.DEBUG, LOGGER_NAME)
    log.write(INFO)
    assert len(caplog.records) == 1
    assert log.traces() is True


# --- an application that uses structlog ---


def test_with_structlog_its_configuration_gets_the_fields(captured):
    EventLog(instance="me", namespace="shop").write(WARNING)

    assert captured == [
        {
            "event": "history_lost",
            "level": "warning",
            "instance": "me",
            "namespace": "shop",
            "shard": 0,
            "dropped": 3,
            "cause": "read",
        }
    ]


def test_with_structlog_every_level_has_its_method(captured):
    for event in ALL:
        EventLog().write(event)

    assert [(line["level"], line["event"]) for line in captured] == [(event.level, event.name) for event in ALL]


def test_with_structlog_nothing_goes_to_standard_logging(captured, caplog):
    caplog.set_level(logging.DEBUG, LOGGER_NAME)

    EventLog().write(WARNING)

    assert caplog.records == []
    assert len(captured) == 1


def test_structlog_configured_later_counts(caplog):
    log = EventLog()
    log.write(WARNING)
    assert len(caplog.records) == 1

    kept = []
    structlog.configure(processors=[lambda _, __, event: kept.append(event) or "line"], logger_factory=_Silent)
    log.write(WARNING)
    assert len(caplog.records) == 1
    assert [line["event"] for line in kept] == ["history_lost"]


def test_two_logs_keep_their_own_fields(captured):
    first, second = EventLog(instance="first"), EventLog(instance="second")

    first.write(INFO)
    second.write(INFO)

    assert [line["instance"] for line in captured] == ["first", "second"]


@pytest.mark.parametrize(("level", "traces"), [(logging.DEBUG, True), (logging.INFO, False), (logging.ERROR, False)])
def test_structlogs_filtering_logger_decides_about_traces(level, traces):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level), logger_factory=_Silent)

    assert EventLog().traces() is traces


@pytest.mark.parametrize(("level", "traces"), [(logging.DEBUG, True), (logging.INFO, False)])
def test_structlog_over_standard_logging_decides_about_traces(level, traces):
    logging.getLogger(LOGGER_NAME).setLevel(level)
    structlog.configure(wrapper_class=structlog.stdlib.BoundLogger, logger_factory=structlog.stdlib.LoggerFactory())

    assert EventLog().traces() is traces


class _Silent:
    """A logger that knows neither levels nor anything else but to swallow lines."""

    def __init__(self, *args):
        pass

    def msg(self, *args, **kwargs):
        pass

    debug = info = warning = error = msg


@pytest.mark.parametrize("wrapper", [structlog.BoundLogger, structlog.stdlib.BoundLogger])
@pytest.mark.parametrize(("level", "traces"), [(logging.DEBUG, True), (logging.WARNING, False)])
def test_loggers_that_know_no_levels_ask_the_standard_one(wrapper, level, traces):
    # structlog's generic logger has every attribute that one asks for, and fails when it is called.
    lines = []
    logging.getLogger(LOGGER_NAME).setLevel(level)
    structlog.configure(
        wrapper_class=wrapper,
        logger_factory=_Silent,
        processors=[lambda _, method, event: lines.append((method, event)) or "line"],
    )

    assert EventLog().traces() is traces
    assert lines == []  # asking writes nothing


@pytest.mark.parametrize("wrapper", [structlog.BoundLogger, structlog.stdlib.BoundLogger])
def test_loggers_that_know_no_levels_are_written_to(wrapper):
    lines = []
    structlog.configure(
        wrapper_class=wrapper, logger_factory=_Silent, processors=[lambda _, __, event: lines.append(event) or "line"]
    )

    for event in ALL:
        EventLog().write(event)

    assert [line["event"] for line in lines] == [event.name for event in ALL]


# --- storms ---


def test_a_storm_becomes_a_counted_summary(captured, clock):
    log = EventLog(clock=clock, instance="me")
    for _ in range(LINES_PER_WINDOW + 7):
        assert log.write(INFO) == []
    log.write(WARNING)  # another name has its own count
    assert [line["event"] for line in captured] == ["resynced"] * LINES_PER_WINDOW + ["history_lost"]

    clock.now += WINDOW_SECONDS
    del captured[:]
    assert log.write(INFO) == [events.EventsSuppressed("resynced", 7, WINDOW_SECONDS)]
    assert [(line["event"], line["level"]) for line in captured] == [
        ("events_suppressed", "info"),
        ("resynced", "info"),
    ]
    assert captured[0] | {"of": "resynced", "count": 7, "instance": "me"} == captured[0]


@pytest.mark.parametrize("event", ALL)
def test_the_summary_has_the_level_of_what_was_left_out(captured, clock, event):
    log = EventLog(clock=clock)
    for _ in range(DEBUG_LINES_PER_WINDOW + 1):
        log.write(event)
    clock.now += WINDOW_SECONDS
    log.summarise(clock.now)

    assert (captured[-1]["event"], captured[-1]["level"], captured[-1]["of"]) == (
        "events_suppressed", event.level, event.name,
    )  # fmt: skip
    lines = DEBUG_LINES_PER_WINDOW if event.level == "debug" else LINES_PER_WINDOW
    assert len(captured) == lines + 1
    assert captured[-1]["count"] == DEBUG_LINES_PER_WINDOW + 1 - lines


def test_a_summary_comes_when_the_second_is_over_or_at_the_end(captured, clock):
    log = EventLog(clock=clock)
    for _ in range(LINES_PER_WINDOW + 3):
        log.write(INFO)
    clock.now += WINDOW_SECONDS / 2
    assert log.summarise(clock.now) == []
    assert log.summarise(None) == [events.EventsSuppressed("resynced", 3, WINDOW_SECONDS)]
    assert log.summarise(None) == []


def test_without_a_storm_there_is_no_summary(captured, clock):
    log = EventLog(clock=clock)
    for _ in range(3 * LINES_PER_WINDOW):
        log.write(INFO)
        clock.now += WINDOW_SECONDS / LINES_PER_WINDOW * 1.001
    log.summarise(None)
    assert [line["event"] for line in captured] == ["resynced"] * 3 * LINES_PER_WINDOW


def test_what_the_level_leaves_out_is_not_counted(caplog, clock):
    caplog.set_level(logging.WARNING, LOGGER_NAME)
    log = EventLog(clock=clock)
    for _ in range(2 * LINES_PER_WINDOW):
        log.write(INFO)
    assert log.summarise(None) == []


# --- keys ---

SECRETIVE = [
    events.FillRefused(shard=0, key="user:ada", version=9, cause="newer"),
    events.InvalidationReceived(0, "tag", 9, "b", ("user:ada", "team"), applied=True, lag_ms=None),
    events.WritePublished(0, "set", 9, ("user:ada",)),
    events.CommandFailed("ERR unknown command 'EVAL', with args beginning with: '3' 'user:ada' ", maybe_applied=True),
    events.InternalError("subscriber", "KeyError", "user:ada"),
]


def test_keys_are_plain_unless_asked_otherwise(captured):
    for event in SECRETIVE:
        EventLog(namespace="shop").write(event)
    assert captured[0]["key"] == "user:ada"
    assert captured[1]["names"] == ("user:ada", "team")
    assert captured[4]["text"] == "user:ada"


@pytest.mark.parametrize("log_keys", ["hash", "redact"])
@pytest.mark.parametrize("event", SECRETIVE, ids=lambda event: event.name)
def test_keys_and_tags_do_not_reach_the_log(captured, log_keys, event):
    EventLog(log_keys=log_keys, namespace="shop").write(event)
    (line,) = captured
    assert "ada" not in str(line)
    assert "team" not in str(line)
    assert line.keys() == event.as_dict().keys() | {"event", "level", "namespace"}


def test_hashes_tell_keys_apart_and_are_the_same_everywhere(captured):
    EventLog(log_keys="hash", namespace="shop", instance="a").write(SECRETIVE[0])
    EventLog(log_keys="hash", namespace="shop", instance="b").write(SECRETIVE[1])
    EventLog(log_keys="hash", namespace="bank", instance="b").write(SECRETIVE[0])
    here, there, elsewhere = captured
    assert re.fullmatch("[0-9a-f]{16}", here["key"])
    assert here["key"] == there["names"][0] == hash_key("user:ada", "shop")
    assert there["names"][1] != there["names"][0]
    assert elsewhere["key"] != here["key"], "another namespace, another hash"


def test_a_redacted_message_still_tells_how_many_keys_it_concerns(captured):
    EventLog(log_keys="redact", namespace="shop").write(SECRETIVE[1])
    assert captured[0]["names"] == (REDACTED, REDACTED)


def test_fields_with_keys_and_texts_are_known():
    # A new field of type str must be judged: does it hold a key, or the text of an error?
    known = KEY_FIELDS | QUOTING_FIELDS | {"text"}
    harmless = {
        "old",
        "new",
        "outcome",
        "kind",
        "origin",
        "error",
        "server",
        "transport",
        "where",
        "of",
        "rights",
        "what",
    }
    texts = {
        field.name
        for kind in events.catalogue()
        for field in dataclasses.fields(kind)
        if field.type in ("str", "tuple[str, ...]")
    }
    assert texts == known | harmless


# --- whole caches in applications of each kind ---

APPLICATION = """
import json, logging, structlog
from coherent_cache import CoherentCache
{configuration}
with CoherentCache("memory://application", namespace="shop", instance_id="me") as cache:
    assert cache.wait_ready(30)
    cache.set("secret-key", "secret-value")
    cache.get("secret-key")
"""

CONFIGURATIONS = {
    "neither": "",
    "standard logging": "logging.basicConfig(format='%(name)s %(levelname)s %(message)s', level='DEBUG')",
    "structlog": """
structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
""",
    "structlog over standard logging": """
logging.basicConfig(format='%(message)s', level='DEBUG')
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.add_log_level, structlog.processors.JSONRenderer()],
    wrapper_class=structlog.stdlib.BoundLogger, logger_factory=structlog.stdlib.LoggerFactory(),
)
""",
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_cache_logs_in_an_application_of_each_kind(kind):
    program = APPLICATION.format(configuration=CONFIGURATIONS[kind])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    text = done.stdout + done.stderr
    assert "secret-value" not in text
    if kind == "neither":
        assert text == ""
    elif kind == "standard logging":
        assert "coherent_cache INFO event='resynced' namespace='shop' instance='me' shard=0 " in text
        assert "coherent_cache DEBUG event='write_published' namespace='shop' instance='me' shard=0 kind='set'" in text
    else:
        written = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        (resynced,) = [line for line in written if line["event"] == "resynced"]
        assert (resynced["level"], resynced["namespace"], resynced["instance"]) == ("info", "shop", "me")
        assert "write_published" in [line["event"] for line in written if line["level"] == "debug"]
