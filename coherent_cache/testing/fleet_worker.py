"""One process of a :class:`coherent_cache.testing.Fleet`: does in threads what the fleet's files say."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coherent_cache.cache import CoherentCache
from coherent_cache.errors import CacheUnavailable

READY_SECONDS = 30.0  # until the cache must be coherent


def main(folder: str, name: str) -> None:
    """Be the worker called ``name``, until standard input ends."""
    # The line of orders is nobody else's: not the functions', nor their children's.
    with os.fdopen(os.dup(0), "rb") as orders:
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        url, options = load((Path(folder) / "plan").read_bytes())
        with CoherentCache(url, instance_id=name, **options) as cache:
            if not cache.wait_ready(READY_SECONDS):
                raise CacheUnavailable(f"not coherent within {READY_SECONDS:g} s: {cache!r}")
            serve(cache, Path(folder), name, orders)


def serve(cache: CoherentCache, folder: Path, name: str, orders: Iterable[bytes]) -> None:
    """Say that the worker is ready; do each task whose number comes in, until ``end`` or the end of the lines."""
    (folder / f"{name}.ready").touch()
    for line in orders:
        order = line.decode("ascii").strip()
        if order == "end":
            return
        prefix = folder / f"{name}.{order}"
        threading.Thread(target=_work, args=(cache, prefix), name=f"task {order}", daemon=True).start()


def load(data: bytes) -> Any:
    """Unpickle what :mod:`coherent_cache.testing.fleet` has pickled, importing its modules by file if need be."""
    modules, payload = pickle.loads(data)  # noqa: S301  # written by the process that started this one
    for name, file in modules.items():
        _import(name, file)
    return pickle.loads(payload)  # noqa: S301


def _import(name: str, file: str) -> None:
    """Import a module by its name, else from its file: pytest may have loaded it so."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # found, but something that it imports is not
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _work(cache: CoherentCache, prefix: Path) -> None:
    """Do a task, and leave its outcome: what it returned or raised, or why that cannot be told."""
    try:
        function, args, kwargs = load(prefix.with_name(f"{prefix.name}.task").read_bytes())
        outcome = _pickled("returned", function(cache, *args, **kwargs), "")
    except BaseException as error:  # noqa: BLE001  # the caller's to judge
        outcome = _pickled("raised", error, traceback.format_exc())
    unfinished = prefix.with_name(f"{prefix.name}.unfinished")
    unfinished.write_bytes(outcome)
    unfinished.replace(prefix.with_name(f"{prefix.name}.outcome"))


def _pickled(kind: str, what: Any, text: str) -> bytes:
    try:
        return pickle.dumps((kind, pickle.dumps(what), text))
    except Exception as error:  # noqa: BLE001  # anybody's __reduce__
        message = f"{kind} a {type(what).__name__}, which cannot be pickled: {error!r}\n{text}"
        return pickle.dumps(("failed", b"", message))
