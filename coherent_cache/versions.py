"""Versions of values: a position in the history of one shard (rules P1, P9)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from coherent_cache.errors import ConfigError

EPOCH_BYTES: Final = 16
"""Length of an epoch. Random and made by a client, compared for equality only (P9, review A9)."""

NONCE_BYTES: Final = 8
"""Length of the random nonce that every write puts into its log entry and message (P6, review A4)."""

MAX_SEQ: Final = 2**53 - 1
"""Largest sequence number that Lua's numbers represent exactly (review A10)."""

_TEXT: Final = re.compile(rf"([0-9A-Fa-f]{{{2 * EPOCH_BYTES}}}):([0-9]{{1,16}})")


@dataclass(frozen=True, slots=True)
class Version:
    """A position in the history of one shard.

    Versions of one epoch are totally ordered. Another epoch means "history was lost", never "newer": comparing
    versions of different epochs with ``<`` raises ``TypeError``, and they are never equal.

    Attributes:
        epoch: 16 random bytes that name the history.
        seq: position in that history, from 1.
    """

    epoch: bytes
    seq: int

    def __lt__(self, other: Version) -> bool:
        if not isinstance(other, Version) or other.epoch != self.epoch:
            return NotImplemented
        return self.seq < other.seq

    def __le__(self, other: Version) -> bool:
        if not isinstance(other, Version) or other.epoch != self.epoch:
            return NotImplemented
        return self.seq <= other.seq

    def __gt__(self, other: Version) -> bool:
        if not isinstance(other, Version) or other.epoch != self.epoch:
            return NotImplemented
        return self.seq > other.seq

    def __ge__(self, other: Version) -> bool:
        if not isinstance(other, Version) or other.epoch != self.epoch:
            return NotImplemented
        return self.seq >= other.seq

    def __repr__(self) -> str:
        return f"Version({str(self)!r})"

    def __str__(self) -> str:
        """Write the version as ``<epoch in hex>:<seq>``, the form that :meth:`parse` reads."""
        return f"{self.epoch.hex()}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read the form that ``str(version)`` writes.

        Args:
            text: 32 hexadecimal digits, a colon and a decimal number.

        Raises:
            ConfigError: the text is of another form.
        """
        parts = _TEXT.fullmatch(text)
        if parts is None or not 0 < int(parts[2]) <= MAX_SEQ:
            raise ConfigError("version", f"{text!r} is no version; expected 32 hex digits, a colon and a number")
        return cls(bytes.fromhex(parts[1]), int(parts[2]))
