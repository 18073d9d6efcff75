"""Usage to nano-dollars, and the most that a call can cost before it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optllm_router._types import Messages, Price, Usage

_TOKENS_PER_MESSAGE = 16
"""Upper bound on what chat templates add around one message (role, separators)."""
_TOKENS_PER_REQUEST = 64
"""Upper bound on what they add once (preamble, reply header)."""


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


def most_prompt_tokens(messages: Messages, size: int) -> int:
    """An upper bound on the prompt's tokens, with no tokenizer: a token covers a byte or more.

    Holds for text with every byte-level BPE vocabulary, plus what chat templates add.
    """
    return size + _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_PER_REQUEST


def worst_case_nano(price: Price, prompt_tokens: int, max_output_tokens: int, n: int = 1) -> int:
    """The most that a call can cost, in nano-dollars, when its output is bounded.

    Args:
        price: what the candidate charges.
        prompt_tokens: upper bound on the prompt's tokens.
        max_output_tokens: the bound that is sent with the call, per choice.
        n: number of choices asked for.
    """
    return charge_nano(price, Usage(prompt_tokens, max_output_tokens * n))


def _json_bytes(value: Mapping[str, Any] | Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
