"""What featurizers see of texts: bags of n-grams and surface statistics, read once for all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optllm_router.features import _ngrams
from optllm_router.features._bytes import MAX_BYTES, encode
from optllm_router.features._surface import surface

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.features._bytes import TextBytes
    from optllm_router.features._ngrams import Bags

VIEWS = {
    "characters": _ngrams.characters,
    "words": _ngrams.words,
    "shapes": _ngrams.shapes,
}
"""How each view of a text makes bags of it."""

STRIDE = 1 + _ngrams.N_BUCKETS
FIRST_PLACES = STRIDE * np.arange(len(VIEWS), dtype=np.int32)
"""See :class:`Counted`."""

_CHUNK_TEXTS = 2_000
_CHUNK_BYTES = 1_000_000
"""Read at once, at most: bounds memory, and keeps intermediate arrays in the caches."""


class Counted(NamedTuple):
    """The bags of a single text, all views as one, so that they are looked up at once.

    Bucket b of the v-th view has place ``v * STRIDE + 1 + b``. Place ``v * STRIDE`` occurs once in
    every text: where a featurizer notes the buckets that it does not know.

    Attributes:
        places: shape (m,), int32, in ascending order.
        counts: shape (m,), how often each one occurs.
        sizes: shape (views,), how many n-grams each view has.
    """

    places: NDArray[np.int32]
    counts: IntArray
    sizes: IntArray

    @classmethod
    def of(cls, bags: Sequence[Bags]) -> Counted:
        """Count what is in the bags of a single text."""
        parts = [bag.buckets + np.int32(v * STRIDE + 1) for v, bag in enumerate(bags)]
        places = np.concatenate([*parts, FIRST_PLACES])
        places.sort()
        new = np.ones(len(places) + 1, dtype=bool)
        np.not_equal(places[1:], places[:-1], out=new[1:-1])
        edges = new.nonzero()[0]
        sizes = np.array([len(part) for part in parts])
        return cls(places.take(edges[:-1]), edges[1:] - edges[:-1], sizes)


@dataclass(frozen=True)
class Reading:
    """What is seen of n texts, whatever was learnt from others.

    Attributes:
        bags: by the name of the view.
        surface: shape (n, m), surface statistics.
    """

    bags: dict[str, Bags]
    surface: NDArray[np.float32]

    @classmethod
    def of(cls, text: TextBytes) -> Reading:
        """Read encoded texts."""
        bags = {name: view(text) for name, view in VIEWS.items()}
        return cls(bags, surface(text).astype(np.float32))

    @cached_property
    def counted(self) -> Counted:
        """The bags of a single text as one."""
        return Counted.of(list(self.bags.values()))


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
                yield Reading.of(encode(chunk))

    @cached_property
    def _reading(self) -> Reading:
        return Reading.of(encode(self))


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive parts of ``texts``; a single empty one when there are none."""
    start = size = 0
    for i, text in enumerate(texts):
        size += min(len(text), MAX_BYTES)
        if i > start and (size > _CHUNK_BYTES or i - start == _CHUNK_TEXTS):
            yield texts[start:i]
            start, size = i, min(len(text), MAX_BYTES)
    yield texts[start:]
