"""The price catalogue: litellm's bundled map, read as a file.

Reading the file takes 30 ms; importing litellm for the same numbers takes seconds.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from optllm_router._errors import ConfigurationError, UnpricedModelError
from optllm_router._money import NANO_PER_USD
from optllm_router._types import Price

_MAP_FILE = "model_prices_and_context_window_backup.json"
_MOST_USD_PER_TOKEN = 1000
"""Far over any real price: a higher one is a mistake of units."""


@dataclass(frozen=True)
class ModelFacts:
    """What the catalogue knows of a model.

    Attributes:
        price: what it charges; ``None`` when unpriced.
        max_output_tokens: the longest answer it gives; ``None`` when unknown.
    """

    price: Price | None
    max_output_tokens: int | None


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
    def bundled(cls) -> PriceCatalogue:
        """The map inside the installed litellm; its version is the recorded source."""
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
        prompt = entry.get("input_cost_per_token")
        completion = entry.get("output_cost_per_token")
        price = None
        if prompt is not None and completion is not None:
            price = price_per_token(prompt, completion, self.source)
        longest = entry.get("max_output_tokens", entry.get("max_tokens"))
        return ModelFacts(price, int(longest) if isinstance(longest, (int, float)) else None)

    def require_price(self, model: str) -> Price:
        """The price of a model.

        Raises:
            UnpricedModelError: the catalogue has none; names the setting that would give one.
        """
        price = self.facts(model).price
        if price is None:
            near = difflib.get_close_matches(model, self._entries, n=3, cutoff=0.75)
            hint = f" (did you mean {', '.join(near)}?)" if near else ""
            raise UnpricedModelError(
                f"no price is known for model {model!r} in {self.source}{hint}; give one with "
                "input_cost_per_token and output_cost_per_token (USD) in its litellm_params"
            )
        return price

    def _entry(self, model: str) -> Mapping[str, Any] | None:
        if model in self._entries:
            return self._entries[model]
        provider, _, bare = model.partition("/")
        entry = self._entries.get(bare)
        if entry is not None and entry.get("litellm_provider", provider) == provider:
            return entry
        return None


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
