"""Days and weeks added to and taken from a date; harder with more and longer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

from optllm_router.simulation.kinds.kind import Blanks, Kind, between, scaled

if TYPE_CHECKING:
    import numpy as np

# Spelled out here because the names that the standard library gives depend on the locale.
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_STEP = r"(?:add|subtract) \d{1,3} (?:day|week)s?"
_THEN = ", then "
_MOST_STEPS, _MOST_DIGITS = 4, 3
_FIRST_DAY = date(2015, 1, 1).toordinal()
_LAST_DAY = date(2034, 12, 31).toordinal()


def _draw(difficulty: float, rng: np.random.Generator) -> dict[str, str]:
    day = date.fromordinal(int(rng.integers(_FIRST_DAY, _LAST_DAY)))
    weight = between(1 + 1, _MOST_STEPS + _MOST_DIGITS, difficulty)
    digits = int(rng.integers(max(1, weight - _MOST_STEPS), min(_MOST_DIGITS, weight - 1) + 1))
    steps = [_draw_step(digits, rng) for _ in range(weight - digits)]
    return {"date": _written(day, int(rng.integers(3))), "steps": _THEN.join(steps)}


def _draw_step(digits: int, rng: np.random.Generator) -> str:
    amount = int(rng.integers(max(2, 10 ** (digits - 1)), 10**digits))
    verb = "add" if rng.random() < 0.6 else "subtract"
    unit = "weeks" if rng.random() < 0.3 else "days"
    return f"{verb} {amount} {unit}"


def _written(day: date, style: int) -> str:
    month = _MONTHS[day.month - 1]
    return (day.isoformat(), f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}")[
        style
    ]


def _read(text: str) -> date:
    if "-" in text:
        return date.fromisoformat(text)
    first, second, year = text.replace(",", "").split()
    day, month = (second, first) if first.isalpha() else (first, second)
    return date(int(year), _MONTHS.index(month) + 1, int(day))


def _solve(blanks: Blanks) -> str:
    day = _read(blanks["date"])
    for step in blanks["steps"].split(_THEN):
        verb, amount, unit = step.split()
        days = int(amount) * (7 if unit.startswith("week") else 1)
        day += timedelta(days=days if verb == "add" else -days)
    return day.isoformat()


def _difficulty(blanks: Blanks) -> float:
    amounts = [step.split()[1] for step in blanks["steps"].split(_THEN)]
    return scaled(
        len(amounts) + math.fsum(map(len, amounts)) / len(amounts), 2, _MOST_STEPS + _MOST_DIGITS
    )


def _mistakes(blanks: Blanks, right: str) -> Sequence[str]:
    day = date.fromisoformat(right)
    return [(day + timedelta(days=slip)).isoformat() for slip in (-1, 1, -2, 2, 7, -7, 30, -31)]


def _same(said: str, right: str) -> bool:
    try:
        return _read(said).isoformat() == right
    except (ValueError, IndexError):
        return False


DATES = Kind(
    name="dates",
    templates=(
        "Starting from {date}, {steps}. Which date do you land on? Use YYYY-MM-DD.",
        "The contract was signed on {date}. For the deadline, {steps}. When is it (YYYY-MM-DD)?",
        "Take {date}, {steps}, and tell me the resulting date in ISO format.",
        "What date do I get when I begin at {date} and {steps}? ISO format please.",
        "Date math for the release plan: from {date} {steps}. Give the day as YYYY-MM-DD.",
        "Our lease began {date}. The lawyer said: {steps}. What day is that, as YYYY-MM-DD?",
    ),
    patterns={
        "date": r"\d{4}-\d\d-\d\d|\d{1,2} [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2}, \d{4}",
        "steps": f"{_STEP}(?:{_THEN}{_STEP})*",
    },
    draw=_draw,
    solve=_solve,
    difficulty=_difficulty,
    mistakes=_mistakes,
    same=_same,
)
