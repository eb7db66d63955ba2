"""What threads and event loops have in common to run requests: calls from requests, replies or errors from answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from coherent_cache.core.requests import LeaveRequest, MembersRequest, ReadRequest, Reply, Request
from coherent_cache.errors import CacheUnavailable, NotPermitted
from coherent_cache.remote.connection import ConnectionLost, ReplyError
from coherent_cache.remote.rights import Rights, is_denial
from coherent_cache.remote.scripts import Call, ReadCall, ScriptCall, Scripts, StoreCall
from coherent_cache.remote.topology import Endpoint

_CHANGE_NO_VALUES: Final = frozenset((ReadRequest, MembersRequest, LeaveRequest))


class Exchange:
    """Makes calls and judges what they bring; how bytes come and go is up to those who inherit."""

    def __init__(self, endpoint: Endpoint, scripts: Scripts, clock: Callable[[], float]) -> None:
        """Combine the parts.

        Args:
            endpoint: where the connections lead to, for messages.
            scripts: makes calls of requests.
            clock: local clock in seconds.
        """
        self._endpoint = endpoint
        self._scripts = scripts
        self._clock = clock

    def _replies(
        self, calls: Sequence[Call], answers: Sequence[list[Any]], server: str, sent_at: float, *, writes: bool
    ) -> list[Reply] | None:
        """Return the replies; None if the reads are to be sent again as scripts.

        Raises:
            CacheUnavailable: Redis refused one.
            NamespaceMismatch: the namespace was created with other settings. Nothing was done.
        """
        replies = []
        for call, answer in zip(calls, answers, strict=True):
            try:
                replies.append(call.parse(answer, server, sent_at))
            except ReplyError as error:
                if isinstance(call, ReadCall) and error.code == "OOM":
                    # Out of memory, Redis queues no command of a transaction, not even reads; scripts may read.
                    return None
                raise self._refusal(error, write=writes) from error
            except (TypeError, ValueError, IndexError) as error:
                message = "Redis answered something that is no answer to our commands"
                raise CacheUnavailable(message, maybe_applied=writes) from error
        return replies

    def _refusal(self, error: ReplyError, *, write: bool) -> Exception:
        """Return our error for an error answer."""
        known = self._scripts.error(error)
        if known is not None:
            return known
        what = f"Redis at {self._endpoint.description} refused: {error}"
        maybe_applied = write and not self._scripts.refused_before_any_write(error)
        if is_denial(error):
            return NotPermitted(what, self._scripts.rights.named(str(error)), maybe_applied=maybe_applied)
        return CacheUnavailable(what, maybe_applied=maybe_applied)

    def _lost(self, error: ConnectionLost, *, writes: bool) -> CacheUnavailable:
        """Return our error for a connection that failed."""
        return CacheUnavailable(
            f"the connection to Redis at {self._endpoint.description} failed: {error}", maybe_applied=writes
        )


def no_connection(endpoint: Endpoint, rights: Rights, error: Exception) -> CacheUnavailable:
    """Return our error for a connection that cannot be made. Nothing was sent."""
    what = f"cannot connect to Redis at {endpoint.description}: {error}"
    return NotPermitted(what, rights.named(str(error))) if is_denial(error) else CacheUnavailable(what)


def explained(error: NotPermitted, rights: tuple[str, ...]) -> NotPermitted:
    """Return a denial that names the rights that were found to lack."""
    return NotPermitted(error.what, rights or error.rights, maybe_applied=error.maybe_applied)


def change_values(requests: Sequence[Request]) -> bool:
    """Tell whether requests may change values; reads and writes are never sent together."""
    return type(requests[0]) not in _CHANGE_NO_VALUES


def judged_by_script(requests: Sequence[Request]) -> list[ReadRequest]:
    """Return reads as those that scripts execute."""
    return [request._replace(judge_tags=True) for request in requests if isinstance(request, ReadRequest)]


def packed_again(call: Call, answers: Sequence[Any]) -> bytes | None:
    """Return what is to be sent if the server did not know a call's script; None if it did."""
    first = answers[0]
    if isinstance(first, ReplyError) and first.code == "NOSCRIPT" and isinstance(call, ScriptCall | StoreCall):
        return call.packed_with_text()
    return None
