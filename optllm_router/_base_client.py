"""What both clients share: setting up, learning, looking at the budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from optllm_router._arguments import given_or_none
from optllm_router._chat import Prepared
from optllm_router._errors import InvalidRequestError
from optllm_router._money import Budget, nano_from_usd, usd_from_nano
from optllm_router._openai_errors import openai_errors
from optllm_router._openai_settings import refuse_others, with_openai_key
from optllm_router._options import check_options, one_time_limit, read_options
from optllm_router._runtime import Runtime
from optllm_router._session import Session
from optllm_router._types import Candidate, Decision, Messages, Predictor, Transport, Usage
from optllm_router.config import Settings, load_settings, read_policy, read_settings
from optllm_router.ledger import Balance, Crossing
from optllm_router.plan import checked_queries, plan_budget
from optllm_router.policy import Policy
from optllm_router.pricing import size_in_bytes
from optllm_router.router import Quote

if TYPE_CHECKING:
    from decimal import Decimal

    from typing_extensions import Self

    from optllm_router.allocation import ParetoFront

    BudgetLike: TypeAlias = str | float | Decimal | Budget | Mapping[str, Any]


class BaseClient:
    """What both clients share: setting up, learning, looking at the budget."""

    def __init__(
        self,
        models: Sequence[str | Mapping[str, Any] | Candidate] | None = None,
        *,
        budget: BudgetLike | Sequence[BudgetLike] | None = None,
        policy: str | Policy | None = None,
        policies: Mapping[str, Any] | None = None,
        store: str | None = None,
        predictor: str | Predictor | None = None,
        expected_queries: int | None = None,
        explore: float | None = None,
        max_retries: int | None = None,
        timeout_seconds: float | None = None,
        timeout: Any = None,
        batch_window_ms: float | None = None,
        hedge_after_seconds: float | None = None,
        on_threshold: Callable[[Crossing], object] | None = None,
        cache: Mapping[str, Any] | None = None,
        conversation_secret: str | None = None,
        seed: int | None = None,
        api_key: str | None = None,
        transport: Transport | None = None,
        **others: Any,
    ) -> None:
        """Set up; nothing is sent, and litellm is not loaded before the first request.

        Args:
            models: litellm model names, entries of a LiteLLM ``model_list``, or candidates.
            budget: the cap, like ``"5 USD per day"``, or a list of caps that all hold;
                ``None`` for none.
            policy: ``max_success`` (default), ``match_best``, ``min_cost:0.9``,
                ``willingness_to_pay:0.01``, or a policy object.
            policies: others by a name of your own, like ``{"cheap": "min_cost:0.8"}``, for the
                calls that ask for them: ``auto:cheap``.
            store: database URL; ``sqlite:///optllm.db`` by default.
            predictor: one of ``optllm_router.predictor.PREDICTORS``, or an object of your own
                with ``fit``, ``predict`` and ``learn_one``; see ``Predictor``.
            expected_queries: queries expected per window of the budget, so that it lasts.
            explore: scale of exploration, 1 by default, 0 for never.
            max_retries: repetitions of a call that a provider could not serve, 2 by default.
            timeout_seconds: for a whole answer, all candidates and retries together; 600 by
                default.
            timeout: the same, as openai's client has it.
            batch_window_ms: how long a request waits for company, 0 by default.
            hedge_after_seconds: without an answer, after which the next candidate is asked, too;
                the first answer wins, and both are paid. Never by default, and not for streams.
            on_threshold: called when a budget has spent one of its ``thresholds`` (50, 80, 95 and
                100 %), in a thread of its own, and once among all processes of a store.
            cache: where answers are kept to be given again for nothing, like
                ``{"type": "local", "ttl": 600}``, or ``{"type": "redis", ...}`` with ``host``,
                ``port``, ``password`` and ``namespace``. Calls of other tenants, users, jobs or
                tags are others, unless ``shared`` is true.
            conversation_secret: text of 32 characters or more that all processes of a store know:
                they then share who answered last in a conversation. Without it each has a memory
                of its own.
            seed: of all random choices.
            api_key: OpenAI's, as openai's client has it: for models of OpenAI's whose entries name
                neither a key nor an ``api_base``, and for no others. Without it, keys are those of
                the entries or of the environment.
            transport: how to reach providers; litellm by default.
            **others: none; openai's other settings are refused, with the place for them.

        Raises:
            ConfigurationError: a setting is wrong, or a model has no price.
            StoreError: the database cannot be used.
        """
        refuse_others(others, type(self).__init__, "setting")
        settings = read_settings(
            models,
            budget=budget,
            policy=policy,
            policies=policies,
            store=store,
            predictor=predictor,
            expected_queries=expected_queries,
            explore=explore,
            max_retries=given_or_none(max_retries),
            timeout_seconds=one_time_limit(timeout_seconds, timeout),
            batch_window_ms=batch_window_ms,
            hedge_after_seconds=hedge_after_seconds,
            on_threshold=on_threshold,
            cache=cache,
            conversation_secret=conversation_secret,
            seed=seed,
        )
        if given_or_none(api_key) is not None:
            candidates = with_openai_key(settings.candidates, api_key)
            settings = replace(settings, candidates=candidates)
        self._start(settings, transport)

    @classmethod
    def from_config(
        cls, path: str | Path, *, transport: Transport | None = None, **overrides: Any
    ) -> Self:
        """Set up from a LiteLLM ``config.yaml``; see :mod:`optllm_router.config`.

        Args:
            path: the file.
            transport: how to reach providers; litellm by default.
            **overrides: settings that win over those of the file, named as in ``__init__``.
        """
        return cls.from_settings(load_settings(path, **overrides), transport=transport)

    @classmethod
    def from_settings(cls, settings: Settings, *, transport: Transport | None = None) -> Self:
        """Set up from settings that were read before; see :mod:`optllm_router.config`."""
        client = cls.__new__(cls)
        client._start(settings, transport)
        return client

    def _start(self, settings: Settings, transport: Transport | None) -> None:
        self.settings = settings
        self._runtime = Runtime(settings, transport)
        self._session = Session(settings, self._runtime)

    def with_options(
        self,
        *,
        timeout: Any = None,
        max_retries: int | None = None,
        policy: str | Policy | None = None,
        tenant: str | None = None,
        user: str | None = None,
        job: str | None = None,
        tags: str | Sequence[str] | None = None,
        conversation: str | None = None,
        require_tags: str | Sequence[str] | None = None,
        forbid_tags: str | Sequence[str] | None = None,
        **others: Any,
    ) -> Self:
        """A copy that shares everything, for calls with further options.

        The same options are taken by ``extra_body={"optllm": {...}}`` for one call. The call's
        win, but scopes (``tenant``, ``user``, ``job``, ``tags``) only add up: a copy for one
        tenant cannot spend another's money. Closing a copy closes the client.

        Args:
            timeout: seconds for a whole answer, all candidates and retries together.
            max_retries: repetitions of a call that a provider could not serve.
            policy: as for the client.
            tenant: who pays: counts towards budgets for ``tenant:NAME``.
            user: on whose behalf: counts towards budgets for ``user:NAME``.
            job: as a part of what: counts towards budgets for ``job:NAME``.
            tags: what for: each counts towards budgets for ``tag:NAME``.
            conversation: names the conversation that the calls are turns of.
            require_tags: tags that a model must have to be asked, like ``region:eu``.
            forbid_tags: tags that it must not have, like ``trains-on-prompts``.
            **others: none; openai's other options are refused, with the place for them.

        Raises:
            InvalidRequestError: an option is wrong, or names another tenant, user or job.
        """
        with openai_errors():
            check_options(others, self.with_options)
            further = read_options(
                timeout=timeout,
                max_retries=max_retries,
                policy=policy,
                tenant=tenant,
                user=user,
                job=job,
                tags=tags,
                conversation=conversation,
                require_tags=require_tags,
                forbid_tags=forbid_tags,
                policies=self.settings.policies,
            )
            options = self._session.options.narrowed(further)
        one = copy.copy(self)
        one._session = replace(self._session, options=options)
        return one

    copy = with_options

    def is_closed(self) -> bool:
        """Whether :meth:`close` was called, of this client or of a copy."""
        return self._runtime.is_closing

    @property
    def timeout(self) -> float:
        """Seconds for a whole answer of a call that sets none: this copy's, or the client's."""
        return self._session.options.timeout_seconds or self.settings.timeout_seconds

    @property
    def max_retries(self) -> int:
        """Repetitions of a call that a provider could not serve: this copy's, or the client's."""
        own = self._session.options.max_retries
        return self.settings.max_retries if own is None else own

    @property
    def balance(self) -> Balance | None:
        """The first budget in its current window; ``None`` without a budget."""
        budgets = self.settings.budgets
        return self._runtime.ledger.balance(budgets[0].name) if budgets else None

    @property
    def balances(self) -> list[Balance]:
        """Every budget of the store in its current window, those of others included."""
        return self._runtime.ledger.balances()

    def verify(self) -> list[str]:
        """Recompute the books from the reservations; one sentence per difference."""
        return self._runtime.ledger.verify()

    def learn(self, scored: Iterable[tuple[str, str, float]]) -> None:
        """Learn recorded (query text, model, score in 0..1) triples before going live.

        They are learnt for the lifetime of this client; feedback on its own answers is kept
        in the store.
        """
        self._runtime.router.learn_many(scored)

    def observe(self, used: Iterable[tuple[str, str, Usage]]) -> None:
        """Learn recorded (query text, model, usage) triples, to forecast costs.

        As with :meth:`learn`, for the lifetime of this client.
        """
        self._runtime.router.observe_many(
            (text, model, size_in_bytes(_messages(text)), usage) for text, model, usage in used
        )

    def wait_for_refit(self) -> None:
        """Wait until what was learnt so far is in the predictors."""
        self._runtime.router.wait()

    def _planned(
        self,
        queries: Sequence[str | Messages],
        budget_usd: float | Decimal | None,
        policy: str | Policy | None,
        arguments: Mapping[str, Any],
    ) -> tuple[list[Decision], Quote, ParetoFront, list[Prepared], Runtime, Budget | None]:
        prepared = [
            self._session.prepare(_messages(query), "auto", arguments)
            for query in checked_queries(queries)
        ]
        if any(one.stream for one in prepared):
            raise InvalidRequestError("stream=True is given to a plan, whose answers are whole")
        left = self._runtime.means(prepared[0].query.scopes if prepared else ()).left_usd
        cap = None
        if budget_usd is not None:
            left = min(left, usd_from_nano(nano_from_usd(budget_usd, what="budget_usd")))
            cap = plan_budget(budget_usd)
        if any(one.query.call.parameters for one in prepared):
            self._runtime.check()  # who takes them is known once the transports are loaded
        decisions, quote, front = self._runtime.router.plan(
            [one.query for one in prepared],
            left if math.isfinite(left) else math.inf,
            None if policy is None else read_policy(policy, self.settings.policies),
        )
        return decisions, quote, front, prepared, self._runtime, cap


def _messages(query: str | Messages) -> Messages:
    return [{"role": "user", "content": query}] if isinstance(query, str) else query
