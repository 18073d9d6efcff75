"""Conversions between units; harder with odd factors and more digits."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from optllm_router.simulation.kinds.arithmetic import same_number
from optllm_router.simulation.kinds.kind import Blanks, Kind, between, scaled

if TYPE_CHECKING:
    import numpy as np

_EASY = {
    ("kilometres", "metres"): Decimal(1000),
    ("metres", "centimetres"): Decimal(100),
    ("kilograms", "grams"): Decimal(1000),
    ("litres", "millilitres"): Decimal(1000),
    ("hours", "minutes"): Decimal(60),
    ("weeks", "days"): Decimal(7),
}
_HARD = {
    ("miles", "kilometres"): Decimal("1.609344"),
    ("nautical miles", "kilometres"): Decimal("1.852"),
    ("pounds", "kilograms"): Decimal("0.45359237"),
    ("ounces", "grams"): Decimal("28.349523125"),
    ("feet", "metres"): Decimal("0.3048"),
    ("inches", "centimetres"): Decimal("2.54"),
    ("US gallons", "litres"): Decimal("3.785411784"),
    ("acres", "square metres"): Decimal("4046.8564224"),
}
_FACTORS = _EASY | _HARD
# An odd factor weighs as much as this many digits.
_ODD_FACTOR = 3


def _draw(difficulty: float, rng: np.random.Generator) -> dict[str, str]:
    weight = between(1, 6 + _ODD_FACTOR, difficulty)
    odd = weight > 6 or (weight > _ODD_FACTOR and rng.random() < 0.5)
    digits = weight - _ODD_FACTOR * odd
    pairs = list(_HARD if odd else _EASY)
    source, target = pairs[rng.integers(len(pairs))]
    value = str(rng.integers(max(2, 10 ** (digits - 1)), 10**digits))
    if digits > 2 and rng.random() < 0.5:
        value = f"{value[:-2]}.{value[-2:]}"
    return {"value": value, "source": source, "target": target}


def _factor(blanks: Blanks) -> Decimal:
    return _FACTORS[blanks["source"], blanks["target"]]


def _rounded(value: Decimal) -> str:
    return str(value.quantize(Decimal("0.01"), ROUND_HALF_UP))


def _solve(blanks: Blanks) -> str:
    return _rounded(Decimal(blanks["value"]) * _factor(blanks))


def _difficulty(blanks: Blanks) -> float:
    odd = (blanks["source"], blanks["target"]) in _HARD
    digits = len(blanks["value"].replace(".", ""))
    return scaled(digits + _ODD_FACTOR * odd, 1, 6 + _ODD_FACTOR)


def _mistakes(blanks: Blanks, right: str) -> Sequence[str]:
    value, factor = Decimal(blanks["value"]), _factor(blanks)
    careless = round(factor, 1)
    slips = (value / factor, value * careless, value * factor * 10, value * factor + 1)
    return [_rounded(slip) for slip in slips]


UNITS = Kind(
    name="units",
    templates=(
        "Convert {value} {source} to {target}, rounded to two decimals.",
        "How many {target} are {value} {source}? Two decimals are enough.",
        "The label says {value} {source} but our form wants {target}. Two decimals, please.",
        "I need {value} {source} expressed in {target} (two decimals).",
        "What is {value} {source} in {target}? Round to two decimals.",
        "Supplier quoted {value} {source}; please restate in {target}, two decimals.",
    ),
    patterns={
        "value": r"(?<![\d.])\d+(?:\.\d+)?",
        "source": "|".join({source: None for source, _ in _FACTORS}),
        "target": "|".join({target: None for _, target in _FACTORS}),
    },
    draw=_draw,
    solve=_solve,
    difficulty=_difficulty,
    mistakes=_mistakes,
    same=same_number,
)
