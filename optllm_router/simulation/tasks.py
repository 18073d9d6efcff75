"""Synthetic tasks with known answers, worded like everyday requests, and their exact grader.

The tasks are made up. They stand in for real traffic where a program must run, or be tested,
without keys, network or labels; they say nothing about how real models perform.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optllm_router.simulation.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np

    from optllm_router.simulation.kinds import Kind

_OPENERS = (
    *("",) * 6,
    "Hi! ",
    "Quick one: ",
    "Hello, hope you can help. ",
    "Hey, ",
    "Sorry to bother you again. ",
    "Morning! Need this before my call. ",
)
_CLOSERS = (
    *("",) * 6,
    " Thanks!",
    " No explanation needed.",
    " Please double check it.",
    " It is for a report, so it has to be exact.",
    "\n\nThank you in advance.",
)
# What stands around a value in prose or Markdown and is not part of it.
_WRAPPING = " \t`*\"'.!"
_MARKERS = (
    re.compile(r".*\banswer\b\W*?(?:is\b:?|:)", re.IGNORECASE),
    re.compile(r".*(?:\bis\b:?|=) "),
)


@dataclass(frozen=True)
class Task:
    """A prompt whose right answer is known.

    Attributes:
        prompt: what is asked, as a user would type it.
        answer: the right answer, bare.
        kind: arithmetic, dates, units, records, strings or logic.
        difficulty: 0 (anybody can do it) to 1 (hard).
    """

    prompt: str
    answer: str
    kind: str
    difficulty: float


def make_tasks(n: int, rng: np.random.Generator) -> list[Task]:
    """Draw ``n`` tasks with different prompts, kinds and difficulties spread evenly.

    The same generator state gives the same tasks.
    """
    kinds = list(KINDS.values())
    tasks: dict[str, Task] = {}
    while len(tasks) < n:
        task = _draw(kinds[rng.integers(len(kinds))], rng)
        tasks.setdefault(task.prompt, task)
    return list(tasks.values())


def recognise(prompt: str) -> Task | None:
    """Find the task that ``prompt`` asks for, or None when it is none of ours.

    >>> recognise("Hi! What is 12 + 30 * 2? Thanks!").answer
    '72'
    """
    for kind in KINDS.values():
        blanks = kind.recognise(prompt)
        if blanks is None:
            continue
        try:
            return Task(prompt, kind.solve(blanks), kind.name, kind.difficulty(blanks))
        except (ValueError, LookupError, ArithmeticError):
            continue  # worded like a task, but without an answer: "31 February", "miles to grams"
    return None


def grade(task: Task, answer_text: str) -> float:
    """Return 1.0 when the answer is right, else 0.0.

    What counts is the value on the last line that is not empty: what follows "Answer:" where
    that is written, and in there what follows the last "is" or "=". Quotes, emphasis and the
    final full stop around it do not matter; numbers and dates are compared as such.

    >>> task = Task("What is 12 + 30?", "42", "arithmetic", 0.1)
    >>> grade(task, "Adding both.\\nAnswer: 42."), grade(task, "42 it may be, or 43")
    (1.0, 0.0)
    """
    same = KINDS[task.kind].same
    stated = [line for line in answer_text.split("\n") if line.strip(_WRAPPING)]
    return float(bool(stated) and same(_value(stated[-1]), task.answer))


def mistakes(task: Task) -> list[str]:
    """Return plausible wrong answers to a task that :func:`recognise` finds; never empty."""
    kind = KINDS[task.kind]
    blanks = kind.recognise(task.prompt)
    if blanks is None:
        raise ValueError(f"not the prompt of a task of kind {task.kind}: {task.prompt!r}")
    return kind.wrong_answers(blanks, task.answer)


def _draw(kind: Kind, rng: np.random.Generator) -> Task:
    blanks = kind.draw(rng.random(), rng)
    opener = _OPENERS[rng.integers(len(_OPENERS))]
    closer = _CLOSERS[rng.integers(len(_CLOSERS))]
    prompt = opener + kind.word(blanks, rng) + closer
    return Task(prompt, kind.solve(blanks), kind.name, kind.difficulty(blanks))


def _value(line: str) -> str:
    for marker in _MARKERS:
        if found := marker.match(line):
            line = line[found.end() :]
    return line.strip(_WRAPPING)
