"""Usage to nano-dollars, and the most that a call can cost before it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optllm_router._types import Candidate, Message, Messages, Price, Usage

_TOKENS_PER_MESSAGE = 16
"""Upper bound on what chat templates add around one message (role, separators)."""
_TOKENS_PER_REQUEST = 64
"""Upper bound on what they add once (preamble, reply header)."""
_TOKENS_FOR_TOOLS = 1024
"""Upper bound on the instructions that providers add when there are tools."""

_TOKENS_PER_IMAGE = 65_536
"""Upper bound on one image. gpt-4o-mini is the dearest in tokens: 2,833 plus 5,667 for each of at
most 8 tiles (OpenAI's vision guide), 48,169 in all."""


@dataclass(frozen=True)
class Tier:
    """What all tokens of a call cost once its prompt is long.

    Attributes:
        above_tokens: holds for prompts of more tokens than this.
        prompt: nano-dollars per prompt token, exact.
        completion: nano-dollars per completion token, exact.
    """

    above_tokens: int
    prompt: Decimal
    completion: Decimal


@dataclass(frozen=True)
class TieredPrice(Price):
    """A price that rises with the length of the prompt.

    Attributes:
        tiers: the rates for long prompts, in any order.
    """

    tiers: tuple[Tier, ...] = ()


def charge_nano(price: Price, usage: Usage) -> int:
    """What the provider charges for this usage, in nano-dollars, rounded up to a whole one.

    Of the rates that hold for a prompt of this length the dearest counts, so that more tokens
    never cost less: what is charged for the most that a call can consume is its worst case.
    """
    tiers = price.tiers if isinstance(price, TieredPrice) else ()
    reached = [tier for tier in tiers if usage.prompt_tokens > tier.above_tokens]
    prompt = max([price.prompt, *(tier.prompt for tier in reached)])
    completion = max([price.completion, *(tier.completion for tier in reached)])
    return math.ceil(prompt * usage.prompt_tokens + completion * usage.completion_tokens)


def size_in_bytes(messages: Messages, extra: Sequence[Any] = ()) -> int:
    """Bytes of UTF-8 text in the messages, and of ``extra`` (tools, schemas) as JSON.

    Images are not text: they count in :func:`most_prompt_tokens`.
    """
    total = sum(_json_bytes(item) for item in extra if item is not None)
    for message in messages:
        total += sum(len(part.encode("utf-8", "surrogatepass")) for part in _texts(message))
        rest = {key: value for key, value in message.items() if key not in ("content", "role")}
        if rest:
            total += _json_bytes(rest)
    return total


def most_prompt_tokens(messages: Messages, size: int, *, tools: bool) -> int:
    """An upper bound on the prompt's tokens, with no tokenizer: a token covers a byte or more.

    Holds for text with every byte-level BPE vocabulary, plus what chat templates add. An image
    counts with more than any provider known to us charges for one.

    Args:
        messages: the conversation.
        size: its bytes, with tools and schemas, see :func:`size_in_bytes`.
        tools: whether the call offers tools.
    """
    template = _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_PER_REQUEST
    images = _TOKENS_PER_IMAGE * sum(map(_images, messages))
    return size + template + images + (_TOKENS_FOR_TOOLS if tools else 0)


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


def _texts(message: Message) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in _parts(content):
        if part.get("type") != "image_url":
            yield json.dumps(part, ensure_ascii=False, default=str)


def _images(message: Message) -> int:
    return sum(part.get("type") == "image_url" for part in _parts(message.get("content")))


def _parts(content: Any) -> list[Mapping[str, Any]]:
    if not isinstance(content, (list, tuple)):
        return []
    return [part for part in content if isinstance(part, Mapping)]


def _json_bytes(value: Mapping[str, Any] | Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
