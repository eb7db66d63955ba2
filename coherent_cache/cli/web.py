"""The fleet as a page for a browser: live from a small server on this machine, or as one file.

The page is one self-contained file (``page.html``) that gets its data as JSON. It puts all of it into the document as
text, and its policy allows no script and no style but its own, so that no key or name can become markup.
"""

from __future__ import annotations

import argparse
import re
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, open_cache, say, to_json
from coherent_cache.cli.serving import NO_STORE, Handler, Server
from coherent_cache.errors import CacheUnavailable, ConfigError

KEPT_LOOKS: Final = 300
"""Looks whose figures are kept for the charts."""

HOST: Final = "127.0.0.1"
"""The page is for this machine alone: it asks for no password."""

REPORT_SECONDS: Final = 10.0
"""Seconds that are shown in a file."""

_HEADERS: Final = {
    **NO_STORE,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the page to those of ``top``."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--web", action="store_true", help="show a page for a browser on this machine, until Ctrl-C")
    form.add_argument(
        "--web-report", metavar="FILE", type=Path, help="watch for a while, write the page to a file, end"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the page (default: any that is free)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=REPORT_SECONDS,
        help=f"how long to watch for --web-report ({REPORT_SECONDS:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Show the fleet as a page, or write one.

    Raises:
        CacheUnavailable: the first look is not possible.
        ConfigError: the port cannot be had, or the file not be written.
    """
    if not args.seconds >= 0:
        raise ConfigError("seconds", f"must be at least 0, not {args.seconds:g}")
    if args.web_report is not None and not args.web_report.absolute().parent.is_dir():
        raise ConfigError("web-report", f"there is no folder {args.web_report.parent}")
    history = History(every=args.every)
    with open_cache(args) as cache:
        history.add(cache.fleet().as_dict(), at=time.time())

        def look() -> None:
            time.sleep(args.every)
            try:
                history.add(cache.fleet().as_dict(), at=time.time())
            except CacheUnavailable as error:
                history.fail(str(error))

        if args.web:
            with PageServer(history, port=args.port) as server:
                say(f"{server.url} shows the fleet; Ctrl-C ends")
                while True:
                    look()
        ends = time.monotonic() + args.seconds
        while time.monotonic() < ends:
            look()
    found = history.since(0)
    try:
        args.web_report.write_text(page(found), "utf-8")
    except OSError as error:
        raise ConfigError("web-report", f"cannot be written: {error}") from None
    say(f"wrote {args.web_report}")
    return EXIT_OK if found["latest"]["instances"] else EXIT_PROBLEM


class History:
    """The latest look at a fleet, and the figures of those before it.

    A look is what ``FleetStatus.as_dict()`` returns. Rates and hit rates are of the time between two reports of an
    instance, by its own clock; a look that finds the report of the look before repeats them.
    """

    def __init__(self, *, every: float) -> None:
        """Begin without a look.

        Args:
            every: seconds between two looks.
        """
        self._every = every
        self._lock = threading.Lock()
        self._latest: dict[str, Any] | None = None
        self._looks: deque[dict[str, Any]] = deque(maxlen=KEPT_LOOKS)
        self._reports: dict[str, Mapping[str, Any]] = {}
        self._rates: dict[str, dict[str, float | None]] = {}
        self._seq = 0

    def add(self, look: Mapping[str, Any], *, at: float) -> None:
        """Take a look.

        Args:
            look: the fleet.
            at: seconds since 1970.
        """
        reports = {each["member"]: each for each in look["instances"]}
        with self._lock:
            self._rates = {member: self._rates_of(member, each) for member, each in reports.items()}
            self._reports = reports
            self._seq += 1
            rows = {member: _figures(each) | self._rates[member] for member, each in reports.items()}
            self._looks.append({"seq": self._seq, "at": at, "rows": rows})
            self._latest = {**look, "at": at, "problem": None}

    def fail(self, problem: str) -> None:
        """Note that a look was not possible, and why."""
        with self._lock:
            if self._latest is not None:
                self._latest = self._latest | {"problem": problem}

    def since(self, seq: int) -> dict[str, Any]:
        """Return what the page is given: the latest look, and the figures of those after ``seq``."""
        with self._lock:
            return {
                "every": round(self._every * 1000),
                "latest": self._latest,
                "history": [look for look in self._looks if look["seq"] > seq],
            }

    def _rates_of(self, member: str, report: Mapping[str, Any]) -> dict[str, float | None]:
        """Requires holding the lock."""
        before = self._reports.get(member)
        if before is None:
            return {"reads": None, "hit_rate": None, "invalidations": None}
        seconds = report["uptime"] - before["uptime"]
        if seconds <= 0:
            return self._rates[member]
        hits, reads = report["hits"] - before["hits"], report["requests"] - before["requests"]
        return {
            "reads": reads / seconds,
            "hit_rate": hits / reads if reads else None,
            "invalidations": (report["invalidations"] - before["invalidations"]) / seconds,
        }


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": report["state"],
        "horizon": report["horizon_age"],
        "entries": report["entries"],
        "p50": report["propagation_p50"],
        "p99": report["propagation_p99"],
    }


def page(data: Mapping[str, Any] | None = None) -> str:
    """Return the page: with data a report that needs nobody, without it one that asks where it came from."""
    template = _template()
    found = {name: re.findall(rf"<{name}>(.*?)</{name}>", template, re.DOTALL) for name in ("style", "script")}
    hashes = {name: " ".join(map(_hash, texts)) for name, texts in found.items()}
    asks = "'self'" if data is None else "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src {asks}; "
        "base-uri 'none'; form-action 'none'"
    )
    # JSON in a document: what could end the element, or begin a comment, is written as an escape.
    text = to_json(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return template.replace("@POLICY@", policy).replace("@DATA@", text)


@cache
def _template() -> str:
    return (Path(__file__).parent / "page.html").read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


class PageServer(Server):
    """Serves the page and its data, on this machine.

    Attributes:
        history: what is shown.
    """

    def __init__(self, history: History, *, port: int = 0) -> None:
        """Listen at a port; 0 for any that is free.

        Raises:
            ConfigError: the port cannot be had.
        """
        super().__init__(_Handler, host=HOST, port=port)
        self.history = history


class _Handler(Handler):
    server: PageServer

    def do_GET(self) -> None:  # noqa: N802  # the name that http.server calls
        """Answer."""
        # A page elsewhere may have its name resolved to this machine (DNS rebinding); it cannot choose this header.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        url = urlsplit(self.path)
        match url.path:
            case "/":
                self.send("text/html; charset=utf-8", page().encode(), _HEADERS)
            case "/data.json":
                asked = parse_qs(url.query).get("since", ["0"])[0]
                if re.fullmatch(r"[0-9]{1,15}", asked):
                    told = to_json(self.server.history.since(int(asked)))
                    self.send("application/json", told.encode(), _HEADERS)
                else:
                    self.send_error(HTTPStatus.BAD_REQUEST)
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)
