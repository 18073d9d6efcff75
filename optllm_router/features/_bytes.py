"""Many texts as one array of bytes, so that all of them are featurised by a few numpy calls.

Every text is framed by zero bytes, one before and two after it: an n-gram that touches the frame
knows that it is at the edge of its text, and no n-gram of up to four bytes that begins inside a
text, or at its opening zero, reaches into the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optllm_router._types import IntArray

EDGE = 0
N_CLOSING = 2
"""Zero bytes after each text."""

N_FRAME = 1 + N_CLOSING
MAX_BYTES = 16_384
"""Longer texts keep their head and their tail: both say what is asked, and work stays bounded."""


@dataclass(frozen=True)
class TextBytes:
    """The UTF-8 bytes of n texts, one after the other.

    Attributes:
        raw: the bytes, every text in its frame of zeros.
        bounds: shape (n + 1,); text i is ``raw[bounds[i] : bounds[i + 1]]``.
    """

    raw: bytes
    bounds: IntArray

    @cached_property
    def codes(self) -> NDArray[np.uint8]:
        """The bytes as numbers, shape (total,)."""
        return np.frombuffer(self.raw, dtype=np.uint8)

    def mapped(self, table: bytes) -> NDArray[np.uint8]:
        """What a table of 256 bytes makes of each byte, shape (total,)."""
        return np.frombuffer(self.raw.translate(table), dtype=np.uint8)


def encode(texts: Sequence[str]) -> TextBytes:
    """Encode texts; any Python string is fine, lone surrogates become question marks.

    Examples:
        >>> encoded = encode(["ab", ""])
        >>> encoded.codes.tolist(), encoded.bounds.tolist()
        ([0, 97, 98, 0, 0, 0, 0, 0], [0, 5, 8])
    """
    parts = [_bounded(text.encode("utf-8", "replace")) for text in texts]
    raw = b"".join(b"\0%b\0\0" % part for part in parts)
    bounds = np.array([0, *accumulate(len(part) + N_FRAME for part in parts)], dtype=np.int64)
    return TextBytes(raw, bounds)


def _bounded(part: bytes) -> bytes:
    part = part.replace(b"\0", b" ")
    if len(part) <= MAX_BYTES:
        return part
    half = MAX_BYTES // 2
    return part[:half] + part[-half:]


def _table(convert: dict[str, str], other: str) -> bytes:
    """A table for ``bytes.translate``: see the two below."""
    table = bytearray(range(256))
    for code in range(1, 128):
        character = chr(code)
        for kind, replacement in convert.items():
            if getattr(character, kind)():
                table[code] = ord(replacement or character.lower())
    if other:
        table[128:] = other.encode() * 128
    return bytes(table)


LOWER = _table({"isupper": "", "isspace": " "}, other="")
"""Byte to byte: capital letters become small ones, white space a blank."""

CLASS = _table({"isalpha": "a", "isdigit": "0", "isspace": " "}, other="u")
"""Byte to its class: letter, digit, blank, beyond ASCII; punctuation stands for itself."""

CLASSES = np.frombuffer(CLASS, dtype=np.uint8)
"""The class of each of the 256 bytes, as numbers."""

IN_WORD = np.isin(CLASSES, np.frombuffer(b"a0u", dtype=np.uint8))
"""Whether a byte belongs to a word (letters, digits, anything beyond ASCII)."""
