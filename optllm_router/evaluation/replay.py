"""Recorded prompts and answers through the real client, litellm, HTTP and the ledger.

The router learns from a labelled share, plans the rest jointly under a cap, and sends it. Each
model is a local server that repeats what the real one answered, with the recorded tokens at
prices that reproduce the recorded costs.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidDataError,
    OptLLMError,
)
from optllm_router._money import Budget
from optllm_router._types import Candidate, Price, Usage
from optllm_router.client import AsyncOptLLM
from optllm_router.evaluation.costs import fitted_price
from optllm_router.evaluation.dataset import RecordedOutcomes
from optllm_router.evaluation.split import split_recorded
from optllm_router.simulation import Reply, SimulationServer

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.router import Quote

_CONCURRENCY = 16

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Offline:
    """The plan, carried out on paper.

    Attributes:
        promised: predicted success rate of the allocation, 0..1.
        accuracy: recorded success rate of the same allocation.
        expected_usd: forecast cost.
        high_usd: a cost exceeded with a probability of about 2.5 %.
        cost_usd: recorded cost.
    """

    promised: float
    accuracy: float
    expected_usd: float
    high_usd: float
    cost_usd: float


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        dataset: name of the folder.
        labels: share of the queries that were labelled.
        seed: of the split.
        n_train: labelled queries.
        n_queries: queries sent.
        repeated: queries whose text another one had, too: they get the same recorded answers.
        graded_by: ``exact match`` with the reference, or the ``recorded score``.
        cap_nano: the budget.
        spent_nano: what was spent; never over the cap.
        accuracy: success rate of the answers, a refused or failed query counting 0.
        offline: what the plan promised.
        shares: fraction of the queries that each model answered.
        diverted: queries that another model answered than planned.
        refused: queries for which there was no money left.
        failed: queries that failed otherwise.
        best_single: the model with the highest recorded accuracy on these queries, its accuracy
            and its cost.
        books: differences found in the ledger; empty when the books are right.
        seconds: of the plan and of the sending.
    """

    dataset: str
    labels: float
    seed: int
    n_train: int
    n_queries: int
    repeated: int
    graded_by: str
    cap_nano: int
    spent_nano: int
    accuracy: float
    offline: Offline
    shares: dict[str, float]
    diverted: int
    refused: int
    failed: int
    best_single: dict[str, Any]
    books: list[str]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; with the amounts in USD as well."""
        usd = {"cap_usd": self.cap_nano / 1e9, "spent_usd": self.spent_nano / 1e9}
        return {**asdict(self), **usd}


def replay(
    recorded: RecordedOutcomes,
    *,
    labels: float,
    budget_usd: float,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Replay:
    """Replay recorded outcomes.

    Args:
        recorded: the outcomes, with tokens and costs.
        labels: share of the queries to learn from, 0 <= labels < 1.
        budget_usd: the hard cap on the others.
        limit: send at most so many of them; ``None`` for all.
        seed: of the split.
        progress: called with what is being done, how many queries are done, and of how many.

    Raises:
        ConfigurationError: an argument is out of range.
        InvalidDataError: the folder lacks tokens or costs.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}; send 1 query or more")
    budget = Budget(budget_usd)
    split = split_recorded(recorded, labels=labels, seed=seed)
    test = (
        split.test if limit is None else split.test.select(np.arange(min(limit, len(split.test))))
    )
    test, repeated = _as_first_recorded(test)
    with (
        tempfile.TemporaryDirectory(prefix="optllm-replay-") as folder,
        SimulationServer(replies=_replies(test)) as server,
    ):
        client = AsyncOptLLM(
            _candidates(recorded, server.base_url),
            budget=budget,
            store=f"sqlite:///{folder}/replay.db",
            seed=seed,
        )
        _learn(client, split.train)
        run = _Run(client, test, progress or _silent)
        return asyncio.run(run.report(split.train, labels, seed, repeated))


class _Run:
    """One plan and its sending."""

    def __init__(self, client: AsyncOptLLM, test: RecordedOutcomes, progress: Progress) -> None:
        self._client = client
        self._test = test
        self._progress = progress

    async def report(
        self, train: RecordedOutcomes, labels: float, seed: int, repeated: int
    ) -> Replay:
        start = time.perf_counter()
        async with self._client as client:
            self._progress("learn", 0, len(self._test))
            await asyncio.to_thread(client.wait_for_refit)
            self._progress("plan", 0, len(self._test))
            plan = await client.plan(self._test.queries)
            planned_at = time.perf_counter()
            results = await plan.apply(concurrency=_CONCURRENCY, on_result=self._count())
            sent_at = time.perf_counter()
            balance, books = client.balance, client.verify()
        if balance is None:
            raise AssertionError("a replay has a budget")
        column = {name: j for j, name in enumerate(self._test.models)}
        planned = np.array([column[decision.candidate] for decision in plan.decisions])
        answered = [_candidate(result) for result in results]
        refused = sum(isinstance(result, BudgetExceededError) for result in results)
        errors = sum(isinstance(result, OptLLMError) for result in results)
        n = len(results)
        return Replay(
            dataset=self._test.name,
            labels=labels,
            seed=seed,
            n_train=len(train),
            n_queries=n,
            repeated=repeated,
            graded_by="exact match" if _has_answers(self._test) else "recorded score",
            cap_nano=balance.limit_nano,
            spent_nano=balance.spent_nano,
            accuracy=float(np.mean([self._grade(i, result) for i, result in enumerate(results)])),
            offline=_offline(self._test, planned, plan.quote),
            shares={name: c / n for name, c in Counter(filter(None, answered)).most_common()},
            diverted=sum(
                name not in (None, decision.candidate)
                for name, decision in zip(answered, plan.decisions, strict=True)
            ),
            refused=refused,
            failed=errors - refused,
            best_single=_best_single(self._test),
            books=books,
            seconds={"learn_and_plan": planned_at - start, "send": sent_at - planned_at},
        )

    def _count(self) -> Callable[[int, ChatCompletion | OptLLMError], None]:
        done = 0

        def count(_position: int, _result: ChatCompletion | OptLLMError) -> None:
            nonlocal done
            done += 1
            self._progress("send", done, len(self._test))

        return count

    def _grade(self, i: int, result: ChatCompletion | OptLLMError) -> float:
        name = _candidate(result)
        if name is None or isinstance(result, OptLLMError):
            return 0.0
        if self._test.references is not None and _has_answers(self._test):
            return float(result.choices[0].message.content == self._test.references[i])
        return float(self._test.score[i, self._test.models.index(name)])


def _candidate(result: ChatCompletion | OptLLMError) -> str | None:
    if isinstance(result, OptLLMError):
        return None
    name: str = result.optllm.candidate  # type: ignore[attr-defined]
    return name


def _has_answers(recorded: RecordedOutcomes) -> bool:
    return recorded.references is not None and recorded.answers is not None


def _as_first_recorded(test: RecordedOutcomes) -> tuple[RecordedOutcomes, int]:
    """The server knows a prompt by its text: every repetition gets the first one's outcomes."""
    first: dict[str, int] = {}
    rows = np.array([first.setdefault(text, i) for i, text in enumerate(test.queries)])
    return test.select(rows), len(test) - len(first)


def _replies(test: RecordedOutcomes) -> Mapping[str, Mapping[str, Reply]]:
    prompt, completion = _tokens(test)
    return {
        text: {
            model: Reply(
                text=test.answers[i].get(model, "") if test.answers is not None else "",
                prompt_tokens=int(prompt[i, j]),
                # An answer without a count would pass for one that was not counted.
                completion_tokens=max(1, int(completion[i, j])),
            )
            for j, model in enumerate(test.models)
        }
        for i, text in enumerate(test.queries)
    }


def _tokens(recorded: RecordedOutcomes) -> tuple[FloatArray, FloatArray]:
    """Prompt and completion tokens; where completions were not billed they count 0."""
    if np.isnan(recorded.prompt_tokens).any():
        raise InvalidDataError(
            f"{recorded.name}: some outcomes have no prompt_tokens; a replay bills real tokens, "
            "so outcomes.csv needs that column"
        )
    return recorded.prompt_tokens, np.nan_to_num(recorded.completion_tokens, nan=0.0)


def _candidates(recorded: RecordedOutcomes, base_url: str) -> list[Candidate]:
    known = recorded.select(np.flatnonzero(recorded.complete))
    prompt, completion = _tokens(known)
    sizes = np.array([len(text.encode()) for text in known.queries])
    hidden = np.maximum(prompt - sizes[:, None], 0).max(axis=0)
    return [
        Candidate(
            name=name,
            model=f"openai/{name}",
            price=_price(recorded.name, name, prompt[:, j], completion[:, j], known.cost[:, j]),
            max_output_tokens=max(1, int(completion[:, j].max())),
            hidden_prompt_tokens=int(hidden[j]),
            parameters={"api_base": base_url},
            api_key="unused",
        )
        for j, name in enumerate(recorded.models)
    ]


def _price(
    dataset: str, model: str, prompt: FloatArray, completion: FloatArray, cost: FloatArray
) -> Price:
    price = fitted_price(prompt, completion, cost, source=f"{dataset}: recorded cost by token")
    if price is None:
        raise InvalidDataError(
            f"{dataset}: the recorded cost_usd of {model!r} is not a price per token; a replay "
            "needs costs that follow from prompt_tokens and completion_tokens"
        )
    return price


def _learn(client: AsyncOptLLM, train: RecordedOutcomes) -> None:
    client.learn(
        (train.queries[i], train.models[j], float(train.score[i, j]))
        for i, j in np.argwhere(~np.isnan(train.score)).tolist()
    )
    prompt, completion = train.prompt_tokens, np.nan_to_num(train.completion_tokens, nan=0.0)
    client.observe(
        (train.queries[i], train.models[j], _usage(prompt[i, j], completion[i, j]))
        for i, j in np.argwhere(~np.isnan(prompt)).tolist()
    )


def _usage(prompt: float, completion: float) -> Usage:
    return Usage(int(prompt), int(completion))


def _offline(test: RecordedOutcomes, planned: IntArray, quote: Quote) -> Offline:
    rows = np.arange(len(test))
    return Offline(
        promised=quote.expected_success,
        accuracy=float(test.score[rows, planned].mean()),
        expected_usd=quote.expected_usd,
        high_usd=quote.high_usd,
        cost_usd=float(test.cost[rows, planned].sum()),
    )


def _best_single(test: RecordedOutcomes) -> dict[str, Any]:
    j = int(np.argmax(test.score.mean(axis=0)))
    accuracy, cost = float(test.score[:, j].mean()), float(test.cost[:, j].sum())
    return {"model": test.models[j], "accuracy": accuracy, "cost_usd": cost}


def _silent(_doing: str, _done: int, _of: int) -> None:
    """Report to nobody."""
