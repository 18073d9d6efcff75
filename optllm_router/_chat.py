"""Between OpenAI's chat API and ours: arguments in, ``ChatCompletion`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optllm_router._arguments import (
    check_names,
    check_values,
    checked_choices,
    checked_seconds,
    given_arguments,
    take_bound,
    take_switches,
)
from optllm_router._errors import InvalidRequestError
from optllm_router._messages import checked_messages
from optllm_router._money import usd_from_nano
from optllm_router._options import Options, call_policy, read_call_options
from optllm_router._steps import Answer
from optllm_router.router import Query

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

_MOST_BYTES = 20_000_000


@dataclass(frozen=True)
class Prepared:
    """A checked call: what to answer, by whom (``auto`` for who is best), with which options."""

    query: Query
    model: str
    options: Options


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
    messages: Any,
    model: Any,
    arguments: Mapping[str, Any],
    options: Options,
    default_timeout: float,
) -> Prepared:
    """Check the arguments of ``chat.completions.create`` and take them apart.

    Args:
        messages: the conversation.
        model: ``auto``, ``auto:POLICY``, or a candidate's name.
        arguments: the others.
        options: those of the client; the call's own narrow them.
        default_timeout: seconds, where neither the call nor the client sets a time limit.

    Raises:
        InvalidRequestError: names the argument, its value and the remedy.
    """
    given = given_arguments(arguments)
    if given.pop("stream", None):
        raise InvalidRequestError("stream=True is not supported yet; leave it out")
    check_names(given)
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(
            f"model {model!r} must be 'auto', 'auto:POLICY' or a configured model's name"
        )
    checked = checked_messages(messages)
    bound = take_bound(given)
    timeout = checked_seconds(given.pop("timeout", None))
    own = replace(read_call_options(take_switches(given)), timeout_seconds=timeout)
    auto, _, policy = model.partition(":")
    if auto == "auto" and policy:
        model, own = auto, replace(own, policy=call_policy(policy))
    options = options.narrowed(own)
    choices = checked_choices(given.get("n"))
    check_values(given)
    query = Query.from_messages(
        checked,
        parameters=given,
        max_output_tokens=bound,
        choices=choices,
        timeout_seconds=options.timeout_seconds or default_timeout,
        required_tags=options.require_tags,
        conversation=_conversation(options),
    )
    size = query.call.prompt_bytes
    if size > _MOST_BYTES:
        raise InvalidRequestError(
            f"the messages have {size} bytes; at most {_MOST_BYTES} are taken"
        )
    return Prepared(query, model, options)


def _conversation(options: Options) -> str | None:
    """A conversation's name, which is that of another one for another tenant or user."""
    if options.conversation is None:
        return None
    return "\n".join([*options.scopes, options.conversation])


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
