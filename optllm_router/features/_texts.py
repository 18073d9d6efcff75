"""What featurizers see of texts: bags of n-grams and surface statistics, read once for all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from optllm_router.features import _ngrams
from optllm_router.features._bytes import MAX_BYTES, encode
from optllm_router.features._single import Counted
from optllm_router.features._surface import surface

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from optllm_router.features._bytes import TextBytes
    from optllm_router.features._ngrams import Bags

VIEWS = {
    "characters": _ngrams.characters,
    "words": _ngrams.words,
    "shapes": _ngrams.shapes,
}
"""How each view of a text makes bags of it."""

_CHUNK_TEXTS = 2_000
_CHUNK_BYTES = 1_000_000
"""Read at once, at most: bounds memory, and keeps intermediate arrays in the caches."""


@dataclass(frozen=True)
class Reading:
    """What is seen of n texts, whatever was learnt from others.

    Attributes:
        text: the encoded texts.
        surface: shape (n, m), surface statistics.
    """

    text: TextBytes
    surface: NDArray[np.float32]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Reading:
        """Read texts."""
        text = encode(texts)
        return cls(text, surface(text).astype(np.float32))

    @cached_property
    def bags(self) -> dict[str, Bags]:
        """The bags of the texts, by the name of the view."""
        return {name: view(self.text) for name, view in VIEWS.items()}

    @cached_property
    def counted(self) -> Counted:
        """The bags of a single text as one."""
        return Counted.of(self.text)


class Texts(tuple[str, ...]):
    """Texts that several featurizers transform: a few are read once for all of them.

    Many are read anew by each, chunk by chunk, so that memory stays bounded.

    Examples:
        >>> from optllm_router.features import TextFeaturizer
        >>> asked = Texts(["Who was Plato?", "Who was Kant?"])
        >>> first, second = (TextFeaturizer(seed).fit(asked) for seed in (0, 1))
        >>> first.transform(asked).shape == second.transform(asked).shape
        True
    """

    def readings(self) -> Iterator[Reading]:
        """Readings of consecutive texts; of none, where there are none."""
        chunks = list(_chunks(self))
        if len(chunks) == 1:
            yield self._reading
        else:
            for chunk in chunks:
                yield Reading.of(chunk)

    @cached_property
    def _reading(self) -> Reading:
        return Reading.of(self)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive parts of ``texts``; a single empty one when there are none."""
    start = size = 0
    for i, text in enumerate(texts):
        size += min(len(text), MAX_BYTES)
        if i > start and (size > _CHUNK_BYTES or i - start == _CHUNK_TEXTS):
            yield texts[start:i]
            start, size = i, min(len(text), MAX_BYTES)
    yield texts[start:]
