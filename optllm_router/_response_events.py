"""A stream of chat chunks as the events of OpenAI's Responses API. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optllm_router._responses import (
    finished,
    function_call,
    message_item,
    response_frame,
    response_param,
    text_part,
)

_PARTS = {"content": ("output_text", "text"), "refusal": ("refusal", "refusal")}
"""What of a chunk's ``delta`` is written text, and what it is in a message: its type, its key."""


class ResponseEvents:
    """Turns each chunk into events, and the end into those that close what is open.

    Args:
        request: what was asked.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._frame: dict[str, Any] | None = None
        self._items: list[_Message | _Call] = []
        self._calls: dict[int, _Call] = {}
        self._finish_reason: Any = None
        self._usage: Mapping[str, Any] | None = None
        self._sequence = 0

    def __call__(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        """A chunk's events as they are sent; those of the end for an empty chunk."""
        return map(self._sent, self.feed(chunk) if chunk else self.finish())

    def fault(self, error: Mapping[str, Any]) -> Iterable[bytes]:
        """The end of a stream that broke: openai's clients raise what is under ``error``."""
        error = {**error, "param": response_param(error.get("param"))}
        told = {name: error.get(name) for name in ("code", "message", "param")}
        yield self._sent({"type": "error", **told, "error": error})

    def feed(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of one chunk."""
        if self._frame is None:
            self._frame = response_frame(self._request, chunk)
            for kind in ("created", "in_progress"):
                yield {"type": f"response.{kind}", "response": dict(self._frame)}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            for name, part in _PARTS.items():
                if delta.get(name):
                    logprobs = (choice.get("logprobs") or {}).get("content") or []
                    yield from self._write(part, delta[name], logprobs)
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)

    def finish(self) -> Iterator[dict[str, Any]]:
        """The events of the end."""
        if self._frame is None:  # not a chunk came
            return
        for item in self._items:
            yield from item.done()
        frame = {**self._frame, "output": [item.whole() for item in self._items]}
        response = finished(frame, self._finish_reason, self._usage)
        yield {"type": f"response.{response['status']}", "response": response}

    def _sent(self, event: dict[str, Any]) -> bytes:
        event["sequence_number"] = self._sequence
        self._sequence += 1
        data = json.dumps(event)  # ASCII: readers split at U+2028
        return f"event: {event['type']}\ndata: {data}\n\n".encode()

    def _write(
        self, part: tuple[str, str], text: str, logprobs: list[Any]
    ) -> Iterator[dict[str, Any]]:
        message = next((one for one in self._items if isinstance(one, _Message)), None)
        if message is None:
            message = _Message(f"msg_{self._id}", len(self._items))
            self._items.append(message)
            yield message.added()
        yield from message.write(*part, text, logprobs)

    def _call(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index = delta.get("index", 0)
        call = self._calls.get(index)
        if call is None:
            call = _Call(f"fc_{self._id}_{len(self._calls)}", len(self._items), delta)
            self._calls[index] = call
            self._items.append(call)
            yield call.added()
        yield from call.write(delta)

    @property
    def _id(self) -> str:
        return str(self._frame["id"]) if self._frame else ""


class _Message:
    """An output message that is being written."""

    def __init__(self, id: str, index: int) -> None:
        self._place = {"item_id": id, "output_index": index}
        self._id = id
        self._index = index
        self._parts: list[dict[str, Any]] = []

    def added(self) -> dict[str, Any]:
        item = message_item(self._id, [], "in_progress")
        return {"type": "response.output_item.added", "output_index": self._index, "item": item}

    def write(
        self, kind: str, key: str, text: str, logprobs: list[Any]
    ) -> Iterator[dict[str, Any]]:
        if not self._parts or self._parts[-1]["type"] != kind:
            part: dict[str, Any] = (
                text_part("") if kind == "output_text" else {"type": kind, key: ""}
            )
            self._parts.append(part)
            yield {"type": "response.content_part.added", **self._last(), "part": dict(part)}
        part = self._parts[-1]
        part[key] += text
        event: dict[str, Any] = {"type": f"response.{kind}.delta", **self._last(), "delta": text}
        if kind == "output_text":
            part["logprobs"].extend(logprobs)
            event["logprobs"] = logprobs
        yield event

    def done(self) -> Iterator[dict[str, Any]]:
        for position, part in enumerate(self._parts):
            place = {**self._place, "content_index": position}
            said = {key: value for key, value in part.items() if key not in ("type", "annotations")}
            yield {"type": f"response.{part['type']}.done", **place, **said}
            yield {"type": "response.content_part.done", **place, "part": part}
        yield {
            "type": "response.output_item.done",
            "output_index": self._index,
            "item": self.whole(),
        }

    def whole(self) -> dict[str, Any]:
        return message_item(self._id, self._parts)

    def _last(self) -> dict[str, Any]:
        return {**self._place, "content_index": len(self._parts) - 1}


class _Call:
    """A tool call that is being written."""

    def __init__(self, id: str, index: int, first: Mapping[str, Any]) -> None:
        self._id = id
        self._index = index
        self._kind = "custom" if first.get("type") == "custom" else "function"
        self._key = "input" if self._kind == "custom" else "arguments"
        name = (first.get(self._kind) or {}).get("name")
        self._made = {"name": name, self._key: ""}
        self._call = {"id": first.get("id"), "type": self._kind, self._kind: self._made}

    def added(self) -> dict[str, Any]:
        item = function_call(self._id, self._call, "in_progress")
        return {"type": "response.output_item.added", "output_index": self._index, "item": item}

    def write(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        text = (delta.get(self._kind) or {}).get(self._key)
        if text:
            self._made[self._key] += text
            yield {**self._event("delta"), "delta": text}

    def done(self) -> Iterator[dict[str, Any]]:
        yield {**self._event("done"), **self._made}
        yield {
            "type": "response.output_item.done",
            "output_index": self._index,
            "item": self.whole(),
        }

    def whole(self) -> dict[str, Any]:
        return function_call(self._id, self._call)

    def _event(self, what: str) -> dict[str, Any]:
        stem = "custom_tool_call_input" if self._kind == "custom" else "function_call_arguments"
        return {
            "type": f"response.{stem}.{what}",
            "item_id": self._id,
            "output_index": self._index,
        }
