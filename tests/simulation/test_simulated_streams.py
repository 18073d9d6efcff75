"""Streams of the simulation: what goes over the wire, and what would be billed for it."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from optllm_router._types import Usage
from optllm_router.simulation import SIMULATED_MODELS, Fault, Faults, SimulationServer

MODEL = SIMULATED_MODELS[0]
PROMPT = "What is 12 + 30?"
REPLY = MODEL.reply(PROMPT)
TOOL = {"name": "add_numbers", "parameters": {"properties": {"a": {"type": "integer"}}}}


def body(**changes) -> dict:
    messages = [{"role": "user", "content": PROMPT}]
    options = {"include_usage": True}
    return {
        "model": MODEL.name,
        "messages": messages,
        "stream": True,
        "stream_options": options,
        **changes,
    }


def chunks(server: SimulationServer, **changes) -> list[dict]:
    url = f"{server.base_url}/chat/completions"
    text = httpx.post(url, json=body(**changes), trust_env=False).text
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def read(server: SimulationServer, bytes_at_most: int, seconds: float = 10) -> bytes:
    """Read some of a stream and hang up."""
    url = f"{server.base_url}/chat/completions"
    call = httpx.stream("POST", url, json=body(), trust_env=False, timeout=seconds)
    taken = b""
    with call as response:
        for piece in response.iter_raw():
            taken += piece
            if len(taken) >= bytes_at_most:
                break
    return taken


def bill(server: SimulationServer) -> Usage:
    (usage,) = server.served[MODEL.name]
    return usage


def settled_bill(server: SimulationServer) -> Usage:
    """The bill once it does not change any more."""
    before = bill(server)
    while True:
        time.sleep(0.15)
        after = bill(server)
        if after == before:
            return after
        before = after


@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_events_hold_as_many_tokens_as_wanted(tokens):
    with SimulationServer(chunk_tokens=tokens) as server:
        received = chunks(server)
    contents = [c["choices"][0]["delta"].get("content") for c in received if c["choices"]]
    assert "".join(filter(None, contents)) == REPLY.text
    assert len(list(filter(None, contents))) == -(-REPLY.completion_tokens // tokens)
    assert bill(server) == Usage(REPLY.prompt_tokens, REPLY.completion_tokens)


def test_choices_come_in_turn_and_each_is_billed(server):
    received = chunks(server, n=2)
    texts, ends = ["", ""], [None, None]
    for chunk in received:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == [REPLY.text] * 2
    assert ends == ["stop"] * 2
    assert [c["choices"][0]["index"] for c in received[:4]] == [0, 1, 0, 1]
    assert received[-1]["usage"]["completion_tokens"] == 2 * REPLY.completion_tokens
    assert bill(server) == Usage(REPLY.prompt_tokens, 2 * REPLY.completion_tokens)


def test_a_call_of_a_tool_comes_in_deltas(server):
    tools = [{"type": "function", "function": TOOL}]
    received = chunks(server, tools=tools, tool_choice="required")
    deltas = [chunk["choices"][0]["delta"] for chunk in received if chunk["choices"]]
    (opening, *others) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert opening["function"] == {"name": "add_numbers", "arguments": ""}
    assert opening["id"]
    assert opening["type"] == "function"
    assert not [other for other in others if "id" in other or "name" in other["function"]]
    arguments = "".join(other["function"]["arguments"] for other in others)
    assert json.loads(arguments) == {"a": 1}
    assert received[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_logprobs_belong_to_the_tokens_of_their_chunk(server):
    for chunk in chunks(server, logprobs=True, top_logprobs=1)[:-1]:
        choice = chunk["choices"][0]
        tokens = (choice.get("logprobs") or {"content": []})["content"]
        assert "".join(token["token"] for token in tokens) == (choice["delta"].get("content") or "")


def test_events_take_the_time_they_are_given():
    with SimulationServer(chunk_seconds=0.02) as server:
        start = time.perf_counter()
        received = chunks(server)
        assert time.perf_counter() - start >= 0.02 * len(received)


def test_what_a_client_does_not_wait_for_is_not_made_and_not_billed():
    with SimulationServer(chunk_seconds=0.05, chunk_tokens=1) as server:
        taken = read(server, 1)
        usage = settled_bill(server)
    received = taken.count(b"data: ")
    assert usage.prompt_tokens == REPLY.prompt_tokens
    assert received - 1 <= usage.completion_tokens < REPLY.completion_tokens / 2


@pytest.mark.parametrize(
    ("fault", "least", "most"),
    [("cut_early", 0, 0), ("cut", 1, REPLY.completion_tokens - 1)],
)
def test_a_stream_that_is_cut_is_billed_as_far_as_it_went(server, fault: Fault, least, most):
    server.faults = Faults(script=(fault,))
    with pytest.raises(httpx.RemoteProtocolError):
        read(server, 10**9)
    assert bill(server).prompt_tokens == REPLY.prompt_tokens
    assert least <= bill(server).completion_tokens <= most


def test_a_stream_that_stalls_says_half_and_then_nothing(server):
    server.faults = Faults(script=("stall",))
    with pytest.raises(httpx.ReadTimeout):
        read(server, 10**9, seconds=0.3)
    assert 0 < bill(server).completion_tokens < REPLY.completion_tokens


def test_an_endless_stream_goes_on_until_its_client_goes_and_is_billed_so_far(server):
    server.faults = Faults(script=("endless",))
    assert b"[DONE]" not in read(server, 20_000)
    usage = settled_bill(server)
    assert usage.completion_tokens > REPLY.completion_tokens


def test_a_malformed_stream_has_one_event_that_is_no_json(server):
    server.faults = Faults(script=("malformed",))
    *events, done, _ = read(server, 10**9).split(b"\n\n")
    assert done == b"data: [DONE]"
    broken = 0
    for event in events:
        try:
            json.loads(event.removeprefix(b"data: "))
        except json.JSONDecodeError:
            broken += 1
    assert broken == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_type_is_all_that_is_wrong(server, stream):
    server.faults = Faults(script=("wrong_type",))
    url = f"{server.base_url}/chat/completions"
    wrong = httpx.post(url, json=body(stream=stream), trust_env=False)
    right = httpx.post(url, json=body(stream=stream), trust_env=False)
    assert (wrong.status_code, wrong.headers["content-type"]) == (200, "text/html")
    assert len(wrong.content) == len(right.content)


@pytest.mark.parametrize("stream", [False, True])
def test_a_huge_answer_is_10_megabytes(server, stream):
    server.faults = Faults(script=("huge",))
    url = f"{server.base_url}/chat/completions"
    response = httpx.post(url, json=body(stream=stream), trust_env=False)
    assert len(response.content) > 10_000_000
    assert bill(server) == Usage(REPLY.prompt_tokens, REPLY.completion_tokens)


def whole(server: SimulationServer, seconds: float) -> httpx.Response:
    url = f"{server.base_url}/chat/completions"
    return httpx.post(url, json=body(stream=False), trust_env=False, timeout=seconds)


def test_a_malformed_answer_is_half_of_one(server):
    server.faults = Faults(script=("malformed",))
    with pytest.raises(json.JSONDecodeError):
        whole(server, 10).json()
    assert bill(server) == Usage(REPLY.prompt_tokens, REPLY.completion_tokens)


def test_an_endless_answer_dribbles(server):
    server.faults = Faults(script=("endless",))
    url = f"{server.base_url}/chat/completions"
    call = httpx.stream("POST", url, json=body(stream=False), trust_env=False, timeout=1)
    with call as response:
        taken = b"".join(piece for piece, _ in zip(response.iter_raw(), range(5), strict=False))
    assert taken == b" " * 5


@pytest.mark.parametrize("fault", ["stall", "endless"])
def test_stopping_lets_go_of_what_would_go_on(fault: Fault):
    with SimulationServer(faults=Faults(rates={fault: 1})) as server:
        url = f"{server.base_url}/chat/completions"
        with httpx.stream("POST", url, json=body(), trust_env=False) as response:
            next(response.iter_raw())
            start = time.perf_counter()
            server.stop()
            assert time.perf_counter() - start < 5
            server.start()
