"""Which arguments litellm refuses to send to whom: asked once, before anything is sent.

litellm refuses a call as a whole when it has an argument that the provider does not take, unless it
may drop it (``drop_params``). By then the candidate was chosen, and its turn is wasted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from optllm_router._dispensable import REFUSABLE
from optllm_router._types import Candidate
from optllm_router.transports.litellm import load_litellm

_log = logging.getLogger("optllm_router")

_TRUE = ("true", "1", "yes", "y", "on", "t")
"""What litellm takes for true, in any case."""
_IMITATED = {"ollama": frozenset(("tools", "tool_choice", "functions"))}
"""What litellm puts into the prompt for a provider that does not take it."""


def refused_arguments(candidates: Sequence[Candidate]) -> dict[str, frozenset[str]]:
    """The arguments that litellm refuses, of those that are asked through it, by their names."""
    asked = [one for one in candidates if (one.transport, one.operation) == ("litellm", "chat")]
    return {one.name: _refused(load_litellm(), one) for one in asked}


def _refused(litellm: Any, candidate: Candidate) -> frozenset[str]:
    parameters = candidate.parameters
    if litellm.drop_params is True or _is_true(parameters.get("drop_params")):
        return frozenset()
    try:
        taken = _taken(litellm, candidate)
    except Exception as error:  # noqa: BLE001 - whatever it is, it meets the call that needs it
        _log.debug("what model %r takes is not known: %s", candidate.name, type(error).__name__)
        return frozenset()
    told = (
        parameters.get(key) or () for key in ("allowed_openai_params", "additional_drop_params")
    )
    return (REFUSABLE & _looked_at(litellm)).difference(taken, *told)


def _taken(litellm: Any, candidate: Candidate) -> frozenset[str]:
    """The arguments that a candidate's provider takes, in the way litellm finds out for a call."""
    given = candidate.parameters
    model, provider, _, _ = litellm.get_llm_provider(
        model=candidate.model,
        custom_llm_provider=given.get("custom_llm_provider"),
        api_base=given.get("api_base") or given.get("base_url"),
    )
    name = model.removeprefix("responses/")  # in front of it, it names an API
    base = {"base_model": given["base_model"]} if given.get("base_model") else {}
    supported = litellm.get_supported_openai_params
    taken = supported(model=name, custom_llm_provider=provider, **base)
    if taken is None:
        taken = supported(model=name, custom_llm_provider="openai")
    facts = litellm.model_cost.get(f"{provider}/{name}") or litellm.model_cost.get(name) or {}
    if name != model or facts.get("mode") == "responses":
        taken = [*taken, "reasoning_effort"]
    return _IMITATED.get(provider, frozenset()).union(taken)


def _looked_at(litellm: Any) -> frozenset[str]:
    """The arguments that this version of litellm knows; others it passes on unseen."""
    return frozenset(litellm.OPENAI_CHAT_COMPLETION_PARAMS)


def _is_true(setting: Any) -> bool:
    return setting is True or str(setting).strip().lower() in _TRUE
