"""Candidates from what a user or a LiteLLM ``model_list`` says of them, and from the catalogue."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optllm_router._arguments import check_values
from optllm_router._environment import from_environment
from optllm_router._errors import ConfigurationError, InvalidRequestError, UnknownModelError
from optllm_router._nearest import nearest, quoted
from optllm_router._types import Candidate, Capability, Price, RateLimits
from optllm_router.pricing import ABILITIES, ModelFacts, PriceCatalogue, read_price

DEFAULT_OUTPUT_TOKENS = 4096
"""Bound on an answer when neither the caller nor the configuration sets one."""
CHAT_MODES = ("chat", "responses", "completion", None)
"""What litellm answers a conversation with; ``None`` is a model that it does not know."""
_LIMITS = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "max_parallel_requests": "concurrent",
}
_NOT_SENT = (
    *("api_key", "max_completion_tokens", "max_tokens", "tags", "tiered_pricing"),
    *("timeout", "stream_timeout"),
    *_LIMITS,
)
"""Parameters that are not among those of a call, or that have a place of their own."""
_CHECKED = (
    *("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "top_logprobs"),
    *("logprobs", "parallel_tool_calls", "reasoning_effort", "verbosity", "stop", "logit_bias"),
    *("tools", "tool_choice", "response_format"),
)
"""Parameters that are sent as they are, and mean what a call's own arguments mean."""
_CAPABILITIES: tuple[Capability, ...] = (*ABILITIES, "streaming")
_TRANSPORTS = ("litellm", "httpx")
_MODEL_SETTINGS = ("tags", "transport", "unable", "context_tokens", "hidden_prompt_tokens")

_ONLY_OURS = tuple(setting for setting in _MODEL_SETTINGS if setting != "tags")
"""Those that mean nothing to LiteLLM."""


def read_candidates(
    models: Sequence[str | Mapping[str, Any] | Candidate] | None,
) -> tuple[Candidate, ...]:
    """Priced candidates with unique names: of those that share one, the others get a number.

    Raises:
        ConfigurationError: an entry is not a model, or there is none.
        UnpricedModelError: nobody knows what a model costs.
    """
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise ConfigurationError(
            f"models is {models!r}; give a list, like ['openai/gpt-4o', 'openai/gpt-4o-mini']"
        )
    catalogue: PriceCatalogue | None = None
    priced = []
    for entry in models:
        if isinstance(entry, Candidate):
            priced.append(entry)
        else:
            catalogue = catalogue or PriceCatalogue.bundled()
            priced.append(_candidate(entry, catalogue))
    given = {candidate.name for candidate in priced}
    found: dict[str, Candidate] = {}
    for candidate in priced:
        name, number = candidate.name, 1
        while candidate.name in found:
            number += 1
            numbered = f"{name}#{number}"
            if numbered not in given:
                candidate = dataclasses.replace(candidate, name=numbered, group=name)
        found[candidate.name] = candidate
    return tuple(found.values())


def shared_limits(candidates: Sequence[Candidate], processes: int) -> tuple[Candidate, ...]:
    """The candidates as each of several processes may ask them: together they keep the limits.

    Raises:
        ConfigurationError: a limit has less than one for each process.
    """
    return tuple(
        dataclasses.replace(one, limits=_share(one.name, one.limits, processes))
        for one in candidates
    )


def _share(name: str, limits: RateLimits, processes: int) -> RateLimits:
    shares: dict[str, int | None] = {}
    for given, ours in _LIMITS.items():
        whole = getattr(limits, ours)
        shares[ours] = None if whole is None else whole // processes
        if shares[ours] == 0:
            raise ConfigurationError(
                f"{given} {whole} of model {name!r} is too little for {processes} processes, which "
                f"share it; use at most {whole}, or raise it"
            )
    return RateLimits(**shares)


def unknown_model(name: str, candidates: Sequence[str]) -> UnknownModelError:
    """The error for a model that is not configured, with the nearest names."""
    near = nearest(name, ["auto", *candidates], most=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "the models are "
    listed = "" if near else ", ".join(map(repr, candidates)) + "; 'auto' chooses among them"
    return UnknownModelError(f"model {quoted(name)} is not configured: {hint}{listed}")


def _candidate(entry: str | Mapping[str, Any], catalogue: PriceCatalogue) -> Candidate:
    if isinstance(entry, str):
        entry = {"model_name": entry, "litellm_params": {"model": entry}}
    parameters = _section(entry, "litellm_params")
    model = parameters.pop("model", None)
    if not isinstance(model, str) or not model:
        raise ConfigurationError(
            f"model entry {_shown(entry)} has no litellm_params.model, like 'openai/gpt-4o'"
        )
    name = str(entry.get("model_name") or model)
    if "*" in model or "*" in name:
        raise ConfigurationError(
            f"model {model!r} is a wildcard; the router has to know its candidates: list each one"
        )
    info = _info(entry)
    known_as = _known_as(model, info)
    facts = catalogue.facts(known_as)
    mode = _mode(info, facts)
    if mode not in (*CHAT_MODES, "embedding"):
        raise ConfigurationError(
            f"model {name!r} is for {mode}, not for chat or embeddings; leave it out, or correct "
            "its model_info.mode"
        )
    embeds = mode == "embedding"
    whose = f"model {name!r}"
    parameters = {key: from_environment(value, whose) for key, value in parameters.items()}
    info.update(parameters)
    if "n" in parameters:
        raise ConfigurationError(f"model {name!r} sets n; set it per call, where it is budgeted")
    _check_parameters(name, parameters)
    longest = _whole(name, "max_output_tokens", info) or facts.max_output_tokens
    price = _own_price(name, info, embeds)
    if price is None:
        price = catalogue.require_price(known_as)
        _check_service(name, parameters)
    return Candidate(
        name=name,
        model=model,
        price=price,
        max_output_tokens=0 if embeds else _output_bound(name, parameters, longest),
        parameters={key: value for key, value in parameters.items() if not _is_ours(key)},
        api_key=parameters.get("api_key"),
        operation="embedding" if embeds else "chat",
        limits=_limits(name, entry, info),
        provider=_provider(model, parameters, facts),
        longest_answer_tokens=longest,
        **_time_limits(name, parameters),
        **_abilities(name, _own_settings(name, entry), info, facts),
    )


def _check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise for a value that would fail every call."""
    try:
        check_values({key: parameters[key] for key in _CHECKED if key in parameters})
    except InvalidRequestError as error:
        raise ConfigurationError(f"litellm_params of model {name!r}: {error}") from None


def _provider(model: str, parameters: Mapping[str, Any], facts: ModelFacts) -> str:
    """Who runs a model, where its name does not say so."""
    stated = parameters.get("custom_llm_provider")
    if isinstance(stated, str):
        return stated
    return "" if "/" in model else facts.provider


def _is_ours(parameter: str) -> bool:
    """Whether a parameter is for the router to read, and not for the call."""
    return parameter in _NOT_SENT or "cost_per_" in parameter or "_token_cost" in parameter


def _output_bound(name: str, parameters: Mapping[str, Any], longest: int | None) -> int:
    given = (parameters.get(key) for key in ("max_completion_tokens", "max_tokens"))
    usual = min(longest or DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS)
    bound = next((bound for bound in given if bound is not None), usual)
    if not isinstance(bound, int) or isinstance(bound, bool) or bound < 1:
        raise ConfigurationError(f"max_tokens {bound!r} of model {name!r} must be 1 or more")
    return bound


def _time_limits(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's ``timeout`` and ``stream_timeout``: each bounds one attempt."""
    whole = _seconds(name, "timeout", parameters)
    first = _seconds(name, "stream_timeout", parameters)
    return {"timeout_seconds": whole, "first_token_seconds": whole if first is None else first}


def _seconds(name: str, what: str, given: Mapping[str, Any]) -> float | None:
    """A number, or one in text, as the environment has it."""
    value = given.get(what)
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ConfigurationError(
            f"{what} {quoted(value)} of model {name!r} must be a number of seconds over 0, like 30"
        )
    return seconds


def _abilities(
    name: str, ours: Mapping[str, Any], info: Mapping[str, Any], facts: ModelFacts
) -> dict[str, Any]:
    """What decides which calls a candidate gets, and how: what is configured, else the facts."""
    context = _whole(name, "context_tokens", ours) or _whole(name, "max_input_tokens", info)
    tags = [*_texts(name, "tags", info), *_texts(name, "tags", ours)]
    return {
        "hidden_prompt_tokens": _whole(name, "hidden_prompt_tokens", ours, least=0) or 0,
        "context_tokens": context or facts.context_tokens,
        "unable": _unable(name, info, ours, facts),
        "reasons": bool(info.get("supports_reasoning", facts.reasons)),
        "tags": frozenset(tags),
        "transport": _transport(name, ours),
    }


def _own_settings(name: str, entry: Any) -> dict[str, Any]:
    """The ``router:`` of a model."""
    ours = entry.get("router") or {}
    if not isinstance(ours, Mapping):
        raise ConfigurationError(f"router of model {name!r} must hold settings, not {ours!r}")
    no_others(ours, _MODEL_SETTINGS, f"router setting of model {name!r},")
    for setting in _ONLY_OURS:
        if setting in entry or setting in _section(entry, "litellm_params"):
            raise ConfigurationError(
                f"{setting} of model {name!r} is for the router, and stands in a section beside "
                f"litellm_params: router: {{{setting}: ...}}"
            )
    return dict(ours)


def _limits(name: str, entry: Any, info: Mapping[str, Any]) -> RateLimits:
    """LiteLLM takes them in ``litellm_params``, in ``model_info`` and beside both."""
    given = {**info, **{key: entry[key] for key in _LIMITS if key in entry}}
    return RateLimits(**{ours: _whole(name, key, given) for key, ours in _LIMITS.items()})


def _unable(
    name: str, info: Mapping[str, Any], ours: Mapping[str, Any], facts: ModelFacts
) -> frozenset[Capability]:
    """What the configuration says wins over the catalogue."""
    denied = _texts(name, "unable", ours)
    for word in denied:
        if word not in _CAPABILITIES:
            raise ConfigurationError(
                f"unable {word!r} of model {name!r} is no capability; known are "
                f"{', '.join(_CAPABILITIES)}"
            )
    stated = {known: info[key] for known, key in ABILITIES.items() if info.get(key) is not None}
    return frozenset(
        one
        for one in _CAPABILITIES
        if one in denied or not stated.get(one, one not in facts.unable)
    )


def _transport(name: str, ours: Mapping[str, Any]) -> str:
    transport = ours.get("transport", _TRANSPORTS[0])
    if transport not in _TRANSPORTS:
        raise ConfigurationError(
            f"transport {transport!r} of model {name!r} is unknown; use {' or '.join(_TRANSPORTS)}"
        )
    return str(transport)


def _texts(name: str, what: str, given: Mapping[str, Any]) -> list[str]:
    """A list of texts; one text is a list of one."""
    value = given.get(what)
    many = [value] if isinstance(value, str) else value or []
    if not isinstance(many, (list, tuple)) or not all(isinstance(one, str) for one in many):
        raise ConfigurationError(f"{what} {value!r} of model {name!r} must be a list of texts")
    return list(many)


def _whole(name: str, what: str, given: Mapping[str, Any], least: int = 1) -> int | None:
    number = given.get(what)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ConfigurationError(
            f"{what} {number!r} of model {name!r} must be a whole number, {least} or more"
        )
    return number


def _section(entry: Any, name: str) -> dict[str, Any]:
    section = entry.get(name) if isinstance(entry, Mapping) else None
    return dict(section) if isinstance(section, Mapping) else {}


def _info(entry: Any) -> dict[str, Any]:
    """What the configuration says of a model, wherever LiteLLM allows it."""
    return {**_section(entry, "model_info"), **_section(entry, "litellm_params")}


def _known_as(model: str, info: Mapping[str, Any]) -> str:
    """The catalogue's name of a model; an Azure deployment has a name of its own."""
    base = info.get("base_model")
    return base if isinstance(base, str) and base else model


def _mode(info: Mapping[str, Any], facts: ModelFacts) -> Any:
    return info.get("mode") or facts.mode


def mode_of_entry(entry: Any) -> Any:
    """What a model of a ``model_list`` is for; ``None`` for an entry that is not understood."""
    info = _info(entry)
    known_as = _known_as(str(info.get("model")), info)
    return _mode(info, PriceCatalogue.bundled().facts(known_as))


def dropping(entry: Any, drop: Any) -> Any:
    """A model of a ``model_list`` with ``drop_params``, whatever its own says, as in LiteLLM."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("litellm_params"), Mapping):
        return entry
    return {**entry, "litellm_params": {**entry["litellm_params"], "drop_params": drop}}


def _check_service(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise for another service than the standard one, whose price was taken."""
    tier = parameters.get("service_tier")
    if tier not in (None, "auto", "default"):
        raise ConfigurationError(
            f"model {name!r} sets service_tier {quoted(tier)}, which is billed at other rates than "
            "the standard ones; give input_cost_per_token and output_cost_per_token of that tier "
            "in its litellm_params, or leave it out"
        )


def _own_price(name: str, info: Mapping[str, Any], embeds: bool) -> Price | None:
    if embeds:
        info = {"output_cost_per_token": 0, **info}
        return read_price(info, source="configuration")
    prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if (prompt is None) != (completion is None):
        raise ConfigurationError(
            f"model {name!r} has only one of input_cost_per_token and output_cost_per_token; "
            "give both, in USD"
        )
    return read_price(info, source="configuration")


def _shown(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return repr(dict.fromkeys(entry, "..."))
    return repr(entry)


def no_others(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise for a key that is not known, with the nearest that is."""
    for name in given:
        if name not in known:
            near = nearest(name, known, most=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{what} {quoted(name)} is unknown; {hint}")
