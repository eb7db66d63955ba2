"""What one cache has on one event loop: a connection, tasks in the background, and the driver of its operations.

Cancellation. A task may be cancelled wherever it waits. The operation then ends there as it does when a thread is
interrupted: tokens, waiters and flights go, and a write that was under way may have happened. Two things are done
first, in a task of their own that nobody can cancel by cancelling the caller:

* What was asked about leases is waited for: an answer that nobody takes may be a lease that nobody gives up. The
  operation gets it, and is interrupted where it wants to go on.
* What the operation wants sent on its way out is sent: that is how a lease is given up.

The caller waits for that, so that nothing is left when it ends; if it is cancelled once more it does not.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from math import inf
from typing import Any, Final

from coherent_cache.core.leasing import LoaderError
from coherent_cache.core.requests import (
    FRONT_REQUESTS,
    FillRequest,
    LeaseRequest,
    Loaded,
    LoadRequest,
    Operation,
    ReleaseRequest,
    RenewRequest,
    Reply,
    Request,
    Spawned,
    SpawnRequest,
    T,
    WaitRequest,
    Woken,
)
from coherent_cache.errors import CacheUnavailable
from coherent_cache.events import InternalError
from coherent_cache.loads import MAX_BACKGROUND, in_no_loader
from coherent_cache.runtime import CHECK_NAMESPACE, Runtime, clock

_ABOUT_LEASES: Final = frozenset((LeaseRequest, FillRequest, ReleaseRequest, RenewRequest))
"""Requests that run to their end: what becomes of them is somebody's duty."""


class LoopRuntime:
    """One cache on one event loop. Only :meth:`close` may be called from elsewhere."""

    def __init__(self, runtime: Runtime) -> None:
        """Attach the running event loop to a cache's runtime; nothing is connected yet.

        If the cache is closed, every operation is told so when it wants something of Redis.

        Args:
            runtime: the cache in this process.
        """
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._io = runtime.asynchronous()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loads: set[asyncio.Task[Any]] = set()
        self._unbegun: set[Operation[Any]] = set()
        self._end: AsyncGenerator[None, None] | None = None
        self._ended = False
        self._closing: asyncio.Task[None] | None = None
        try:
            runtime.attach(self)
        except CacheUnavailable:
            self._io.close()

    @property
    def ended(self) -> bool:
        """Whether its loop has been closed, or is about to be."""
        return self._loop.is_closed() or self._ended

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end: the driver of the generators."""
        await self._start()
        if not self._runtime.checked:
            await self._check_namespace()
        return await self._drive(operation)

    async def _start(self) -> None:
        self._runtime.begin()
        if self._end is None:
            # asyncio.run closes the asynchronous generators that its loop has begun.
            self._end = self._until_end()
            await anext(self._end)

    async def _check_namespace(self) -> None:
        await self._io.execute(CHECK_NAMESPACE)
        self._runtime.checked = True

    async def _drive(self, operation: Operation[T]) -> T:
        runtime = self._runtime
        under_way: asyncio.Task[Sequence[Reply]] | None = None
        interrupted = False
        try:
            requests = next(operation)
            while True:
                try:
                    if type(requests[0]) in _ABOUT_LEASES:
                        under_way = self._begin(self._answer(requests))
                        replies = await asyncio.shield(under_way)
                    else:
                        replies = await self._answer(requests)
                except GeneratorExit:  # the loop is gone, and the task with it: nothing can be awaited
                    raise
                except Exception as error:  # noqa: BLE001  # every failure is the operation's to judge
                    under_way = None
                    runtime.note_failure(error)
                    requests = operation.throw(error)
                except BaseException as error:
                    interrupted = True
                    await self._interrupt(operation, error, under_way)
                    raise
                else:
                    under_way = None
                    runtime.note_answer()
                    requests = operation.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            if not interrupted:
                operation.close()
            if runtime.events.waiting:
                runtime.events.drain()

    async def _answer(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Have requests answered, by the front itself or by Redis."""
        tracer = self._runtime.tracer
        with contextlib.nullcontext() if tracer is None else tracer(self._runtime.instance_id, requests):
            if type(requests[0]) in FRONT_REQUESTS:
                return (await self._serve(requests[0]),)
            return await self._io.execute(requests)

    # -- interruptions ---------------------------------------------------------------------------------------------

    async def _interrupt(
        self, operation: Operation[Any], error: BaseException, under_way: asyncio.Task[Sequence[Reply]] | None
    ) -> None:
        """Let an operation end that is interrupted while something is under way."""
        requests: Sequence[Request] | None = None
        if under_way is None:
            requests = _throw(operation, error)
            if requests is None:
                return
        with contextlib.suppress(asyncio.CancelledError):  # once more: the rest is done all the same
            await asyncio.shield(self._begin(self._wind_up(operation, error, under_way, requests)))

    async def _wind_up(
        self,
        operation: Operation[Any],
        error: BaseException,
        under_way: asyncio.Task[Sequence[Reply]] | None,
        requests: Sequence[Request] | None,
    ) -> None:
        """Do what an interrupted operation needs done; what it returns is nobody's any more."""
        told = requests is not None
        try:
            while True:
                try:
                    if under_way is not None:
                        replies, under_way = await under_way, None
                    else:
                        assert requests is not None
                        replies = await self._answer(requests)
                except Exception as failure:  # noqa: BLE001
                    under_way = None
                    self._runtime.note_failure(failure)
                    requests = operation.throw(failure)
                else:
                    requests = operation.send(replies)
                if not told and type(requests[0]) not in _ABOUT_LEASES:
                    told = True
                    requests = _throw(operation, error)
                    if requests is None:
                        return
        except BaseException:  # noqa: BLE001  # it has ended, perhaps by the interruption: the caller is told
            return
        finally:
            operation.close()

    # -- what operations ask of the front --------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Reply:
        """Do what an operation asks of the front: call a loader, wait, begin something in the background (P11)."""
        match request:
            case LoadRequest():
                with self._runtime.loading(request):
                    value = request.load()
                    return Loaded(await value if isinstance(value, Awaitable) else value)
            case WaitRequest():
                return await self._wait(request)
            case SpawnRequest():
                return Spawned(self.spawn(request.operation))
            case _:
                raise AssertionError(f"the front does not know {type(request).__name__}")

    async def _wait(self, request: WaitRequest) -> Woken:
        waiter = request.waiter
        if waiter is not None and not waiter.woken:
            with self._runtime.waiting(request):
                woken: asyncio.Future[None] = self._loop.create_future()
                timer = None if request.until == inf else self._call_at(request.until, woken)
                waiter.listen(lambda: self._call(_finish, woken))
                try:
                    await woken
                finally:
                    if timer is not None:
                        timer.cancel()
        return Woken(waiter is not None and waiter.woken, clock())

    def _call_at(self, until: float, woken: asyncio.Future[None]) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, until - clock()), _finish, woken)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call something on the loop, from any thread and under any lock; not if the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def spawn(self, operation: Operation[Any]) -> bool:
        """Run an operation in the background; its errors are told as events. False if there are too many."""
        if self._runtime.closed or len(self._loads) >= MAX_BACKGROUND:
            return False
        self._unbegun.add(operation)
        load = self._begin(self._run_alone(operation), in_no_loader())
        self._loads.add(load)
        load.add_done_callback(partial(self._loaded, operation))
        return True

    def _loaded(self, operation: Operation[Any], load: asyncio.Task[None]) -> None:
        self._loads.discard(load)
        if operation in self._unbegun:  # cancelled before its first step, as at the end of the loop
            self._unbegun.discard(operation)
            # Its flight, or its claim, is ended by what was begun alone.
            with contextlib.suppress(Exception):
                next(operation)
                _throw(operation, asyncio.CancelledError())
            operation.close()

    async def _run_alone(self, operation: Operation[Any]) -> None:
        self._unbegun.discard(operation)
        # Whoever began it has passed the checks. If another one refused it here, its flight would never end.
        events = self._runtime.events
        try:
            await self._drive(operation)
        except LoaderError:
            pass  # an event has told
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # this task has nobody to tell it to
            events.emit(InternalError("background load", type(error).__name__, str(error)))
            events.drain()

    def _begin(self, coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> asyncio.Task[T]:
        """Begin a task of the cache's own."""
        task = self._loop.create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has gone

    # -- from beginning to end -------------------------------------------------------------------------------------

    async def wait(self, predicate: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109  # as there
        """As :meth:`coherent_cache.runtime.Runtime.wait`."""
        runtime = self._runtime
        runtime.start()
        await self._start()
        if not runtime.settings.local_enabled:
            await self._check_namespace()
            return True
        until = clock() + (timeout if runtime.started else 0.0)
        while True:
            with runtime.watching() as waiter:
                if predicate():
                    return True
                runtime.raise_refused()
                woken = await self._wait(WaitRequest(waiter, until))
            if woken.now >= until:
                return predicate()

    async def _until_end(self) -> AsyncGenerator[None, None]:
        """Close the connection when this generator is closed: with the cache, or with the loop."""
        try:
            yield
        finally:
            self.leave()
            await self._io.wait_closed()

    def leave(self) -> None:
        """Leave a loop that ends, or has ended."""
        self._ended = True
        self._runtime.detach(self)
        self._io.close()

    async def close_all(self) -> None:
        """Close the cache, and here wait until nothing of it is left. To be cancelled changes nothing."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close_all())
        await asyncio.shield(self._closing)

    async def _close_all(self) -> None:
        # A thread does it, and to the end, even if the loop's own end cancels this.
        await asyncio.to_thread(self._runtime.close, self._await_loads)
        await self._finish_loads()  # if it was closed elsewhere
        if self._end is not None:
            await self._end.aclose()
        # They have been told by now that there is no connection any more.
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _await_loads(self) -> None:
        """Have the loads in the background finished, from another thread."""
        finishing = self._finish_loads()
        try:
            ended = asyncio.run_coroutine_threadsafe(finishing, self._loop)
        except RuntimeError:  # the loop is closed
            finishing.close()
            return
        with contextlib.suppress(concurrent.futures.CancelledError, TimeoutError):  # the loop ends, or has stopped
            ended.result(self._runtime.settings.timeout + 1)

    async def _finish_loads(self) -> None:
        """Wait for loads in the background, ``timeout`` seconds at most; cancel what is left."""
        if self._loads:
            _, late = await asyncio.wait(self._loads, timeout=self._runtime.settings.timeout)
            for load in late:
                load.cancel()

    def close(self) -> None:
        """Close the connection, from any thread; who waits for replies is told."""
        if self._loop.is_closed() or asyncio._get_running_loop() is self._loop:  # noqa: SLF001
            self._io.close()
        else:
            self._call(self._io.close)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _throw(operation: Operation[Any], error: BaseException) -> Sequence[Request] | None:
    """Interrupt an operation; return what it wants done on its way out, None if nothing."""
    try:
        return operation.throw(error)
    except BaseException:  # noqa: BLE001  # whatever it makes of it, the interruption is what counts
        return None
