"""What is asked, as the router looks at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optllm_router._types import Call, Messages
from optllm_router.capabilities import needs
from optllm_router.features import query_text
from optllm_router.pricing import most_audio_tokens, most_prompt_tokens, size_in_bytes
from optllm_router.store import Partner


@dataclass(frozen=True)
class Query:
    """What the router needs to know of one request.

    Attributes:
        text: what a person asked, see ``optllm_router.features.query_text``.
        call: what would be sent.
        conversation: the caller's name of the conversation, where it gives one.
        partner: who answered the turn before.
        scopes: what the call belongs to: budgets on one of these, or on everything, pay for it.
    """

    text: str
    call: Call
    conversation: str | None = None
    partner: Partner | None = None
    scopes: tuple[str, ...] = ()

    @classmethod
    def from_messages(
        cls,
        messages: Messages,
        *,
        parameters: Mapping[str, Any] | None = None,
        max_output_tokens: int | None = None,
        choices: int = 1,
        timeout_seconds: float = 600.0,
        streamed: bool = False,
        required_tags: Iterable[str] = (),
        forbidden_tags: Iterable[str] = (),
        conversation: str | None = None,
        max_retries: int | None = None,
        scopes: tuple[str, ...] = (),
    ) -> Query:
        """Measure a conversation.

        Args:
            messages: the conversation, as OpenAI's API takes it.
            parameters: further arguments of the API.
            max_output_tokens: bound on each choice, where the caller set one.
            choices: how many answers are asked for.
            timeout_seconds: how long the answer may take, all candidates and retries together.
            streamed: whether the answer is wanted as it is made.
            required_tags: what a candidate's tags must include.
            forbidden_tags: what they must not include.
            conversation: the caller's name of the conversation, where it gives one.
            max_retries: repetitions of a call that a provider could not serve; ``None`` for
                the client's setting.
            scopes: what the call belongs to.
        """
        parameters = parameters or {}
        tools = [parameters.get(name) for name in ("tools", "functions")]
        size = size_in_bytes(messages, [*tools, parameters.get("response_format")])
        call = Call(
            messages=messages,
            parameters=parameters,
            max_output_tokens=max_output_tokens,
            choices=choices,
            timeout_seconds=timeout_seconds,
            prompt_bytes=size,
            # litellm turns a schema into a tool for providers that know no schemas.
            most_prompt_tokens=most_prompt_tokens(
                messages, size, tools=any([*tools, parameters.get("response_format")])
            ),
            most_audio_tokens=most_audio_tokens(messages),
            needs=needs(messages, parameters, streamed=streamed),
            required_tags=frozenset(required_tags),
            forbidden_tags=frozenset(forbidden_tags),
            max_retries=max_retries,
            scopes=scopes,
        )
        return cls(query_text(messages), call, conversation, scopes=scopes)
