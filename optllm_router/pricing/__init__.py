"""What calls cost: the price catalogue, exact charges, worst cases and forecasts.

A model without a price is refused by name; nothing is ever billed as free by default.
"""

from optllm_router.pricing.catalogue import (
    ABILITIES,
    ModelFacts,
    PriceCatalogue,
    price_per_token,
    read_price,
)
from optllm_router.pricing.charge import (
    Tier,
    TieredPrice,
    charge_nano,
    most_prompt_tokens,
    size_in_bytes,
    worst_case_nano,
    worst_usage,
)
from optllm_router.pricing.forecast import CostForecast

__all__ = [
    "ABILITIES",
    "CostForecast",
    "ModelFacts",
    "PriceCatalogue",
    "Tier",
    "TieredPrice",
    "charge_nano",
    "most_prompt_tokens",
    "price_per_token",
    "read_price",
    "size_in_bytes",
    "worst_case_nano",
    "worst_usage",
]
