"""What a name that is unknown may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200
"""What is longer resembles nothing that is known, and comparing megabytes takes seconds."""


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
