"""A thread for one call, for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], *, name: str) -> T:
    """Call something in a thread of its own, and wait for it without blocking the loop.

    The loop's executor is the application's: its jobs may take all its threads for as long as they like, and may wait
    for what this call is needed for. Who is cancelled here does not end the call.

    Args:
        call: is called with no arguments; what it raises is raised here.
        name: of the thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(settle: Callable[[], None]) -> None:
        if not done.done():  # cancelled
            settle()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  # it is whoever waits who is to judge it
            failure = error
            settle = lambda: done.set_exception(failure)  # noqa: E731
        else:
            settle = lambda: done.set_result(result)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, settle)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
