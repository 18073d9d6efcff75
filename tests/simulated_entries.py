"""The simulated models as a LiteLLM configuration names them."""

from __future__ import annotations

from optllm_router.simulation import SIMULATED_MODELS


def model_entries(base_url: str, **litellm_params) -> list[dict]:
    """The simulated models behind ``base_url``, as a LiteLLM ``model_list`` names them."""
    return [
        {
            "model_name": model.name,
            "litellm_params": {
                "model": f"openai/{model.name}",
                "api_base": base_url,
                "api_key": "unused",
                "input_cost_per_token": f"{model.price_prompt_usd_per_mtok}e-6",
                "output_cost_per_token": f"{model.price_completion_usd_per_mtok}e-6",
                "max_tokens": 400,
                **litellm_params,
            },
        }
        for model in SIMULATED_MODELS
    ]


def through_httpx(entries: list[dict]) -> list[dict]:
    """The same models without litellm, whose import takes seconds in every process."""
    return [{**entry, "router": {"transport": "httpx"}} for entry in entries]
