"""What a simulated model says to a request, before anybody sends it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from optllm_router._types import Usage
from optllm_router.simulation.replies import Reply, count_tokens
from optllm_router.simulation.requests import ChatRequest
from optllm_router.simulation.schemas import instance
from optllm_router.simulation.stable_hash import stable_fraction, stable_integer

_ATTACHMENT_TOKENS = 85
_PIECES = re.compile(r"\s*(?:\d{1,3}|[^\W\d]+|[^\w\s]+)|\s+$")
"""Tokens as they are counted, each with the blanks before it: together they are the text."""
_LEAST_LIKELY = -8.0


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the model writes it.

    Attributes:
        id: made of what is called, so that the same answer has the same one.
        name: of the function.
        arguments: JSON; cut off where the answer was.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """One choice.

    Attributes:
        text: what is said; None when tools are called instead.
        calls: the tools that are called.
        tokens: what is billed for it.
        finish_reason: why it ends.
    """

    text: str | None
    calls: tuple[ToolCall, ...]
    tokens: int
    finish_reason: Literal["stop", "length", "tool_calls"]

    def pieces(self, tokens: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Deltas of a stream, each with the tokens generated once it is sent.

        Args:
            tokens: how many make a piece, >= 1.
        """
        written = 0
        length = sum(map(len, self._parts())) or 1
        for part in self._deltas(tokens):
            written += part[1]
            yield part[0], math.ceil(self.tokens * written / length)

    def _parts(self) -> Iterator[str]:
        yield self.text or ""
        for call in self.calls:
            yield call.name
            yield call.arguments

    def _deltas(self, tokens: int) -> Iterator[tuple[dict[str, Any], int]]:
        opening = None if self.text is None else ""
        yield {"role": "assistant", "content": opening}, 0
        for piece in _grouped(self.text or "", tokens):
            yield {"content": piece}, len(piece)
        for index, call in enumerate(self.calls):
            function = {"name": call.name, "arguments": ""}
            opened = {"index": index, "id": call.id, "type": "function", "function": function}
            yield {"tool_calls": [opened]}, len(call.name)
            for piece in _grouped(call.arguments, tokens):
                written = {"index": index, "function": {"arguments": piece}}
                yield {"tool_calls": [written]}, len(piece)


def answer(request: ChatRequest, reply: Reply) -> Answer:
    """Say ``reply`` in the form and within the bounds that the request wants.

    Raises:
        SchemaError: no arguments can be made for a tool.
    """
    if request.calls:
        return _calling(request, reply)
    if request.schema is not None:
        text = json.dumps(instance(request.schema, _conclusion(reply)))
        reply = Reply(text, reply.prompt_tokens, count_tokens(text))
    stopped = _until(reply, request.stop)
    said = stopped.truncated(request.max_tokens)
    cut = said.completion_tokens < stopped.completion_tokens
    return Answer(said.text, (), said.completion_tokens, "length" if cut else "stop")


def prompt_usage(request: ChatRequest, reply: Reply) -> Usage:
    """What is billed for the prompt."""
    sound = _ATTACHMENT_TOKENS * request.sounds
    images = _ATTACHMENT_TOKENS * request.images
    return Usage(reply.prompt_tokens + images + sound, 0, audio_tokens=sound)


def logprobs(text: str, top: int) -> dict[str, Any]:
    """Plausible log probabilities of a text's tokens: the same text gets the same ones.

    Args:
        text: what is said.
        top: alternatives to each token, the token itself being the first.
    """
    return {"content": [_logprob(token, top) for token in _PIECES.findall(text)], "refusal": None}


def _calling(request: ChatRequest, reply: Reply) -> Answer:
    calls: list[ToolCall] = []
    left = math.inf if request.max_tokens is None else request.max_tokens
    tokens = 0
    for tool in request.calls:
        arguments = json.dumps(instance(tool.parameters, _conclusion(reply)))
        whole = Reply(arguments, 0, count_tokens(tool.name) + count_tokens(arguments))
        if left <= 0:
            return Answer(None, tuple(calls), tokens, "length")
        written = whole.truncated(None if left == math.inf else int(left))
        id = f"call_{stable_integer('call', request.prompt, tool.name, len(calls)):016x}"
        calls.append(ToolCall(id, tool.name, written.text))
        tokens += written.completion_tokens
        left -= written.completion_tokens
        if written is not whole:
            return Answer(None, tuple(calls), tokens, "length")
    return Answer(None, tuple(calls), tokens, "tool_calls")


def _conclusion(reply: Reply) -> str:
    return reply.text.rpartition("Answer: ")[2]


def _until(reply: Reply, stops: tuple[str, ...]) -> Reply:
    """What is said before the first of ``stops``; its tokens keep the text's share."""
    ends = [end for end in map(reply.text.find, stops) if end >= 0]
    if not ends:
        return reply
    share = min(ends) / len(reply.text)
    tokens = math.ceil(reply.completion_tokens * share)
    return Reply(reply.text[: min(ends)], reply.prompt_tokens, tokens)


def _grouped(text: str, tokens: int) -> Iterator[str]:
    pieces = _PIECES.findall(text)
    for start in range(0, len(pieces), tokens):
        yield "".join(pieces[start : start + tokens])


def _logprob(token: str, top: int) -> dict[str, Any]:
    likely = max(math.log(0.5 + 0.5 * stable_fraction("logprob", token)), _LEAST_LIKELY)
    others = [(f"{token}{'~' * rank}", likely - rank) for rank in range(1, top)]
    alternatives = [(token, likely), *others][:top]
    return {
        **_scored(token, likely),
        "top_logprobs": [_scored(other, score) for other, score in alternatives],
    }


def _scored(token: str, logprob: float) -> dict[str, Any]:
    shown = list(token.encode("utf-8", "surrogatepass"))
    return {"token": token, "logprob": logprob, "bytes": shown}
