"""Chance without state: the same words always fall the same way, in every process and version.

Everything that looks random in the simulation at serving time (is this answer right, does this
call fail) is a function of its inputs alone, so any figure can be recomputed offline, whatever
the order or concurrency of the calls was.
"""

from __future__ import annotations

import hashlib


def stable_integer(*parts: object) -> int:
    """Return an integer in ``0 .. 2**64 - 1`` that depends on the text of ``parts`` only."""
    text = "\x1f".join(map(str, parts))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def stable_fraction(*parts: object) -> float:
    """Return a number in ``[0, 1)``, uniform over different ``parts``.

    >>> stable_fraction("sim-frontier", "What is 2 + 2?") == stable_fraction(
    ...     "sim-frontier", "What is 2 + 2?"
    ... )
    True
    """
    # 53 bits fill a double's mantissa; all 64 would round up to 1.0 now and then.
    return (stable_integer(*parts) >> 11) / (1 << 53)
