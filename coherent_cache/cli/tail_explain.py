"""What became of messages on every instance, for ``coherent-cache tail --explain``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from coherent_cache.core.questions import UNKNOWN, Ask, Fate, message_name
from coherent_cache.core.tailing import Shown
from coherent_cache.errors import CacheUnavailable
from coherent_cache.remote.inquiry import Answers, Inquiry
from coherent_cache.versions import Version

MESSAGES_PER_QUESTION: Final = 200
"""Messages that are asked about at once: instances answer between two invalidations."""

ANSWER_SECONDS: Final = 1.0
"""Seconds that instances have to answer."""

MOST_INSTANCES: Final = 4
"""Instances that a line for people names, of each fate."""


_FATES: Final = tuple(Fate)


class Fates(NamedTuple):
    """What became of one message.

    Attributes:
        by_instance: fate by instance; by member, if two instances have one id.
        silent: how many instances were asked and did not answer.
    """

    by_instance: dict[str, str]
    silent: int

    def __str__(self) -> str:
        """Say it in words."""
        parts = []
        for fate in (*Fate, UNKNOWN):
            names = sorted(name for name, found in self.by_instance.items() if found == fate)
            if names:
                more = f" and {len(names) - MOST_INSTANCES} more" if len(names) > MOST_INSTANCES else ""
                parts.append(f"{fate}: {', '.join(names[:MOST_INSTANCES])}{more}")
        if self.silent:
            parts.append(f"no answer: {self.silent}")
        return "; ".join(parts) or "no instance"


class Explainer:
    """Asks all instances what became of messages."""

    def __init__(self, inquiry: Inquiry) -> None:
        """Ask by this."""
        self._inquiry = inquiry

    def fates(self, shown: Sequence[Shown]) -> list[Fates | None]:
        """Return what became of each message, None if nobody could be asked.

        Instances get messages and questions in one stream, so whoever answers has had the message before.
        """
        found: list[Fates | None] = []
        for start in range(0, len(shown), MESSAGES_PER_QUESTION):
            piece = shown[start : start + MESSAGES_PER_QUESTION]
            names = [message_name(each.shard, Version(each.message.epoch, each.message.seq)) for each in piece]
            try:
                answers = self._inquiry.ask(Ask.MESSAGES, timeout=ANSWER_SECONDS, keys=names)
            except CacheUnavailable:
                found += [None] * len(piece)
            else:
                found += [_fates(answers, at) for at in range(len(piece))]
        return found


def _fates(answers: Answers, at: int) -> Fates:
    instances = [answer.member.rpartition(":")[0] for answer in answers.answers]
    by_instance: dict[str, str] = {}
    for answer, instance in zip(answers.answers, instances, strict=True):
        name = instance if instances.count(instance) == 1 else answer.member
        known = answer.kind == Ask.MESSAGES and at < len(answer.body) and answer.body[at] in _FATES
        by_instance[name] = answer.body[at] if known else UNKNOWN
    return Fates(by_instance, max(0, answers.asked - len(answers.answers)))
