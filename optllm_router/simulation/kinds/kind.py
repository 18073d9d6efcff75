"""What a kind of task is: templates that are written and read back, and functions of the blanks.

A task is found again from its prompt alone: the same templates that word a prompt recognise it.
So a simulated model needs no list of tasks, and a prompt typed by hand is answered too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Blanks: TypeAlias = Mapping[str, str]
"""What fills the blanks of a template: ``{"expression": "12 + 7"}``."""


@dataclass(frozen=True)
class Kind:
    """A family of tasks with known answers.

    Attributes:
        name: what the kind is called.
        templates: wordings with named blanks (``"What is {expression}?"``).
        patterns: a regular expression for each blank.
        draw: blanks of a task whose difficulty is about the one wished for (0..1).
        solve: the right answer; raises ValueError, LookupError or ArithmeticError when the
            blanks make no task ("31 February", "miles to grams").
        difficulty: how hard the task is, 0..1.
        mistakes: plausible wrong answers to the blanks and their right answer; some may
            happen to be right, at least one is not.
        same: whether a given value means the right answer, in this order.
    """

    name: str
    templates: tuple[str, ...]
    patterns: Mapping[str, str]
    draw: Callable[[float, np.random.Generator], dict[str, str]]
    solve: Callable[[Blanks], str]
    difficulty: Callable[[Blanks], float]
    mistakes: Callable[[Blanks, str], Sequence[str]]
    same: Callable[[str, str], bool]

    def word(self, blanks: Blanks, rng: np.random.Generator) -> str:
        """Fill a template chosen at random."""
        return self.templates[rng.integers(len(self.templates))].format_map(blanks)

    def recognise(self, prompt: str) -> Blanks | None:
        """Return the blanks of a task of this kind anywhere in ``prompt``, or None."""
        for pattern in self._compiled:
            if found := pattern.search(prompt):
                return found.groupdict()
        return None

    def wrong_answers(self, blanks: Blanks, right: str) -> list[str]:
        """Return the mistakes that really are wrong; never empty."""
        return [value for value in self.mistakes(blanks, right) if not self.same(value, right)]

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(self._pattern(template) for template in self.templates)

    def _pattern(self, template: str) -> re.Pattern[str]:
        parts = []
        for literal, blank, _, _ in Formatter().parse(template):
            parts.append(re.escape(literal))
            if blank is not None:
                parts.append(f"(?P<{blank}>{self.patterns[blank]})")
        return re.compile("".join(parts), re.DOTALL)


def scaled(value: float, low: float, high: float) -> float:
    """Map ``low .. high`` to ``0 .. 1``, clipping what lies outside.

    >>> scaled(3, 2, 6)
    0.25
    """
    return min(1.0, max(0.0, (value - low) / (high - low)))


def between(low: int, high: int, share: float) -> int:
    """Return the integer at ``share`` (0..1) of the way from ``low`` to ``high``.

    >>> between(2, 6, 0.5)
    4
    """
    return low + round((high - low) * share)
