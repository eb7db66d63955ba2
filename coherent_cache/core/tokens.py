"""Tokens: what must be true for values on their way from Redis to enter the local tier (rule P7)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from coherent_cache.versions import MAX_SEQ

NEWER_THAN_ANYTHING: Final = MAX_SEQ + 1
"""Mark of a key whose present version cannot be known, e.g. after a write that timed out."""


class Token:
    """One command's right to insert under its keys, registered *before* the command is sent.

    Attributes:
        keys: user keys of the command.
        generation: the shard's generation at registration.
        marks: newest version learnt since, of those keys of which one was: an older value must not be inserted.
    """

    __slots__ = ("generation", "keys", "marks")

    def __init__(self, keys: Collection[str], generation: int) -> None:
        self.keys = keys
        self.generation = generation
        self.marks: dict[str, int] = {}


class TokenTable:
    """The tokens of one shard. Every method requires holding the shard's lock.

    Tokens of one key are found by that key. Those of several keys are asked one after the other: few commands of that
    kind are under way at a time, and registering them must not cost as much as their keys are many.
    """

    __slots__ = ("_bulk", "_single")

    def __init__(self) -> None:
        self._single: dict[str, list[Token]] = {}
        self._bulk: list[Token] = []

    def __bool__(self) -> bool:
        """Whether there is any token."""
        return bool(self._single or self._bulk)

    def count(self, key: str) -> int:
        """Return how many tokens there are for a key."""
        return len(self._single.get(key, ())) + sum(key in token.keys for token in self._bulk)

    def is_alone(self, token: Token) -> bool:
        """Whether no other token than this one could be marked."""
        if len(token.keys) > 1:
            return not self._single and self._bulk == [token]
        return not self._bulk and len(self._single) == 1 and list(self._single.values()) == [[token]]

    def register(self, keys: Collection[str], generation: int) -> Token:
        """Register a token for the keys of one command."""
        if len(keys) > 1:
            keys = frozenset(keys)
        if len(keys) == 1:
            token = Token(keys, generation)
            for key in keys:
                self._single.setdefault(key, []).append(token)
        else:
            token = Token(keys, generation)
            self._bulk.append(token)
        return token

    def release(self, token: Token) -> None:
        """Forget a token; a second call does nothing."""
        if len(token.keys) == 1:
            for key in token.keys:
                tokens = self._single.get(key, [])
                if token in tokens:
                    tokens.remove(token)
                    if not tokens:
                        del self._single[key]
        elif token in self._bulk:
            self._bulk.remove(token)

    def mark(self, key: str, seq: int, *, but: Token | None = None) -> bool:
        """Note that version ``seq`` of ``key`` exists, on all its tokens but one; tell whether there were others."""
        marked = False
        tokens = self._single.get(key)
        if tokens is not None:
            for token in tokens:
                if token is not but:
                    marked = True
                    if token.marks.get(key, 0) < seq:
                        token.marks[key] = seq
        for token in self._bulk:
            if token is not but and key in token.keys:
                marked = True
                if token.marks.get(key, 0) < seq:
                    token.marks[key] = seq
        return marked
