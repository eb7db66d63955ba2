"""Small HTTP servers that commands have: in a thread, ended with their block."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import MappingProxyType
from typing import Final

from coherent_cache.errors import ConfigError

NO_STORE: Final[Mapping[str, str]] = MappingProxyType({"Cache-Control": "no-store"})
"""Headers of what is true for a moment."""

POLL: Final = 0.1
"""Seconds after which a server notices that it is to end."""


class Server(ThreadingMixIn, TCPServer):
    """Serves within ``with``, each request in a thread of its own.

    Not an ``HTTPServer``: that asks the name service who it is, which may take seconds.

    Attributes:
        url: where it is.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], *, host: str, port: int) -> None:
        """Listen.

        Args:
            handler: makes the answers.
            host: name or address to listen at.
            port: the port; 0 for any that is free.

        Raises:
            ConfigError: it cannot be listened there.
        """
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            raise ConfigError("port", f"{host}:{port} cannot be listened at: {error}") from None
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL,), name="page", daemon=True)
        self.url = f"http://{host}:{self.server_address[1]}/"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """What all answers have in common."""

    server_version = "coherent-cache"
    sys_version = ""
    timeout = 30

    def send(self, kind: str, text: bytes, headers: Mapping[str, str] = NO_STORE) -> None:
        """Send an answer of a content type, with further headers."""
        self.send_response(HTTPStatus.OK)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay quiet: a request a second is no news."""
