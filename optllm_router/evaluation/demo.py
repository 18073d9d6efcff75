"""The whole loop on simulated models: nothing but this machine, no key, no network.

The client starts without a single label, sends every prompt over real HTTP through litellm,
lets a grader score each answer, and learns from it under a hard cap.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optllm_router._errors import BudgetExceededError
from optllm_router._money import Budget, usd_from_nano
from optllm_router._types import Candidate, Usage
from optllm_router.client import AsyncOptLLM
from optllm_router.evaluation.figures import Point, Series, draw_front
from optllm_router.pricing import charge_nano, price_per_token
from optllm_router.simulation import (
    SIMULATED_MODELS,
    SimulatedModel,
    SimulationServer,
    Task,
    grade,
    make_tasks,
)

DEFAULT_PROMPTS = 900
DEFAULT_BUDGET_USD = 0.50
_CONCURRENCY = 8
_OUTPUT_TOKENS = 300
_PARTS = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DemoRow:
    """What one way to answer all prompts came to.

    Attributes:
        name: of the way.
        success: share of right answers, 0..1.
        cost_usd: what it cost.
        shares: fraction of the prompts that each model answered.
    """

    name: str
    success: float
    cost_usd: float
    shares: dict[str, float]


@dataclass(frozen=True)
class Demo:
    """What the demo did.

    Attributes:
        prompts: how many there were.
        refused: prompts for which there was no money left; they count as not answered rightly.
        cap_nano: the budget, in nano-dollars.
        spent_nano: what the ledger says was spent.
        billed_nano: what the simulated providers say they served, at their prices.
        success_by_part: success of the router in each quarter of the prompts, in order.
        rows: the router first, then the ways it is compared with.
        books: differences found in the ledger; empty when the books are right.
        seconds: from the first prompt to the last score.
    """

    prompts: int
    refused: int
    cap_nano: int
    spent_nano: int
    billed_nano: int
    success_by_part: list[float]
    rows: list[DemoRow]
    books: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def run_demo(
    *,
    prompts: int = DEFAULT_PROMPTS,
    budget_usd: float = DEFAULT_BUDGET_USD,
    seed: int = 0,
    figure: Path | None = None,
    progress: Progress | None = None,
) -> Demo:
    """Run the demo.

    Args:
        prompts: how many to answer, 1 or more.
        budget_usd: the hard cap.
        seed: of the tasks and of the router's choices.
        figure: where to draw cost against success, ``.svg`` or ``.png``.
        progress: called with how many prompts are done, and of how many.
    """
    tasks = make_tasks(prompts, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory(prefix="optllm-demo-") as folder, SimulationServer() as server:
        loop = _Loop(tasks, server, Budget(budget_usd), f"sqlite:///{folder}/demo.db", seed)
        demo = asyncio.run(loop.run(progress))
    if figure is not None:
        _draw(figure, tasks, demo)
    return demo


def simulated_candidates(base_url: str) -> list[Candidate]:
    """The simulated models as candidates behind ``base_url``."""
    return [
        Candidate(
            name=model.name,
            model=f"openai/{model.name}",
            price=_price(model),
            max_output_tokens=_OUTPUT_TOKENS,
            parameters={"api_base": base_url},
            api_key="unused",
        )
        for model in SIMULATED_MODELS
    ]


class _Loop:
    """One run of the demo against a running server."""

    def __init__(
        self, tasks: Sequence[Task], server: SimulationServer, budget: Budget, store: str, seed: int
    ) -> None:
        self._tasks = tasks
        self._server = server
        self._budget = budget
        self._client = AsyncOptLLM(
            simulated_candidates(server.base_url),
            budget=budget,
            store=store,
            expected_queries=len(tasks),
            seed=seed,
        )
        self._scores: list[float] = [0.0] * len(tasks)
        self._answered_by: Counter[str] = Counter()

    async def run(self, progress: Progress | None) -> Demo:
        start = time.perf_counter()
        waiting = iter(range(len(self._tasks)))
        done = 0

        async def work() -> None:
            nonlocal done
            for position in waiting:
                await self._answer(position)
                done += 1
                if progress is not None:
                    progress(done, len(self._tasks))

        async with self._client:
            await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))
            seconds = time.perf_counter() - start
            balance, books = self._client.balance, self._client.verify()
        if balance is None:
            raise AssertionError("the demo has a budget")
        return Demo(
            prompts=len(self._tasks),
            refused=len(self._tasks) - sum(self._answered_by.values()),
            cap_nano=self._budget.limit_nano,
            spent_nano=balance.spent_nano,
            billed_nano=_billed(self._server),
            success_by_part=[float(np.mean(part)) for part in np.array_split(self._scores, _PARTS)],
            rows=[self._row(balance.spent_nano), *_baselines(self._tasks)],
            books=books,
            seconds=seconds,
        )

    async def _answer(self, position: int) -> None:
        task = self._tasks[position]
        try:
            answer = await self._client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": task.prompt}]
            )
        except BudgetExceededError:
            return
        score = grade(task, answer.choices[0].message.content or "")
        await self._client.feedback.create(answer.id, score=score)
        self._scores[position] = score
        self._answered_by[answer.optllm.candidate] += 1  # type: ignore[attr-defined]

    def _row(self, spent_nano: int) -> DemoRow:
        n = len(self._tasks)
        return DemoRow(
            name="OptLLM, learning as it goes",
            success=float(np.mean(self._scores)),
            cost_usd=usd_from_nano(spent_nano),
            shares={name: count / n for name, count in self._answered_by.most_common()},
        )


def _price(model: SimulatedModel) -> Any:
    return price_per_token(
        f"{model.price_prompt_usd_per_mtok}e-6",
        f"{model.price_completion_usd_per_mtok}e-6",
        "simulation",
    )


def _billed(server: SimulationServer) -> int:
    prices = {model.name: _price(model) for model in SIMULATED_MODELS}
    return sum(
        charge_nano(prices[name], usage)
        for name, served in server.served.items()
        for usage in served
    )


def _single(model: SimulatedModel, tasks: Sequence[Task]) -> tuple[float, float]:
    """Success and USD of one model on all tasks: its replies can be recomputed offline."""
    replies = [model.reply(task.prompt) for task in tasks]
    success = np.mean([grade(t, r.text) for t, r in zip(tasks, replies, strict=True)])
    nano = sum(
        charge_nano(_price(model), Usage(r.prompt_tokens, r.completion_tokens)) for r in replies
    )
    return float(success), usd_from_nano(nano)


def _baselines(tasks: Sequence[Task]) -> list[DemoRow]:
    singles = {model.name: _single(model, tasks) for model in SIMULATED_MODELS}
    best = max(singles, key=lambda name: singles[name][0])
    cheapest = min(singles, key=lambda name: singles[name][1])
    return [
        DemoRow(title, *singles[name], shares={name: 1.0})
        for title, name in (("always the best model", best), ("always the cheapest", cheapest))
    ]


def _draw(path: Path, tasks: Sequence[Task], demo: Demo) -> None:

    prices = [_price(model) for model in SIMULATED_MODELS]
    score = np.zeros((len(tasks), len(SIMULATED_MODELS)))
    cost = np.zeros_like(score)
    chance = np.zeros_like(score)
    for i, task in enumerate(tasks):
        for j, model in enumerate(SIMULATED_MODELS):
            reply = model.reply(task.prompt)
            usage = Usage(reply.prompt_tokens, reply.completion_tokens)
            score[i, j] = grade(task, reply.text)
            cost[i, j] = usd_from_nano(charge_nano(prices[j], usage))
            chance[i, j] = model.success_probability(task)
    blind = np.broadcast_to(score.mean(axis=0), score.shape)
    series = [
        _series("best possible without luck", chance, score, cost, reference=True),
        _series("blind mixture of the models", blind, score, cost),
    ]
    points = [Point("OptLLM", demo.rows[0].cost_usd, demo.rows[0].success, marked=True)]
    points += [
        Point(model.name, float(cost[:, j].sum()), float(score[:, j].mean()))
        for j, model in enumerate(SIMULATED_MODELS)
    ]
    draw_front(
        path,
        series,
        points,
        cap_usd=usd_from_nano(demo.cap_nano),
        title=f"{demo.prompts} prompts to simulated models, from no label on",
    )


def _series(label: str, p: Any, score: Any, cost: Any, *, reference: bool = False) -> Series:
    from optllm_router.allocation import exact_front

    front = exact_front(p, cost)
    return Series(label, front.cost, front.along(score) / len(score), reference=reference)
