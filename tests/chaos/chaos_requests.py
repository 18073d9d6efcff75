"""What the chaos suite asks a server over HTTP with openai's own client, and what came of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import openai
from chaos_provider import EMBEDDING, KINDS, LOUD, MIXED, SILENT, SOUND, TRANSPORTS, model_name

Endpoint = Literal["chat", "responses", "embeddings"]
Ending = Literal["read", "close", "cancel"]
"""What the caller does: reads to the end, closes a stream, hangs up at any moment."""

_WEIGHTS = {SOUND: 4.0, MIXED: 3.0, LOUD: 4.0, "huge": 0.15}
_EMBEDDED_SHARE = 0.15
_PATIENCE_SECONDS = 120.0
_LONGEST_BEFORE_LEAVING = 0.5
_AT_ONCE = 32


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        endpoint: of OpenAI's API.
        transport: of the model.
        kind: of the model; any with that tag is as good where it is ``mixed`` or ``loud``.
        streamed: whether the answer is wanted as it is made.
        ending: what the caller does.
        chunks: read before a stream is closed.
        seconds: before a caller hangs up.
        patience: seconds that the caller waits for the next byte.
    """

    endpoint: Endpoint
    transport: str
    kind: str
    streamed: bool
    ending: Ending
    chunks: int
    seconds: float
    patience: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the endpoint's ``create``."""
        given: dict[str, Any] = {"timeout": self.patience}
        if self.kind in (MIXED, LOUD):
            given.update(model="auto", extra_body={"optllm": {"require_tags": self.kind}})
        else:
            given["model"] = model_name(self.transport, self.kind)
        question = "What is 12 + 7?"
        if self.endpoint == "chat":
            given["messages"] = [{"role": "user", "content": question}]
        else:
            given["input"] = question
        return given if self.endpoint == "embeddings" else {**given, "stream": self.streamed}


@dataclass(frozen=True)
class Heard:
    """What became of a request: an answer, an error, or the caller left."""

    asked: Asked
    error: BaseException | None = None
    left: bool = False
    said: int = 0


def requests(seed: int, count: int, hurried: float) -> list[Asked]:
    """``count`` different requests; the same for the same seed.

    Args:
        seed: of all choices.
        count: how many.
        hurried: of those that nobody answers, the part whose caller gives up before the server
            does, 0..1.
    """
    rng = random.Random(seed)
    kinds = (*KINDS, LOUD)
    weights = [_WEIGHTS.get(kind, 1.0) for kind in kinds]
    made = []
    for kind in rng.choices(kinds, weights, k=count):
        embeds = rng.random() < _EMBEDDED_SHARE
        streamed = not embeds and rng.random() < 0.5
        ending = rng.choice(("read", "read", "read", "close", "cancel"))
        hurries = (embeds or kind in SILENT) and rng.random() < hurried
        made.append(
            Asked(
                "embeddings" if embeds else rng.choice(("chat", "responses")),
                rng.choices(TRANSPORTS, (2, 1))[0],
                EMBEDDING if embeds else kind,
                streamed,
                "read" if ending == "close" and not streamed else ending,
                chunks=rng.randrange(1, 5),
                seconds=rng.random() * _LONGEST_BEFORE_LEAVING,
                patience=rng.uniform(1.0, 1.5) if hurries else _PATIENCE_SECONDS,
            )
        )
    return made


def is_right(heard: Heard) -> bool:
    """Whether a request ended as it must: the server answers, whatever the provider does."""
    asked, error = heard.asked, heard.error
    if heard.left:
        return asked.ending == "cancel"
    if isinstance(error, openai.APITimeoutError) or type(error).__name__ == "ReadTimeout":
        # In the middle of a stream, openai's client raises its HTTP library's error as it came.
        return asked.kind in (*SILENT, EMBEDDING)
    if isinstance(error, openai.APIConnectionError) or not isinstance(
        error, openai.APIError | None
    ):
        return False  # the connection to the server is sound, and its errors are OpenAI's
    if asked.ending != "read" or asked.kind in (MIXED, EMBEDDING):
        return True
    if asked.kind == LOUD:  # a sound one is among them, to fall back to before the first token
        return error is None or (asked.streamed and type(error) is openai.APIError)
    if asked.kind in (SOUND, "wrong_type") or (asked.kind, asked.transport) == ("huge", "litellm"):
        return error is None and heard.said > 0
    if asked.kind == "rate_limit":
        return isinstance(error, openai.RateLimitError)
    told = (openai.InternalServerError, *[openai.APIError] * asked.streamed)
    return isinstance(error, told)


def is_late(heard: Heard) -> bool:
    """Whether the server gave up what should have been answered: the machine may be busy.

    Of several candidates, the last was then asked when hardly any time was left.
    """
    code, kind = getattr(heard.error, "code", None), heard.asked.kind
    if kind in (*SILENT, EMBEDDING):
        return False
    return code == "provider_timeout" or (kind == LOUD and code == "all_candidates_failed")


async def ask_all(base_url: str, asked: Sequence[Asked]) -> list[Heard]:
    """Every request, many at once."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(client: openai.AsyncOpenAI, request: Asked) -> Heard:
        async with room:
            task = asyncio.create_task(_ask(client, request))
            if request.ending == "cancel":
                await asyncio.wait([task], timeout=request.seconds)
                task.cancel()
            try:
                return Heard(request, said=await task)
            except asyncio.CancelledError:
                return Heard(request, left=True)
            except Exception as error:  # noqa: BLE001 - what it is, is checked
                return Heard(request, error.with_traceback(None))

    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        return await asyncio.gather(*(one(client, request) for request in asked))


async def _ask(client: openai.AsyncOpenAI, asked: Asked) -> int:
    if asked.endpoint == "embeddings":
        return len((await client.embeddings.create(**asked.arguments)).data)
    if asked.endpoint == "chat":
        answer: Any = await client.chat.completions.create(**asked.arguments)
        if not asked.streamed:
            return len(answer.choices[0].message.content)
    else:
        answer = await client.responses.create(**asked.arguments)
        if not asked.streamed:
            return len(answer.output_text)
    async with answer:
        return await _read(answer, asked)


async def _read(stream: AsyncIterator[Any], asked: Asked) -> int:
    said = number = 0
    async for event in stream:
        if asked.ending == "close" and number >= asked.chunks:
            break
        number += 1
        if asked.endpoint == "chat":
            said += sum(len(choice.delta.content or "") for choice in event.choices)
        elif event.type == "response.output_text.delta":
            said += len(event.delta)
    return said
