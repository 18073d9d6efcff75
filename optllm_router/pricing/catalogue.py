"""The price catalogue: litellm's bundled map, read as a file.

Reading the file takes 30 ms; importing litellm for the same numbers takes seconds.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from optllm_router._errors import ConfigurationError, UnpricedModelError
from optllm_router._money import NANO_PER_USD
from optllm_router._types import Capability, Price
from optllm_router.pricing.charge import Tier, TieredPrice

_MAP_FILE = "model_prices_and_context_window_backup.json"
_MOST_USD_PER_TOKEN = 1000
"""Far over any real price: a higher one is a mistake of units."""

_TIER = re.compile(r"(?:input|output)_cost_per_token_above_(\d+)k_tokens")
_WRITES_CACHE_UNASKED = re.compile(r"\bgpt-")
"""OpenAI bills what it writes into its prompt cache from GPT-5.6 on, asked to or not (its guide
to prompt caching); elsewhere the caller marks what is to be cached."""
_SEARCHES_UNASKED = re.compile(r"\bsonar\b|deep-research|-search\b")
"""Models that search the web for an answer and bill each search."""
_LOCAL_PROVIDERS = frozenset(
    (
        *("ollama", "ollama_chat", "lm_studio", "vllm", "hosted_vllm", "llamafile"),
        *("lemonade", "xinference", "docker_model_runner", "oobabooga"),
    )
)
"""Where a price of 0 says that nobody sends a bill; elsewhere, that the price is unknown."""

ABILITIES: Mapping[Capability, str] = {
    "vision": "supports_vision",
    "audio": "supports_audio_input",
    "tools": "supports_function_calling",
    "json_schema": "supports_response_schema",
}
"""What litellm calls the capabilities; streaming it imitates where a model has none."""


@dataclass(frozen=True)
class ModelFacts:
    """What the catalogue knows of a model.

    Attributes:
        price: what it charges; ``None`` when unpriced.
        max_output_tokens: the longest answer it gives; ``None`` when unknown.
        mode: what it is for, ``chat`` or ``embedding`` for instance; ``None`` when unknown.
        context_tokens: the longest prompt that it takes; ``None`` when unknown.
        unable: what it cannot do; all else may work.
    """

    price: Price | None
    max_output_tokens: int | None
    mode: str | None = None
    context_tokens: int | None = None
    unable: frozenset[Capability] = frozenset()


def price_per_token(prompt_usd: float | str, completion_usd: float | str, source: str) -> Price:
    """A price in USD per token, as litellm writes it; exact as it prints.

    Raises:
        ConfigurationError: a price that is not a finite number, 0 or more.

    >>> price_per_token(1.5e-07, "6e-07", "price list").completion
    Decimal('600')
    """
    return Price(
        prompt=_nano(prompt_usd, "prompt price"),
        completion=_nano(completion_usd, "completion price"),
        source=source,
    )


def read_price(rates: Mapping[str, Any], model: str, source: str) -> Price | None:
    """The price in litellm's terms; ``None`` unless both prompt and completion have one.

    Where a token can be billed at one of two rates, the dearer one is the price: reasoning
    tokens, and prompt tokens that a provider caches without being asked.

    Args:
        rates: ``input_cost_per_token``, ``output_cost_per_token`` and their variants, in USD.
        model: litellm's name of the model.
        source: where the rates come from.

    Raises:
        ConfigurationError: a rate that is not a finite number, 0 or more.

    >>> price = read_price({"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6,
    ...                     "input_cost_per_token_above_200k_tokens": 3e-6}, "m", "test")
    >>> price.tiers
    (Tier(above_tokens=200000, prompt=Decimal('3000'), completion=Decimal('2000')),)
    """
    if rates.get("input_cost_per_token") is None or rates.get("output_cost_per_token") is None:
        return None
    base = _dearest(rates, "", model, source)
    thousands = sorted({int(found[1]) for found in map(_TIER.fullmatch, rates) if found})
    if not thousands:
        return base
    tiers = []
    for k in thousands:
        rate = _dearest(rates, f"_above_{k}k_tokens", model, source)
        tiers.append(Tier(k * 1000, rate.prompt, rate.completion))
    return TieredPrice(base.prompt, base.completion, source, tuple(tiers))


class PriceCatalogue:
    """Prices and limits by litellm model name.

    >>> catalogue = PriceCatalogue({"m": {"input_cost_per_token": 1e-6,
    ...                                   "output_cost_per_token": 2e-6}}, source="test")
    >>> catalogue.facts("openai/m").price.prompt
    Decimal('1000')
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Any]], *, source: str) -> None:
        self._entries = entries
        self.source = source

    @classmethod
    @functools.cache
    def bundled(cls) -> PriceCatalogue:
        """The map inside the installed litellm, read once; its version is the recorded source."""
        spec = importlib.util.find_spec("litellm")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigurationError("litellm is not installed; run: pip install litellm")
        path = Path(spec.submodule_search_locations[0]) / _MAP_FILE
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"litellm's price map {path.name} cannot be read ({error}); reinstall litellm"
            ) from error
        return cls(entries, source=f"litellm {importlib.metadata.version('litellm')}")

    def facts(self, model: str) -> ModelFacts:
        """Price and limits of a model, by its full name or without the provider's prefix."""
        entry = self._entry(model)
        if entry is None:
            return ModelFacts(price=None, max_output_tokens=None)
        price = read_price(entry, model, self.source)
        if price is not None and (_is_unknown(price, model, entry) or _has_fees(model, entry)):
            price = None
        bound = _whole(entry.get("max_output_tokens", entry.get("max_tokens")))
        context = _whole(entry.get("max_input_tokens"))
        return ModelFacts(price, bound, entry.get("mode"), context, _unable(entry))

    def require_price(self, model: str) -> Price:
        """The price of a model.

        Raises:
            UnpricedModelError: the catalogue has none, or it is not all that a call costs; names
                the setting that would give one.
        """
        price = self.facts(model).price
        if price is None:
            raise UnpricedModelError(self._why_unpriced(model))
        return price

    def _why_unpriced(self, model: str) -> str:
        entry = self._entry(model)
        settings = "input_cost_per_token and output_cost_per_token (USD)"
        if _has_fees(model, entry or {}):
            return (
                f"model {model!r} also bills each request or web search, which its price per token "
                f"does not cover; give {settings} that do in its litellm_params"
            )
        near = difflib.get_close_matches(model, self._entries, n=3, cutoff=0.75)
        hint = f" (did you mean {', '.join(near)}?)" if near and entry is None else ""
        return (
            f"no price is known for model {model!r} in {self.source}{hint}; give {settings} in its "
            "litellm_params, or the model it really is as base_model in its model_info"
        )

    def _entry(self, model: str) -> Mapping[str, Any] | None:
        if model in self._entries:
            return self._entries[model]
        provider, _, bare = model.partition("/")
        entry = self._entries.get(bare)
        if entry is not None and entry.get("litellm_provider", provider) == provider:
            return entry
        return None


def _dearest(rates: Mapping[str, Any], suffix: str, model: str, source: str) -> Price:
    """The highest rates that a token can be billed at, with this suffix or by default."""
    prompts, completions = ["input_cost_per_token"], ["output_cost_per_token"]
    completions.append("output_cost_per_reasoning_token")
    if _WRITES_CACHE_UNASKED.search(model):
        prompts.append("cache_creation_input_token_cost")

    def highest(names: list[str], what: str) -> Decimal:
        given = (rates.get(name + end) for name in names for end in ("", suffix))
        return max(_nano(usd, what) for usd in given if usd is not None)

    return Price(highest(prompts, "prompt price"), highest(completions, "completion price"), source)


def _is_unknown(price: Price, model: str, entry: Mapping[str, Any]) -> bool:
    provider = entry.get("litellm_provider") or model.partition("/")[0]
    return provider not in _LOCAL_PROVIDERS and 0 in (price.prompt, price.completion)


def _has_fees(model: str, entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("input_cost_per_request") or _SEARCHES_UNASKED.search(model))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value >= 1 else None


def _unable(entry: Mapping[str, Any]) -> frozenset[Capability]:
    """What an entry denies, or leaves out although it lists abilities."""
    listed = any(key.startswith("supports_") for key in entry)
    return frozenset(
        name
        for name, key in ABILITIES.items()
        if entry.get(key) is False or (listed and not entry.get(key))
    )


def _nano(usd: float | str, what: str) -> Decimal:
    try:
        amount = Decimal(str(usd))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= _MOST_USD_PER_TOKEN:
        raise ConfigurationError(
            f"{what} {usd!r} must be a number of USD per token from 0 to {_MOST_USD_PER_TOKEN}"
        )
    return (amount * NANO_PER_USD).normalize() + 0
