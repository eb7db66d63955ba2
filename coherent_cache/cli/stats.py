"""Show once what every live instance reports about itself, and the fleet's totals.

Instances with a local tier report themselves every other heartbeat; one that has crashed is gone after six. Exits with
1 if nobody reports.

Examples:
  coherent-cache stats --namespace shop
  coherent-cache stats --namespace shop --sort errors --filter 'web-*'
  coherent-cache stats --namespace shop --json | jq .totals.hit_rate
"""

from __future__ import annotations

import argparse

from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, add_connection, complain, open_cache, say, say_json
from coherent_cache.cli.fleet_table import SORTS, document, heading, plain, remarks, rows_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_choice(parser)
    add_connection(parser)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose and order instances."""
    parser.add_argument("--sort", choices=sorted(SORTS), default="instance", help="column to sort by, worst first")
    parser.add_argument(
        "--filter",
        metavar="TEXT",
        default="",
        help="only instances whose id, host, state or version contains it (or *?)",
    )


def run(args: argparse.Namespace) -> int:
    """Show the fleet."""
    with open_cache(args) as cache:
        status = cache.fleet()
    rows = rows_of(status, sort=args.sort, pattern=args.filter)
    if args.json:
        say_json(document(status, rows))
    elif status.instances:
        for line in (heading(status), *plain(status, rows)):
            say(line)
    if not args.json or not status.exists:
        for remark in remarks(status):
            complain(remark)
    return EXIT_OK if status.instances else EXIT_PROBLEM
