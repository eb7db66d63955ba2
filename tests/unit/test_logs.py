"""The log goes where the application sends its logs: structlog, standard logging, or nowhere."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap

import pytest
import structlog

from coherent_cache import events
from coherent_cache.logs import LOGGER_NAME, EventLog

DEBUG = events.FillRefused(shard=0, key="k", seq=9, cause="newer")
INFO = events.Resynced(shard=0, outcome="first", seq=9, replayed=0, dropped=0)
WARNING = events.HistoryLost(shard=0, dropped=3, cause="read")
ERROR = events.InternalError(where="thread", error="ValueError: 100% of it\nfailed")
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
    log.write(events.FillRefused(shard=0, key="k", seq=9, cause="newer"))
    log.write(events.Resynced(shard=0, outcome="first", seq=9, replayed=0, dropped=0))
    log.write(events.HistoryLost(shard=0, dropped=3, cause="read"))
    log.write(events.InternalError(where="thread", error="x"))
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
        "INFO|coherent_cache|event='resynced' instance='me' shard=0 outcome='first' seq=9 replayed=0 dropped=0",
        "WARNING|coherent_cache|event='history_lost' instance='me' shard=0 dropped=3 cause='read'",
        "ERROR|coherent_cache|event='internal_error' instance='me' where='thread' error='x'",
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
