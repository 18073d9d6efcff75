"""Prices as litellm writes them, in USD per token, read into exact ones."""

from __future__ import annotations

import math
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
    for tokens. A rate of 0 for a kind of token is no rate: it then costs as any other. Of
    ``tiered_pricing`` the range that a prompt lies in holds for the whole call; the last one also
    for longer prompts.

    Args:
        rates: ``input_cost_per_token``, ``output_cost_per_token`` and their variants, in USD, or
            ``tiered_pricing``: a list of them, each with its ``range`` of prompt tokens; others
            are ignored.
        source: where the rates come from.

    Raises:
        ConfigurationError: a rate that is not a finite number, 0 or more.

    >>> price = read_price({"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6,
    ...                     "cache_read_input_token_cost": 1e-7,
    ...                     "input_cost_per_token_above_200k_tokens": 3e-6}, "test")
    >>> price.cached, [(tier.above_tokens, tier.prompt) for tier in price.tiers]
    (Decimal('100'), [(200000, Decimal('3000'))])
    """
    ranges = _ranges(rates.get("tiered_pricing") or ())
    if ranges is None:
        return None
    if ranges:
        rates = {**rates, **ranges.pop(0)[1]}
    further = tuple(
        _tier(tier, "", above, tier[_PROMPT], tier[_COMPLETION]) for above, tier in ranges
    )
    price = _read(rates, source, further)
    batch = _read(rates, source, further, "_batches")
    return None if price is None else replace(price, batch=batch)


def _ranges(tiers: Any) -> list[tuple[int, Mapping[str, Any]]] | None:
    """The rates of each range of prompt tokens and where it starts, from 0 on.

    ``None`` when they are not understood: then nobody knows what a call costs.
    """
    found = []
    for tier in tiers if isinstance(tiers, (list, tuple)) else [None]:
        if not isinstance(tier, Mapping) or None in (tier.get(_PROMPT), tier.get(_COMPLETION)):
            return None
        match tier.get("range"):
            case [int() | float() as start, int() | float()] if 0 <= start < math.inf:
                found.append((int(start), tier))
            case _:
                return None
    found.sort(key=lambda one: one[0])
    return None if found and found[0][0] else found


def _read(
    rates: Mapping[str, Any], source: str, further: tuple[Tier, ...], service: str = ""
) -> Price | None:
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
        tiers=(*(_above(rates, k, service, (prompt, completion)) for k in tiers), *further),
    )


def _above(rates: Mapping[str, Any], k: int, service: str, base: tuple[Any, Any]) -> Tier:
    """What holds above ``k`` thousand tokens: at least the base, where nothing else is said."""
    above = f"_above_{k}k_tokens"

    def rate(name: str, otherwise: Any) -> Any:
        given = rates.get(f"{name}{above}{service}", rates.get(name + above))
        return otherwise if given is None else given

    prompt, completion = rate(_PROMPT, base[0]), rate(_COMPLETION, base[1])
    return _tier(rates, above + service, k * 1000, prompt, completion)


def _tier(rates: Mapping[str, Any], suffix: str, above: int, prompt: Any, completion: Any) -> Tier:
    return Tier(
        _nano(prompt, _WHAT[_PROMPT]),
        _nano(completion, _WHAT[_COMPLETION]),
        above,
        **_kinds(rates, suffix),
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
