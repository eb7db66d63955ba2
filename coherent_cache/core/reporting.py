"""An instance that tells about itself: its reports, and its answers to questions.

Runs in the subscriber thread, between two invalidations; so what one question may cost is bounded. Only reads: nothing
that is asked changes what the instance holds or serves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Any, Final

from coherent_cache.core.entries import Entry, KeptEntry
from coherent_cache.core.instance import Instance
from coherent_cache.core.questions import (
    MAX_ANSWER_BYTES,
    MAX_QUESTION_KEYS,
    UNKNOWN,
    Answer,
    Ask,
    Fate,
    HeldEntry,
    Holdings,
    InstanceReport,
    Question,
    ShardFacts,
    decode_question,
    encode_answer,
    encode_report,
    holdings_body,
    shard_body,
)
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.errors import ConfigError, InvalidKey
from coherent_cache.events import InternalError
from coherent_cache.keys import check_key
from coherent_cache.versions import Version
from coherent_cache.wire import Kind, WireError

HEARTBEATS_PER_REPORT: Final = 2
"""Heartbeats from one report to the next."""

REPORTS_PER_EXPIRY: Final = 3
"""Reports that must fail to come until the last one is gone from Redis."""

LEAST_EXPIRY: Final = 1.0
"""Seconds that a report is kept at least, however often it comes."""

ENTRY_BYTES: Final = 40
"""Bytes of a held entry in an answer, beside its key."""

RECENT_SHOWN: Final = 20
"""Latest messages about a key that an answer tells of."""

_OPTIONS: Final = (
    "shards", "max_entries", "max_bytes", "policy", "ttl", "local_ttl", "heartbeat", "max_staleness", "on_disconnect",
    "stale_limit", "schema", "replay_limit",
)  # fmt: skip
"""Settings that a report tells of."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Where an instance runs.

    Attributes:
        version: release of this package.
        host: name of the host.
        pid: process id.
        started: when the instance was made, in seconds since 1970.
        started_at: the same moment of the local clock.
    """

    version: str
    host: str
    pid: int
    started: float
    started_at: float


class Reporter:
    """Makes one instance's reports and answers.

    Attributes:
        interval: seconds between two reports.
        expiry_ms: milliseconds after which a report that is not followed by another one is gone.
    """

    def __init__(self, instance: Instance, process: ProcessFacts) -> None:
        """Speak for an instance of a process."""
        self._instance = instance
        self._process = process
        settings = instance.settings
        self._options = {name: getattr(settings, name) for name in _OPTIONS}
        self.interval = HEARTBEATS_PER_REPORT * settings.heartbeat
        self.expiry_ms = round(max(LEAST_EXPIRY, REPORTS_PER_EXPIRY * self.interval) * 1000)

    def report(self, now: float) -> bytes:
        """Return a report, encoded."""
        return encode_report(self.status(now))

    def status(self, now: float) -> InstanceReport:
        """Return a report."""
        instance, process = self._instance, self._process
        stats = instance.stats(now)
        return InstanceReport(
            member=instance.member,
            instance=instance.instance_id,
            version=process.version,
            host=process.host,
            pid=process.pid,
            started=process.started,
            uptime=now - process.started_at,
            state=stats.state,
            horizon_age=stats.horizon_age,
            bound=instance.settings.longest_age,
            interval=self.interval,
            entries=stats.size,
            bytes=stats.bytes,
            hits=stats.hits,
            misses=stats.misses,
            redis_hits=stats.redis_hits,
            loads=stats.loads,
            invalidations=stats.invalidations_received,
            applied=stats.invalidations_applied,
            resyncs=stats.resyncs,
            flushes=stats.flushes,
            errors=stats.errors,
            propagation_p50=stats.propagation_p50,
            propagation_p99=stats.propagation_p99,
            options=self._options,
        )

    def answer(self, data: bytes, now: float) -> tuple[bytes, bytes] | None:
        """Answer a question; None if it is damaged, of another format, or not for this instance.

        Args:
            data: the question, as it came.
            now: local clock in seconds.

        Returns:
            The question's id, and the answer, encoded.
        """
        instance = self._instance
        try:
            question = decode_question(data)
            if question.to and instance.member not in question.to:
                return None
            kind, body = self._answer(question, now)
            return question.id, encode_answer(Answer(question.id, instance.member, kind, body))
        except WireError:
            instance.counters.errors += 1
        except Exception as error:  # noqa: BLE001  # no question is worth the connection
            instance.counters.errors += 1
            instance.emit(InternalError("a question to this instance", type(error).__name__, str(error)))
        return None

    def _answer(self, question: Question, now: float) -> tuple[str, list[Any]]:
        match question.kind:
            case Ask.STATUS:
                return question.kind, [self.report(now)]
            case Ask.VERSIONS:
                return question.kind, holdings_body(self.holdings(question.keys, now))
            case Ask.SAMPLE:
                return question.kind, holdings_body(self.sample(question.most, now))
            case Ask.MESSAGES:
                return question.kind, [self._fate(name) for name in question.keys]
            case Ask.EXPLAIN:
                return question.kind, [self.explain(key, now) for key in question.keys if self._shard_of(key)]
            case _:
                return UNKNOWN, []

    def holdings(self, keys: Iterable[str], now: float) -> Holdings:
        """Return what is held of keys, each shard's as of one moment."""
        by_shard: dict[Shard, list[str]] = {}
        for key in keys:
            shard = self._shard_of(key)
            if shard is not None:
                by_shard.setdefault(shard, []).append(key)
        return self._collect(by_shard, now)

    def sample(self, most: int, now: float) -> Holdings:
        """Return what is held of some keys, chosen by chance."""
        shards = self._instance.shards
        share = ceil(most / len(shards))
        chosen: dict[Shard, list[str]] = {}
        for shard in shards:
            keys = shard.look(_keys)
            chosen[shard] = keys if len(keys) <= share else self._instance.rng.sample(keys, share)
        return self._collect(chosen, now)

    def _collect(self, by_shard: dict[Shard, list[str]], now: float) -> Holdings:
        facts: dict[int, ShardFacts] = {}
        entries: list[HeldEntry] = []
        size, complete = 0, True
        for shard, keys in by_shard.items():
            facts[shard.index], held = shard.look(partial(self._look, keys=keys, now=now))
            for key, entry in held:
                if entry.is_expired(now):
                    continue
                size += len(key) * 4 + ENTRY_BYTES
                if size > MAX_ANSWER_BYTES or len(entries) == MAX_QUESTION_KEYS:
                    complete = False
                    break
                entries.append(HeldEntry(key, shard.index, entry.seq, entry.expires_at - now))
        return Holdings(facts, tuple(entries), complete)

    def _look(self, shard: Shard, *, keys: Iterable[str], now: float) -> tuple[ShardFacts, list[tuple[str, Entry]]]:
        entries = shard.tier.entries
        return self._facts(shard, now), [(key, entry) for key in keys if (entry := entries.get(key)) is not None]

    def explain(self, key: str, now: float) -> dict[str, Any]:
        """Return all that is known here about a key, as plain values; see :mod:`coherent_cache.core.explaining`."""
        shard = self._instance.shard_of(check_key(key))
        return shard.look(lambda shard: self._explain(shard, key, now))

    def _fate(self, name: str) -> str:
        """Return what became here of a message; empty for a name that names none."""
        shard, _, text = name.partition(":")
        try:
            version = Version.parse(text)
            return self._instance.shards[int(shard)].look(partial(_fate_of, version=version)).value
        except (ConfigError, ValueError, IndexError):
            return ""

    def _explain(self, shard: Shard, key: str, now: float) -> dict[str, Any]:
        entry, kept = shard.tier.entries.get(key), shard.kept.entries.get(key)
        settings = self._instance.settings
        return {
            "key": key,
            "shard": shard_body(self._facts(shard, now)),
            "held": None if entry is None else _described(entry, now),
            "kept": _described(kept, now) if isinstance(kept, KeptEntry) else None,
            "commands": shard.under_way(key),
            "loading": key in self._instance.flights,
            "local_enabled": settings.local_enabled,
            "on_disconnect": settings.on_disconnect,
            "stale_limit": float(settings.stale_limit),
            "recent": _recent(shard, key, now),
        }

    def _facts(self, shard: Shard, now: float) -> ShardFacts:
        """Requires holding the shard's lock."""
        settings, state, age = self._instance.settings, shard.state_at(now), now - shard.tier.horizon
        stale = settings.on_disconnect == "serve_stale" and state is State.DISCONNECTED and age <= settings.stale_limit
        return ShardFacts(
            shard=shard.index,
            state=state.value,
            serves=settings.local_enabled and (shard.tier.valid_until >= now or stale),
            epoch=shard.epoch or b"",
            position=shard.position or 0,
            horizon_age=age,
            server=shard.server or "",
            bound=float(settings.longest_age),
        )

    def _shard_of(self, key: str) -> Shard | None:
        """Return the shard of a key, None for what cannot be one: whoever asked learns nothing of it."""
        try:
            return self._instance.shard_of(check_key(key))
        except InvalidKey:
            return None


def _fate_of(shard: Shard, *, version: Version) -> Fate:
    if shard.epoch != version.epoch:
        return Fate.ELSEWHERE
    for _, message, _, applied in reversed(shard.recent):
        if (message.seq, message.epoch) == (version.seq, version.epoch):
            return Fate.APPLIED if applied else Fate.IGNORED
    return Fate.PASSED if version.seq <= (shard.position or 0) else Fate.BEHIND


def _keys(shard: Shard) -> list[str]:
    return list(shard.tier.entries)


def _described(entry: Entry, now: float) -> dict[str, Any]:
    left = entry.expires_at - now
    return {
        "seq": entry.seq,
        "expires_in": None if left == inf else left,
        "size": entry.size,
        "tags": list(entry.tags),
    }


def _recent(shard: Shard, key: str, now: float) -> list[dict[str, Any]]:
    """Return the latest messages that concern a key, or may: names of large messages and tags are not all known."""
    found = []
    for at, message, names, applied in reversed(shard.recent):
        whole = message.kind not in (Kind.CLEAR, Kind.TAG) and names == len(message.names)
        if whole and key not in message.names:
            continue
        found.append(
            {
                "seconds_ago": now - at,
                "kind": message.kind.name.lower(),
                "seq": message.seq,
                "origin": message.origin,
                "applied": applied,
                "certain": message.kind is Kind.CLEAR or (message.kind is not Kind.TAG and key in message.names),
                "names": names,
            }
        )
        if len(found) == RECENT_SHOWN:
            break
    return found
