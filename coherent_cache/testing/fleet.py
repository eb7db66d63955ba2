"""Real processes for tests, each with a cache of one namespace, that do what the test tells them.

::

    def read(cache, key):           # in a module, so that the processes can import it
        return cache.get(key)

    with Fleet(3, url, namespace="test") as fleet:
        fleet[0].run(write, "a", 1)
        assert fleet.run(read, "a") == [1, 1, 1]
        task = fleet[1].start(read, "a")    # does not wait
        fleet[1].pause()                    # SIGSTOP, until resume()
        fleet[2].kill()                     # SIGKILL; restart() makes another one in its place

Each process is a fresh interpreter (no fork: nothing of the test's threads and locks is copied) with the test's import
path. A function and its arguments go there by pickle, results and exceptions come back so. Everything lies in files of
a temporary folder, and a line on the process' standard input says that there is work: so nobody ever waits for a
reader, a paused process delays nobody but those who ask it, and several tasks of one process run at the same time, a
thread each.

No process outlives its fleet: it ends when its standard input does, also when the test's process is killed; and a fleet
that is closed kills those that do not end in time. POSIX only.
"""

from __future__ import annotations

import io
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, Final, Self

from coherent_cache.cache import CoherentCache
from coherent_cache.errors import CoherentCacheError, ConfigError
from coherent_cache.serializers import Codec
from coherent_cache.testing import coherence

START_SECONDS: Final = 60.0
"""Seconds until a new process must be ready: a loaded machine may start several at once."""

TASK_SECONDS: Final = 60.0
"""Seconds that a task may take unless the caller names another limit."""

END_SECONDS: Final = 5.0
"""Seconds that processes which are told to end may take; then they are killed."""

KILL_SECONDS: Final = 10.0
"""Seconds until a killed process must be gone."""

INTERVAL: Final = 0.005
"""Seconds between two looks at whether a task is done."""

LAST_LINES: Final = 30
"""Lines of a process' output that an error shows."""

_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; "
    "from coherent_cache.testing.fleet_worker import main; main({folder!r}, {name!r})"
)


class FleetError(CoherentCacheError):
    """Something is wrong with a process of a fleet, rather than with what it was told to do.

    Attributes:
        instance_id: name of its instance.
        pid: its process.
    """

    def __init__(self, instance_id: str, pid: int, message: str) -> None:
        super().__init__(f"worker {instance_id} (process {pid}) {message}")
        self.instance_id = instance_id
        self.pid = pid


class WorkerDied(FleetError):
    """A process has ended, by itself or because it was killed."""


class WorkerLate(FleetError, TimeoutError):
    """A process did not do in time what it was told; says so if it is paused."""


class WorkerFailed(FleetError):
    """What a task returned or raised cannot be pickled, or not be unpickled here. Shows the traceback, if any."""


class Task:
    """Something that a member was told to do."""

    def __init__(self, member: Member, number: int, outcome: Path) -> None:
        """Made by the members."""
        self._member = member
        self._number = number
        self._outcome = outcome
        self._process = member._process  # noqa: SLF001  # a restarted member has another one

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return self._outcome.exists()

    def result(self, timeout: float = TASK_SECONDS) -> Any:
        """Wait for the end, and return what the function returned.

        Args:
            timeout: seconds.

        Raises:
            Exception: what the function raised, with the worker's traceback as a note.
            WorkerDied: the process ended before.
            WorkerLate: it is not done in time; it goes on, and ``result`` may be called again.
            WorkerFailed: the outcome cannot be pickled.
        """
        self._member._await(self._outcome, timeout, f"task {self._number}", self._process)  # noqa: SLF001
        kind, payload, text = pickle.loads(self._outcome.read_bytes())  # noqa: S301  # written by our own process
        if kind == "failed":
            raise self._member._failed(text)  # noqa: SLF001
        try:
            outcome = pickle.loads(payload)  # noqa: S301
        except Exception as error:
            raise self._member._failed(f"has an outcome that cannot be unpickled: {error!r}\n{text}") from error  # noqa: SLF001
        if kind == "raised":
            outcome.add_note(f"raised by worker {self._member.instance_id}:\n{text}")
            raise outcome
        return outcome


class Member:
    """A process of a fleet, with one cache.

    Attributes:
        index: its place in the fleet, from 0.
        instance_id: name of its instance, another one after each :meth:`restart`.
        namespace: the fleet's.
    """

    def __init__(self, index: int, folder: Path, url: str, options: dict[str, Any]) -> None:
        """Made by the fleet."""
        self.index = index
        self.namespace: str = options["namespace"]
        self._folder = folder
        self._url = url
        self._options = options
        self._numbers = count(1)
        self._dismissed = False  # its end is the test's doing, or known to it
        self._paused = False
        self._start()

    def __repr__(self) -> str:
        state = "paused" if self._paused else "running" if self.running else "ended"
        return f"<worker {self.instance_id}, process {self.pid}: {state}>"

    # -- what it does ------------------------------------------------------------------------------------------------

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let the process call ``function(cache, *args, **kwargs)``; return what that returns, within 60 seconds.

        Raises:
            As :meth:`start` and :meth:`Task.result`.
        """
        return self.start(function, *args, **kwargs).result()

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
        """Let the process call ``function(cache, *args, **kwargs)`` in a thread of its own; do not wait for it.

        Args:
            function: a function of a module (no lambda, no nested function): the process imports it.
            *args: what pickle takes.
            **kwargs: the same.

        Raises:
            ConfigError: the function or an argument cannot be sent. Nothing was.
            WorkerDied: the process has ended.
        """
        if not callable(function):
            raise ConfigError("function", f"must be a function, not {type(function).__name__}")
        data = _pickled("function", (function, args, kwargs))
        if not self.running:
            raise self._died(self._process)
        number = next(self._numbers)
        self._file(f"{number}.task").write_bytes(data)
        self._say(f"{number}\n")
        return Task(self, number, self._file(f"{number}.outcome"))

    # -- what is done to it ------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process.poll() is None

    @property
    def where(self) -> str:
        """Which connections are its own, for the faults of a :class:`~coherent_cache.testing.FaultProxy`."""
        return f"coherent-cache:{self.instance_id}*"

    @property
    def subscriber(self) -> str:
        """Which connection is the one that receives its invalidations, for the faults of a proxy."""
        return f"coherent-cache:{self.instance_id}:subscriber"

    @property
    def output(self) -> str:
        """The end of what it wrote to standard output and standard error."""
        with suppress(FileNotFoundError):  # the fleet is closed
            return "\n".join(self._file("output").read_text(errors="replace").splitlines()[-LAST_LINES:])
        return ""

    def pause(self) -> None:
        """Stop the process (SIGSTOP) until :meth:`resume`. It is stopped when this returns."""
        if not self.running:
            raise self._died(self._process)
        self._paused = True
        stop_process(self.pid)

    def resume(self) -> None:
        """Let the process go on."""
        self._paused = False
        if self.running:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process at once (SIGKILL), paused or not; it is gone when this returns. Idempotent."""
        self._dismissed, self._paused = True, False
        self._process.kill()
        self._process.wait(KILL_SECONDS)
        self._close_input()

    def restart(self) -> None:
        """Kill the process, if it is still there, and start another one in its place, with another ``instance_id``.

        Raises:
            WorkerDied: the new one ends at once; shows its output.
            WorkerLate: it is not ready within 60 seconds.
        """
        self.kill()
        self._start()
        self._await_ready()

    # -- for assert_coherent -----------------------------------------------------------------------------------------

    def look(self, keys: list[str] | None) -> coherence.Look:
        """Return what its local tier would serve, of some keys or of all; see :func:`assert_coherent`."""
        found: coherence.Look = self.run(coherence.look, keys)
        return found

    @contextmanager
    def _reader(self) -> Iterator[tuple[coherence.Reader, Codec]]:
        options = self._options | {"local_enabled": False}
        with CoherentCache(self._url, **options) as cache, coherence.reader(cache) as found:
            yield found

    def reader(self) -> AbstractContextManager[tuple[coherence.Reader, Codec]]:
        """Give a reader of its Redis, in this process."""
        return self._reader()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.instance_id = f"worker-{self.index}-{secrets.token_hex(4)}"
        self._dismissed = False
        program = _PROGRAM.format(path=sys.path, folder=str(self._folder), name=self.instance_id)
        with self._file("output").open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the test. Same session: a stopped one gets SIGHUP when the test's process is gone.
                process_group=0,
            )

    def _await_ready(self) -> None:
        self._await(self._file("ready"), START_SECONDS, "its start", self._process)

    def _file(self, what: str) -> Path:
        return self._folder / f"{self.instance_id}.{what}"

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        with suppress(BrokenPipeError):  # it is gone: whoever waits for it finds out
            self._process.stdin.write(line.encode("ascii"))
            self._process.stdin.flush()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _await(self, path: Path, timeout: float, what: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for a file of a process."""
        deadline = time.monotonic() + timeout
        while True:
            late = time.monotonic() >= deadline
            ended = process.poll() is not None  # looked at first: what it left behind is there then
            if path.exists():
                return
            if ended:
                raise self._died(process)
            if late:
                paused = "; it is paused" if self._paused else ""
                raise WorkerLate(
                    self.instance_id, process.pid, f"is not done with {what} within {timeout:g} s{paused}{self._said()}"
                )
            time.sleep(INTERVAL)

    def _died(self, process: subprocess.Popen[bytes]) -> WorkerDied:
        if process is self._process:
            status, killed = process.returncode, self._dismissed
            self._dismissed = True
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            message = f"was ended by the test, {how}" if killed else f"ended by itself, {how}{self._said()}"
        else:
            message = "took the place of the one that was to do this"
        return WorkerDied(self.instance_id, process.pid, message)

    def _failed(self, text: str) -> WorkerFailed:
        return WorkerFailed(self.instance_id, self.pid, text)

    def _said(self) -> str:
        output = self.output
        return f"; its output ends with:\n{output}" if output else "; it wrote nothing"

    def _end(self) -> None:
        """Tell it to end, without waiting."""
        self._dismissed = True
        if self._paused:
            self._process.kill()
        self._say("end\n")  # a forked child of this process may hold the other end of the pipe as well
        self._close_input()

    def _wait(self, deadline: float) -> None:
        """Wait until it is gone; kill it at the deadline."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()


class Fleet:
    """Processes with a cache each, all of one namespace. A context manager that leaves none of them behind.

    Attributes:
        members: the processes, by index. ``fleet[i]``, ``len(fleet)`` and iteration lead there as well.
    """

    def __init__(self, number: int, url: str, *, namespace: str, **options: Any) -> None:
        """Start the processes, and wait until each cache is coherent.

        Args:
            number: how many, from 1.
            url: where Redis is, for all of them: ``redis://``, ``unix://``, ``embedded://``; that of a
                :class:`~coherent_cache.testing.FaultProxy` makes their connections subject to its faults.
            namespace: of the caches.
            **options: of the caches, as for :class:`~coherent_cache.CoherentCache`; what pickle takes.

        Raises:
            ConfigError: an argument or option is unusable.
            WorkerDied: a process ends at once; shows its output.
            WorkerLate: one is not ready within 60 seconds; shows its output.
        """
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError("number", f"must be an integer from 1, not {number!r}")
        if not isinstance(url, str) or url.startswith("memory://"):
            raise ConfigError("url", "must be the URL of a Redis that several processes can reach; memory:// is not")
        if "instance_id" in options:
            raise ConfigError("instance_id", "is made for each process of a fleet")
        options["namespace"] = namespace
        CoherentCache(url, **options).close()  # an unusable option is named here rather than in each process
        plan = _pickled("options", (url, options))
        self._folder = Path(tempfile.mkdtemp(prefix="coherent-cache-fleet-"))
        self.members: list[Member] = []
        try:
            (self._folder / "plan").write_bytes(plan)
            for index in range(number):
                self.members.append(Member(index, self._folder, url, options))
            for member in self.members:
                member._await_ready()  # noqa: SLF001
        except BaseException:
            self.close()
            raise

    def __getitem__(self, index: int) -> Member:
        return self.members[index]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Task]:
        """Let each process call ``function(cache, *args, **kwargs)``; do not wait. Killed ones are left out."""
        return [member.start(function, *args, **kwargs) for member in self.members if member.running]

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Let each process call ``function(cache, *args, **kwargs)`` at the same time; return the results by index.

        Members that were killed are left out.

        Raises:
            As :meth:`Member.run`: what went wrong with the first member that it did with.
        """
        return _results(self.start(function, *args, **kwargs))

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """Let each process call ``function(cache, item)`` with an item of its own, at the same time.

        Args:
            function: as for :meth:`run`.
            items: as many as there are members.

        Raises:
            ConfigError: there are more or fewer of them.
            Others: as :meth:`Member.run`.
        """
        given = list(items)
        if len(given) != len(self.members):
            raise ConfigError("items", f"must be one for each of {len(self.members)} members, not {len(given)}")
        return _results([member.start(function, item) for member, item in zip(self.members, given, strict=True)])

    def check(self) -> None:
        """Raise :class:`WorkerDied` if a process has ended that nobody has killed, and nobody was told yet."""
        for member in self.members:
            if not member.running and not member._dismissed:  # noqa: SLF001
                raise member._died(member._process)  # noqa: SLF001

    def close(self) -> None:
        """End all processes, within seconds: told to end, they close their caches; what is left then is killed."""
        for member in self.members:
            member._end()  # noqa: SLF001
        deadline = time.monotonic() + END_SECONDS
        for member in self.members:
            member._wait(deadline)  # noqa: SLF001
        shutil.rmtree(self._folder, ignore_errors=True)


def stop_process(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until it is stopped.

    Raises:
        TimeoutError: it was not within 10 seconds.
        ProcessLookupError: there is none.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + KILL_SECONDS
    while not _is_stopped(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} was not stopped within {KILL_SECONDS:g} s")
        time.sleep(INTERVAL)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "Z")
    except FileNotFoundError:
        return True  # a system without /proc: the signal is enough


def _results(tasks: list[Task]) -> list[Any]:
    deadline = time.monotonic() + TASK_SECONDS
    return [task.result(max(0.0, deadline - time.monotonic())) for task in tasks]


class _Pickler(pickle.Pickler):
    """Notes the modules of the functions and classes that it meets, so that the other end can find them.

    Attributes:
        modules: file by name.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: dict[str, str] = {}

    def reducer_override(self, obj: Any) -> Any:
        """Look at an object, and let it be pickled as ever."""
        if isinstance(obj, type | FunctionType):
            if obj.__module__ == "__main__":
                raise pickle.PicklingError(f"{obj.__qualname__} is of the program itself; move it into a module")
            file = getattr(sys.modules.get(obj.__module__), "__file__", None)
            if file:
                self.modules[obj.__module__] = file
        return NotImplemented


def _pickled(option: str, parts: tuple[Any, ...]) -> bytes:
    """Pickle an option, after the files of the modules that it needs: not every test module can be imported by name.

    Raises:
        ConfigError: it cannot be pickled.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(parts)
    except Exception as error:
        raise ConfigError(
            option,
            f"cannot be sent to another process: {error}; "
            "pickle takes functions and classes of a module (no lambda, nothing nested) and their instances",
        ) from error
    return pickle.dumps((pickler.modules, buffer.getvalue()))
