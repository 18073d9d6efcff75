"""Tokens counted by ourselves, where a provider did not: of streams that ended early.

The count is an estimate. For models that litellm knows it is taken with the one vocabulary that
every version of litellm carries (``cl100k_base``): another might be fetched over the network.
Of other models, and where litellm was not loaded to send the call, only a bound is known: a token
covers a byte or more.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Container
from typing import Any

from optllm_router._types import Call, Candidate, Usage

_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_REQUEST = 3
"""What chat templates add, as OpenAI states it for its own."""
_CHARACTERS_AT_ONCE = 4096
"""Longer texts are counted in parts: long runs without a space take the tokenizer very long."""


def count_usage(candidate: Candidate, call: Call, answered: str) -> Usage:
    """Count a prompt and an answer; the first time it loads a vocabulary (about 0.3 s).

    Args:
        candidate: who was asked.
        call: what was asked. A prompt that is more than text counts with its upper bound.
        answered: what was delivered.
    """
    known: Container[str] = ()
    if "litellm" in sys.modules:
        known = importlib.import_module("litellm").model_cost  # waits where a thread is still at it
    if candidate.model not in known and candidate.model.rpartition("/")[2] not in known:
        size = len(answered.encode("utf-8", "surrogatepass"))
        return Usage(call.most_prompt_tokens + candidate.hidden_prompt_tokens, size, estimated=True)
    texts = [message.get("content") for message in call.messages]
    prompt = call.most_prompt_tokens
    if all(isinstance(text, str) for text in texts):
        extras = [call.parameters.get(name) for name in ("tools", "functions", "response_format")]
        texts += [json.dumps(extra, ensure_ascii=False) for extra in extras if extra]
        prompt = _TOKENS_PER_MESSAGE * len(texts) + _TOKENS_PER_REQUEST + sum(map(_tokens, texts))
    return Usage(prompt + candidate.hidden_prompt_tokens, _tokens(answered), estimated=True)


def _tokens(text: Any) -> int:
    vocabulary = importlib.import_module("litellm.litellm_core_utils.default_encoding").encoding
    parts = range(0, len(text), _CHARACTERS_AT_ONCE)
    return sum(
        len(vocabulary.encode(text[start : start + _CHARACTERS_AT_ONCE], disallowed_special=()))
        for start in parts
    )
