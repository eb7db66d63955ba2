"""What ``coherent-cache tail`` prints, and how: lines of text or JSON, by a thread that never lets them pile up."""

from __future__ import annotations

import json
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TextIO

from coherent_cache.cli.tail_explain import Fates
from coherent_cache.core.tailing import Gap, GapCause, Record, Shown
from coherent_cache.wire import Kind

MOST_BYTES: Final = 4 * 1024 * 1024
"""Bytes that wait for whoever reads the output; beyond that lines are dropped and counted, or wait themselves."""

CHUNK_BYTES: Final = 64 * 1024
"""Bytes that are written at once."""

MOST_FATES: Final = 400
"""Characters that a line for people has about instances."""

DATE_SECONDS: Final = 12 * 3600
"""Seconds from which on a line for people tells the date too."""

MOST_NAMES: Final = 5
"""Keys or tags that a line for people shows; JSON has all of them."""

MOST_CHARACTERS: Final = 120
"""Characters of a key or tag that a line for people shows."""


class Form(Protocol):
    """Makes lines of records."""

    def line(self, record: Record, fates: Fates | None = None) -> str:
        """Return a record as one line, without its end; with what became of it on the instances, if that is known."""


class JsonLines:
    """A JSON object per line; docs/how-to/logs.md tells the fields."""

    def __init__(self, namespace: str) -> None:
        """Make lines about this namespace."""
        self._namespace = namespace
        self._encode = json.JSONEncoder(ensure_ascii=False).encode
        self._second = (-1, "")

    def line(self, record: Record, fates: Fates | None = None) -> str:
        """Return a record as a line; see :class:`Form`."""
        fields = self.fields(record)
        if fates is not None:
            fields |= {"instances": fates.by_instance, "silent": fates.silent}
        return self._encode(fields)

    def fields(self, record: Record) -> dict[str, Any]:
        """Return a record's fields."""
        if isinstance(record, Gap):
            return {
                "event": "gap", "time": self._time(record.time_us), "namespace": self._namespace, "shard": record.shard,
                "cause": record.cause.value, "missed": record.missed, "after": record.after, "before": record.before,
            }  # fmt: skip
        message = record.message
        return {
            "event": "invalidation", "time": self._time(message.time_us), "namespace": self._namespace,
            "shard": record.shard, "kind": KIND_NAMES[message.kind], "version": message.seq,
            "epoch": message.epoch.hex(), "origin": message.origin, "names": message.names, "replayed": record.replayed,
        }  # fmt: skip

    def _time(self, time_us: int) -> str:
        second, rest = divmod(time_us, 1_000_000)
        if second != self._second[0]:
            self._second = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second[1]}.{rest:06}+00:00"


KIND_NAMES: Final = {kind: kind.name.lower() for kind in Kind}

_KIND_STYLES: Final = {
    "set": "green", "batch": "green", "touch": "cyan", "delete": "red", "tag": "magenta", "clear": "bold red",
    "release": "bright_black",
}  # fmt: skip

_GAPS: Final = {
    GapCause.LOG: "the log in Redis does not have them",
    GapCause.HISTORY: "Redis lost this shard's data, another history begins",
    GapCause.FORK: "Redis went back, by a failover or a restart: writes were discarded, their numbers come again",
    GapCause.DAMAGED: "bytes that are no message of this release",
    GapCause.OUTPUT: "the output is slower than the messages",
}


class Pretty:
    """Lines for people."""

    def __init__(self, paint: Callable[[str, str], str], shards: int) -> None:
        """Make lines.

        Args:
            paint: gives a text the look of a style.
            shards: how many shards there are; of more than one, each line tells which.
        """
        self._paint = paint
        self._shards = shards
        self._second = (-1, "")

    def line(self, record: Record, fates: Fates | None = None) -> str:
        """Return a record as a line; see :class:`Form`."""
        if isinstance(record, Gap):
            return self._paint(f"{self._time(record.time_us)} --- {describe_gap(record)} ---", "yellow")
        return self._message(record) + (
            "" if fates is None else self._paint(f"  [{printable(str(fates), MOST_FATES)}]", "dim")
        )

    def _message(self, record: Shown) -> str:
        message, paint = record.message, self._paint
        kind = KIND_NAMES[message.kind]
        names = "  ".join([printable(name) for name in message.names[:MOST_NAMES]])
        if len(message.names) > MOST_NAMES:
            names += f"  and {len(message.names) - MOST_NAMES:,} more"
        shard = f"s{record.shard:<3} " if self._shards > 1 else ""
        parts = [
            paint(self._time(message.time_us), "dim"), f" {shard}", paint(f"{kind:<8}", _KIND_STYLES[kind]),
            paint(f"{message.seq:>7}", "cyan"), f"  {names or '(everything)'}",
            paint(f"  by {printable(message.origin)}", "blue"),
        ]  # fmt: skip
        if record.replayed:
            parts.append(paint("  from the log", "dim"))
        return "".join(parts)

    def _time(self, time_us: int) -> str:
        second, rest = divmod(time_us, 1_000_000)
        if second != self._second[0]:
            form = "%H:%M:%S" if abs(time.time() - second) < DATE_SECONDS else "%Y-%m-%d %H:%M:%S"
            self._second = second, time.strftime(form, time.localtime(second))
        return f"{self._second[1]}.{rest // 1000:03}"


def describe_gap(gap: Gap) -> str:
    """Return a gap in words."""
    what = "messages missed" if gap.missed is None else f"{gap.missed:,} message{'s' * (gap.missed != 1)} missed"
    if gap.missed is None and gap.after is None and gap.before is not None:
        what = f"messages before version {gap.before} may be missing"
    elif gap.missed is None and gap.cause is not GapCause.FORK:
        what = "an unknown number of messages missed"
    where = "" if gap.shard is None else f" on shard {gap.shard}"
    return f"gap{where}: {what}: {_GAPS[gap.cause]}"


def printable(name: str, most: int = MOST_CHARACTERS) -> str:
    """Return a key, tag or origin as a terminal may show it: cut if it is long, without control characters."""
    if len(name) > most:
        name = name[: most - 1] + "…"
    if name.isprintable() and name == name.strip():
        return name
    return repr(name)


def plain(text: str, _style: str) -> str:
    """Give a text no look."""
    return text


def painter() -> Callable[[str, str], str]:
    """Return what gives texts the look of styles on this terminal; NO_COLOR and a missing ``rich`` are respected."""
    try:
        from rich.console import Console  # noqa: PLC0415  # optional
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return plain
    console = Console(soft_wrap=True)
    around: dict[str, tuple[str, str]] = {}

    def paint(text: str, style: str) -> str:
        if style not in around:
            with console.capture() as capture:
                console.print(Text("\N{BULLET}", style), end="")
            before, _, after = capture.get().partition("\N{BULLET}")
            around[style] = before, after
        before, after = around[style]
        return f"{before}{text}{after}"

    return paint


class Output:
    """Writes lines to a stream, by a thread of its own, so that a slow reader stops nobody.

    What waits is bounded: :meth:`put` waits until there is room, and :meth:`has_room` tells before.
    """

    def __init__(self, stream: TextIO) -> None:
        """Start the thread.

        Args:
            stream: standard output.
        """
        self._stream = stream
        self._closing = False
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = False
        self._changed = threading.Condition()
        self._error: OSError | None = None
        self._full = False
        stream.flush()
        self._descriptor: int | None = None
        self._poll: select.poll | None = None
        with suppress(OSError):  # no file: a test's
            self._descriptor = stream.fileno()
            if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
                self._poll = select.poll()
                self._poll.register(self._descriptor, 0)  # errors alone
        threading.Thread(target=self._run, name="coherent-cache tail output", daemon=True).start()

    def check(self) -> None:
        """Check that somebody still reads.

        Raises:
            OSError: nothing can be written any more.
        """
        if self._error is None and self._poll is not None and self._poll.poll(0):
            self._error = BrokenPipeError("the reader of the output has gone")
        if self._error is not None:
            raise self._error

    def has_room(self) -> bool:
        """Tell whether a line may come; after it was full, not before half of it is free again."""
        with self._changed:
            self._full = self._bytes > (MOST_BYTES // 2 if self._full else MOST_BYTES)
            return not self._full

    def put(self, line: str) -> None:
        """Take a line, when there is room for it, or nothing can be written any more."""
        encoding = self._stream.encoding or "utf-8"
        data = f"{line}\n".encode(encoding, "backslashreplace")
        with self._changed:
            self._changed.wait_for(lambda: self._bytes <= MOST_BYTES or self._error is not None)
            if not self._lines:
                self._changed.notify_all()
            self._lines.append(data)
            self._bytes += len(data)

    def close(self, timeout: float) -> None:
        """Wait until everything is written, or nothing can be, ``timeout`` seconds at most; then end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None or not (self._lines or self._writing), timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                chunk: list[bytes] = []
                size = 0
                while self._lines and size < CHUNK_BYTES:
                    chunk.append(self._lines.popleft())
                    size += len(chunk[-1])
                self._bytes -= size
                self._writing = True
            try:
                self._write(b"".join(chunk))
            except OSError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._stream.write(data.decode(errors="replace"))
            return
        # Not through the file object: a reader that has stopped would keep its lock, and the interpreter from ending.
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
