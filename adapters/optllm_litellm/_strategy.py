"""A custom routing strategy for ``litellm.Router``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from optllm_router import (
    Candidate,
    InvalidRequestError,
    Policy,
    Query,
    Router,
    UnknownModelError,
    Usage,
)

Deployment = Mapping[str, Any]


class OptLLMRoutingStrategy:
    """Chooses among the deployments that share a ``model_name``; thread-safe.

    Args:
        router: the ``litellm.Router`` whose deployments are chosen among.
        policy: as for ``optllm_router.OptLLM``.
        **settings: further arguments of ``optllm_router.Router``.

    Raises:
        UnpricedModelError: nobody knows what a deployment costs.
    """

    def __init__(
        self,
        router: Any,
        *,
        policy: str | Policy = "match_best",
        **settings: Any,
    ) -> None:
        self._litellm_router = router
        self._deployments: dict[str, list[Deployment]] = {}
        for deployment in _deployments(router):
            self._deployments.setdefault(deployment["model_name"], []).append(deployment)
        self._routers = {
            group: Router.from_models([_entry(one) for one in deployments], policy, **settings)
            for group, deployments in self._deployments.items()
        }
        self._lock = threading.Lock()

    def install(self) -> OptLLMRoutingStrategy:
        """Have litellm's router ask this strategy from now on; returns it."""
        router = self._litellm_router
        if hasattr(router, "register_plugin"):
            router.register_plugin(self)
        else:  # litellm before its router had plugins
            router.set_custom_routing_strategy(self)
        return self

    def get_available_deployment(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        input: str | Sequence[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: Mapping[str, Any] | None = None,
    ) -> Deployment:
        """The deployment of group ``model`` that should answer; litellm calls this."""
        router = self._router(model)
        if not messages:
            raise InvalidRequestError(
                f"only chat completions are routed; {model!r} got no messages"
            )
        decision = router.decide([Query.from_messages(messages)])[0]
        return self._deployments[model][router.index(decision.candidate)]

    async def async_get_available_deployment(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        input: str | Sequence[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: Mapping[str, Any] | None = None,
    ) -> Deployment:
        """As :meth:`get_available_deployment`, off the event loop."""
        return await asyncio.to_thread(
            self.get_available_deployment, model, messages, input, specific_deployment
        )

    def learn(
        self,
        messages: Sequence[Mapping[str, Any]],
        deployed: str,
        score: float,
        group: str = "auto",
    ) -> None:
        """Learn how good an answer was.

        Args:
            messages: what was asked.
            deployed: ``litellm_params.model`` of the deployment that answered.
            score: 0 (wrong) to 1 (right).
            group: the ``model_name`` that was asked for.
        """
        name = self._name_of(deployed, group)
        self._router(group).learn(Query.from_messages(messages).text, name, score)

    def observe(
        self,
        messages: Sequence[Mapping[str, Any]],
        deployed: str,
        usage: Usage,
        *,
        group: str = "auto",
    ) -> None:
        """Learn what an answer consumed, to forecast costs; arguments as for :meth:`learn`."""
        query, name = Query.from_messages(messages), self._name_of(deployed, group)
        self._router(group).observe(query.text, name, query.call.prompt_bytes, usage)

    def _name_of(self, deployed: str, group: str) -> str:
        for candidate in self._router(group).candidates:
            if candidate.model == deployed:
                return candidate.name
        raise UnknownModelError(f"no deployment of {group!r} runs model {deployed!r}")

    def _router(self, group: str) -> Router:
        if group not in self._routers:
            known = ", ".join(map(repr, self._routers))
            raise UnknownModelError(
                f"no deployment has the model_name {group!r}; known are {known}"
            )
        return self._routers[group]


def _deployments(router: Any) -> Sequence[Deployment]:
    """All deployments of a litellm router, whose newer versions keep them in a registry."""
    deployments: Sequence[Deployment] = (
        router.registry().all() if hasattr(router, "registry") else router.model_list
    )
    return deployments


def _entry(deployment: Deployment) -> dict[str, Any] | Candidate:
    """A deployment as a model entry: what litellm added to it is left out."""
    parameters = {
        key: value for key, value in dict(deployment["litellm_params"]).items() if value is not None
    }
    return {"model_name": deployment["model_name"], "litellm_params": parameters}
