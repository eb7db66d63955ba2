"""Tell all that is known of a key: in Redis, on every instance, and why the next read will do what it does.

Examples:
  coherent-cache explain product:1 --namespace shop
  coherent-cache explain product:1 --namespace shop --json | jq '.instances[].why'
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, add_connection, complain, open_cache, say, say_json
from coherent_cache.core.explaining import Explanation, KeyOnInstance, Next

RECENT_LINES: Final = 5
"""Latest messages that are shown of each instance."""

_DOES: Final = {
    Next.LOCAL: "the next read is served from there",
    Next.REDIS: "the next read asks Redis",
    Next.RAISES: "the next read raises NotCoherent",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("key", metavar="KEY")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Explain a key."""
    with open_cache(args) as cache:
        explanation = cache.explain(args.key)
    if args.json:
        say_json(explanation.as_dict())
    else:
        for line in _lines(explanation):
            say(line)
    if not explanation.snapshot.epoch:
        complain(
            f"nothing is there: no cache has ever used shard {explanation.shard} of namespace "
            f"{explanation.namespace!r} at {explanation.server}"
        )
        return EXIT_PROBLEM
    return EXIT_OK


def _lines(explanation: Explanation) -> list[str]:
    snapshot = explanation.snapshot
    cleared = f", cleared at version {snapshot.floor}" if snapshot.floor else ""
    shard = f"shard {explanation.shard} at version {snapshot.seq}{cleared}"
    lines = [
        f"{explanation.key} in {explanation.namespace} at {explanation.server}, {shard}",
        f"Redis has {explanation.in_redis}",
    ]
    if explanation.refresh is not None:
        lines.append(f"  somebody is refreshing it, with a lease for {explanation.refresh:.1f} s more")
    lines += ["  latest messages in the log:"] if explanation.log else ["  the log has no message about it"]
    lines += [_message(each) for each in explanation.log]
    for instance in explanation.instances:
        lines += _about(instance)
    if not explanation.instances:
        lines.append("no instance with a local tier has answered")
    if explanation.unanswered:
        lines.append(f"not answered: {', '.join(explanation.unanswered)}")
    return lines


def _about(instance: KeyOnInstance) -> list[str]:
    lines = [f"{instance.instance} ({instance.facts.state}): {_DOES[instance.next]}: {instance.why}"]
    if instance.held is not None and instance.held.tags:
        lines.append(f"  tags: {', '.join(instance.held.tags)}")
    if instance.kept is not None:
        lines.append(f"  a last known value is kept for fail_safe, version {instance.kept.seq}")
    if instance.commands:
        lines.append(f"  {instance.commands} commands are under way that may bring a value")
    return [*lines, *[_message(each) for each in instance.recent[:RECENT_LINES]]]


def _message(each: Mapping[str, Any]) -> str:
    what = "" if each["certain"] else f" (of {each['names']} names; perhaps not of this key)"
    nothing = ", which changed nothing there" if not each.get("applied", True) else ""
    written = f"{each['kind']} at version {each['seq']} by {each['origin']}"
    return f"    {each['seconds_ago']:.1f} s ago: {written}{what}{nothing}"
