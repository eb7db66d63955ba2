"""Give Prometheus the metrics of all live instances of a namespace, until Ctrl-C.

For programs of many processes behind one port, where a scrape of the program would reach one of them by chance. The
instances report themselves to Redis; each scrape asks there. While Redis is away a scrape fails. With --audit the fleet
is audited again and again, and what was found last is shown too.

Examples:
  coherent-cache exporter --namespace shop
  coherent-cache exporter --namespace shop --host 0.0.0.0 --port 9100
  coherent-cache exporter --namespace shop --audit 60
"""

from __future__ import annotations

import argparse
import threading
import time
from contextlib import ExitStack
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from coherent_cache.auditor import ContinuousAudit
from coherent_cache.cli.common import add_connection, open_cache, say
from coherent_cache.cli.serving import Handler, Server
from coherent_cache.errors import CoherentCacheError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

HOST: Final = "127.0.0.1"
"""Where it listens if nobody says otherwise."""

PORT: Final = 9793
"""The port if nobody says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--host", default=HOST, help=f"address to listen at ({HOST})")
    parser.add_argument("--port", type=int, default=PORT, help=f"port; 0 for any that is free ({PORT})")
    parser.add_argument("--audit", type=float, metavar="SECONDS", help="audit too, this long after each (else never)")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the metrics."""
    try:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415  # an extra
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415

        from coherent_cache.telemetry.prometheus import AuditCollector, FleetCollector  # noqa: PLC0415
    except ImportError:
        message = "needs prometheus-client; install the extra: pip install 'coherent-cache[prometheus]'"
        raise ConfigError("exporter", message) from None
    if args.audit is not None and not 0 < args.audit <= threading.TIMEOUT_MAX:
        raise ConfigError("audit", f"must be seconds above 0, not {args.audit:g}")
    registry = CollectorRegistry()
    with open_cache(args) as cache, ExitStack() as stack:
        cache.fleet()  # away, a wrong password: told now
        registry.register(FleetCollector(cache))
        if args.audit is not None:
            audit = stack.enter_context(ContinuousAudit(cache, every=args.audit))
            registry.register(AuditCollector(cache.namespace, audit.numbers))
        with MetricsServer(lambda: generate_latest(registry), CONTENT_TYPE_LATEST, args.host, args.port) as server:
            say(f"{server.url}metrics")
            while True:
                time.sleep(3600)


class MetricsServer(Server):
    """Serves what a function returns.

    Attributes:
        scrape: returns the metrics as text.
        kind: their content type.
    """

    def __init__(self, scrape: Callable[[], bytes], kind: str, host: str, port: int) -> None:
        """Listen at a host's port; 0 for any that is free.

        Raises:
            ConfigError: the port cannot be had.
        """
        super().__init__(_Handler, host=host, port=port)
        self.scrape = scrape
        self.kind = kind


class _Handler(Handler):
    server: MetricsServer

    def do_GET(self) -> None:  # noqa: N802  # the name that http.server calls
        """Answer."""
        if self.path not in ("/", "/metrics"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            text = self.server.scrape()
        except CoherentCacheError as error:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            return
        self.send(self.server.kind, text)
