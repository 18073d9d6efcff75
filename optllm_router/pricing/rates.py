"""Prices as litellm writes them, in USD per token, read into exact ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from optllm_router._errors import ConfigurationError
from optllm_router._money import NANO_PER_USD
from optllm_router._types import Price, Tier

_MOST_USD = 1000
"""Per token, or per request: far over any real price. A higher one is a mistake of units."""
_TIER = re.compile(r"(?:input|output)_cost_per_token_above_(\d+)k_tokens")
_PROMPT, _COMPLETION, _REQUEST = (
    *("input_cost_per_token", "output_cost_per_token"),
    "input_cost_per_request",
)
_KINDS = {
    "cached": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "audio": "input_cost_per_audio_token",
    "reasoning": "output_cost_per_reasoning_token",
}
_WHAT = {_PROMPT: "prompt price", _COMPLETION: "completion price"}


def price_per_token(prompt_usd: float | str, completion_usd: float | str, source: str) -> Price:
    """A price in USD per token, as litellm writes it; exact as it prints.

    Raises:
        ConfigurationError: a price that is not a finite number, 0 or more.

    >>> price_per_token(1.5e-07, "6e-07", "price list").completion
    Decimal('600')
    """
    return Price(
        prompt=_nano(prompt_usd, _WHAT[_PROMPT]),
        completion=_nano(completion_usd, _WHAT[_COMPLETION]),
        source=source,
    )


def read_price(rates: Mapping[str, Any], source: str) -> Price | None:
    """The price in litellm's terms; ``None`` unless prompt and completion have one.

    A model for embeddings needs no price for completions, and one that bills each request none
    for tokens. A rate of 0 for a kind of token is no rate: it then costs as any other.

    Args:
        rates: ``input_cost_per_token``, ``output_cost_per_token`` and their variants, in USD;
            others are ignored.
        source: where the rates come from.

    Raises:
        ConfigurationError: a rate that is not a finite number, 0 or more.

    >>> price = read_price({"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6,
    ...                     "cache_read_input_token_cost": 1e-7,
    ...                     "input_cost_per_token_above_200k_tokens": 3e-6}, "test")
    >>> price.cached, [(tier.above_tokens, tier.prompt) for tier in price.tiers]
    (Decimal('100'), [(200000, Decimal('3000'))])
    """
    price = _read(rates, source)
    return None if price is None else replace(price, batch=_read(rates, source, "_batches"))


def _read(rates: Mapping[str, Any], source: str, service: str = "") -> Price | None:
    prompt, completion = rates.get(_PROMPT + service), rates.get(_COMPLETION + service)
    request = rates.get(_REQUEST)
    if prompt is None and completion is None and request and not service:
        prompt = completion = 0
    if completion is None and rates.get("mode") == "embedding":
        completion = 0
    if prompt is None or completion is None:
        return None
    tiers = sorted({int(found[1]) for found in map(_TIER.fullmatch, rates) if found})
    return Price(
        _nano(prompt, _WHAT[_PROMPT]),
        _nano(completion, _WHAT[_COMPLETION]),
        source,
        **_kinds(rates, service),
        request=_nano(request or 0, _REQUEST),
        tiers=tuple(_tier(rates, k, service, (prompt, completion)) for k in tiers),
    )


def _tier(rates: Mapping[str, Any], k: int, service: str, base: tuple[Any, Any]) -> Tier:
    """What holds above ``k`` thousand tokens: at least the base, where nothing else is said."""
    above = f"_above_{k}k_tokens"

    def rate(name: str, otherwise: Any) -> Decimal:
        given = rates.get(f"{name}{above}{service}", rates.get(name + above))
        return _nano(otherwise if given is None else given, _WHAT[name])

    return Tier(
        rate(_PROMPT, base[0]),
        rate(_COMPLETION, base[1]),
        k * 1000,
        **_kinds(rates, above + service),
    )


def _kinds(rates: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    found = ((kind, name, rates.get(name + suffix)) for kind, name in _KINDS.items())
    return {kind: _nano(usd, name) or None if usd else None for kind, name, usd in found}


def _nano(usd: float | str, what: str) -> Decimal:
    try:
        amount = Decimal(str(usd))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= _MOST_USD:
        raise ConfigurationError(f"{what} {usd!r} must be a number of USD from 0 to {_MOST_USD}")
    return (amount * NANO_PER_USD).normalize() + 0
