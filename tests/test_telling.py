"""Every answer tells how it was made, whichever way of openai's it is asked for."""

from __future__ import annotations

import litellm_clients
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStream, ChatCompletionStreamManager
from openai.lib.streaming.responses import ResponseStream, ResponseStreamManager
from pydantic import BaseModel

from optllm_router import AsyncOptLLM, OptLLM
from optllm_router._routing import RoutingInfo

ASKED = {"model": "sim-tiny", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
WORD = {"model": "sim-tiny", "input": "What is 12 + 30?"}
STREAMED = {"stream": True}


class Sum(BaseModel):
    answer: int


FORMAT = {"response_format": Sum}
WHOLE = {
    "chat": lambda openai: openai.chat.completions.create(**ASKED),
    "chat parsed": lambda openai: openai.chat.completions.parse(**ASKED, **FORMAT),
    "responses": lambda openai: openai.responses.create(**WORD),
    "responses parsed": lambda openai: openai.responses.parse(**WORD, text_format=Sum),
}
RAW = {
    "chat": lambda openai: openai.chat.completions.with_raw_response.create(**ASKED),
    "chat parsed": lambda openai: openai.chat.completions.with_raw_response.parse(
        **ASKED, **FORMAT
    ),
    "responses": lambda openai: openai.responses.with_raw_response.create(**WORD),
    "responses parsed": lambda openai: openai.responses.with_raw_response.parse(
        **WORD, text_format=Sum
    ),
}
STREAMS = {
    "chat": lambda openai: openai.chat.completions.create(**ASKED, **STREAMED),
    "responses": lambda openai: openai.responses.create(**WORD, **STREAMED),
}
RAW_STREAMS = {
    "chat": lambda openai: openai.chat.completions.with_raw_response.create(**ASKED, **STREAMED),
    "responses": lambda openai: openai.responses.with_raw_response.create(**WORD, **STREAMED),
}
HELPERS = {
    "chat": lambda openai: openai.chat.completions.stream(**ASKED),
    "chat parsed": lambda openai: openai.chat.completions.stream(**ASKED, **FORMAT),
    "responses": lambda openai: openai.responses.stream(**WORD),
    "responses parsed": lambda openai: openai.responses.stream(**WORD, text_format=Sum),
}
THROUGH = {"ours": lambda client: client, "openai's": lambda client: client.openai}
through = pytest.mark.parametrize("through", THROUGH)


@pytest.fixture
def client(models, sqlite_url):
    with OptLLM(models, store=sqlite_url, seed=0, max_retries=0) as client:
        yield client


@pytest.fixture
def run(models, sqlite_url):
    """Run a coroutine with a client of its own."""

    def run_with_client(program) -> None:
        async def with_client() -> None:
            async with AsyncOptLLM(models, store=sqlite_url, seed=0, max_retries=0) as client:
                await program(client)

        litellm_clients.run(with_client())

    return run_with_client


def check(made: RoutingInfo | None) -> None:
    assert isinstance(made, RoutingInfo)
    assert made.candidate == "sim-tiny"
    assert made.cost_nano > 0


@through
@pytest.mark.parametrize("way", WHOLE)
def test_whole_answers_tell(client, way, through):
    check(WHOLE[way](THROUGH[through](client)).optllm)


@through
@pytest.mark.parametrize("way", WHOLE)
def test_whole_answers_tell_without_blocking(run, way, through):
    async def program(client: AsyncOptLLM) -> None:
        check((await WHOLE[way](THROUGH[through](client))).optllm)

    run(program)


@through
@pytest.mark.parametrize("way", RAW)
def test_raw_responses_tell_when_they_are_parsed(client, way, through):
    check(RAW[way](THROUGH[through](client)).parse().optllm)


@pytest.mark.parametrize("way", RAW)
def test_raw_responses_tell_when_they_are_parsed_without_blocking(run, way):
    async def program(client: AsyncOptLLM) -> None:
        check((await RAW[way](client)).parse().optllm)

    run(program)


@through
@pytest.mark.parametrize("way", STREAMS)
def test_streams_tell_once_they_are_read(client, way, through):
    for stream in (
        STREAMS[way](THROUGH[through](client)),
        RAW_STREAMS[way](THROUGH[through](client)).parse(),
    ):
        assert isinstance(stream, openai.Stream)
        first = next(stream)
        assert stream.optllm is None
        assert not hasattr(first, "optllm")
        events = list(stream)
        check(stream.optllm)
        if way == "responses":
            assert events[-1].response.optllm == stream.optllm


@through
@pytest.mark.parametrize("way", STREAMS)
def test_streams_tell_once_they_are_read_without_blocking(run, way, through):
    async def program(client: AsyncOptLLM) -> None:
        raw = await RAW_STREAMS[way](THROUGH[through](client))
        for stream in (await STREAMS[way](THROUGH[through](client)), raw.parse()):
            assert isinstance(stream, openai.AsyncStream)
            assert await anext(stream)
            assert stream.optllm is None
            events = [event async for event in stream]
            check(stream.optllm)
            if way == "responses":
                assert events[-1].response.optllm == stream.optllm

    run(program)


@through
@pytest.mark.parametrize("way", HELPERS)
def test_helpers_tell_once_they_are_read(client, way, through):
    manager = HELPERS[way](THROUGH[through](client))
    assert isinstance(manager, ChatCompletionStreamManager | ResponseStreamManager)
    with manager as helper:
        assert isinstance(helper, ChatCompletionStream | ResponseStream)
        assert next(helper)
        assert helper.optllm is None
        events = list(helper)
        check(helper.optllm)
        if "responses" in way:
            assert events[-1].response.optllm == helper.optllm
            assert helper.get_final_response().optllm == helper.optllm
        else:
            assert helper.get_final_completion().optllm == helper.optllm


@through
@pytest.mark.parametrize("way", HELPERS)
def test_helpers_tell_once_they_are_read_without_blocking(run, way, through):
    async def program(client: AsyncOptLLM) -> None:
        async with HELPERS[way](THROUGH[through](client)) as helper:
            assert await anext(helper)
            assert helper.optllm is None
            if "responses" in way:
                check((await helper.get_final_response()).optllm)
            else:
                check((await helper.get_final_completion()).optllm)
            check(helper.optllm)

    run(program)


def test_copies_of_openai_s_client_tell(client):
    copy = client.openai.with_options(timeout=30)
    with copy.chat.completions.stream(**ASKED) as helper:
        check(helper.get_final_completion().optllm)
    if hasattr(copy.beta, "chat"):
        with copy.beta.chat.completions.stream(**ASKED) as helper:
            check(helper.get_final_completion().optllm)
