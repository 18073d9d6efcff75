"""Who answered the turns before: a conversation is recognised by what was said in it.

The client keeps no state and names nothing: a follow-up repeats everything up to the last
answer, and that has the hash under which this answer's model was remembered. Whoever edits an
earlier turn begins a new conversation. Neither prompts nor answers are kept, but hashes: with a key
of this process in its memory, or with one that several processes know also in their store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optllm_router._errors import StoreError
from optllm_router._types import Message, Messages
from optllm_router.store import Partner, Partners

_log = logging.getLogger("optllm_router")

_KEPT = 100_000
"""Conversations that are remembered; the least recent make room."""
_PARTS_OF_CALL = ("id", "name", "arguments")
_WRITTEN = ("text", "refusal")


class Conversations:
    """Remembers who answered last in the most recent conversations; thread-safe.

    Args:
        shared: where other processes look, too; ``None`` for no others.
        secret: what they all know, and nobody who reads the store.

    Examples:
        >>> conversations = Conversations()
        >>> asked = [{"role": "user", "content": "Fix the test."}]
        >>> answer = {"role": "assistant", "content": "Done."}
        >>> conversations.answered(asked, [answer], Partner("gpt-4o", 1200, 0.0))
        >>> follow_up = [*asked, answer, {"role": "user", "content": "Commit it."}]
        >>> conversations.partner(follow_up).candidate
        'gpt-4o'
    """

    def __init__(self, shared: Partners | None = None, secret: str = "") -> None:
        self._key = hashlib.blake2b(secret.encode()).digest() if secret else os.urandom(32)
        self._shared = shared
        self._partners: OrderedDict[bytes, Partner] = OrderedDict()
        self._lock = threading.Lock()

    def partner(
        self, messages: Messages, name: str | None = None, scopes: Sequence[str] = ()
    ) -> Partner | None:
        """Who answered last in a conversation; ``None`` where nobody did or it is forgotten.

        Args:
            messages: all turns so far.
            name: what the caller calls the conversation; it is then known by that alone.
            scopes: whose it is: what another tenant or user says or names is another conversation.
        """
        known, asked = self._look(messages, name, scopes)
        if self._shared is not None and asked is not None:
            with _told_if_unread():
                return _later(known, self._shared.find(asked))
        return known

    async def apartner(
        self, messages: Messages, name: str | None = None, scopes: Sequence[str] = ()
    ) -> Partner | None:
        """As :meth:`partner`, without blocking the event loop."""
        known, asked = self._look(messages, name, scopes)
        if self._shared is not None and asked is not None:
            with _told_if_unread():
                return _later(known, await self._shared.afind(asked))
        return known

    def answered(
        self,
        messages: Messages,
        answers: Sequence[Message],
        partner: Partner,
        name: str | None = None,
        scopes: Sequence[str] = (),
    ) -> None:
        """Remember who gave an answer; where there are several, the caller goes on with any."""
        if name is not None:
            keys = [self._named(name, scopes)]
        else:
            keys = [self._said([*messages, answer], scopes) for answer in answers]
        with self._lock:
            for key in keys:
                self._partners[key] = partner
                self._partners.move_to_end(key)
            while len(self._partners) > _KEPT:
                self._partners.popitem(last=False)
        if self._shared is not None:
            self._shared.keep([key.hex() for key in keys], partner)

    def _look(
        self, messages: Messages, name: str | None, scopes: Sequence[str]
    ) -> tuple[Partner | None, str | None]:
        """Who is remembered here; and what to ask the others' store for, if it can know better."""
        if name is not None:
            key: bytes | None = self._named(name, scopes)
        else:
            key = self._until_last_answer(messages, scopes)
        if key is None:
            return None, None
        with self._lock:
            if key in self._partners:
                self._partners.move_to_end(key)
            known = self._partners.get(key)
        # What was said has one answer; under a name another process may have answered meanwhile.
        return known, key.hex() if known is None or name is not None else None

    def _until_last_answer(self, messages: Messages, scopes: Sequence[str]) -> bytes | None:
        for last in range(len(messages) - 1, -1, -1):
            if messages[last].get("role") == "assistant":
                return self._said(messages[: last + 1], scopes)
        return None

    def _said(self, messages: Messages, scopes: Sequence[str]) -> bytes:
        return self._hash([scopes], map(_said, messages))

    def _named(self, name: str, scopes: Sequence[str]) -> bytes:
        return self._hash([scopes, name], ())

    def _hash(self, whose: Sequence[Any], said: Iterable[bytes]) -> bytes:
        digest = hashlib.blake2b(json.dumps(whose).encode(), key=self._key, digest_size=16)
        for line in said:
            digest.update(line)
        return digest.digest()


def _later(known: Partner | None, found: Partner | None) -> Partner | None:
    if known is None or found is None:
        return known or found
    return max(known, found, key=lambda partner: partner.at)


@contextlib.contextmanager
def _told_if_unread() -> Iterator[None]:
    """A call is not lost because it is not known who answered last: the log tells, no error."""
    try:
        yield
    except StoreError as error:
        _log.warning("who answered last in a conversation cannot be read now: %s", error)


class Transcript:
    """The messages of a streamed answer, put together from its chunks.

    Examples:
        >>> transcript = Transcript()
        >>> for piece in ("Do", "ne."):
        ...     transcript.record({"choices": [{"index": 0, "delta": {"content": piece}}]})
        >>> transcript.messages
        [{'role': 'assistant', 'content': 'Done.', 'tool_calls': []}]
    """

    def __init__(self) -> None:
        self._contents: dict[int, list[str]] = {}
        self._calls: dict[int, dict[int, dict[str, str]]] = {}

    def record(self, body: Mapping[str, Any]) -> None:
        """Take in an OpenAI chat completion chunk."""
        for choice in body.get("choices") or ():
            index, delta = choice.get("index") or 0, choice.get("delta") or {}
            self._contents.setdefault(index, []).append(delta.get("content") or "")
            for call in delta.get("tool_calls") or ():
                made = self._calls.setdefault(index, {}).setdefault(call.get("index") or 0, {})
                for name, piece in zip(_PARTS_OF_CALL, _called(call), strict=True):
                    made[name] = made.get(name, "") + (piece or "")

    @property
    def messages(self) -> list[Message]:
        """One for each choice, as a whole answer would have them."""
        return [
            {
                "role": "assistant",
                "content": "".join(pieces),
                "tool_calls": [
                    {
                        "id": call["id"],
                        "function": {"name": call["name"], "arguments": call["arguments"]},
                    }
                    for _, call in sorted(self._calls.get(index, {}).items())
                ],
            }
            for index, pieces in sorted(self._contents.items())
        ]


def _said(message: Message) -> bytes:
    """What a message says, however it is written: answers come back without their extras."""
    calls = message.get("tool_calls") or ()
    said = [
        message.get("role"),
        _text(message.get("content")),
        message.get("tool_call_id"),
        [_called(call) for call in calls if isinstance(call, Mapping)],
    ]
    return json.dumps(said, default=str).encode() + b"\n"


def _text(content: Any) -> Any:
    """Content, of nothing but text its text: one API writes it whole, the other in parts."""
    if not isinstance(content, (list, tuple)):
        return content or ""
    if not all(isinstance(one, Mapping) and one.get("type") in _WRITTEN for one in content):
        return content
    return "".join(str(part.get("text") or "") for part in content)


def _called(call: Mapping[str, Any]) -> list[Any]:
    """A call's id, the tool's name and its input, of a function or of a custom tool."""
    made, given = call.get("function"), "arguments"
    if not isinstance(made, Mapping):
        made, given = call.get("custom"), "input"
    made = made if isinstance(made, Mapping) else {}
    return [call.get("id"), made.get("name"), made.get(given)]
