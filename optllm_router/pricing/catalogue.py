"""The price catalogue: litellm's bundled map, read as a file.

Reading the file takes 30 ms; importing litellm for the same numbers takes seconds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optllm_router._errors import ConfigurationError, UnpricedModelError
from optllm_router._nearest import nearest
from optllm_router._types import Capability, Price
from optllm_router.pricing.rates import read_price

_MAP_FILE = "model_prices_and_context_window_backup.json"
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
        reasons: whether it may think before it answers.
        provider: who runs it, by litellm's name; empty when unknown.
    """

    price: Price | None
    max_output_tokens: int | None
    mode: str | None = None
    context_tokens: int | None = None
    unable: frozenset[Capability] = frozenset()
    reasons: bool = False
    provider: str = ""


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
            return ModelFacts(price=None, max_output_tokens=None, unable=_unable({}))
        price = read_price(entry, self.source)
        if price is not None and (_is_unknown(price, model, entry) or _bills_more(model, entry)):
            price = None
        bound = _whole(entry.get("max_output_tokens", entry.get("max_tokens")))
        context = _whole(entry.get("max_input_tokens"))
        reasons = entry.get("supports_reasoning") is True
        provider = str(entry.get("litellm_provider") or "")
        return ModelFacts(
            price, bound, entry.get("mode"), context, _unable(entry), reasons, provider
        )

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
        if _bills_more(model, entry or {}):
            return (
                f"model {model!r} also bills web searches, or pictures that it makes, which its "
                f"price per token does not cover; give {settings} that do in its litellm_params, "
                "or input_cost_per_request"
            )
        near = [] if entry is not None else self._near(model)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        return (
            f"no price is known for model {model!r} in {self.source}{hint}; give {settings} in its "
            "litellm_params, or the model it really is as base_model in its model_info"
        )

    def _near(self, model: str) -> list[str]:
        """Names most like an unknown one; those of its provider have its prefix."""
        provider, slash, _ = model.partition("/")
        own = [
            f"{provider}/{name}"
            for name, entry in self._entries.items()
            if slash and "/" not in name and entry.get("litellm_provider") == provider
        ]
        return nearest(model, [*own, *self._entries], most=3, cutoff=0.75)

    def _entry(self, model: str) -> Mapping[str, Any] | None:
        if model in self._entries:
            return self._entries[model]
        provider, _, bare = model.partition("/")
        entry = self._entries.get(bare)
        if entry is not None and entry.get("litellm_provider", provider) == provider:
            return entry
        return None


def _is_unknown(price: Price, model: str, entry: Mapping[str, Any]) -> bool:
    """Whether a 0 says that nobody knows the price, and not that there is nothing to pay."""
    provider = entry.get("litellm_provider") or model.partition("/")[0]
    if provider in _LOCAL_PROVIDERS or price.request:
        return False
    return not price.prompt or not (price.completion or entry.get("mode") == "embedding")


def _bills_more(model: str, entry: Mapping[str, Any]) -> bool:
    """Whether an answer may come with things that no rate of ours covers."""
    made = ("output_cost_per_image_token", "output_cost_per_video_token")
    searches = _SEARCHES_UNASKED.search(model) and not entry.get("input_cost_per_request")
    return bool(searches or any(entry.get(name) for name in made))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value >= 1 else None


def _unable(entry: Mapping[str, Any]) -> frozenset[Capability]:
    """What an entry denies, or leaves out although it lists abilities.

    Sound has to be stated: it may have a rate of its own, far over that of text.
    """
    listed = any(key.startswith("supports_") for key in entry)
    return frozenset(
        name
        for name, key in ABILITIES.items()
        if entry.get(key) is False or (not entry.get(key) and (listed or name == "audio"))
    )
