"""Settings: from keyword arguments or a LiteLLM ``config.yaml``; every mistake found at once.

A LiteLLM configuration loads unchanged: its ``model_list`` names the candidates, sections
that are not ours are left alone. Our settings live under ``router:``::

    model_list:
      - model_name: gpt-4o-mini
        litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/OPENAI_API_KEY}
    router:
      budget: 5 USD per day
      policy: match_best
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from optllm_router._errors import ConfigurationError, StoreError, UnknownModelError
from optllm_router._money import Budget
from optllm_router._types import Candidate, Price
from optllm_router.policy import MatchBest, MaxSuccess, MinCost, Policy, WillingnessToPay
from optllm_router.pricing import ModelFacts, PriceCatalogue, read_price

DEFAULT_OUTPUT_TOKENS = 4096
"""Bound on an answer when neither the caller nor the configuration sets one."""

_CHAT_MODES = ("chat", "responses", "completion", None)
"""What litellm answers a conversation with; ``None`` is a model that it does not know."""
_POLICIES: dict[str, tuple[Callable[..., Policy], bool]] = {
    "max_success": (MaxSuccess, False),
    "min_cost": (MinCost, True),
    "match_best": (MatchBest, True),
    "willingness_to_pay": (WillingnessToPay, True),
}


@dataclass(frozen=True)
class Settings:
    """How a client is set up.

    Attributes:
        candidates: the models to choose from, with prices.
        budget: the cap; ``None`` for none.
        policy: what the user wants.
        store: URL of the database; not in the ``repr``.
        predictor: name of the predictor, see ``optllm_router.predictor.PREDICTORS``.
        expected_queries: queries expected per window of the budget, so that it lasts;
            ``None`` to go by the traffic seen.
        explore: scale of exploration, 0 for never; see ``Router``.
        max_retries: repetitions of a call that a provider could not serve.
        timeout_seconds: how long a provider may take for a whole answer.
        batch_window_ms: how long a request waits for company before it is decided.
        seed: of all random choices; ``None`` for fresh ones.
    """

    candidates: tuple[Candidate, ...]
    budget: Budget | None = None
    policy: Policy = dataclasses.field(default_factory=MaxSuccess)
    store: str = dataclasses.field(default="sqlite:///optllm.db", repr=False)  # may hold a password
    predictor: str = "auto"
    expected_queries: int | None = None
    explore: float = 1.0
    max_retries: int = 2
    timeout_seconds: float = 600.0
    batch_window_ms: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_store(self.store)
        _check_predictor(self.predictor)
        if self.expected_queries is not None:
            _at_least("expected_queries", self.expected_queries, 1, Integral)
        if self.seed is not None:
            _at_least("seed", self.seed, 0, Integral)
        _at_least("max_retries", self.max_retries, 0, Integral)
        _at_least("explore", self.explore, 0)
        _at_least("batch_window_ms", self.batch_window_ms, 0)
        _at_least("timeout_seconds", self.timeout_seconds, 0)
        if self.timeout_seconds == 0:
            raise ConfigurationError("timeout_seconds 0 must be over 0")


def read_settings(models: Sequence[str | Mapping[str, Any] | Candidate], **router: Any) -> Settings:
    """Settings from plain values, as a user or a YAML file writes them.

    Args:
        models: litellm model names, entries of a LiteLLM ``model_list``, or candidates.
        **router: any attribute of :class:`Settings` but ``candidates``; ``None`` is the default.

    Raises:
        ConfigurationError: names the value that is wrong and the remedy.
        StoreError: the store is not text.
    """
    _check_router(router)
    values = {name: value for name, value in router.items() if value is not None}
    if "budget" in values:
        values["budget"] = Budget.parse(values["budget"])
    if "policy" in values:
        values["policy"] = read_policy(values["policy"])
    return Settings(candidates=read_candidates(models), **values)


def load_settings(path: str | Path, **overrides: Any) -> Settings:
    """Settings from a LiteLLM ``config.yaml``; ``overrides`` win over its ``router:`` section.

    Models that are not for chat (embeddings, images, ...) are left to LiteLLM.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or a value in it is wrong.
        StoreError: its store is not text.
    """
    document = _read_document(path)
    models = document.get("model_list")
    if not isinstance(models, list):
        raise ConfigurationError(
            f"config {str(path)!r} has no model_list; write one as for LiteLLM: "
            "model_list: [{model_name: ..., litellm_params: {model: ...}}]"
        )
    router = _router_section(document, path)
    _check_router(router)
    given = {name: value for name, value in overrides.items() if value is not None}
    chat = [entry for entry in models if _mode_of_entry(entry) in _CHAT_MODES]
    if models and not chat:
        raise ConfigurationError(f"config {str(path)!r} has no chat model in its model_list")
    return read_settings(chat, **{**router, **given})


def load_store(path: str | Path) -> str:
    """The store that a configuration names, read without its models and their keys.

    Raises:
        ConfigurationError: the file cannot be read or is not YAML.
        StoreError: its store is not text.
    """
    store = _router_section(_read_document(path), path).get("store")
    if store is None:
        return Settings.store
    _check_store(store)
    return str(store)


def read_policy(value: str | Policy) -> Policy:
    """A policy by name, with its number after a colon: ``match_best``, ``min_cost:0.9``.

    Raises:
        ConfigurationError: no such policy, or a number that is missing, wrong or too many.
    """
    if not isinstance(value, str):
        if not callable(getattr(value, "aim", None)):
            raise ConfigurationError(f"policy {value!r} is neither a name nor a policy")
        return value
    name, colon, number = value.partition(":")
    if name not in _POLICIES:
        raise ConfigurationError(
            f"policy {value!r} is unknown; use max_success, match_best, min_cost:0.9 "
            "(target success) or willingness_to_pay:0.01 (USD per success)"
        )
    make, takes_number = _POLICIES[name]
    if not colon:
        if name in ("min_cost", "willingness_to_pay"):
            raise ConfigurationError(f"policy {name!r} needs a number, like {name}:0.9")
        return make()
    try:
        argument = float(number)
    except ValueError:
        raise ConfigurationError(f"policy {value!r}: {number!r} is not a number") from None
    if not takes_number:
        raise ConfigurationError(f"policy {name!r} takes no number; write just {name}")
    return make(argument)


def read_candidates(
    models: Sequence[str | Mapping[str, Any] | Candidate],
) -> tuple[Candidate, ...]:
    """Priced candidates with unique names.

    Raises:
        ConfigurationError: an entry is not a model, or there is none.
        UnpricedModelError: nobody knows what a model costs.
    """
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise ConfigurationError(
            f"models is {models!r}; give a list, like ['openai/gpt-4o', 'openai/gpt-4o-mini']"
        )
    catalogue: PriceCatalogue | None = None
    found: dict[str, Candidate] = {}
    for entry in models:
        if isinstance(entry, Candidate):
            candidate = entry
        else:
            catalogue = catalogue or PriceCatalogue.bundled()
            candidate = _candidate(entry, catalogue)
        name, copies = candidate.name, 1
        while candidate.name in found:
            copies += 1
            candidate = dataclasses.replace(candidate, name=f"{name}#{copies}")
        found[candidate.name] = candidate
    return tuple(found.values())


def unknown_model(name: str, candidates: Sequence[str]) -> UnknownModelError:
    """The error for a model that is not configured, with the nearest names."""
    near = difflib.get_close_matches(name, ["auto", *candidates], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "the models are "
    listed = "" if near else ", ".join(map(repr, candidates)) + "; 'auto' chooses among them"
    return UnknownModelError(f"model {name!r} is not configured: {hint}{listed}")


def _candidate(entry: str | Mapping[str, Any], catalogue: PriceCatalogue) -> Candidate:
    if isinstance(entry, str):
        entry = {"model_name": entry, "litellm_params": {"model": entry}}
    parameters = _section(entry, "litellm_params")
    model = parameters.pop("model", None)
    if not isinstance(model, str) or not model:
        raise ConfigurationError(
            f"model entry {_shown(entry)} has no litellm_params.model, like 'openai/gpt-4o'"
        )
    name = entry.get("model_name") or model
    if "*" in model or "*" in str(name):
        raise ConfigurationError(
            f"model {model!r} is a wildcard; the router has to know its candidates: list each one"
        )
    info = _info(entry)
    known_as = _known_as(model, info)
    facts = catalogue.facts(known_as)
    mode = _mode(info, facts)
    if mode not in _CHAT_MODES:
        raise ConfigurationError(
            f"model {name!r} is for {mode}, not for chat; leave it out, or correct its "
            "model_info.mode"
        )
    parameters = {key: _from_environment(value, name) for key, value in parameters.items()}
    info.update(parameters)
    longest = min(facts.max_output_tokens or DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS)
    bounds = [parameters.pop(key, None) for key in ("max_completion_tokens", "max_tokens")]
    bound = next((bound for bound in bounds if bound is not None), longest)
    if not isinstance(bound, int) or isinstance(bound, bool) or bound < 1:
        raise ConfigurationError(f"max_tokens {bound!r} of model {name!r} must be 1 or more")
    if "n" in parameters:
        raise ConfigurationError(f"model {name!r} sets n; set it per call, where it is budgeted")
    api_key = parameters.pop("api_key", None)
    own = _own_price(str(name), known_as, info)
    return Candidate(
        name=str(name),
        model=model,
        price=own or catalogue.require_price(known_as),
        max_output_tokens=bound,
        parameters={key: value for key, value in parameters.items() if "cost_per_" not in key},
        api_key=api_key,
    )


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


def _mode_of_entry(entry: Any) -> Any:
    """What a model of a ``model_list`` is for; ``None`` for an entry that is not understood."""
    info = _info(entry)
    known_as = _known_as(str(info.get("model")), info)
    return _mode(info, PriceCatalogue.bundled().facts(known_as))


def _own_price(name: str, model: str, info: Mapping[str, Any]) -> Price | None:
    prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if (prompt is None) != (completion is None):
        raise ConfigurationError(
            f"model {name!r} has only one of input_cost_per_token and output_cost_per_token; "
            "give both, in USD"
        )
    return read_price(info, model, source="configuration")


def _from_environment(value: Any, model: str) -> Any:
    if not isinstance(value, str) or not value.startswith("os.environ/"):
        return value
    variable = value.removeprefix("os.environ/")
    if variable not in os.environ:
        raise ConfigurationError(
            f"model {model!r} wants the environment variable {variable}, which is not set"
        )
    return os.environ[variable]


def _read_document(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file; empty when it holds anything else."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise ConfigurationError(f"config {str(path)!r}{line} is not YAML: {problem}") from error
    return document if isinstance(document, dict) else {}


def _router_section(document: Mapping[Any, Any], path: str | Path) -> dict[Any, Any]:
    router = document.get("router") or {}
    if not isinstance(router, dict):
        raise ConfigurationError(f"config {str(path)!r}: router must hold settings, not {router!r}")
    return router


def _check_store(store: Any) -> None:
    if not isinstance(store, str):
        raise StoreError(
            f"store {store!r} is not a database URL; write it like sqlite:///optllm.db"
        )


def _check_predictor(name: Any) -> None:
    if name == "auto":
        return
    from optllm_router.predictor import PREDICTORS  # takes a tenth of a second

    if name not in PREDICTORS:
        raise ConfigurationError(
            f"predictor {name!r} is unknown; choose one of {', '.join(PREDICTORS)}"
        )


def _check_router(router: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(Settings)} - {"candidates"}
    _no_others(router, sorted(known), "router setting")


def _no_others(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{what} {name!r} is unknown; {hint}")


def _at_least(name: str, value: Any, least: int, kind: type = Real) -> None:
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not number or not least <= value < math.inf:
        what = "whole number" if kind is Integral else "finite number"
        raise ConfigurationError(f"{name} {value!r} must be a {what}, {least} or more")


def _shown(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return repr(dict.fromkeys(entry, "..."))
    return repr(entry)
