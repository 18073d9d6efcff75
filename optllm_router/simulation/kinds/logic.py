"""Who stands where in an order given by comparisons; harder with more people and inner places."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from optllm_router.simulation.kinds.kind import Blanks, Kind, between, scaled

if TYPE_CHECKING:
    import numpy as np

_PEOPLE = (
    "Ada", "Boris", "Clara", "Dmitri", "Elena", "Felix", "Grace", "Hugo", "Ines", "Jamal",
    "Keiko", "Liam", "Mona", "Nils", "Olga", "Priya",
)  # fmt: skip
# The comparison, and the words for both ends of the order that it makes.
_ENDS = {
    "older": ("oldest", "youngest"),
    "taller": ("tallest", "shortest"),
    "faster": ("fastest", "slowest"),
    "heavier": ("heaviest", "lightest"),
}
_ORDINALS = ("", "second", "third")
_COMPARISON = f"[A-Z][a-z]+ is (?:{'|'.join(_ENDS)}) than [A-Z][a-z]+"
_FEWEST_PEOPLE, _MOST_PEOPLE = 3, 9


def _draw(difficulty: float, rng: np.random.Generator) -> dict[str, str]:
    count = between(_FEWEST_PEOPLE, _MOST_PEOPLE, difficulty)
    order = rng.choice(_PEOPLE, size=count, replace=False).tolist()
    comparison = list(_ENDS)[rng.integers(len(_ENDS))]
    facts = [f"{a} is {comparison} than {b}" for a, b in pairwise(order)]
    rng.shuffle(facts)
    ordinal = _ORDINALS[rng.integers(len(_ORDINALS))]
    place = f"{ordinal} {_ENDS[comparison][rng.integers(2)]}".lstrip()
    return {"facts": ". ".join(facts), "place": place}


def _order(facts: str) -> tuple[str, list[str]]:
    """Return the comparison that is made, and the people from most to least."""
    triples = [(words[0], words[2], words[4]) for words in map(str.split, facts.split(". "))]
    below = {more: less for more, _, less in triples}
    if not len(below) == len(set(below.values())) == len(triples):
        raise ValueError("the comparisons branch or go in circles")
    (top,) = below.keys() - below.values()  # raises ValueError unless one person is on top
    order = [top]
    while order[-1] in below:
        order.append(below[order[-1]])
    if len(order) != len(triples) + 1:
        raise ValueError("the comparisons make no single order")
    return triples[0][1], order


def _solve(blanks: Blanks) -> str:
    comparison, order = _order(blanks["facts"])
    end = blanks["place"].split()[-1]
    if end == _ENDS[comparison][1]:
        order.reverse()
    elif end != _ENDS[comparison][0]:
        raise ValueError(f"who is {end} does not follow from who is {comparison}")
    return order[_rank(blanks)]


def _rank(blanks: Blanks) -> int:
    return _ORDINALS.index(blanks["place"].rpartition(" ")[0])


def _difficulty(blanks: Blanks) -> float:
    people = scaled(blanks["facts"].count(". ") + 2, _FEWEST_PEOPLE, _MOST_PEOPLE)
    return 0.8 * people + 0.2 * scaled(_rank(blanks), 0, len(_ORDINALS) - 1)


def _mistakes(blanks: Blanks, right: str) -> Sequence[str]:
    return _order(blanks["facts"])[1]


def _same(said: str, right: str) -> bool:
    return said.casefold() == right.casefold()


LOGIC = Kind(
    name="logic",
    templates=(
        "{facts}. Who is the {place}?",
        "Riddle from the quiz night: {facts}. Name the {place} one.",
        "We know this much: {facts}. Which of them is the {place}?",
        "{facts}. Given all that, who would be the {place}?",
        "Settle an argument for us. {facts}. Tell me who the {place} is.",
        "For the seating plan: {facts}. I need the name of the {place} person.",
    ),
    patterns={
        "facts": rf"{_COMPARISON}(?:\. {_COMPARISON})*",
        "place": f"(?:second |third )?(?:{'|'.join(chain(*_ENDS.values()))})",
    },
    draw=_draw,
    solve=_solve,
    difficulty=_difficulty,
    mistakes=_mistakes,
    same=_same,
)
