"""What the examples have in common: options, a database, programs, HTTP, and how they say what they have seen."""

from __future__ import annotations

import argparse
import json
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 60.0  # seconds for a server to start, on a machine that does much else
CACHE_OPTIONS = {"heartbeat": 0.2, "max_staleness": 1.0, "timeout": 10.0}
"""An example does not wait five seconds for what it shows, and runs on a machine that does much else."""


def parser(text: str, *, seconds: float) -> argparse.ArgumentParser:
    """Return a parser with the options of every example."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--url", default="embedded://", help="where Redis is (default: a private redis-server)")
    made.add_argument("--seconds", type=float, default=seconds, help="how long to go on (default: %(default)g)")
    return made


def say(text: str) -> None:
    print(text, flush=True)


def check(what: str, found: object, expected: object) -> None:
    """Say that something is as it should be, or end with an error."""
    if found != expected:
        raise SystemExit(f"NOT COHERENT: {what}: {found!r} instead of {expected!r}")
    say(f"  ok: {what}")


def make_database(path: Path) -> None:
    """Make a table of three products."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL)")
        database.executemany(
            "INSERT INTO product VALUES (?, ?, ?)", [(1, "Apple", 100), (2, "Pear", 200), (3, "Plum", 300)]
        )


def read_product(path: str, number: int) -> dict[str, Any] | None:
    with closing(sqlite3.connect(path)) as database:
        row = database.execute("SELECT id, name, price FROM product WHERE id = ?", (number,)).fetchone()
    return None if row is None else dict(zip(("id", "name", "price"), row, strict=True))


def write_price(path: str, number: int, price: int) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE product SET price = ? WHERE id = ?", (price, number))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ask(method: str, url: str, body: object = None) -> Any:
    """Send a request on a connection of its own, and return the JSON, or else the text, of the answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Connection": "close"}
    with urlopen(Request(url, data, headers, method=method), timeout=PATIENCE) as answer:
        text = answer.read().decode()
        return json.loads(text) if answer.headers.get_content_type() == "application/json" else text


def wait_until(predicate: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Tell whether a server is there."""
    try:
        ask("GET", url)
    except URLError:
        return False
    return True


@contextmanager
def running(*commands: list[str], environment: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start programs by this Python; tell them to end at the end, and wait for that."""
    processes = [subprocess.Popen([sys.executable, *command], env=environment) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
