r"""Follow the invalidations of a namespace: live, and from the log that Redis keeps.

Prints one line per message: what was written, deleted, touched or cleared, by which instance, in which order. In a
pipe, or with --json, each line is a JSON object. Watching changes nothing: it is no instance, and nobody waits for it.

Redis keeps the last messages of each shard (the cache's log_length). What was missed and is not there any more is
shown as a gap, with its size if that is known. If the connection is lost it is made again, and what was missed is read
from the log. If the output is too slow, messages are dropped, and shown as a gap.

With --explain all instances are asked what became of each message there: it was applied (it concerned an entry or a
command under way) or ignored, or they are past it and remember no more, or still behind.

Examples:
  coherent-cache tail --namespace shop
  coherent-cache tail --namespace shop --since 10m --key 'user:*'
  coherent-cache tail --namespace shop --last 100 --no-follow --json | jq .names
  coherent-cache tail --namespace shop --key user:7 --explain
  coherent-cache tail --namespace shop --kind tag --kind clear --origin 'worker-1-*'

Ends with 0 on Ctrl-C, after --count or --seconds, with 1 if nothing was ever written in that namespace.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from math import inf
from typing import Final

from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, Terminated, add_json, add_place, complain, place_of
from coherent_cache.cli.tail_explain import Explainer, Fates
from coherent_cache.cli.tail_output import Form, JsonLines, Output, Pretty, describe_gap, painter
from coherent_cache.config import Settings
from coherent_cache.core.tailing import Filter, Gap, GapCause, Record, Shown
from coherent_cache.errors import ConfigError
from coherent_cache.remote.inquiry import open_inquiry
from coherent_cache.remote.tailing import Notice, Tail
from coherent_cache.remote.topology import resolve
from coherent_cache.wire import Kind

FLUSH_SECONDS: Final = 2.0
"""Seconds that the last lines have to get out."""

WAIT_SECONDS: Final = 0.5
"""Seconds between two looks whether a namespace is there, with --wait."""

MOST_LAST: Final = 1_000_000
"""Most messages of the past: their versions are in memory for a moment."""

MOST_SECONDS: Final = 10 * 365 * 86_400

_UNITS: Final = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--since", metavar="TIME", type=duration, help="begin so long ago: 90, 90s, 10m, 2h, 1d")
    add("--last", metavar="N", type=_count(MOST_LAST), help="begin with the last N messages (of those that are wanted)")
    add("--key", metavar="GLOB", action="append", default=[], help="only of keys like this, and clears; repeatable")
    add("--tag", metavar="GLOB", action="append", default=[], help="only of tags like this, and clears; repeatable")
    add("--origin", metavar="GLOB", action="append", default=[], help="only of writers like this; repeatable")
    kinds = [kind.name.lower() for kind in Kind]
    add("--kind", choices=kinds, action="append", default=[], help="only of this kind; repeatable")
    add("--count", metavar="N", type=_count(), help="end after N messages")
    add("--seconds", metavar="S", type=duration, help="end after S seconds")
    add("--no-follow", action="store_true", help="end with what the log has; needs --since or --last")
    add("--wait", action="store_true", help="if nothing was ever written in that namespace, wait until something is")
    add("--explain", action="store_true", help="tell of each message which instances have applied it: asks all of them")
    add_place(parser)
    add_json(parser, "print JSON lines, as in a pipe")


def run(args: argparse.Namespace) -> int:
    """Follow a namespace until something ends it; return the exit code.

    Raises:
        ConfigError: an option is unusable.
        CacheUnavailable: there is no Redis, at the beginning.
        NamespaceMismatch: the namespace has another number of shards.
    """
    url, namespace = place_of(args)
    settings = Settings(namespace=namespace, shards=1 if args.shards is None else args.shards)
    if args.no_follow and args.since is None and args.last is None:
        raise ConfigError("--no-follow", "give --since or --last too: else there is nothing to print")
    wanted = Filter(keys=args.key, tags=args.tag, origins=args.origin, kinds=args.kind)
    ends = inf if args.seconds is None else time.monotonic() + args.seconds
    endpoint = resolve(url, settings)
    with Tail(endpoint, namespace, shards=args.shards) as tail:
        try:
            if not _found(tail, ends, wait=args.wait):
                complain(f"nothing was ever written in namespace {namespace!r} there; --wait waits for it")
                return EXIT_PROBLEM
            pretty = not args.json and sys.stdout.isatty()
            form: Form = Pretty(painter(), tail.shards) if pretty else JsonLines(namespace)
            with ExitStack() as stack:
                explainer = None
                if args.explain:
                    everybody = replace(settings, shards=tail.shards)
                    explainer = Explainer(stack.enter_context(open_inquiry(endpoint, everybody)))
                screen = Screen(Output(sys.stdout), form, wanted, inf if args.count is None else args.count, explainer)
                stack.callback(screen.close)
                screen.show(_begin(tail, args, wanted))
                for piece in tail.follow(live=not args.no_follow):
                    screen.show(piece)
                    if screen.done or time.monotonic() >= ends:
                        break
        except Terminated:
            raise
        except KeyboardInterrupt:
            pass
    return EXIT_OK


def _found(tail: Tail, ends: float, *, wait: bool) -> bool:
    while True:
        looked_at = time.monotonic()
        if tail.find():
            return True
        if not wait or time.monotonic() >= ends:
            return False
        time.sleep(max(WAIT_SECONDS, 10 * (time.monotonic() - looked_at)))  # it may be a large database


def _begin(tail: Tail, args: argparse.Namespace, wanted: Filter) -> list[Gap]:
    if args.since is not None:
        return tail.begin_since(args.since)
    if args.last is not None:
        return tail.begin_with_last(args.last, wanted)
    if not args.wait:
        tail.begin_now()
    return []


class Screen:
    """Shows what is wanted, in one form, as fast as the output takes it."""

    def __init__(
        self, output: Output, form: Form, wanted: Filter, count: float, explainer: Explainer | None = None
    ) -> None:
        """Show nothing yet.

        Args:
            output: takes lines.
            form: makes lines.
            wanted: which messages.
            count: how many messages at most.
            explainer: tells what became of messages on the instances; None if that is not wanted.
        """
        self._explainer = explainer
        self._form = form
        self._wanted = wanted
        self._left = count
        self._dropped = 0
        self._dropped_at = 0
        self._output = output

    @property
    def done(self) -> bool:
        """Whether as much was shown as was asked for."""
        return self._left <= 0

    def show(self, records: Iterable[Record | Notice]) -> None:
        """Show some records.

        Raises:
            OSError: nothing can be written any more.
        """
        chosen = [each for each in records if not isinstance(each, Shown) or self._wanted.admits(each.message)]
        for record, fates in self._explained(chosen):
            if isinstance(record, Notice):
                complain(record.text)
            elif isinstance(record, Gap):
                self._put(record)
            elif not self.done:
                self._show(record, fates)
        self._output.check()
        if self._dropped and self._output.has_room():
            self._tell_dropped()

    def close(self) -> None:
        """Show what there still is to show; what the output does not take is told on standard error."""
        if self._dropped and self._output.has_room():
            self._tell_dropped()
        if self._dropped:
            complain(describe_gap(self._gap()))
        self._output.close(FLUSH_SECONDS)

    def _explained(self, records: Sequence[Record | Notice]) -> Iterable[tuple[Record | Notice, Fates | None]]:
        if self._explainer is None:
            return zip(records, repeat(None))
        shown = [record for record in records if isinstance(record, Shown)]
        fates = iter(self._explainer.fates(shown[: None if self._left == inf else int(self._left)]))
        return [(record, next(fates, None) if isinstance(record, Shown) else None) for record in records]

    def _show(self, record: Shown, fates: Fates | None) -> None:
        # What comes from the log can wait there. What comes live would have to wait here, or be dropped by Redis.
        if record.replayed or self._output.has_room():
            self._put(record, fates)
            self._left -= 1
        else:
            self._dropped += 1
            self._dropped_at = record.time_us

    def _put(self, record: Record, fates: Fates | None = None) -> None:
        if self._dropped:
            self._tell_dropped()
        self._output.put(self._form.line(record, fates))

    def _tell_dropped(self) -> None:
        self._output.put(self._form.line(self._gap()))
        self._dropped = 0

    def _gap(self) -> Gap:
        return Gap(None, GapCause.OUTPUT, self._dropped, None, None, self._dropped_at)


def duration(text: str) -> float:
    """Read a duration: a number, and a unit of ms, s, m, h or d; seconds without one."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", text.strip())
    if parts is None or not 0 < (seconds := float(parts[1]) * _UNITS[parts[2]]) <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 10m, 2h or 1d")
    return seconds


def _count(most: float = inf) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 0 < int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is no number from 1" + (f" to {most:,}" if most < inf else ""))
        return int(text)

    return read
