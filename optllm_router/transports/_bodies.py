"""Reading what an OpenAI-compatible endpoint sends: whole answers, and streams of chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optllm_router._types import Call, Candidate, Chunk, Completion
from optllm_router.transports._faults import BROKEN_OFF, NO_ANSWER, fault_of_error, message_in
from optllm_router.transports._sse import EventDecoder
from optllm_router.transports._usage import read_usage

_END = "[DONE]"


def read_completion(
    data: bytes, headers: Mapping[str, str], candidate: Candidate, call: Call
) -> Completion:
    """A whole answer.

    Raises:
        ProviderError: it is none, or says that there is an error.
        ValueError: it is no JSON.
    """
    body = json.loads(data)
    _raise_error_in(body, candidate)
    if call.operation == "embedding":
        if not _are_mappings(body, "data") or not all("embedding" in one for one in body["data"]):
            raise NO_ANSWER.of(candidate)
        usage = read_usage(body.get("usage"), answered=False, headers=headers)
        return Completion(body, usage)
    if not _are_mappings(body, "choices") or not all(
        isinstance(choice.get("message"), Mapping) for choice in body["choices"]
    ):
        raise NO_ANSWER.of(candidate)
    answered = says_something(choice["message"] for choice in body["choices"])
    return Completion(body, read_usage(body.get("usage"), answered=answered, headers=headers))


def says_something(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any message, or delta of one, has text or calls a tool."""
    return any(message.get("content") or message.get("tool_calls") for message in messages)


def texts_in(delta: Mapping[str, Any]) -> Iterator[str]:
    """The texts in a delta that a model made, which are what it is paid for."""
    calls = [*(delta.get("tool_calls") or ()), {"function": delta.get("function_call")}]
    made = [call.get("function") or call.get("custom") or {} for call in calls]
    texts = [delta.get("content"), delta.get("refusal")]
    texts.append(reasoning_in(delta))
    texts += [call.get(part) for call in made for part in ("name", "arguments", "input")]
    return (text for text in texts if text)


def reasoning_in(delta: Mapping[str, Any]) -> Any:
    """Two names of the same text, which OpenRouter and vLLM send; some send both."""
    return delta.get("reasoning_content") or delta.get("reasoning")


def is_answer(chunk: Chunk) -> bool:
    """Whether there is a token in it, or the end of an answer that has none."""
    return any(
        choice.get("finish_reason") or any(texts_in(choice.get("delta") or {}))
        for choice in chunk.body.get("choices") or ()
    )


class ChunkReader:
    """Turns the bytes of a stream into chunks.

    Args:
        headers: of the response.
        candidate: who answers.
        most_bytes: the most that one event may have.

    Attributes:
        begun: whether there was a chunk; what comes after it was billed.
        ended: whether the provider said that this is the end.
    """

    def __init__(self, headers: Mapping[str, str], candidate: Candidate, most_bytes: int) -> None:
        self.begun = False
        self.ended = False
        self._headers = headers
        self._candidate = candidate
        self._decoder = EventDecoder(most_bytes)
        self._answered = False
        self._unfinished: set[Any] = set()
        self._finished: set[Any] = set()

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that these bytes complete.

        Raises:
            ProviderError: the provider says that there is an error, or sends no chunk.
            ValueError: it sends no JSON.
        """
        if self.ended:
            return
        for event in self._decoder.feed(data):
            if event == _END:
                self.ended = True
                return
            yield self._chunk(json.loads(event))

    def finish(self) -> None:
        """Check, once the connection is at its end, that the answer is.

        Raises:
            ProviderError: it is not.
        """
        if not self.begun:
            raise NO_ANSWER.of(self._candidate)
        if self._unfinished or not self._finished:
            raise BROKEN_OFF.of(self._candidate, "there is no end to its answer")

    def _chunk(self, body: Any) -> Chunk:
        _raise_error_in(body, self._candidate)
        choices = body.get("choices") if isinstance(body, Mapping) else None
        if choices is None and isinstance(body, Mapping) and body.get("usage"):
            choices = []
        if not isinstance(choices, list) or not all(map(_is_piece, choices)):
            raise NO_ANSWER.of(self._candidate)
        for choice in choices:
            index = choice.get("index", 0)
            if choice.get("finish_reason"):
                self._finished.add(index)
                self._unfinished.discard(index)
            elif index not in self._finished:
                self._unfinished.add(index)
        self._answered = self._answered or says_something(c.get("delta") or {} for c in choices)
        self.begun = True
        usage = None
        if body.get("usage"):
            usage = read_usage(body["usage"], answered=self._answered, headers=self._headers)
        return Chunk({**body, "choices": choices}, usage)


def _is_piece(choice: Any) -> bool:
    return isinstance(choice, Mapping) and isinstance(choice.get("delta"), Mapping | None)


def _are_mappings(body: Any, name: str) -> bool:
    items = body.get(name) if isinstance(body, Mapping) else None
    return isinstance(items, list) and bool(items) and all(isinstance(i, Mapping) for i in items)


def _raise_error_in(body: Any, candidate: Candidate) -> None:
    if isinstance(body, Mapping) and body.get("error"):
        fault, status = fault_of_error(body["error"])
        raise fault.of(candidate, message_in(body), status=status, error=body["error"])
