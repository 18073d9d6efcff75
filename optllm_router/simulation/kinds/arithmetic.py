"""Sums, differences and products of whole numbers; harder with more and longer terms."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from optllm_router.simulation.kinds.kind import Blanks, Kind, between, scaled

if TYPE_CHECKING:
    import numpy as np

_SPOKEN = {"+": "plus", "-": "minus", "*": "times"}
_WRITTEN = {spoken: symbol for symbol, spoken in _SPOKEN.items()}
_OPERATOR = r"(?:[-+*]|plus|minus|times)"
_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


def _draw(difficulty: float, rng: np.random.Generator) -> dict[str, str]:
    digits = between(1, 4, difficulty)
    terms = [
        str(rng.integers(10 ** (digits - 1), 10**digits)) for _ in range(between(2, 6, difficulty))
    ]
    symbols = rng.choice(["+", "-", "*"], size=len(terms) - 1, p=[0.45, 0.35, 0.2])
    spoken = rng.random() < 0.3
    operators = [_SPOKEN[symbol] if spoken else symbol for symbol in symbols.tolist()]
    rest = (f" {operator} {term}" for operator, term in zip(operators, terms[1:], strict=True))
    return {"expression": terms[0] + "".join(rest)}


def _tokens(blanks: Blanks) -> list[str]:
    return [_WRITTEN.get(word, word) for word in blanks["expression"].split()]


def _solve(blanks: Blanks) -> str:
    total, product, sign = 0, 1, 1
    for token in _tokens(blanks):
        if token in "+-":
            total, product, sign = total + sign * product, 1, 1 if token == "+" else -1
        elif token != "*":
            product *= int(token)
    return str(total + sign * product)


def _difficulty(blanks: Blanks) -> float:
    terms = _tokens(blanks)[::2]
    return scaled(len(terms) + math.fsum(map(len, terms)) / len(terms), 3, 10)


def _mistakes(blanks: Blanks, right: str) -> Sequence[str]:
    value = int(right)
    slips = [value + 1, value - 1, value + 10, value - 10, value + 100, -value]
    return [str(_left_to_right(_tokens(blanks))), *map(str, slips)]


def _left_to_right(tokens: Sequence[str]) -> int:
    """Forget that products come before sums, as pupils do."""
    value = int(tokens[0])
    for operator, term in zip(tokens[1::2], tokens[2::2], strict=True):
        number = int(term)
        value = {"+": value + number, "-": value - number, "*": value * number}[operator]
    return value


def same_number(said: str, right: str) -> bool:
    """Compare as decimal numbers; a unit after the number and thousands commas do not matter."""
    found = _NUMBER.match(said)
    if found is None or any(character.isdigit() for character in said[found.end() :]):
        return False
    try:
        return Decimal(found[0].replace(",", "")) == Decimal(right)
    except InvalidOperation:
        return False


ARITHMETIC = Kind(
    name="arithmetic",
    templates=(
        "What is {expression}?",
        "Compute {expression} and give me just the number.",
        "Can you work out {expression} for me?",
        "My spreadsheet says {expression}. What should the cell show?",
        "Evaluate this, usual precedence: {expression}",
        "How much is {expression}?",
        "I keep getting a different total every time. {expression} makes what?",
    ),
    patterns={"expression": rf"\d+(?: {_OPERATOR} \d+)+"},
    draw=_draw,
    solve=_solve,
    difficulty=_difficulty,
    mistakes=_mistakes,
    same=same_number,
)
