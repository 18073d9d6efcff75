"""Usage to nano-dollars, and the most that a call can cost before it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optllm_router._types import Candidate, Messages, Price, Usage

_TOKENS_PER_MESSAGE = 16
"""Upper bound on what chat templates add around one message (role, separators)."""
_TOKENS_PER_REQUEST = 64
"""Upper bound on what they add once (preamble, reply header)."""
_TOKENS_FOR_TOOLS = 1024
"""Upper bound on the instructions that providers add when there are tools."""


def charge_nano(price: Price, usage: Usage) -> int:
    """What the provider charges for this usage, in nano-dollars, rounded up to a whole one."""
    return math.ceil(
        price.prompt * usage.prompt_tokens + price.completion * usage.completion_tokens
    )


def size_in_bytes(messages: Messages, extra: Sequence[Any] = ()) -> int:
    """Bytes of UTF-8 text in the messages, and of ``extra`` (tools, schemas) as JSON."""
    total = 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            total += len(content.encode("utf-8", "surrogatepass"))
        rest = {key: value for key, value in message.items() if key not in ("content", "role")}
        if not isinstance(content, str) and content is not None:
            rest["content"] = content
        if rest:
            total += _json_bytes(rest)
    return total + sum(_json_bytes(item) for item in extra if item is not None)


def most_prompt_tokens(messages: Messages, size: int, *, tools: bool) -> int:
    """An upper bound on the prompt's tokens, with no tokenizer: a token covers a byte or more.

    Holds for text with every byte-level BPE vocabulary, plus what chat templates add.

    Args:
        messages: the conversation.
        size: its bytes, with tools and schemas, see :func:`size_in_bytes`.
        tools: whether the call offers tools.
    """
    template = _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_PER_REQUEST
    return size + template + (_TOKENS_FOR_TOOLS if tools else 0)


def worst_usage(
    candidate: Candidate, prompt_tokens: int, max_output_tokens: int | None, n: int = 1
) -> Usage:
    """The most that a call can consume when its output is bounded.

    Args:
        candidate: who is asked.
        prompt_tokens: upper bound on the tokens that are sent, see :func:`most_prompt_tokens`.
        max_output_tokens: the caller's bound per choice; ``None`` for the candidate's.
        n: number of choices asked for.
    """
    prompt = prompt_tokens + candidate.hidden_prompt_tokens
    bound = max_output_tokens or candidate.max_output_tokens
    return Usage(prompt, bound * n, estimated=True)


def worst_case_nano(
    candidate: Candidate, prompt_tokens: int, max_output_tokens: int | None, n: int = 1
) -> int:
    """The most that a call can cost, in nano-dollars; arguments as for :func:`worst_usage`."""
    usage = worst_usage(candidate, prompt_tokens, max_output_tokens, n)
    return charge_nano(candidate.price, usage)


def _json_bytes(value: Mapping[str, Any] | Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
