"""A drop-in OpenAI-style client that decides, for every prompt, which LLM should answer it.

A dollar budget then buys the most correct answers, and is never overspent::

    from optllm_router import OptLLM

    with OptLLM(
        models=["openai/gpt-4o", "openai/gpt-4o-mini"],
        budget="5 USD per day",
    ) as client:
        answer = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "What is 2 + 2?"}]
        )
        client.feedback.create(answer.id, score=1.0)

Names are loaded on first use: importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optllm_router._errors import (
        AllCandidatesFailedError,
        BudgetExceededError,
        ConfigurationError,
        InfeasibleError,
        InvalidDataError,
        InvalidRequestError,
        OptLLMError,
        OverloadedError,
        ProviderAuthenticationError,
        ProviderConnectionError,
        ProviderError,
        ProviderRateLimitedError,
        ProviderRejectedError,
        ProviderResponseError,
        ProviderTimeoutError,
        ProviderUnavailableError,
        StoreError,
        UnknownAnswerError,
        UnknownModelError,
        UnpricedModelError,
    )
    from optllm_router._money import Budget
    from optllm_router._query import Query
    from optllm_router._types import (
        Call,
        Candidate,
        Chunk,
        Completion,
        Decision,
        Message,
        Prediction,
        Predictor,
        Price,
        Transport,
        Usage,
    )
    from optllm_router.allocation import ParetoFront, exact_front
    from optllm_router.client import AsyncOptLLM, OptLLM
    from optllm_router.plan import AsyncPlan, Plan
    from optllm_router.policy import MatchBest, MaxSuccess, MinCost, Policy, WillingnessToPay
    from optllm_router.predictor import make_predictor
    from optllm_router.router import Quote, Router

__version__ = "0.1.0"

_ROOMS = {
    "_errors": (
        "AllCandidatesFailedError",
        "BudgetExceededError",
        "ConfigurationError",
        "InfeasibleError",
        "InvalidDataError",
        "InvalidRequestError",
        "OptLLMError",
        "OverloadedError",
        "ProviderAuthenticationError",
        "ProviderConnectionError",
        "ProviderError",
        "ProviderRateLimitedError",
        "ProviderRejectedError",
        "ProviderResponseError",
        "ProviderTimeoutError",
        "ProviderUnavailableError",
        "StoreError",
        "UnknownAnswerError",
        "UnknownModelError",
        "UnpricedModelError",
    ),
    "_money": ("Budget",),
    "_query": ("Query",),
    "_types": (
        "Call",
        "Candidate",
        "Chunk",
        "Completion",
        "Decision",
        "Message",
        "Prediction",
        "Predictor",
        "Price",
        "Transport",
        "Usage",
    ),
    "allocation": ("ParetoFront", "exact_front"),
    "client": ("AsyncOptLLM", "OptLLM"),
    "plan": ("AsyncPlan", "Plan"),
    "policy": ("MatchBest", "MaxSuccess", "MinCost", "Policy", "WillingnessToPay"),
    "predictor": ("make_predictor",),
    "router": ("Quote", "Router"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "AllCandidatesFailedError",
    "AsyncOptLLM",
    "AsyncPlan",
    "Budget",
    "BudgetExceededError",
    "Call",
    "Candidate",
    "Chunk",
    "Completion",
    "ConfigurationError",
    "Decision",
    "InfeasibleError",
    "InvalidDataError",
    "InvalidRequestError",
    "MatchBest",
    "MaxSuccess",
    "Message",
    "MinCost",
    "OptLLM",
    "OptLLMError",
    "OverloadedError",
    "ParetoFront",
    "Plan",
    "Policy",
    "Prediction",
    "Predictor",
    "Price",
    "ProviderAuthenticationError",
    "ProviderConnectionError",
    "ProviderError",
    "ProviderRateLimitedError",
    "ProviderRejectedError",
    "ProviderResponseError",
    "ProviderTimeoutError",
    "ProviderUnavailableError",
    "Query",
    "Quote",
    "Router",
    "StoreError",
    "Transport",
    "UnknownAnswerError",
    "UnknownModelError",
    "UnpricedModelError",
    "Usage",
    "WillingnessToPay",
    "__version__",
    "exact_front",
    "make_predictor",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
