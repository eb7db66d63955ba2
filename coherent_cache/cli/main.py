"""The command line ``coherent-cache``.

Exit codes: 0 fine, 1 found a problem, 2 wrong usage, 3 no Redis; 128 and the signal's number if a signal ended it.
Every error of this package ends in one line on standard error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn, Protocol

from coherent_cache.__about__ import __version__
from coherent_cache.cli import (
    audit,
    clear,
    delete,
    demo,
    doctor,
    explain,
    exporter,
    get,
    serve_embedded,
    stats,
    tail,
    top,
)
from coherent_cache.cli import set as set_
from coherent_cache.cli.common import (
    EXIT_NO_REDIS,
    EXIT_PROBLEM,
    EXIT_SIGNAL,
    EXIT_USAGE,
    PROGRAM,
    Terminated,
    complain,
)
from coherent_cache.errors import CacheUnavailable, CoherentCacheError, ConfigError, InvalidKey, ValueTooLarge


class Command(Protocol):
    """A module with one command. The first line of its docstring is its help."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; return the exit code.

        Raises:
            CoherentCacheError: it cannot be done.
        """


COMMANDS: Final[Mapping[str, Command]] = {
    "demo": demo,
    "get": get,
    "set": set_,
    "delete": delete,
    "clear": clear,
    "audit": audit,
    "explain": explain,
    "doctor": doctor,
    "stats": stats,
    "top": top,
    "tail": tail,
    "exporter": exporter,
    "serve-embedded": serve_embedded,
}
"""All commands, in the order of ``--help``. A new one is a module of its own and a line here."""

_USAGE_ERRORS: Final = (ConfigError, InvalidKey, ValueTooLarge)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A local cache in every worker that can be trusted: look at one, try one out.",
        epilog="Exit codes: 0 fine, 1 found a problem, 2 wrong usage, 3 no Redis.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").strip()
        sub = commands.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code.

    Args:
        argv: the arguments; None for those of this process.

    Raises:
        SystemExit: the arguments are unusable (code 2), or ask for help or the version (code 0).
    """
    args = make_parser().parse_args(argv)
    with _signals(), _short_warnings():
        try:
            code: int = args.run(args)
            if sys.stdout is not None:
                sys.stdout.flush()
        except CoherentCacheError as error:
            complain(str(error))
            return _code_of(error)
        except BrokenPipeError:
            # The reader has seen enough. What is still buffered must not fail again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return EXIT_SIGNAL + signal.SIGPIPE
        except Terminated as signalled:
            return EXIT_SIGNAL + signalled.signum
        except KeyboardInterrupt:
            return EXIT_SIGNAL + signal.SIGINT
    return code


def _code_of(error: CoherentCacheError) -> int:
    if isinstance(error, CacheUnavailable):
        return EXIT_NO_REDIS
    return EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_PROBLEM


def _terminate(signum: int, _: FrameType | None) -> NoReturn:
    raise Terminated(signum)


@contextmanager
def _signals() -> Iterator[None]:
    """Let a request to end do what Ctrl-C does, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show a warning as one line, without the place in the code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
