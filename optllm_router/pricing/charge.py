"""Usage to nano-dollars, and the most that a call can cost before it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from optllm_router._types import Candidate, Message, Messages, Price, Rates, Usage
from optllm_router.pricing.sound import most_sound_tokens

_TOKENS_PER_MESSAGE = 16
"""Upper bound on what chat templates add around one message (role, separators)."""
_TOKENS_PER_REQUEST = 64
"""Upper bound on what they add once (preamble, reply header)."""
_TOKENS_FOR_TOOLS = 1024
"""Upper bound on the instructions that providers add when there are tools."""

_TOKENS_PER_IMAGE = 65_536
"""Upper bound on one image. gpt-4o-mini is the dearest in tokens: 2,833 plus 5,667 for each of at
most 8 tiles (OpenAI's vision guide), 48,169 in all."""


def charge_nano(price: Price, usage: Usage) -> int:
    """What the provider charges for this usage, in nano-dollars, rounded up to a whole one.

    A cost that the provider reports itself is what it charges, even when it is over the worst
    case: it was spent. Otherwise each kind of token has its rate. Sound counts as such even when
    it was cached. Of the rates that hold for a prompt of this length the dearest counts, so
    that a longer prompt never costs less: :func:`worst_case_nano` holds for any usage within its
    bounds.
    """
    if usage.reported_nano is not None:
        return usage.reported_nano
    rates = rates_at(price, usage.prompt_tokens)
    tokens = _by_kind(usage, sound=price.audio is not None)
    return math.ceil(price.request + sum(rates[kind] * n for kind, n in tokens.items() if n))


def rates_at(price: Price, prompt_tokens: float) -> dict[str, Decimal]:
    """Nano-dollars per token of each kind, when the prompt has so many tokens.

    The keys are those attributes of ``Rates``.

    >>> price = Price(Decimal(2), Decimal(8), "list", cached=Decimal(1))
    >>> {kind: int(rate) for kind, rate in rates_at(price, 10).items()}
    {'prompt': 2, 'cached': 1, 'cache_write': 2, 'audio': 2, 'completion': 8, 'reasoning': 8}
    """
    rates = _rates(price)
    for tier in price.tiers:
        if prompt_tokens > tier.above_tokens:
            dear = _rates(tier)
            rates = {kind: max(rate, dear[kind]) for kind, rate in rates.items()}
    return rates


def _rates(rates: Rates) -> dict[str, Decimal]:
    def or_else(rate: Decimal | None, other: Decimal) -> Decimal:
        return other if rate is None else rate

    return {
        "prompt": rates.prompt,
        "cached": or_else(rates.cached, rates.prompt),
        "cache_write": or_else(rates.cache_write, rates.prompt),
        "audio": or_else(rates.audio, rates.prompt),
        "completion": rates.completion,
        "reasoning": or_else(rates.reasoning, rates.completion),
    }


def _by_kind(usage: Usage, *, sound: bool) -> dict[str, int]:
    """Tokens that are billed as each kind; together they are the prompt's and completion's."""
    audio = min(usage.audio_tokens, usage.prompt_tokens) if sound else 0
    written = min(usage.cache_write_tokens, usage.prompt_tokens - audio)
    cached = min(usage.cached_tokens, usage.prompt_tokens - audio - written)
    reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
    return {
        "prompt": usage.prompt_tokens - audio - written - cached,
        "cached": cached,
        "cache_write": written,
        "audio": audio,
        "completion": usage.completion_tokens - reasoning,
        "reasoning": reasoning,
    }


def size_in_bytes(messages: Messages, extra: Sequence[Any] = ()) -> int:
    """Bytes of UTF-8 text in the messages, and of ``extra`` (tools, schemas) as JSON.

    Images and sounds are not text: they count in :func:`most_prompt_tokens`.
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
    counts with more than any provider known to us charges for one, sound as in
    :func:`most_audio_tokens`.

    Args:
        messages: the conversation.
        size: its bytes, with tools and schemas, see :func:`size_in_bytes`.
        tools: whether the call offers tools.
    """
    template = _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_PER_REQUEST
    images = _TOKENS_PER_IMAGE * sum(map(_images, messages))
    sounds = most_audio_tokens(messages)
    return size + template + images + sounds + (_TOKENS_FOR_TOOLS if tools else 0)


def most_audio_tokens(messages: Messages) -> int:
    """An upper bound on the tokens of all sounds in the prompt, by how long they can play."""
    parts = (part for message in messages for part in _parts(message.get("content")))
    return sum(
        most_sound_tokens(part.get("input_audio"))
        for part in parts
        if part.get("type") == "input_audio"
    )


def worst_usage(
    candidate: Candidate,
    prompt_tokens: int,
    max_output_tokens: int | None,
    n: int = 1,
    *,
    audio_tokens: int = 0,
) -> Usage:
    """The most that a call can consume when its output is bounded, all of the dearest kinds.

    Args:
        candidate: who is asked.
        prompt_tokens: upper bound on the tokens that are sent, see :func:`most_prompt_tokens`.
        max_output_tokens: the caller's bound per choice; ``None`` for the candidate's.
        n: number of choices asked for.
        audio_tokens: upper bound on those of the prompt that are of sound.
    """
    prompt = prompt_tokens + candidate.hidden_prompt_tokens
    completion = (max_output_tokens or candidate.max_output_tokens) * n
    rates = rates_at(candidate.price, prompt)
    dearest = max(("prompt", "cached", "cache_write"), key=rates.__getitem__)
    told_apart = candidate.price.audio is not None  # else sound is billed as any other token
    sound = min(audio_tokens, prompt) if told_apart and rates["audio"] > rates[dearest] else 0
    rest = prompt - sound
    return Usage(
        prompt,
        completion,
        estimated=True,
        cached_tokens=rest if dearest == "cached" else 0,
        cache_write_tokens=rest if dearest == "cache_write" else 0,
        reasoning_tokens=completion if rates["reasoning"] > rates["completion"] else 0,
        audio_tokens=sound,
    )


def worst_case_nano(
    candidate: Candidate,
    prompt_tokens: int,
    max_output_tokens: int | None,
    n: int = 1,
    *,
    audio_tokens: int = 0,
) -> int:
    """The most that a call can cost, in nano-dollars; arguments as for :func:`worst_usage`.

    A provider that reports a higher cost, or counts more tokens than were bounded, is recorded
    in full when the call is settled.
    """
    usage = worst_usage(candidate, prompt_tokens, max_output_tokens, n, audio_tokens=audio_tokens)
    return charge_nano(candidate.price, usage)


def _texts(message: Message) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in _parts(content):
        if part.get("type") not in ("image_url", "input_audio"):
            yield json.dumps(part, ensure_ascii=False, default=str)


def _images(message: Message) -> int:
    return sum(part.get("type") == "image_url" for part in _parts(message.get("content")))


def _parts(content: Any) -> list[Mapping[str, Any]]:
    if not isinstance(content, (list, tuple)):
        return []
    return [part for part in content if isinstance(part, Mapping)]


def _json_bytes(value: Mapping[str, Any] | Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
