"""The structured log: events to structlog, whatever the application does about logging.

If the application configured structlog, its configuration is used. Else events go to the standard library's logger
``coherent_cache`` as ``event key=value ...``, so that plain ``logging`` configuration decides; without any, nothing is
printed.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from coherent_cache.events import Event

LOGGER_NAME: Final = "coherent_cache"

_standard = logging.getLogger(LOGGER_NAME)
_standard.addHandler(logging.NullHandler())


class EventLog:
    """Writes the events of one instance."""

    def __init__(self, **bound: Any) -> None:
        """Make a log whose lines all carry the given fields."""
        self._bound = bound

    def write(self, event: Event) -> None:
        """Write one event at its level."""
        getattr(self._logger(), event.level)(event.name, **event.as_dict())

    def traces(self) -> bool:
        """Tell whether lines at DEBUG would be written at all."""
        logger = self._logger()
        for name in ("is_enabled_for", "isEnabledFor"):
            # Of the class: structlog's generic logger pretends to have every method.
            is_enabled_for = getattr(type(logger), name, None)
            if is_enabled_for is not None:
                with suppress(AttributeError):  # what it wraps may not know levels
                    return bool(is_enabled_for(logger, logging.DEBUG))
        return _standard.isEnabledFor(logging.DEBUG)

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
