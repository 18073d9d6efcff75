"""Edits of a short text, one after the other; harder with more edits and more words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from optllm_router.simulation.kinds.kind import Blanks, Kind, between, scaled

if TYPE_CHECKING:
    import numpy as np

_WORDS = (
    "amber", "basket", "candle", "drift", "ember", "falcon", "garden", "harbor", "island",
    "jacket", "kettle", "lantern", "meadow", "nickel", "orchard", "pepper", "quartz", "river",
    "saddle", "timber", "umbrella", "velvet", "willow", "yellow", "zipper",
)  # fmt: skip

_EDITS: dict[str, Callable[[str], str]] = {
    "reverse the order of the words": lambda text: " ".join(reversed(text.split())),
    "sort the words alphabetically": lambda text: " ".join(sorted(text.split())),
    "drop the first word": lambda text: " ".join(text.split()[1:]),
    "drop the last word": lambda text: " ".join(text.split()[:-1]),
    "capitalize every word": lambda text: " ".join(map(str.capitalize, text.split())),
    "write it all in capitals": str.upper,
    "remove every vowel": lambda text: re.sub("[aeiou]", "", text, flags=re.IGNORECASE),
    "spell every word backwards": lambda text: " ".join(word[::-1] for word in text.split()),
    "replace the spaces with hyphens": lambda text: text.replace(" ", "-"),
}
_THEN = ", then "
_ANY_EDIT = "|".join(_EDITS)
_MOST_EDITS = 5
_FEWEST_WORDS, _MOST_WORDS = 3, 11


def _draw(difficulty: float, rng: np.random.Generator) -> dict[str, str]:
    words = rng.choice(_WORDS, size=between(_FEWEST_WORDS, _MOST_WORDS, difficulty), replace=False)
    # In the order of the table: hyphens come last, or the other edits would find a single word.
    chosen = sorted(
        rng.choice(len(_EDITS), size=between(1, _MOST_EDITS, difficulty), replace=False)
    )
    names = list(_EDITS)
    return {"text": " ".join(words.tolist()), "edits": _THEN.join(names[i] for i in chosen)}


def _apply(text: str, edits: Sequence[str]) -> str:
    for edit in edits:
        text = _EDITS[edit](text)
    return text


def _solve(blanks: Blanks) -> str:
    edited = _apply(blanks["text"], blanks["edits"].split(_THEN))
    if not edited:
        raise ValueError("the edits leave nothing of the text")
    return edited


def _difficulty(blanks: Blanks) -> float:
    edits = len(blanks["edits"].split(_THEN))
    words = len(blanks["text"].split())
    return (scaled(edits, 1, _MOST_EDITS) + scaled(words, _FEWEST_WORDS, _MOST_WORDS)) / 2


def _mistakes(blanks: Blanks, right: str) -> Sequence[str]:
    edits = blanks["edits"].split(_THEN)
    forgotten = [_apply(blanks["text"], edits[:i] + edits[i + 1 :]) for i in range(len(edits))]
    return [*filter(None, forgotten), right.swapcase(), right + right[-1]]


STRINGS = Kind(
    name="strings",
    templates=(
        'Take the text "{text}" and {edits}.',
        'Please edit this headline: "{text}". Steps: {edits}. Send back only the result.',
        'For "{text}": {edits}. What do you get?',
        'I have a tag list, "{text}". Can you {edits}?',
        'Text cleanup: {edits}, on "{text}".',
        'Given the phrase "{text}", {edits} and show the outcome.',
    ),
    patterns={"text": r"[^\"]+", "edits": f"(?:{_ANY_EDIT})(?:{_THEN}(?:{_ANY_EDIT}))*"},
    draw=_draw,
    solve=_solve,
    difficulty=_difficulty,
    mistakes=_mistakes,
    same=str.__eq__,
)
