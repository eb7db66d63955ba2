"""Write docs/reference/events.md from the docstrings of coherent_cache/events.py."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from coherent_cache.event_hub import MAX_PENDING_EVENTS
from coherent_cache.events import Event, catalogue
from coherent_cache.logs import DEBUG_LINES_PER_WINDOW, LINES_PER_WINDOW

PAGE = Path(__file__).with_name("events.md")

HEAD = f"""# Events

<!-- Made by make_events.py from the docstrings of coherent_cache/events.py. Change those. -->

What a cache reports, to the log and to the callbacks of `on_event`. How to use them: [logs](../how-to/logs.md). Every
line of the log has the event's name, `namespace`, `instance` (the name of the instance that reports), and the event's
own fields. Names and fields are stable. Durations are in seconds unless the field's name says otherwise (`lag_ms`:
milliseconds); a `version` is the sequence number in the shard's present history. No event ever holds a value, or a
password.

Events of level `debug` come per message or command. They are made only while somebody wants them: a callback, or a log
that writes DEBUG, which is looked up once a second. With several shards, what concerns a shard comes once per shard.

**Limits.** The log writes, of each name and per second, the first {LINES_PER_WINDOW} events, of level `debug` the first
{DEBUG_LINES_PER_WINDOW:,}, and then how many more there were: [`events_suppressed`](#events_suppressed). Callbacks get
every event. If log and callbacks together are slower than events come, the oldest of more than {MAX_PENDING_EVENTS:,}
are dropped for both, and counted: [`events_dropped`](#events_dropped). The cache itself never waits for either.

**Keys.** `log_keys="hash"` writes 16 hexadecimal digits in place of each key and tag in the fields `key` and `names`,
the same in all instances of a namespace (`coherent_cache.logs.hash_key`); `log_keys="redact"` writes `…`. In both,
texts of errors lose what they quote. Callbacks get keys as they are.

| name | level | what happened |
|---|---|---|
"""


def page() -> str:
    """Return the text of the page."""
    kinds = sorted(catalogue(), key=lambda kind: kind.name)
    rows = [f"| [`{kind.name}`](#{kind.name}) | {kind.level} | {parts(kind)[0]} |" for kind in kinds]
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(map(section, kinds))


def section(kind: type[Event]) -> str:
    """Return what the page says of one event."""
    text, meanings = parts(kind)
    types = get_type_hints(kind)
    lines = [f"## {kind.name}", "", f"{text} Level `{kind.level}`; `coherent_cache.events.{kind.__name__}`.", ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for field in fields(kind):
        shown = getattr(types[field.name], "__name__", "") if isinstance(types[field.name], type) else ""
        shown = (shown or str(types[field.name])).replace("|", "or")
        lines.append(f"| `{field.name}` | {shown} | {meanings[field.name]} |")
    return "\n".join(lines) + "\n"


def parts(kind: type[Event]) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of an event, and of each of its fields."""
    text, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", attributes, re.MULTILINE)
    plain = {name: " ".join(meaning.replace("``", "`").split()) for name, meaning in found}
    return " ".join(text.replace("``", "`").split()), plain


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
