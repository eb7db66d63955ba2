"""Run a private redis-server in the foreground, print its URL, end it at Ctrl-C. Nothing is written to disk."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Final

from coherent_cache.cli.common import EXIT_OK, add_json, say, say_json
from coherent_cache.errors import CacheUnavailable
from coherent_cache.remote.embedded import embedded_server
from coherent_cache.remote.faults import is_alive

LOOK_SECONDS: Final = 2.0
"""Seconds between two looks whether the server still runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--name", default="default", help="name of the server, for embedded://NAME in children")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run a server until a signal comes.

    Raises:
        CacheUnavailable: it does not start, or ended by itself.
    """
    try:
        with embedded_server(args.name) as server:
            if args.json:
                say_json(asdict(server))
            else:
                say(server.url)
            while is_alive(server.url):
                time.sleep(LOOK_SECONDS)
            raise CacheUnavailable(f"the {server.kind} at {server.url} has ended")
    except KeyboardInterrupt:
        return EXIT_OK  # that is how it is meant to end
