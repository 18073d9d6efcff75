"""Settings: from keyword arguments or a LiteLLM ``config.yaml``; every mistake found at once.

A LiteLLM configuration loads unchanged: its ``model_list`` names the candidates, sections
that are not ours are left alone. Our settings live under ``router:``::

    model_list:
      - model_name: gpt-4o-mini
        litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/OPENAI_API_KEY}
        router: {tags: [eu], transport: httpx}
    router:
      budget: 5 USD per day
      policy: match_best
      policies: {cheap: 'min_cost:0.8', careful: {type: match_best, confidence: 0.99}}
      cache: {type: redis, ttl: 600, host: localhost, password: os.environ/REDIS_PASSWORD}
    server:
      limits: {requests: 500, idle_seconds: 75}

What ``policies`` names, a call asks for as ``auto:cheap``. The ``router:`` of a model takes
``tags`` (where and under which terms it runs), ``transport``, ``unable`` (a list of capabilities),
``context_tokens`` and ``hidden_prompt_tokens``. LiteLLM's own ``rpm``, ``tpm``,
``max_parallel_requests``, ``tags`` and, in ``model_info``, ``max_input_tokens`` and
``supports_vision`` and so on hold, too, and so does ``drop_params``, also where
``litellm_settings:`` has it; what is not set is taken from litellm's catalogue.
So do ``timeout`` (of one attempt at a whole answer, in seconds) and ``stream_timeout`` (of one at a
stream's first token; ``timeout`` where it is not set): the next candidate is asked after it.

Entries of one ``model_name`` are a group, as for LiteLLM: who names it asks the cheapest of them
(any one of those that cost the same), then the others. In what is recorded the first is ``gpt``,
the second ``gpt#2``; a call that names ``gpt#2`` is for that one alone. Groups are for chat.

``server:`` is for ``optllm serve`` alone; see ``optllm_router.server.Limits``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optllm_router._environment import from_environment
from optllm_router._errors import ConfigurationError, StoreError
from optllm_router._money import Budget
from optllm_router._nearest import nearest, quoted
from optllm_router._types import Candidate, Predictor
from optllm_router.candidates import CHAT_MODES, dropping, mode_of_entry, no_others, read_candidates
from optllm_router.ledger import Crossing
from optllm_router.policy import MatchBest, MaxSuccess, MinCost, Policy, WillingnessToPay
from optllm_router.transports import CacheSettings

_log = logging.getLogger("optllm_router")

_SHORTEST_SECRET = 32
_POLICIES: dict[str, tuple[Callable[..., Policy], bool]] = {
    "max_success": (MaxSuccess, False),
    "min_cost": (MinCost, True),
    "match_best": (MatchBest, True),
    "willingness_to_pay": (WillingnessToPay, True),
}
PLAIN_POLICIES = ("max_success", "match_best")
"""Those that need no number."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NONE_NAMED: Mapping[str, Policy] = MappingProxyType({})


@dataclass(frozen=True)
class Settings:
    """How a client is set up.

    Attributes:
        candidates: the models to choose from, with prices.
        budgets: the caps; all of them hold.
        policy: what the user wants.
        policies: others by name, for the calls that ask for them, as with ``auto:NAME``.
        store: URL of the database; not in the ``repr``.
        predictor: name of the predictor, see ``optllm_router.predictor.PREDICTORS``, or an object;
            see ``Router``.
        expected_queries: queries expected per window of the budget, so that it lasts;
            ``None`` to go by the traffic seen.
        explore: scale of exploration, 0 for never; see ``Router``.
        max_retries: repetitions of a call that a provider could not serve.
        timeout_seconds: how long a call may take for its whole answer, all candidates and retries
            together.
        batch_window_ms: how long a request waits for company before it is decided.
        hedge_after_seconds: without an answer, after which the next candidate is asked, too, and
            the first answer wins; ``None`` for never. Streams are not hedged.
        on_threshold: called when a budget has spent one of its ``thresholds``, with what was
            crossed; in a thread of its own, and once among all processes.
        cache: where answers are kept to be given again; ``None`` for nowhere.
        conversation_secret: what the processes of a store that share their conversations know,
            like ``os.environ/NAME``; a follow-up to any of them then goes on with who answered
            last. ``None`` where each has a memory of its own. Not in the ``repr``.
        seed: of all random choices; ``None`` for fresh ones.
    """

    candidates: tuple[Candidate, ...]
    budgets: tuple[Budget, ...] = ()
    policy: Policy = dataclasses.field(default_factory=MaxSuccess)
    policies: Mapping[str, Policy] = dataclasses.field(default_factory=dict)
    store: str = dataclasses.field(default="sqlite:///optllm.db", repr=False)  # may hold a password
    predictor: str | Predictor = "auto"
    expected_queries: int | None = None
    explore: float = 1.0
    max_retries: int = 2
    timeout_seconds: float = 600.0
    batch_window_ms: float = 0.0
    hedge_after_seconds: float | None = None
    on_threshold: Callable[[Crossing], object] | None = dataclasses.field(default=None, repr=False)
    cache: CacheSettings | None = None
    conversation_secret: str | None = dataclasses.field(default=None, repr=False)
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
        if self.hedge_after_seconds is not None:
            _at_least("hedge_after_seconds", self.hedge_after_seconds, 0)
        _at_least("timeout_seconds", self.timeout_seconds, 0)
        if self.on_threshold is not None and not callable(self.on_threshold):
            raise ConfigurationError(f"on_threshold {self.on_threshold!r} must be a function")
        if self.conversation_secret is not None:
            _check_secret(self.conversation_secret)
        if self.timeout_seconds == 0:
            raise ConfigurationError("timeout_seconds 0 must be over 0")


def read_settings(
    models: Sequence[str | Mapping[str, Any] | Candidate] | None, **router: Any
) -> Settings:
    """Settings from plain values, as a user or a YAML file writes them.

    Args:
        models: litellm model names, entries of a LiteLLM ``model_list``, or candidates.
        **router: any attribute of :class:`Settings` but ``candidates``; ``None`` is the default.
            ``budget`` is another name of ``budgets``; either takes one or a list.

    Raises:
        ConfigurationError: names the value that is wrong and the remedy.
        StoreError: the store is not text.
    """
    _check_router(router)
    values = {name: value for name, value in router.items() if value is not None}
    if "budget" in values and "budgets" in values:
        raise ConfigurationError("both budget and budgets are given; write one list of budgets")
    if "budget" in values:
        values["budgets"] = values.pop("budget")
    if "budgets" in values:
        values["budgets"] = read_budgets(values["budgets"])
    values["policies"] = read_policies(values.get("policies", {}))
    if "policy" in values:
        values["policy"] = _configured_policy(values["policy"], values["policies"])
    if "cache" in values:
        values["cache"] = CacheSettings.read(values["cache"])
    if "conversation_secret" in values:
        secret = from_environment(values["conversation_secret"], "conversation_secret")
        values["conversation_secret"] = secret
    candidates = read_candidates(models)
    for candidate in candidates:
        _check_name(candidate.name)
    if not any(candidate.operation == "chat" for candidate in candidates):
        raise ConfigurationError("models has none for chat; add one, like 'openai/gpt-4o-mini'")
    return Settings(candidates=candidates, **values)


def load_settings(path: str | Path, **overrides: Any) -> Settings:
    """Settings from a LiteLLM ``config.yaml``; ``overrides`` win over its ``router:`` section.

    Models that are for neither chat nor embeddings (images, speech, ...) are left to LiteLLM, and
    so is one for embeddings that cannot be set up, as without a key; a warning says so.

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
    models = _as_set_for_all(models, document.get("litellm_settings"))
    router = _section(document, "router", path)
    _check_router(router)
    given = {name: value for name, value in overrides.items() if value is not None}
    chat = [entry for entry in models if mode_of_entry(entry) in CHAT_MODES]
    if models and not chat:
        raise ConfigurationError(f"config {str(path)!r} has no chat model in its model_list")
    embeds = [entry for entry in models if mode_of_entry(entry) == "embedding"]
    return read_settings([*chat, *_usable(embeds)], **{**router, **given})


def _as_set_for_all(models: list[Any], settings: Any) -> list[Any]:
    """The entries, each with LiteLLM's ``drop_params`` where it is switched on for all."""
    drop = settings.get("drop_params") if isinstance(settings, Mapping) else None
    return [dropping(entry, drop) for entry in models] if drop else models


def _usable(entries: Sequence[Any]) -> list[Candidate]:
    """Those that can be set up: whoever only chats need not have the keys of the others."""
    found: list[Candidate] = []
    for entry in entries:
        try:
            found.extend(read_candidates([entry]))
        except ConfigurationError as error:
            _log.warning("a model for embeddings is left out: %s", error)
    return found


def load_store(path: str | Path) -> str:
    """The store that a configuration names, read without its models and their keys.

    Raises:
        ConfigurationError: the file cannot be read or is not YAML.
        StoreError: its store is not text.
    """
    store = _section(_read_document(path), "router", path).get("store")
    if store is None:
        return Settings.store
    _check_store(store)
    return str(store)


def load_server(path: str | Path) -> dict[Any, Any]:
    """What a configuration says of ``optllm serve``, under ``server:``; empty where it does not.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or that section holds no settings.
    """
    return _section(_read_document(path), "server", path)


def load_budgets(path: str | Path) -> tuple[Budget, ...]:
    """The budgets that a configuration names, read without its models and their keys.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or a budget is not understood.
    """
    router = _section(_read_document(path), "router", path)
    given = router.get("budget", router.get("budgets"))
    return () if given is None else read_budgets(given)


def read_budgets(given: Any) -> tuple[Budget, ...]:
    """One budget, or a list of them: as text, as a mapping of ``Budget``'s attributes, or ready.

    Of two that are given no name, and have one scope, the second is named by its window, too.

    Raises:
        ConfigurationError: one is not understood, or two have one name, or differ in their limits
            only.
    """
    many = given if isinstance(given, (list, tuple)) else [given]
    found: dict[str, Budget] = {}
    for one in many:
        budget = _budget(one)
        unnamed, other = budget.name in ("default", budget.scope), found.get(budget.name)
        if unnamed and other is not None and _told_apart_by(other) != _told_apart_by(budget):
            budget = dataclasses.replace(budget, name=f"{budget.name} per {budget.window}")
        if budget.name in found:
            raise ConfigurationError(
                f"two budgets are called {budget.name!r}; give them names, like "
                "{limit_usd: 5, window: day, name: mine}"
            )
        found[budget.name] = budget
    return tuple(found.values())


def _told_apart_by(budget: Budget) -> tuple[str, str, bool]:
    return budget.window, budget.timezone, budget.hard


def read_policies(given: Any) -> dict[str, Policy]:
    """Policies by the names that a user gave them, each written like ``policy``.

    Raises:
        ConfigurationError: a name or a policy is not understood.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"policies {quoted(given)} must name policies, like {{cheap: 'min_cost:0.8'}}"
        )
    for name in given:
        if name in _POLICIES:
            raise ConfigurationError(
                f"policies names {name!r}, which is there already; take another name"
            )
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ConfigurationError(
                f"policies names {quoted(name)}; a name has 1 to 64 letters, digits, '_', '-' "
                "and '.', like 'cheap'"
            )
    return {name: _configured_policy(value) for name, value in given.items()}


def _configured_policy(value: Any, named: Mapping[str, Policy] = _NONE_NAMED) -> Policy:
    """A policy as :func:`read_policy` takes it, or as a mapping of its settings."""
    if not isinstance(value, Mapping):
        return read_policy(value, named)
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _POLICIES:
        raise ConfigurationError(
            f"policy {dict(value)!r} has no type; give it one of {', '.join(_POLICIES)}"
        )
    make = _POLICIES[kind][0]
    settings = {name: number for name, number in value.items() if name != "type"}
    known = list(inspect.signature(make).parameters)
    no_others(settings, known, f"setting of policy {kind!r}")
    for name, number in settings.items():
        _at_least(name, number, 0)
    try:
        return make(**settings)
    except TypeError:
        raise ConfigurationError(
            f"policy {dict(value)!r} is not whole; it needs {' and '.join(known)}"
        ) from None


def read_policy(value: str | Policy, named: Mapping[str, Policy] = _NONE_NAMED) -> Policy:
    """A policy by name, with its number after a colon: ``match_best``, ``min_cost:0.9``.

    Args:
        value: the name, or the policy itself.
        named: policies of the user's own.

    Raises:
        ConfigurationError: no such policy, or a number that is missing, wrong or too many.
    """
    if isinstance(value, str):
        return named[value] if value in named else _policy_named(value, tuple(named))
    if not callable(getattr(value, "look", None)):
        raise ConfigurationError(f"policy {quoted(value)} is neither a name nor a policy")
    if not isinstance(value, Hashable):
        raise ConfigurationError(f"policy {quoted(value)} is not hashable; freeze its dataclass")
    return value


@functools.lru_cache(maxsize=64)
def _policy_named(value: str, others: tuple[str, ...] = ()) -> Policy:
    """One object for one name: calls with one policy are decided together."""
    name, colon, number = value.partition(":")
    if name not in _POLICIES:
        near = nearest(name, [*others, *_POLICIES], most=1)
        hint = f"did you mean {near[0]!r}? There are" if near else "use"
        own = "".join(f"{other}, " for other in others)
        raise ConfigurationError(
            f"policy {quoted(value)} is unknown; {hint} {own}max_success, match_best, "
            "min_cost:0.9 (target success) or willingness_to_pay:0.01 (USD per success)"
        )
    make, takes_number = _POLICIES[name]
    if not colon:
        if name not in PLAIN_POLICIES:
            raise ConfigurationError(f"policy {name!r} needs a number, like {name}:0.9")
        return make()
    try:
        argument = float(number)
    except ValueError:
        raise ConfigurationError(
            f"policy {quoted(value)}: {quoted(number)} is not a number"
        ) from None
    if not takes_number:
        raise ConfigurationError(f"policy {name!r} takes no number; write just {name}")
    return make(argument)


def _budget(given: Any) -> Budget:
    if not isinstance(given, Mapping):
        return Budget.parse(given)
    known = [field.name for field in dataclasses.fields(Budget)]
    no_others(given, known, "budget setting")
    if "limit_usd" not in given:
        raise ConfigurationError(f"budget {dict(given)!r} has no limit_usd, like 5")
    return Budget(**given)


def _read_document(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file; empty when it holds anything else."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"config {str(path)!r} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise ConfigurationError(f"config {str(path)!r}{line} is not YAML: {problem}") from error
    return document if isinstance(document, dict) else {}


def _section(document: Mapping[Any, Any], name: str, path: str | Path) -> dict[Any, Any]:
    section = document.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigurationError(
            f"config {str(path)!r}: {name} must hold settings, not {section!r}"
        )
    return section


def _check_name(name: str) -> None:
    """Raise for a name that asks for routing, and so never for its model."""
    if name.partition(":")[0] == "auto":
        raise ConfigurationError(
            f"model_name {quoted(name)} cannot be asked for: 'auto' chooses among all models, "
            "'auto:POLICY' by a policy; give it another name"
        )


def _check_store(store: Any) -> None:
    if not isinstance(store, str):
        raise StoreError(
            f"store {store!r} is not a database URL; write it like sqlite:///optllm.db"
        )


def _check_secret(secret: Any) -> None:
    if not isinstance(secret, str) or len(secret) < _SHORTEST_SECRET:
        raise ConfigurationError(
            f"conversation_secret must be text of at least {_SHORTEST_SECRET} characters that "
            "nobody can guess, like `openssl rand -hex 32` prints"
        )


def _check_predictor(name: Any) -> None:
    own = callable(getattr(name, "predict", None))  # looked at closely by the router
    if own or name == "auto":
        return
    from optllm_router.predictor import PREDICTORS  # takes a tenth of a second

    if name not in PREDICTORS:
        raise ConfigurationError(
            f"predictor {quoted(name)} is unknown; choose one of {', '.join(PREDICTORS)}"
        )


def _check_router(router: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(Settings)} - {"candidates"}
    no_others(router, sorted({*known, "budget"}), "router setting")


def _at_least(name: str, value: Any, least: int, kind: type = Real) -> None:
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not number or not least <= value < math.inf:
        what = "whole number" if kind is Integral else "finite number"
        raise ConfigurationError(
            f"{name} {quoted(value)} must be a {what}, {least} or more{_as_number(value)}"
        )


def _as_number(value: Any) -> str:
    """How to write a number that is text, as ``1e-9`` is in YAML."""
    import yaml

    for read in (int, float) if isinstance(value, str) else ():
        with contextlib.suppress(ValueError):
            number = read(value)
            if math.isfinite(number):
                return f"; that is text: write {yaml.safe_dump(number).split()[0]}, without quotes"
    return ""
