from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest

from optllm_router._errors import ConfigurationError
from optllm_router._types import Usage
from optllm_router.simulation import (
    EMBEDDING_MODEL,
    SIMULATED_MODELS,
    Faults,
    Reply,
    SimulatedModel,
    SimulationServer,
    make_tasks,
)

PROMPT = "What is 12 + 30?"
FRONTIER = SIMULATED_MODELS[0]


@pytest.fixture(scope="module")
def shared():
    """One server for the tests that neither count calls nor set faults."""
    with SimulationServer() as server:
        yield server


def body(**changes):
    return {
        "model": FRONTIER.name,
        "messages": [{"role": "user", "content": PROMPT}],
        **changes,
    }


def ask(server: SimulationServer, timeout: float = 10, **changes) -> httpx.Response:
    url = f"{server.base_url}/chat/completions"
    return httpx.post(url, json=body(**changes), timeout=timeout, trust_env=False)


def stream_events(text: str) -> list[dict]:
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


# Answers


def test_an_answer_is_what_the_model_says_offline(shared):
    expected = FRONTIER.reply(PROMPT)
    answer = ask(shared).json()
    choice = answer["choices"][0]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == FRONTIER.name
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": expected.completion_tokens,
        "total_tokens": expected.prompt_tokens + expected.completion_tokens,
    }


def test_ids_differ(shared):
    assert ask(shared).json()["id"] != ask(shared).json()["id"]


def test_the_last_user_turn_is_the_prompt_and_all_messages_cost_tokens(shared):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    answer = ask(shared, messages=messages).json()
    alone = FRONTIER.reply(PROMPT)
    assert answer["choices"][0]["message"]["content"] == alone.text
    assert answer["usage"]["prompt_tokens"] > alone.prompt_tokens


def test_models_are_listed(shared):
    listing = httpx.get(f"{shared.base_url}/models", trust_env=False).json()
    names = [*(model.name for model in SIMULATED_MODELS), EMBEDDING_MODEL]
    assert [model["id"] for model in listing["data"]] == names
    shown = httpx.get(f"{shared.base_url}/models/{FRONTIER.name}", trust_env=False).json()
    assert shown == listing["data"][0]
    missing = httpx.get(f"{shared.base_url}/models/sim-nobody", trust_env=False)
    assert missing.status_code == 404


def test_a_stream_carries_the_same_answer_in_pieces(shared):
    expected = FRONTIER.reply(PROMPT)
    response = ask(shared, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, finish, usage = stream_events(response.text)
    assert len(pieces) > 3
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == expected.text
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == expected.completion_tokens
    assert len({event["id"] for event in (*pieces, finish, usage)}) == 1


def test_a_stream_has_no_usage_unless_asked_for(shared):
    assert not any("usage" in event for event in stream_events(ask(shared, stream=True).text))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_truncates(shared, name, stream):
    options = {"include_usage": True} if stream else None
    response = ask(shared, **{name: 3}, stream=stream, stream_options=options)
    full = FRONTIER.reply(PROMPT).text
    if stream:
        *pieces, finish, last = stream_events(response.text)
        text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
        reason, usage = finish["choices"][0]["finish_reason"], last["usage"]
    else:
        choice, usage = response.json()["choices"][0], response.json()["usage"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert reason == "length"
    assert usage["completion_tokens"] == 3
    assert full.startswith(text)
    assert len(text) < len(full)


def test_a_bound_that_is_wide_enough_changes_nothing(shared):
    tokens = FRONTIER.reply(PROMPT).completion_tokens
    answer = ask(shared, max_tokens=tokens).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == tokens


def test_the_openai_client_understands_answers_streams_and_errors(shared):
    messages = body()["messages"]
    with openai.OpenAI(base_url=shared.base_url, api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(model=FRONTIER.name, messages=messages)
        assert answer.choices[0].message.content == FRONTIER.reply(PROMPT).text
        chunks = list(
            client.chat.completions.create(model=FRONTIER.name, messages=messages, stream=True)
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == FRONTIER.reply(PROMPT).text
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="sim-nobody", messages=messages)
    assert caught.value.code == "model_not_found"


# Refusals


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": [5]}, "stop"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages"),
        ({"messages": [{"role": "system", "content": "hello"}]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(shared, changes, param):
    response = ask(shared, **changes)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"] or param == "messages"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(shared, content):
    url = f"{shared.base_url}/chat/completions"
    response = httpx.post(url, content=content, trust_env=False)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


def test_asking_for_nothing_special_is_fine(shared):
    harmless = {"n": 1, "tools": [], "stop": None, "temperature": 0.3, "seed": 1, "logprobs": False}
    assert ask(shared, **harmless).status_code == 200


def test_half_a_surrogate_pair_is_carried_through(shared):
    messages = [{"role": "user", "content": 'Take the text "\ud800 b" and drop the last word.'}]
    url = f"{shared.base_url}/chat/completions"
    content = json.dumps(body(messages=messages)).encode()
    assert httpx.post(url, content=content, trust_env=False).status_code == 200
    content = json.dumps(body(model="\ud800")).encode()
    assert httpx.post(url, content=content, trust_env=False).status_code == 404


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "x", 404), ("PUT", "models", 405)])
def test_other_paths_answer_in_the_same_shape(shared, method, path, status):
    response = httpx.request(method, f"{shared.base_url}/{path}", trust_env=False)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]


# Faults


def test_rate_limit_says_when_to_come_back():
    with SimulationServer(
        faults=Faults(rates={"rate_limit": 1}, retry_after_seconds=2.5)
    ) as server:
        response = ask(server)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2.5"
    assert response.json()["error"]["code"] == "rate_limit_exceeded"


def test_server_error():
    with SimulationServer(faults=Faults(script=("server_error",))) as server:
        failed, fine = ask(server), ask(server)
    assert (failed.status_code, fine.status_code) == (500, 200)
    assert failed.json()["error"]["type"] == "server_error"


def test_garbage_is_200_and_no_chat_completion():
    with SimulationServer(faults=Faults(script=("garbage",))) as server:
        response = ask(server)
    assert response.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        response.json()


@pytest.mark.parametrize("stream", [False, True])
def test_cut_breaks_the_connection_mid_answer_and_is_billed(stream, caplog):
    caplog.set_level(logging.INFO)
    pieces: list[bytes] = []
    with SimulationServer(faults=Faults(script=("cut",))) as server:
        url = f"{server.base_url}/chat/completions"
        call = httpx.stream("POST", url, json=body(stream=stream), trust_env=False)
        with call as response, pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
        assert ask(server).status_code == 200
    assert response.status_code == 200
    assert FRONTIER.name.encode() in b"".join(pieces)
    assert len(server.served[FRONTIER.name]) == 2
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_timeout_never_answers_and_lets_the_others_pass():
    with SimulationServer(faults={"sim-tiny": Faults(rates={"timeout": 1})}) as server:
        with pytest.raises(httpx.ReadTimeout):
            ask(server, timeout=0.2, model="sim-tiny")
        assert ask(server).status_code == 200
    assert server.requests == {"sim-tiny": 1, FRONTIER.name: 1}
    assert "sim-tiny" not in server.served


def test_stopping_lets_go_of_a_call_that_would_wait_forever():
    server = SimulationServer(faults=Faults(rates={"timeout": 1}))
    answers: list[int] = []
    with server:
        caller = threading.Thread(target=lambda: answers.append(ask(server).status_code))
        caller.start()
        while not server.requests:
            time.sleep(0.01)
    caller.join(10)
    assert answers == [503]


def test_faults_change_while_the_server_runs():
    with SimulationServer() as server:
        before = ask(server).status_code
        server.faults = Faults(script=("server_error", None))
        during = [ask(server).status_code for _ in range(2)]
        server.faults = Faults(script=("rate_limit",))
        after = [ask(server).status_code for _ in range(2)]
    assert (before, during, after) == (200, [500, 200], [429, 200])


def test_faults_fall_where_the_plan_says():
    plan = Faults(rates={"server_error": 0.4}, seed=11)
    with SimulationServer(faults=plan) as server:
        statuses = [ask(server).status_code for _ in range(20)]
    expected = [500 if plan.fault(FRONTIER.name, call) else 200 for call in range(20)]
    assert statuses == expected
    assert len(set(expected)) == 2


# Recorded replies

RECORDED = {
    "log line 1": {"llama": Reply("template <*>", 175, 12), "yi": Reply("nothing", 160, 0)},
    "log line 2": {"llama": Reply("other", 80, 2)},
}


@pytest.fixture(scope="module")
def recorded():
    with SimulationServer(replies=RECORDED) as server:
        yield server


def test_a_known_prompt_gets_the_recorded_answer_and_tokens(recorded):
    messages = [{"role": "user", "content": "log line 1"}]
    answer = ask(recorded, model="llama", messages=messages).json()
    assert answer["choices"][0]["message"]["content"] == "template <*>"
    assert answer["usage"] == {"prompt_tokens": 175, "completion_tokens": 12, "total_tokens": 187}
    assert recorded.served["llama"][-1] == Usage(175, 12)


def test_recorded_answers_are_truncated_too(recorded):
    messages = [{"role": "user", "content": "log line 1"}]
    answer = ask(recorded, model="llama", messages=messages, max_tokens=6).json()
    assert answer["choices"][0]["message"]["content"] == "templa"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6


def test_recorded_models_are_those_with_a_reply(recorded):
    assert recorded.names == ("llama", "yi")
    assert ask(recorded, model=FRONTIER.name).json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("model", "prompt"), [("llama", "log line 3"), ("yi", "log line 2")])
def test_a_pair_that_was_not_recorded_is_not_found(recorded, model, prompt):
    response = ask(recorded, model=model, messages=[{"role": "user", "content": prompt}])
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "prompt_not_recorded"


# The server's life


def test_200_concurrent_calls_are_answered_and_counted():
    tasks = make_tasks(200, np.random.default_rng(5))

    async def ask_all(url: str) -> list[str]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:
            bodies = [body(messages=[{"role": "user", "content": t.prompt}]) for t in tasks]
            calls = (client.post(f"{url}/chat/completions", json=content) for content in bodies)
            responses = await asyncio.gather(*calls)
        return [response.json()["choices"][0]["message"]["content"] for response in responses]

    with SimulationServer(latency_seconds=0.02) as server:
        texts = asyncio.run(ask_all(server.base_url))
    expected = [FRONTIER.reply(task.prompt) for task in tasks]
    assert texts == [reply.text for reply in expected]
    assert server.requests == {FRONTIER.name: 200}
    billed = [(reply.prompt_tokens, reply.completion_tokens) for reply in expected]
    served = [(use.prompt_tokens, use.completion_tokens) for use in server.served[FRONTIER.name]]
    assert sorted(served) == sorted(billed)


def test_many_servers_run_at_once_and_apart():
    with SimulationServer() as first, SimulationServer() as second:
        assert first.base_url != second.base_url
        with ThreadPoolExecutor(4) as pool:
            assert {r.status_code for r in pool.map(ask, [first, second] * 4)} == {200}
        assert first.requests == second.requests == {FRONTIER.name: 4}


def test_a_server_can_be_started_again_and_goes_on_counting():
    server = SimulationServer()
    for calls in (1, 2):
        with server:
            ask(server)
        assert server.requests == {FRONTIER.name: calls}
        assert server.served.keys() == {FRONTIER.name}


def test_stopping_frees_the_port_and_the_thread():
    threads = threading.active_count()
    with SimulationServer() as server:
        port = httpx.URL(server.base_url).port
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    with SimulationServer(port=port) as again:
        assert httpx.URL(again.base_url).port == port


def test_it_listens_on_this_machine_only():
    with SimulationServer() as server:
        assert httpx.URL(server.base_url).host == "127.0.0.1"


def test_snapshots_do_not_change():
    with SimulationServer() as server:
        requests, served = server.requests, server.served
        ask(server)
        assert (requests, served) == ({}, {})


def test_latency_of_model_and_server_delays_the_answer():
    model = SimulatedModel("sim-slow", 1, 1, {}, verbosity=1, latency_seconds=0.15)
    with SimulationServer(models=[model], latency_seconds=0.1) as server:
        with pytest.raises(httpx.ReadTimeout):
            ask(server, model="sim-slow", timeout=0.1)
        response = ask(server, model="sim-slow")
    assert response.status_code == 200
    assert response.elapsed.total_seconds() >= 0.25


def test_using_a_stopped_server_says_what_to_do():
    with pytest.raises(ConfigurationError, match="with SimulationServer"):
        _ = SimulationServer().base_url
    with SimulationServer() as server, pytest.raises(ConfigurationError, match="runs already"):
        server.start()


def test_a_taken_port_is_an_error_and_nothing_is_left_behind():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        SimulationServer(port=taken.getsockname()[1]).start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": SIMULATED_MODELS, "replies": RECORDED}, "not both"),
        ({"latency_seconds": -1}, "-1"),
        ({"faults": {"sim-typo": Faults()}}, "sim-typo"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        SimulationServer(**arguments)


# What a shell starts in the background ignores interrupts, and so do its children.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("optllm_router.simulation", run_name="__main__", alter_sys=True)
"""


def test_the_command_serves_until_interrupted():
    command = [sys.executable, "-c", INTERRUPTIBLE, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            listing = httpx.get(f"{url}/models", trust_env=False).json()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert len(listing["data"]) == len(SIMULATED_MODELS) + 1
