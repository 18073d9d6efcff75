"""What a client's resources share: the runtime, and what is set for all their calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optllm_router._chat import Prepared, prepare
from optllm_router._embeddings import prepare_embedding
from optllm_router._errors import ConfigurationError, InvalidRequestError
from optllm_router._options import Options
from optllm_router._runtime import Runtime
from optllm_router._steps import Answer
from optllm_router._streams import AnswerStream, AsyncAnswerStream, Life
from optllm_router._telemetry import end_request, request_span, tell_cost, tell_decision
from optllm_router._types import Decision, Operation
from optllm_router.candidates import unknown_model
from optllm_router.config import PLAIN_POLICIES, Settings, read_policy
from optllm_router.router import new_id

_US = "optllm_router"
"""Who owns what is no model of a provider's."""


@dataclass(frozen=True)
class Session:
    """One runtime with the options of one client; copies of a client share the runtime.

    Attributes:
        settings: how the client was set up.
        runtime: decides, pays, sends and learns.
        options: hold for every call.
        over_wire: openai's clients over this session, where they were made; see :mod:`._wire`.
    """

    settings: Settings
    runtime: Runtime
    options: Options = field(default_factory=Options)
    over_wire: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prepare(self, messages: Any, model: Any, arguments: Mapping[str, Any]) -> Prepared:
        """Check a chat completion's arguments.

        Raises:
            InvalidRequestError: an argument is wrong.
            UnknownModelError: no candidate has the name ``model``.
        """
        prepared = prepare(messages, model, arguments, self.options, self.settings)
        self._check_operation(prepared.model, "chat")
        if prepared.model != "auto":
            self.runtime.router.index(prepared.model)
        return prepared

    def prepare_embedding(self, arguments: Mapping[str, Any]) -> Prepared:
        """Check an embedding's arguments.

        Raises:
            InvalidRequestError: an argument is wrong.
            UnknownModelError: no candidate for embeddings has that name.
        """
        self._check_operation(arguments.get("model"), "embedding")
        candidates = [one for one in self.settings.candidates if one.operation == "embedding"]
        return prepare_embedding(arguments, candidates, self.options, self.settings)

    def complete(self, prepared: Prepared) -> Answer:
        """Decide and answer.

        Raises:
            OptLLMError: what a request's flow raises.
        """
        self.runtime.check()
        with self.runtime.under_way(), _span(prepared) as span:
            decision = self._decide(prepared)
            tell_decision(span, decision)
            answer = self.runtime.answer(decision, prepared.query)
            tell_cost(span, answer.candidate, answer.usage, answer.cost_nano)
            return answer

    async def acomplete(self, prepared: Prepared) -> Answer:
        """As :meth:`complete`, without blocking the event loop."""
        await self.runtime.acheck()
        with self.runtime.under_way(), _span(prepared) as span:
            decision = await self._adecide(prepared)
            tell_decision(span, decision)
            answer = await self.runtime.aanswer(decision, prepared.query)
            tell_cost(span, answer.candidate, answer.usage, answer.cost_nano)
            return answer

    def stream(self, prepared: Prepared) -> AnswerStream:
        """Decide and wait for the first chunk of the answer."""
        self.runtime.check()
        with self.runtime.under_way(), _span(prepared, stays=True) as span:
            decision = self._decide(prepared)
            tell_decision(span, decision)
            return self.runtime.stream(decision, prepared.query, partial(_ended, span))

    async def astream(self, prepared: Prepared) -> AsyncAnswerStream:
        """As :meth:`stream`, without blocking the event loop."""
        await self.runtime.acheck()
        with self.runtime.under_way(), _span(prepared, stays=True) as span:
            decision = await self._adecide(prepared)
            tell_decision(span, decision)
            return await self.runtime.astream(decision, prepared.query, partial(_ended, span))

    def models(self) -> list[dict[str, Any]]:
        """What ``model`` may be, as OpenAI's API lists it.

        Policies that need a number are not listed; :meth:`model` knows them with one.
        """
        policies = (*self.settings.policies, *PLAIN_POLICIES)
        ours = ["auto", *(f"auto:{name}" for name in policies)]
        owners = dict.fromkeys(ours, _US)
        for candidate in self.settings.candidates:
            owners[candidate.name] = candidate.owner or "unknown"
        return [_model(name, owner) for name, owner in owners.items()]

    def model(self, name: str) -> dict[str, Any]:
        """One of them, or ``auto`` with any other policy that a call may name.

        Raises:
            UnknownModelError: there is none of that name.
        """
        models = {model["id"]: model for model in self.models()}
        if name in models:
            return models[name]
        auto, _, policy = name.partition(":")
        try:
            if auto == "auto" and policy:
                read_policy(policy, self.settings.policies)
                return _model(name, _US)
        except ConfigurationError:
            pass  # no such policy: the name is unknown
        raise unknown_model(name, [known for known in models if known != "auto"])

    def _check_operation(self, model: Any, operation: Operation) -> None:
        for one in self.settings.candidates:
            if one.name == model and one.operation != operation:
                raise InvalidRequestError(
                    f"model {model!r} is for {one.operation}, not for {operation}; name another",
                    param="model",
                )

    def _decide(self, prepared: Prepared) -> Decision:
        if prepared.query.call.operation == "embedding":
            return _named(prepared.model)
        deciding = self.runtime.decide(prepared.query, prepared.model, prepared.options.policy)
        return deciding.result()

    async def _adecide(self, prepared: Prepared) -> Decision:
        if prepared.query.call.operation == "embedding":
            return _named(prepared.model)
        return await self.runtime.adecide(prepared.query, prepared.model, prepared.options.policy)


def _model(name: str, owner: str) -> dict[str, Any]:
    """A model of OpenAI's API, whose type wants to know when it was made; nobody says."""
    return {"id": name, "created": 0, "object": "model", "owned_by": owner}


def _span(prepared: Prepared, *, stays: bool = False) -> AbstractContextManager[Any]:
    return request_span(prepared.query.call.operation, prepared.model, stays=stays)


def _ended(span: Any, life: Life, error: BaseException | None) -> None:
    """Put on a stream's span what it came to, and end it."""
    if life.paid is not None:
        tell_cost(span, life.paid.candidate, life.paid.usage, life.paid.cost_nano)
    end_request(span, error)


def _named(candidate: str) -> Decision:
    """The decision for an embedding, where there is nothing to choose and nothing to predict."""
    return Decision(
        id=new_id(),
        candidate=candidate,
        fallbacks=(),
        p=1.0,
        std=0.0,
        expected_cost_nano=0,
        propensity=1.0,
        price=0.0,
        reason="the model for embeddings",
    )
