"""The structured log: events to structlog, whatever the application does about logging.

If the application configured structlog, its configuration is used. Else events go to the standard library's logger
``coherent_cache`` as ``event key=value ...``, so that plain ``logging`` configuration decides; without any, nothing is
printed.

A storm of events does not become a storm of lines: of each name only some are written per second, the others are
counted in one line. Keys and tags are written plain, as hashes, or not at all.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import structlog

from coherent_cache.config import LogKeys
from coherent_cache.events import KEY_FIELDS, QUOTING_FIELDS, Event, EventsSuppressed, Level

LOGGER_NAME: Final = "coherent_cache"

WINDOW_SECONDS: Final = 1.0
"""Seconds that the lines of one name are counted together."""

LINES_PER_WINDOW: Final = 20
"""Most lines of one name in that time."""

DEBUG_LINES_PER_WINDOW: Final = 1000
"""The same for events of level ``debug``, which come per message."""

REDACTED: Final = "…"
"""What is written in place of a key."""

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_QUOTATION: Final = re.compile(r"'.*'|\".*\"", re.DOTALL)

_standard = logging.getLogger(LOGGER_NAME)
_standard.addHandler(logging.NullHandler())


def hash_key(key: str, namespace: str) -> str:
    """Return what the log writes for a key or tag with ``log_keys="hash"``: 16 hexadecimal digits.

    BLAKE2b, keyed by the namespace. The same in all instances of a namespace, so that lines can be brought together;
    whoever can guess a key can check the guess.
    """
    return blake2b(key.encode("utf-8"), digest_size=8, key=namespace.encode("utf-8")).hexdigest()


class EventLog:
    """Writes the events of one instance."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, log_keys: LogKeys = "plain", **bound: Any
    ) -> None:
        """Make a log.

        Args:
            clock: local clock in seconds.
            log_keys: how keys and tags are written: ``plain``, ``hash`` or ``redact``.
            bound: fields of all lines.
        """
        self._clock = clock
        self._log_keys = log_keys
        self._bound = bound
        self._windows: dict[str, _Window] = {}

    def write(self, event: Event) -> list[EventsSuppressed]:
        """Write one event at its level, unless there were too many of its name; return the summaries written."""
        now = self._clock()
        window = self._windows.get(event.name)
        if window is not None and now < window.ends and window.left == 0:
            window.suppressed += 1  # first, for it must be cheap
            return []
        logger = self._logger()
        if _writes(logger, event.level) is False:
            return []
        summaries = []
        if window is None or now >= window.ends:
            if window is not None:
                summaries = self._end(window)
            lines = DEBUG_LINES_PER_WINDOW if event.level == "debug" else LINES_PER_WINDOW
            window = self._windows[event.name] = _Window(event.name, event.level, now + WINDOW_SECONDS, lines)
        window.left -= 1
        getattr(logger, event.level)(event.name, **self._fields(event))
        return summaries

    def summarise(self, now: float | None) -> list[EventsSuppressed]:
        """Write how many events were left out, by windows that have ended; return these summaries.

        Args:
            now: local clock in seconds; None to end all windows.
        """
        ended = [window for window in self._windows.values() if now is None or now >= window.ends]
        summaries = []
        for window in ended:
            del self._windows[window.name]
            summaries += self._end(window)
        return summaries

    def traces(self) -> bool:
        """Tell whether lines at DEBUG would be written at all."""
        writes = _writes(self._logger(), "debug")
        return _standard.isEnabledFor(logging.DEBUG) if writes is None else writes

    def _end(self, window: _Window) -> list[EventsSuppressed]:
        if not window.suppressed:
            return []
        summary = EventsSuppressed(window.name, window.suppressed, WINDOW_SECONDS)
        getattr(self._logger(), window.level)(summary.name, **self._fields(summary))
        return [summary]

    def _fields(self, event: Event) -> dict[str, Any]:
        fields = event.as_dict()
        if self._log_keys != "plain":
            for name in KEY_FIELDS & fields.keys():
                value = fields[name]
                fields[name] = self._hidden(value) if isinstance(value, str) else tuple(map(self._hidden, value))
            if "text" in fields:
                fields["text"] = REDACTED
            for name in QUOTING_FIELDS & fields.keys():
                fields[name] = _QUOTATION.sub(REDACTED, fields[name])
        return fields

    def _hidden(self, key: str) -> str:
        return hash_key(key, str(self._bound.get("namespace", ""))) if self._log_keys == "hash" else REDACTED

    def _logger(self) -> Any:
        # Asked for each time: applications configure logging after they import, and make, caches.
        if structlog.is_configured():
            return structlog.get_logger(LOGGER_NAME).bind(**self._bound)
        return structlog.wrap_logger(
            _standard,
            wrapper_class=structlog.stdlib.BoundLogger,
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
        ).bind(**self._bound)


@dataclass(slots=True)
class _Window:
    """The events of one name in one second."""

    name: str
    level: Level
    ends: float
    left: int
    suppressed: int = 0


def _writes(logger: Any, level: Level) -> bool | None:
    """Tell whether a logger would write a line of this level; None if it does not say."""
    number = _LEVELS[level]
    for name in ("is_enabled_for", "isEnabledFor"):
        # Of the class: structlog's generic logger pretends to have every method.
        is_enabled_for = getattr(type(logger), name, None)
        if is_enabled_for is not None:
            with suppress(AttributeError):  # what it wraps may not know levels
                return bool(is_enabled_for(logger, number))
    return None
