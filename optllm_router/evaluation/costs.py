"""Costs of recorded calls: as a price per token, and as the router would have forecast them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router._money import NANO_PER_USD
from optllm_router._query import Query
from optllm_router._types import Candidate, Price, Usage
from optllm_router.policy import MaxSuccess
from optllm_router.pricing import price_per_token
from optllm_router.router import Router

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router._types import FloatArray
    from optllm_router.evaluation.dataset import RecordedOutcomes

__all__ = ["fitted_price", "predict_costs"]

_UNEXPLAINED = 1e-3
"""A price per token leaves at most this share of the recorded costs unexplained."""
_MOST_USD_PER_TOKEN = 1000.0
"""No token is dearer: such a cost is no price per token."""
_NANO_AS_TOKEN = Price(Decimal(0), Decimal(1), "recorded cost, one nano-dollar per token")


def predict_costs(train: RecordedOutcomes, queries: Sequence[str], *, seed: int = 0) -> FloatArray:
    """What a router expects to pay for each query, once it has observed the labelled ones.

    The forecast is the one that the live router decides with: prompt tokens by a line in the
    size of the text, completion tokens by the text (``optllm_router.predictor.LengthPredictor``),
    each times its price, which is taken from the recorded costs. Of a model whose costs do not
    follow from recorded tokens the cost itself is forecast, like a length.

    Args:
        train: the labelled queries; missing costs are skipped.
        queries: n texts.
        seed: of the forecast.

    Returns:
        Shape (n, k), USD.

    Raises:
        InvalidDataError: when a model has no labelled cost at all.
    """
    asked = [_query(text) for text in train.queries]
    candidates, used = [], []
    for column, model in enumerate(train.models):
        price, usages = _usages(train, column)
        longest = max((usage.completion_tokens for usage in usages.values()), default=0)
        candidates.append(Candidate(model, model, price, max_output_tokens=max(longest, 1)))
        used += [(asked[i], model, usage) for i, usage in usages.items()]
    router = Router(candidates, MaxSuccess(), seed=seed)
    router.observe_many((q.text, model, q.call.prompt_bytes, usage) for q, model, usage in used)
    router.wait()
    return router.expected_usd([_query(text) for text in queries])


def fitted_price(
    prompt_tokens: FloatArray, completion_tokens: FloatArray, cost: FloatArray, *, source: str
) -> Price | None:
    """The price per token that reproduces the recorded costs; None where there is none.

    Args:
        prompt_tokens: shape (n,).
        completion_tokens: shape (n,); 0 where they were not billed.
        cost: shape (n,), USD.
        source: where the costs come from.
    """
    tokens = np.column_stack([prompt_tokens, completion_tokens])
    used = tokens.any(axis=0)
    per_token = np.zeros(2)
    if used.any():
        per_token[used] = np.linalg.lstsq(tokens[:, used], cost, rcond=None)[0]
    per_token = np.maximum(np.round(per_token, 13), 0.0)
    if per_token.max() > _MOST_USD_PER_TOKEN:
        return None
    if np.abs(tokens @ per_token - cost).sum() > _UNEXPLAINED * cost.sum():
        return None
    return price_per_token(f"{per_token[0]:.13f}", f"{per_token[1]:.13f}", source=source)


def _usages(train: RecordedOutcomes, column: int) -> tuple[Price, dict[int, Usage]]:
    """A model's price, and by query what it consumed at that price."""
    rows = np.flatnonzero(~np.isnan(train.cost[:, column]))
    if not rows.size:
        raise InvalidDataError(
            f"{train.name}: no labelled query has a cost_usd of {train.models[column]!r}; label "
            "more queries, or evaluate with the recorded costs"
        )
    cost, prompt = train.cost[rows, column], train.prompt_tokens[rows, column]
    completion = np.nan_to_num(train.completion_tokens[rows, column])
    price = None
    if not np.isnan(prompt).any():
        price = fitted_price(prompt, completion, cost, source=f"{train.name}: recorded costs")
    if price is None:
        price, prompt = _NANO_AS_TOKEN, np.zeros_like(cost)
        completion = np.round(cost * NANO_PER_USD)
    counts = zip(rows.tolist(), prompt.tolist(), completion.tolist(), strict=True)
    return price, {row: Usage(int(sent), int(got)) for row, sent, got in counts}


def _query(text: str) -> Query:
    return Query.from_messages([{"role": "user", "content": text}])
