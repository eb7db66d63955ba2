"""One soak from its begin to its end."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from coherent_cache import CoherentCache
from coherent_cache.testing.fault_proxy import FaultProxy
from integration.soak.faults import ALL, INSTANT, NAMESPACE, Injector, start_primary
from integration.soak.fleet import Fleet
from integration.soak.operations import KEYS
from integration.soak.records import History, Log, clock, read_injector, read_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from integration.servers import RedisServer

HEARTBEAT, MAX_STALENESS = 0.2, 1.0  # seconds
OPTIONS = {
    "heartbeat": HEARTBEAT, "max_staleness": MAX_STALENESS, "timeout": 1.0, "log_length": 1000, "replay_limit": 150,
}  # fmt: skip
WARM_UP, GAP = 2.0, (0.4, 1.8)  # seconds
OVERTIME = 3.0  # times the wanted length, until every kind of fault has happened


def soak(
    *,
    seconds: float,
    workers: int = 4,
    threads: int = 2,
    seed: str | None = None,
    faults: Sequence[str] = ALL,
    folder: Path | None = None,
    options: dict[str, Any] | None = None,
    query: str = "",
    say: Callable[[str], object] = print,
) -> tuple[History, str]:
    """Run a soak; return what was noted, and the seed.

    Args:
        seconds: its length; longer if by then not every kind of fault has happened.
        workers: processes.
        threads: threads of each that read and write.
        seed: decides which faults happen; None for another one each time.
        faults: kinds of faults, each about equally often.
        folder: where the notes stay; None to throw them away.
        options: of the caches, in addition to ``OPTIONS``.
        query: appended to the URL of the caches.
        say: told what happens.
    """
    seed = seed or secrets.token_hex(4)
    place = Path(tempfile.mkdtemp(prefix="coherent-cache-soak-"))
    options = OPTIONS | (options or {})
    rng = Random(seed)
    began = clock()
    log = Log(place / "injector")
    server: RedisServer | None = None
    fleet: Fleet | None = None
    injector: Injector | None = None
    try:
        server = start_primary()
        with FaultProxy(server.url, seed=rng.getrandbits(32)) as proxy:
            fleet = Fleet(
                place, workers, url=proxy.url + query, seed=seed, threads=threads,
                options={"namespace": NAMESPACE, **options},
            )  # fmt: skip
            injector = Injector(
                fleet=fleet, proxy=proxy, server=server, rng=rng, log=log, options=options,
                inner=[name for name in INSTANT if name in faults],
                say=lambda text: say(f"{clock() - began:7.1f} s  {text}"),
            )  # fmt: skip
            fleet.wait_ready()
            injector.wait(WARM_UP)
            until, latest = clock() + seconds, clock() + OVERTIME * seconds
            deck: list[str] = []
            missing = set(faults)
            while clock() < until or (missing and clock() < latest):
                if not deck:
                    deck = list(faults)
                    rng.shuffle(deck)
                if faults:
                    name = deck.pop()
                    if injector.inject(name):
                        missing.discard(name)
                injector.wait(rng.uniform(*GAP))
            proxy.heal()
            quiet = clock()
            say(f"{clock() - began:7.1f} s  quiet")
            ends = fleet.finish()
            history = _gather(place, injector, ends, options)
            history.began, history.quiet, history.ended = began, quiet, clock()
            end = {name: getattr(history, name) for name in ("held", "remote", "began", "quiet", "ended")}
            (place / "end").write_text(json.dumps({**end, "seed": seed}))
            return history, seed
    finally:
        if fleet is not None:
            fleet.close()
        if injector is not None:
            injector.close()
        elif server is not None:
            server.stop()
        log.close()
        if folder is not None:
            shutil.copytree(place, folder, dirs_exist_ok=True)
        shutil.rmtree(place)


def _gather(place: Path, injector: Injector, ends: dict[str, dict[str, Any]], options: dict[str, Any]) -> History:
    """Collect what everybody noted, and what Redis holds in the end."""
    history = load(place, options["max_staleness"])
    history.held = {name: end["held"] for name, end in ends.items()}
    remote_options = {**options, "local_enabled": False}
    with CoherentCache(injector.server.url, namespace=NAMESPACE, **remote_options) as remote:
        for key in KEYS:
            entry = remote.get_entry(key)
            if entry is not None:
                history.remote[key] = [entry.version.epoch.hex(), entry.version.seq, entry.value]
    return history


def load(place: Path, max_staleness: float = MAX_STALENESS) -> History:
    """Read a folder of notes."""
    history = History(max_staleness)
    for path in sorted(place.glob("worker-*")):
        read_worker(history, path.name.removeprefix("worker-"), path)
    read_injector(history, place / "injector")
    if (place / "end").exists():
        end = json.loads((place / "end").read_text())
        for name in ("held", "remote", "began", "quiet", "ended"):
            setattr(history, name, end[name])
    return history


def seed_of(place: Path) -> str:
    """Return the seed of the run that left a folder of notes."""
    return str(json.loads((place / "end").read_text())["seed"])
