"""Audits a fleet: asks live instances what they hold, compares with Redis, and asks again (see core/auditing.py)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from coherent_cache.core.auditing import (
    CLOCK_MARGIN,
    CONSISTENCY_AT,
    AuditReport,
    Doubt,
    FirstLook,
    Offender,
    Suspect,
    compare,
    judge_gone,
    look_again,
)
from coherent_cache.core.questions import MAX_EXPLAINED_KEYS, MAX_QUESTION_KEYS, Answer, Ask, Holdings, holdings_of_body
from coherent_cache.core.stored import Snapshot, Stored
from coherent_cache.errors import CacheUnavailable, CoherentCacheError, ConfigError
from coherent_cache.keys import check_key, shard_of
from coherent_cache.remote.inquiry import Inquiry, in_pieces
from coherent_cache.wire import WireError

if TYPE_CHECKING:
    from coherent_cache.cache import CoherentCache

DEFAULT_SAMPLE: Final = 500
"""Keys of each instance that an audit looks at."""

ANSWER_SECONDS: Final = 2.0
"""Seconds that instances have to answer."""

MOST_LOG: Final = 100_000
"""Messages of the log that are read to find out what became of a value, at most."""


class Audit:
    """One audit of a namespace."""

    def __init__(
        self,
        inquiry: Inquiry,
        *,
        namespace: str,
        shards: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
        timeout: float = ANSWER_SECONDS,
    ) -> None:
        """Prepare it.

        Args:
            inquiry: asks.
            namespace: its name.
            shards: how many shards it has.
            clock: local clock in seconds.
            sleep: waits some seconds.
            timeout: seconds that instances have to answer.
        """
        self._inquiry = inquiry
        self._namespace = namespace
        self._shards = shards
        self._clock = clock
        self._sleep = sleep
        self._timeout = timeout
        self._undecided = 0
        self._gone = 0
        self._asked = 0
        self._answered: set[str] = set()

    def run(self, keys: Sequence[str] | None, sample: int) -> AuditReport:
        """Do it.

        Args:
            keys: user keys to look at; None to sample.
            sample: how many keys of each instance, if no keys are given.

        Raises:
            CacheUnavailable: Redis is away or refused.
        """
        begun = self._clock()
        held = self._held(keys, sample)
        stored = self._stored({entry.key for holdings in held.values() for entry in holdings.entries})
        read_at = self._clock()
        look = compare(held, stored)
        self._undecided += look.undecided
        bounds = [facts.bound for holdings in held.values() for facts in holdings.shards.values()]
        bound = max(bounds, default=0.0) * (1 + CLOCK_MARGIN)
        stale, beyond, offenders = self._follow(look, read_at, bound)
        return AuditReport(
            namespace=self._namespace,
            asked=self._asked,
            answered=len(self._answered),
            keys=len(stored),
            checked=look.checked,
            behind=len(look.suspects),
            not_served=look.not_served,
            undecided=self._undecided,
            gone=self._gone,
            stale=stale,
            bound=bound,
            beyond=beyond,
            offenders=offenders,
            seconds=self._clock() - begun,
        )

    def _follow(
        self, look: FirstLook, read_at: float, bound: float
    ) -> tuple[dict[float, int], int, tuple[Offender, ...]]:
        """Ask again until nothing is outdated any more, or everything is known."""
        stale = dict.fromkeys(CONSISTENCY_AT, 0)
        suspects, beyond = look.suspects, 0
        offenders: tuple[Offender, ...] = ()
        for delay in sorted({*CONSISTENCY_AT, bound}):
            if not suspects:
                break
            self._sleep(max(0.0, read_at + delay - self._clock()))
            asked_at = self._clock()
            suspects, lost = look_again(suspects, self._again(suspects))
            self._undecided += lost
            suspects = self._without_gone(suspects)
            if delay in stale:
                stale[delay] = len(suspects)
            if delay == bound:
                beyond = len(suspects)
                offenders = self._explained(suspects[:MAX_EXPLAINED_KEYS], asked_at - read_at)
        return stale, beyond, offenders

    # -- asking ----------------------------------------------------------------------------------------------------

    def _held(self, keys: Sequence[str] | None, sample: int) -> dict[str, Holdings]:
        """Return what each member holds; of keys that are given, in one piece."""
        if keys is None:
            return {member: each[0] for member, each in self._ask(Ask.SAMPLE, most=sample).items()}
        found: dict[str, Holdings] = {}
        for piece in in_pieces(keys):
            for member, (holdings,) in self._ask(Ask.VERSIONS, keys=piece).items():
                before = found.get(member, Holdings({}, (), complete=True))
                found[member] = Holdings(
                    {**before.shards, **holdings.shards}, before.entries + holdings.entries, complete=True
                )
        return found

    def _again(self, suspects: Iterable[Suspect]) -> dict[str, list[Holdings]]:
        members = sorted({each.member for each in suspects})
        found: dict[str, list[Holdings]] = {member: [] for member in members}
        for piece in in_pieces(sorted({each.key for each in suspects})):
            for member, holdings in self._ask(Ask.VERSIONS, to=members, keys=piece).items():
                found[member] += holdings
        return found

    def _ask(
        self, kind: Ask, *, to: Sequence[str] = (), keys: Sequence[str] = (), most: int = 0
    ) -> dict[str, list[Holdings]]:
        found = self._inquiry.ask(kind, timeout=self._timeout, to=to, keys=keys, most=most)
        if not to:
            self._asked = max(self._asked, found.asked)
        holdings = {}
        for answer in found.answers:
            if answer.kind == kind:
                try:
                    holdings[answer.member] = [holdings_of_body(answer.body)]
                except WireError:
                    continue
                self._answered.add(answer.member)
        return holdings

    def _stored(self, keys: Iterable[str]) -> dict[str, tuple[Snapshot, Stored]]:
        by_shard: dict[int, list[str]] = {}
        for key in keys:
            by_shard.setdefault(shard_of(key.encode("utf-8"), self._shards), []).append(key)
        return {
            stored.key: (snapshot, stored)
            for shard, group in by_shard.items()
            for snapshot in self._inquiry.versions(shard, group)
            for stored in snapshot.found
        }

    # -- judging ---------------------------------------------------------------------------------------------------

    def _without_gone(self, suspects: Iterable[Suspect]) -> tuple[Suspect, ...]:
        """Look into the log for those of which Redis has no value."""
        kept: list[Suspect] = []
        by_shard: dict[int, list[Suspect]] = {}
        for each in suspects:
            if each.doubt is Doubt.GONE:
                by_shard.setdefault(each.shard, []).append(each)
            else:
                kept.append(each)
        for shard, group in by_shard.items():
            oldest = min(each.seq for each in group)
            log = self._inquiry.log(shard, down_to=oldest + 1, most=MOST_LOG)
            for each in group:
                verdict = judge_gone(each, log)
                if isinstance(verdict, Suspect):
                    kept.append(verdict)
                elif verdict is None:
                    self._undecided += 1
                else:
                    self._gone += 1
        return tuple(kept)

    def _explained(self, suspects: Sequence[Suspect], seconds: float) -> tuple[Offender, ...]:
        """Return suspects as offenders, with what their instances know about the key."""
        told: dict[tuple[str, str], list[dict[str, object]]] = {}
        if suspects:
            members = sorted({each.member for each in suspects})
            keys = sorted({each.key for each in suspects})
            for answer in self._inquiry.ask(Ask.EXPLAIN, timeout=self._timeout, to=members, keys=keys).answers:
                told |= {(answer.member, key): recent for key, recent in _recent(answer)}
        return tuple(
            [
                Offender(
                    instance=each.member.rpartition(":")[0],
                    member=each.member,
                    key=each.key,
                    shard=each.shard,
                    held=each.seq,
                    least=each.least,
                    doubt=each.doubt.value,
                    stale_for=seconds,
                    recent=tuple(told.get((each.member, each.key), ())),
                )
                for each in suspects
            ]
        )


def _recent(answer: Answer) -> list[tuple[str, list[dict[str, object]]]]:
    return [
        (each["key"], each["recent"])
        for each in answer.body
        if isinstance(each, dict) and isinstance(each.get("key"), str) and isinstance(each.get("recent"), list)
    ]


def check_audit(keys: Iterable[str] | None, sample: int) -> list[str] | None:
    """Check what an audit is asked for; return the keys as a list.

    Raises:
        ConfigError: ``sample`` is no number of keys that one question may ask for.
        InvalidKey: a key cannot be one.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or not 1 <= sample <= MAX_QUESTION_KEYS:
        raise ConfigError("sample", f"must be an integer from 1 to {MAX_QUESTION_KEYS:,}, not {sample!r}")
    if keys is None:
        return None
    wanted = list(dict.fromkeys(keys))
    for key in wanted:
        check_key(key)
    return wanted


class ContinuousAudit:
    """Audits a cache's fleet every so often, in a thread of its own; its numbers are for metrics. A context manager.

    Attributes:
        last: the last report; None before the first.
        runs: audits so far that came to an end.
        failures: audits so far that could not be done, because Redis was away.
    """

    def __init__(self, cache: CoherentCache, *, every: float = 30.0, sample: int = DEFAULT_SAMPLE) -> None:
        """Begin; the first audit runs at once.

        Args:
            cache: whose fleet; it must outlive this.
            every: seconds from the end of one audit to the beginning of the next.
            sample: keys of each instance that are looked at each time.
        """
        check_audit(None, sample)
        self.last: AuditReport | None = None
        self.runs = 0
        self.failures = 0
        self._cache = cache
        self._every = every
        self._sample = sample
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coherent-cache audit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.last = self._cache.audit(sample=self._sample, sleep=self._pause)
                self.runs += 1
            except CoherentCacheError:
                self.failures += 1
            self._stopping.wait(self._every)

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise CacheUnavailable("the audit was stopped")

    def numbers(self) -> dict[str, float]:
        """Return the last audit's numbers by name, none before the first: a callable for metrics."""
        told = {} if self.last is None else self.last.numbers()
        return told | {"runs": self.runs, "failures": self.failures}

    def stop(self) -> None:
        """End the thread, within the time that one question takes. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def __enter__(self) -> ContinuousAudit:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
