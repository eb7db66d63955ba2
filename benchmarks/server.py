"""A redis-server of the benchmarks' own: a private port of the loopback interface, in memory only, stopped by pid."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis

from coherent_cache.remote.embedded import embedded_server, find_redis_server

START_TIMEOUT: Final = 10.0
STOP_TIMEOUT: Final = 5.0
ATTEMPTS: Final = 5


class NoServer(RuntimeError):
    """There is no redis-server, or it does not start."""


@contextmanager
def private_server() -> Iterator[str]:
    """Start a redis-server, yield its URL, stop it.

    The binary is the one on PATH, or else the bundled one that ``embedded://`` would use.

    Raises:
        NoServer: there is none, or it does not start.
    """
    binary = find_redis_server()
    if binary is None:
        with embedded_server("benchmarks") as server:
            if server.pid is None:
                raise NoServer("no redis-server on PATH and none bundled; figures of a fake server would mean nothing")
            yield server.url
        return
    with tempfile.TemporaryDirectory(prefix="coherent-cache-benchmarks-") as folder:
        for _ in range(ATTEMPTS):
            port = _free_port()
            process = subprocess.Popen(
                [
                    str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                    "--dir", folder, "--daemonize", "no",
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                if _answers(port, process):
                    yield f"redis://127.0.0.1:{port}/0"
                    return
            finally:
                _stop(process)
        raise NoServer(f"{binary.name} does not start")


def describe(url: str) -> dict[str, str]:
    """Return the server's version and how it is reached, without saying where."""
    with redis.Redis.from_url(url) as client:
        info = client.info("server")
    return {"version": info["redis_version"], "reached_by": url.partition("://")[0]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port: int, process: subprocess.Popen) -> bool:
    """Wait until the server answers; False if it ended, e.g. because another program took the port."""
    deadline = time.monotonic() + START_TIMEOUT
    with redis.Redis(port=port, socket_timeout=1.0, retry=None) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.info("server")["process_id"] == process.pid:
                    return True
            except redis.RedisError:
                pass
            time.sleep(0.01)
    return False


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
