"""What calls cost: the price catalogue, exact charges, worst cases and forecasts.

A model without a price is refused by name; nothing is ever billed as free by default.
"""

from optllm_router.pricing.catalogue import ABILITIES, ModelFacts, PriceCatalogue
from optllm_router.pricing.charge import (
    charge_nano,
    most_audio_tokens,
    most_prompt_tokens,
    rates_at,
    size_in_bytes,
    worst_case_nano,
    worst_usage,
)
from optllm_router.pricing.forecast import CostForecast
from optllm_router.pricing.rates import price_per_token, read_price
from optllm_router.pricing.sound import sound_fault

__all__ = [
    "ABILITIES",
    "CostForecast",
    "ModelFacts",
    "PriceCatalogue",
    "charge_nano",
    "most_audio_tokens",
    "most_prompt_tokens",
    "price_per_token",
    "rates_at",
    "read_price",
    "size_in_bytes",
    "sound_fault",
    "worst_case_nano",
    "worst_usage",
]
