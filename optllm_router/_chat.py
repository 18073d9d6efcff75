"""Between OpenAI's chat API and ours: arguments in, ``ChatCompletion`` out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optllm_router._errors import ConfigurationError, InvalidRequestError
from optllm_router._flow import Answer
from optllm_router._money import usd_from_nano
from optllm_router._types import Messages
from optllm_router.config import read_policy
from optllm_router.policy import Policy
from optllm_router.router import Query

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

_MOST_MESSAGES = 10_000
_MOST_BYTES = 20_000_000
_MOST_CHOICES = 128
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_PARTS = ("text", "image_url", "refusal")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Prepared:
    """A checked call: what to answer, by whom, under which policy."""

    query: Query
    model: str
    policy: Policy | None


@dataclass(frozen=True)
class RoutingInfo:
    """How an answer was made: ``answer.optllm``.

    Attributes:
        decision_id: what ``feedback.create`` takes; also the answer's ``id``.
        candidate: who answered.
        p: predicted probability that this candidate's answer is right, 0..1.
        std: uncertainty of ``p``.
        expected_cost_usd: what the call was expected to cost.
        cost_usd: what it cost.
        cost_nano: the same, exact, in nano-dollars.
        cost_estimated: True when the provider did not count tokens; the cost is then the most
            that the call can have cost.
        propensity: probability with which the policy chose the candidate.
        price: shadow price in successes per USD.
        reason: why this candidate, in one sentence.
        latency_seconds: from sending to the whole answer.
        provider_id: the provider's own id of the completion.
    """

    decision_id: str
    candidate: str
    p: float
    std: float
    expected_cost_usd: float
    cost_usd: float
    cost_nano: int
    cost_estimated: bool
    propensity: float
    price: float
    reason: str
    latency_seconds: float
    provider_id: str


def prepare(
    messages: Any, model: Any, arguments: Mapping[str, Any], default_timeout: float
) -> Prepared:
    """Check the arguments of ``chat.completions.create`` and take them apart.

    Raises:
        InvalidRequestError: names the argument, its value and the remedy.
    """
    given = {name: value for name, value in arguments.items() if not _not_given(value)}
    if given.pop("stream", None):
        raise InvalidRequestError("stream=True is not supported yet; leave it out")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(f"model {model!r} must be 'auto' or a configured model's name")
    checked = _checked_messages(messages)
    bound = _bound(given)
    timeout = given.pop("timeout", None)
    policy = _own_settings(given)
    choices = _choices(given.get("n"))
    query = Query.from_messages(
        checked,
        parameters=given,
        max_output_tokens=bound,
        choices=choices,
        timeout_seconds=_seconds(timeout, default_timeout),
    )
    size = query.call.prompt_bytes
    if size > _MOST_BYTES:
        raise InvalidRequestError(
            f"the messages have {size} bytes; at most {_MOST_BYTES} are taken"
        )
    return Prepared(query, model, policy)


def chat_completion(answer: Answer) -> ChatCompletion:
    """The answer as OpenAI's type, with ``id`` the decision's and ``optllm`` how it was made."""
    from openai.types.chat import ChatCompletion

    body = {key: value for key, value in answer.completion.body.items() if value is not None}
    provider_id = str(body.get("id", ""))
    decision = answer.decision
    body.update(id=decision.id, object="chat.completion")
    body.setdefault("model", answer.candidate.model)
    completion = ChatCompletion.model_construct(**body)
    info = RoutingInfo(
        decision_id=decision.id,
        candidate=answer.candidate.name,
        p=decision.p,
        std=decision.std,
        expected_cost_usd=usd_from_nano(decision.expected_cost_nano),
        cost_usd=usd_from_nano(answer.cost_nano),
        cost_nano=answer.cost_nano,
        cost_estimated=answer.usage.estimated,
        propensity=decision.propensity,
        price=decision.price,
        reason=decision.reason,
        latency_seconds=answer.latency_seconds,
        provider_id=provider_id,
    )
    completion.optllm = info  # type: ignore[attr-defined]
    return completion


def _not_given(value: Any) -> bool:
    """Whether this is one of openai's marks for an argument that was left out."""
    kind = type(value)
    from_openai = kind.__module__.partition(".")[0] == "openai"
    return from_openai and kind.__name__ in ("NotGiven", "Omit")


def _checked_messages(messages: Any) -> Messages:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequestError(
            f"messages is {type(messages).__name__}; pass a list, like "
            "[{'role': 'user', 'content': 'Hello'}]"
        )
    if not 1 <= len(messages) <= _MOST_MESSAGES:
        raise InvalidRequestError(
            f"messages has {len(messages)} entries; between 1 and {_MOST_MESSAGES} are taken"
        )
    for position, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise InvalidRequestError(
                f"messages[{position}] has role {role!r}; use one of {', '.join(_ROLES)}"
            )
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in _PARTS:
                raise InvalidRequestError(
                    f"messages[{position}] has a part of type {kind!r}, whose cost cannot be "
                    f"bounded yet; use {', '.join(_PARTS)}"
                )
        if not isinstance(content, (str, list, tuple, type(None))):
            raise InvalidRequestError(
                f"messages[{position}].content must be text or a list of parts, not "
                f"{type(content).__name__}"
            )
        if isinstance(content, str) and _HALF_CHARACTER.search(content):
            raise InvalidRequestError(
                f"messages[{position}].content holds half a surrogate pair, which UTF-8 cannot "
                "carry; remove it"
            )
    return tuple(messages)


def _bound(given: dict[str, Any]) -> int | None:
    bounds: list[int | None] = [
        given.pop(name, None) for name in ("max_completion_tokens", "max_tokens")
    ]
    for bound in bounds:
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            raise InvalidRequestError(f"max_tokens {bound!r} must be a whole number")
        if bound is not None and bound < 1:
            raise InvalidRequestError(f"max_tokens {bound!r} must be 1 or more")
    return bounds[0] if bounds[0] is not None else bounds[1]


def _own_settings(given: dict[str, Any]) -> Policy | None:
    body = given.get("extra_body")
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise InvalidRequestError(f"extra_body must be a mapping, not {type(body).__name__}")
    theirs = {key: value for key, value in body.items() if key != "optllm"}
    for name in ("n", "max_tokens", "max_completion_tokens"):
        if name in theirs:
            raise InvalidRequestError(f"extra_body sets {name}; pass {name}= where it is budgeted")
    given.pop("extra_body")
    if theirs:
        given["extra_body"] = theirs
    ours = body.get("optllm", {})
    if not isinstance(ours, Mapping) or set(ours) - {"policy"}:
        raise InvalidRequestError(f"extra_body['optllm'] is {ours!r}; it takes {{'policy': ...}}")
    try:
        return read_policy(ours["policy"]) if "policy" in ours else None
    except ConfigurationError as error:
        raise InvalidRequestError(str(error)) from None


def _choices(n: Any) -> int:
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MOST_CHOICES:
        raise InvalidRequestError(f"n {n!r} must be a whole number from 1 to {_MOST_CHOICES}")
    return n


def _seconds(timeout: Any, default: float) -> float:
    if timeout is None:
        return default
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < math.inf:
        raise InvalidRequestError(f"timeout {timeout!r} must be a finite number of seconds over 0")
    return float(timeout)
