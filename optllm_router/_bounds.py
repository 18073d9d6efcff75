"""How long an answer may get, where the caller does not say."""

from __future__ import annotations

from optllm_router._types import Call, Candidate

BYTES_PER_TOKEN = 4
"""English has a little over four bytes per token, everything else fewer: what is too long by this
count is too long. What is too long only by the provider's is refused there, and falls back."""
_FEWEST_BYTES_PER_TOKEN = 3
"""Of a prompt that is hard on its tokenizer, as code is."""
LEAST_ANSWER_TOKENS = 16
"""An answer that is worth a prompt."""


def bound_on_answer(candidate: Candidate, call: Call) -> int:
    """The most tokens of each choice: the caller's bound, else the candidate's, within its context.

    Providers refuse a bound that prompt and context leave no room for. How long a prompt is to
    them is not known. The cautious count may leave little, but at least half of what the usual
    count leaves, as what a bound cuts off is lost.

    >>> from decimal import Decimal
    >>> from optllm_router._types import Price
    >>> price = Price(Decimal(1), Decimal(1), "list")
    >>> small = Candidate("small", "x/small", price, 4096, context_tokens=8192)
    >>> [bound_on_answer(small, Call([], prompt_bytes=size)) for size in (1200, 18_000, 30_000)]
    [4096, 2192, 346]
    """
    bound, context = call.max_output_tokens, candidate.context_tokens
    if bound is not None:
        return bound
    if context is None:
        return candidate.max_output_tokens
    most = -(-call.prompt_bytes // _FEWEST_BYTES_PER_TOKEN) + candidate.hidden_prompt_tokens
    half = (context - call.prompt_bytes // BYTES_PER_TOKEN) // 2
    room = max(context - most, half, LEAST_ANSWER_TOKENS)
    return min(candidate.max_output_tokens, room)
