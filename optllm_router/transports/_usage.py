"""A provider's usage block, read into ``Usage``: tokens by kind, and the cost it reports itself.

The total is kept at all times: kinds that a provider counts beside its prompt or completion
tokens are added to them, and a block that counts nothing, or more than can be believed, is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any, TypeGuard

from optllm_router._money import MAX_NANO, NANO_PER_USD
from optllm_router._types import Usage

_MOST_TOKENS = 10**9
"""A count over this is not believed: it would not fit the ledger either."""
_COST_HEADERS = ("x-litellm-response-cost", "llm_provider-x-litellm-response-cost")
"""How a LiteLLM proxy says what a call cost, and what litellm makes of the name."""
_TICKS_PER_USD = 10**10


def read_usage(
    block: Any, *, answered: bool, headers: Mapping[str, Any] | None = None
) -> Usage | None:
    """What the provider counted and charged; ``None`` when it did not count.

    Args:
        block: ``usage`` of a chat completion, of its last chunk, or of a list of embeddings
            (``completion_tokens`` is then absent, and 0).
        answered: whether the answer has any text or tool call: no completion tokens are not
            believed then. False for embeddings.
        headers: of the response; a LiteLLM proxy reports the cost in one.

    >>> read_usage({"prompt_tokens": 9, "completion_tokens": 4, "cost": 2e-05,
    ...             "prompt_tokens_details": {"cached_tokens": 8}}, answered=True)
    ... # doctest: +NORMALIZE_WHITESPACE
    Usage(prompt_tokens=9, completion_tokens=4, estimated=False, cached_tokens=8,
          cache_write_tokens=0, reasoning_tokens=0, audio_tokens=0, reported_nano=20000,
          cut=False)
    """
    if not isinstance(block, Mapping):
        return None
    prompt, completion = block.get("prompt_tokens"), block.get("completion_tokens")
    if completion is None and not answered:
        completion = 0
    if not _is_count(prompt) or not _is_count(completion):
        return None
    if prompt == 0 or (completion == 0 and answered):
        return None  # litellm puts 0 where nothing was counted
    of_prompt = _mapping(block, "prompt_tokens_details")
    of_completion = _mapping(block, "completion_tokens_details")
    cached = max(
        _count(of_prompt, "cached_tokens"),
        _count(block, "prompt_cache_hit_tokens"),  # DeepSeek
        _count(block, "cache_read_input_tokens"),  # Anthropic
    )
    written = max(
        _count(of_prompt, "cache_write_tokens"),
        _count(of_prompt, "cache_creation_tokens"),
        _count(block, "cache_creation_input_tokens"),
    )
    reasoning = _count(of_completion, "reasoning_tokens")
    audio = _count(of_prompt, "audio_tokens")
    if cached + written > prompt:  # counted apart
        prompt += cached + written
    # xAI counts reasoning apart, which the total gives away.
    if reasoning > completion or block.get("total_tokens") == prompt + completion + reasoning:
        completion += reasoning
    if prompt + completion > _MOST_TOKENS:
        return None
    return Usage(
        prompt,
        completion,
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        audio_tokens=min(audio, prompt),
        reported_nano=_reported_nano(block, headers or {}),
    )


def _reported_nano(block: Mapping[str, Any], headers: Mapping[str, Any]) -> int | None:
    """The cost that the provider reports; 0 is no report: gateways without a price say it."""
    nano = _nano(_usd_in_block(block))
    for name in _COST_HEADERS:
        nano = nano or _nano(headers.get(name))
    return nano


def _usd_in_block(block: Mapping[str, Any]) -> Any:
    cost = block.get("cost")
    if isinstance(cost, Mapping):  # Perplexity
        return cost.get("total_cost")
    if cost is None and _is_count(block.get("cost_in_usd_ticks")):  # xAI
        return Decimal(block["cost_in_usd_ticks"]) / _TICKS_PER_USD
    if block.get("is_byok") is True:  # OpenRouter: its fee, beside what the model's provider bills
        fee, upstream = (
            _nano(usd)
            for usd in (cost, _mapping(block, "cost_details").get("upstream_inference_cost"))
        )
        return None if upstream is None else Decimal((fee or 0) + upstream) / NANO_PER_USD
    return cost


def _nano(usd: Any) -> int | None:
    """Nano-dollars, rounded up; ``None`` unless it is an amount over 0 that the ledger can hold."""
    if usd is None or isinstance(usd, bool):
        return None
    try:
        nano = Decimal(str(usd)) * NANO_PER_USD
        if not 0 < nano <= MAX_NANO:
            return None
    except ArithmeticError:
        return None
    return int(nano.to_integral_value(ROUND_CEILING))


def _mapping(block: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = block.get(name)
    return value if isinstance(value, Mapping) else {}


def _count(block: Mapping[str, Any], name: str) -> int:
    value = block.get(name)
    return value if _is_count(value) and value <= _MOST_TOKENS else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
