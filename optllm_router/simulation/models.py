"""Simulated models: invented names, prices and skills; no language model is behind them.

A simulated model finds the task in the prompt, and is then really right or really wrong: it
states the true answer, or a plausible wrong one. Which of the two follows from the model's name
and the prompt alone, so what any model would have said to any prompt can be recomputed offline
with :meth:`SimulatedModel.reply`, without a server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optllm_router._errors import ConfigurationError
from optllm_router.simulation.replies import Reply, count_tokens
from optllm_router.simulation.stable_hash import stable_fraction, stable_integer
from optllm_router.simulation.tasks import Task, mistakes, recognise

# How sharply success falls around the difficulty that equals a model's skill: at 12, a task 0.2
# easier than the skill succeeds 92 % of the time, one 0.2 harder 8 %.
_DISCRIMINATION = 12.0

_WORKING = (
    "Let me take this one step at a time.",
    "First I restate what is given and what is wanted.",
    "Then I go through the parts in the order in which they come.",
    "I keep the intermediate result in mind before moving on.",
    "Nothing in the wording suggests a special case here.",
    "Checking this against a rough estimate, it looks plausible.",
    "I also considered the other reading, which seems less natural.",
    "Going over it once more leads to the same conclusion.",
)
_LOST = "I am a simulated model and only know the synthetic tasks of optllm_router.simulation."


@dataclass(frozen=True)
class SimulatedModel:
    """A made-up model with a price, a temper and known strengths.

    Attributes:
        name: what it is asked for by; plainly invented, lest it be taken for a measurement.
        price_prompt_usd_per_mtok: USD per million prompt tokens, >= 0.
        price_completion_usd_per_mtok: USD per million completion tokens, >= 0.
        skill: for each kind of task, the difficulty at which it is right half of the time.
            0.5 masters the easy half, 1.3 fails hardly ever, below 0 succeeds hardly ever;
            a kind that is missing is never answered rightly.
        verbosity: completion tokens of an average answer; below 8 it gives the bare value.
        latency_seconds: time from the request to the first byte of the answer, >= 0.
    """

    name: str
    price_prompt_usd_per_mtok: float
    price_completion_usd_per_mtok: float
    skill: Mapping[str, float]
    verbosity: float
    latency_seconds: float = 0.0

    def success_probability(self, task: Task) -> float:
        """Return the chance, 0..1, of a right answer to tasks of this kind and difficulty.

        The two-parameter logistic model of item response theory (Birnbaum 1968), with one
        discrimination for all.
        """
        if task.kind not in self.skill:
            return 0.0
        return 1 / (1 + math.exp(_DISCRIMINATION * (task.difficulty - self.skill[task.kind])))

    def reply(self, prompt: str, context: str = "") -> Reply:
        """Answer a prompt; the same prompt always gets the same text.

        Args:
            prompt: the last user turn.
            context: the other messages; they count as prompt tokens and change nothing else.
        """
        task = recognise(prompt)
        text = _LOST if task is None else self._answer(task)
        return Reply(text, count_tokens(context) + count_tokens(prompt), count_tokens(text))

    def _answer(self, task: Task) -> str:
        value = task.answer
        if stable_fraction("right", self.name, task.prompt) >= self.success_probability(task):
            slips = mistakes(task)
            value = slips[stable_integer("slip", self.name, task.prompt) % len(slips)]
        # Harder tasks make it think longer, and no two answers are of the same length.
        chance = stable_fraction("length", self.name, task.prompt)
        length = self.verbosity * (0.5 + 0.5 * task.difficulty + 0.5 * chance)
        return _worded(value, length)


def _worded(value: str, tokens: float) -> str:
    if tokens < 8:
        return value
    conclusion = f"Answer: {value}"
    left = tokens - count_tokens(conclusion)
    working: list[str] = []
    while left > 0:
        sentence = _WORKING[len(working) % len(_WORKING)]
        working.append(sentence)
        left -= count_tokens(sentence)
    return "\n".join([*filter(None, [" ".join(working)]), conclusion])


class SimulatedResponder:
    """Simulated models behind one endpoint.

    Args:
        models: who can be asked; names must differ.
    """

    takes_orders = True

    def __init__(self, models: Sequence[SimulatedModel]) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            raise ConfigurationError(
                f"simulated models need different names, not {[model.name for model in models]}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in the order given."""
        return tuple(self._models)

    def reply(self, model: str, prompt: str, context: str) -> Reply | None:
        """Let the model answer; simulated models have an answer to everything."""
        return self._models[model].reply(prompt, context)


def _skills(
    arithmetic: float, dates: float, units: float, records: float, strings: float, logic: float
) -> dict[str, float]:
    return {
        "arithmetic": arithmetic,
        "dates": dates,
        "units": units,
        "records": records,
        "strings": strings,
        "logic": logic,
    }


# Skills:                                 arithm. dates units records strings logic
SIMULATED_MODELS: tuple[SimulatedModel, ...] = (
    SimulatedModel("sim-frontier", 10.0, 30.0, _skills(1.40, 1.30, 1.40, 1.25, 1.20, 1.40), 60),
    SimulatedModel("sim-reasoner", 1.50, 6.00, _skills(1.10, 1.20, 0.90, 0.60, 0.65, 1.30), 120),
    SimulatedModel("sim-editor", 0.60, 1.80, _skills(0.35, 0.30, 0.30, 1.35, 1.30, 0.40), 12),
    SimulatedModel("sim-counter", 0.50, 1.50, _skills(1.25, 0.85, 1.30, 0.40, 0.30, 0.25), 16),
    SimulatedModel("sim-small", 0.25, 0.75, _skills(0.50, 0.45, 0.55, 0.70, 0.55, 0.50), 30),
    SimulatedModel("sim-tiny", 0.10, 0.30, _skills(0.25, 0.15, 0.25, 0.45, 0.30, 0.20), 20),
)
"""Six invented models: one dear and good at everything, one slow thinker, two cheap specialists
(texts and records; numbers), and two that are fine with easy tasks. The dearest costs 100 times
the cheapest per token."""

EMBEDDING_MODEL = "sim-embedding"
"""Embeds texts as bags of hashed words, beside the models that chat, on every server."""
