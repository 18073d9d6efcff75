"""Names that are unknown: how errors quote them, and what they may have been meant to be."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

_LONGEST = 200
"""What is longer resembles nothing that is known, and comparing megabytes takes seconds."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def nearest(name: object, known: Iterable[str], *, most: int, cutoff: float = 0.6) -> list[str]:
    """The known names that are most like ``name``, best first.

    Args:
        name: as it was given.
        known: to choose among.
        most: how many, at most.
        cutoff: how alike they must be, 0..1.

    >>> nearest("tennant", ["policy", "tenant"], most=1)
    ['tenant']
    """
    text = str(name)[: _LONGEST + 1]
    if len(text) > _LONGEST:
        return []
    return difflib.get_close_matches(text, list(known), n=most, cutoff=cutoff)


def quoted(value: object) -> str:
    """The ``repr`` of a value that is wrong, of a long one its two ends: an error is a sentence.

    >>> quoted("gpt-9"), len(quoted("x" * 1_000_000))
    ("'gpt-9'", 100)
    """
    return _SHORT.repr(value)
