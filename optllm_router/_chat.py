"""Between OpenAI's chat API and ours: arguments in, ``ChatCompletion`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from optllm_router._arguments import (
    check_names,
    check_values,
    checked_choices,
    drop_harmless,
    given_arguments,
    take_bound,
    take_switches,
)
from optllm_router._errors import InvalidRequestError
from optllm_router._messages import checked_messages
from optllm_router._nearest import quoted
from optllm_router._options import Options, call_policy, narrowed_by_call
from optllm_router._query import Query
from optllm_router._routing import routing_info
from optllm_router._steps import Answer
from optllm_router.config import Settings

if TYPE_CHECKING:
    from openai import BaseModel
    from openai.types.chat import ChatCompletion

    M = TypeVar("M", bound=BaseModel)

_MOST_BYTES = 20_000_000


@dataclass(frozen=True)
class Prepared:
    """A checked call.

    Attributes:
        query: what to answer.
        model: who is to, ``auto`` for who is best.
        options: what is set of ours.
        stream: whether the answer is wanted as it is made.
        include_usage: whether its last chunk is to tell the tokens.
    """

    query: Query
    model: str
    options: Options
    stream: bool = False
    include_usage: bool = False


def prepare(
    messages: Any,
    model: Any,
    arguments: Mapping[str, Any],
    options: Options,
    settings: Settings,
) -> Prepared:
    """Check the arguments of ``chat.completions.create`` and take them apart.

    Args:
        messages: the conversation.
        model: ``auto``, ``auto:POLICY``, or a candidate's name.
        arguments: the others.
        options: those of the client; the call's own narrow them.
        settings: of the client: its time limit, and its named policies.

    Raises:
        InvalidRequestError: names the argument, its value and the remedy.
    """
    given = given_arguments(arguments)
    drop_harmless(given)
    check_names(given)
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(
            f"model {quoted(model)} must be 'auto', 'auto:POLICY' or a configured model's name",
            param="model",
        )
    checked = checked_messages(messages)
    bound = take_bound(given)
    ours, timeout, policies = take_switches(given), given.pop("timeout", None), settings.policies
    options = narrowed_by_call(options, ours, timeout, policies)
    auto, _, policy = model.partition(":")
    if auto == "auto" and policy:
        model, options = auto, replace(options, policy=call_policy(policy, policies, "model"))
    choices = checked_choices(given.get("n"))
    check_values(given)
    stream, stream_options = bool(given.pop("stream", None)), given.pop("stream_options", None)
    if stream_options is not None and not stream:
        raise InvalidRequestError(
            "stream_options are given, but stream=True is not", param="stream_options"
        )
    query = Query.from_messages(
        checked,
        parameters=given,
        max_output_tokens=bound,
        choices=choices,
        timeout_seconds=options.timeout_seconds or settings.timeout_seconds,
        streamed=stream,
        required_tags=options.require_tags,
        forbidden_tags=options.forbid_tags,
        conversation=options.conversation,
        max_retries=options.max_retries,
        scopes=options.scopes,
    )
    size = query.call.prompt_bytes
    if size > _MOST_BYTES:
        raise InvalidRequestError(
            f"the messages have {size} bytes; at most {_MOST_BYTES} are taken", param="messages"
        )
    include_usage = bool((stream_options or {}).get("include_usage"))
    return Prepared(query, model, options, stream, include_usage)


def completion_body(answer: Answer) -> dict[str, Any]:
    """The answer as JSON values, with ``id`` the decision's."""
    body = {key: value for key, value in answer.completion.body.items() if value is not None}
    body.update(id=answer.decision.id, object="chat.completion")
    body.setdefault("model", answer.candidate.model)
    return body


def as_openai(kind: type[M], body: Mapping[str, Any]) -> M:
    """What openai's client makes of a body: all values as they came, whether or not they fit.

    openai goes through them one by one, in Python; where all fit, pydantic does the same in a
    twentieth of the time.
    """
    try:
        return kind.model_validate(body, strict=True)
    except ValueError:
        return kind.model_construct(**body)


def chat_completion(answer: Answer) -> ChatCompletion:
    """The answer as OpenAI's type, with ``optllm`` telling how it was made."""
    from openai.types.chat import ChatCompletion

    completion = as_openai(ChatCompletion, completion_body(answer))
    provider_id = str(answer.completion.body.get("id") or "")
    completion.optllm = routing_info(answer, provider_id)  # type: ignore[attr-defined]
    completion._request_id = answer.decision.id
    return completion
