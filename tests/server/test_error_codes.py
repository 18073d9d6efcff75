"""Errors for programs: the same code, parameter and type in process and through the server."""

from __future__ import annotations

import json
from contextlib import closing

import httpx
import openai
import pytest
from running import RunningServer, write_config
from scripted_http import ScriptedProvider, listening
from simulated_entries import model_entries

from optllm_router import OptLLM

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
LONG = [{"role": "user", "content": "word " * 4_000}]
INVALID = "invalid_request_error"
LENGTH, FILTER = "context_length_exceeded", "content_filter"
QUOTA = "provider_quota_exceeded"
REFUSALS = {
    "too-long": (400, {"code": LENGTH, "param": "messages", "type": INVALID}),
    "filtered": (400, {"code": FILTER, "param": "prompt", "type": None}),
    "filtered-too": (400, {"code": FILTER, "param": None, "type": INVALID}),
    "gone": (404, {"code": "model_not_found", "param": "model", "type": INVALID}),
    "odd": (422, {"code": 422, "type": "UnprocessableEntity"}),
    "unpaid": (429, {"code": "insufficient_quota", "type": "insufficient_quota"}),
    "unpaid-too": (429, {"code": "insufficient_quota", "type": "insufficient_quota"}),
    "busy": (429, {"code": "rate_limit_exceeded", "type": "requests"}),
    "failing": (500, {"code": "our_database", "type": "server_error"}),
}
SEEN = {
    "too-long": (400, LENGTH, "messages", INVALID),
    "filtered": (400, FILTER, "prompt", INVALID),
    "gone": (404, "model_not_found", "model", INVALID),
    "odd": (422, "provider_rejected", None, "UnprocessableEntity"),
    "unpaid": (429, QUOTA, None, "insufficient_quota"),
    "busy": (429, "provider_rate_limited", None, "rate_limit_error"),
    "failing": (500, "provider_unavailable", None, "server_error"),
    "unknown": (404, "model_not_found", "model", INVALID),
    "small": (400, LENGTH, "messages", INVALID),
}


class Refusing(ScriptedProvider):
    """A provider whose models refuse, each in its own way."""

    def do_POST(self) -> None:
        status, words = REFUSALS[json.loads(self.read())["model"]]
        self.send({"error": {"message": "no: see your billing", **words}}, status)


@pytest.fixture(scope="module")
def refusing():
    with listening(Refusing) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def entries(refusing):
    like = model_entries(refusing)[-1]
    found = []
    for name in (*REFUSALS, "small"):
        parameters = {**like["litellm_params"], "model": f"openai/{name}"}
        ours = {"transport": "httpx", **({"context_tokens": 1_000} if name == "small" else {})}
        found.append({**like, "model_name": name, "litellm_params": parameters, "router": ours})
    return found


@pytest.fixture(scope="module")
def both(entries, tmp_path_factory):
    """The same models in this process, and behind a server."""
    folder = tmp_path_factory.mktemp("codes")
    store = f"sqlite:///{tmp_path_factory.mktemp('inside')}/o.db"
    config = write_config(folder, entries, max_retries=0)
    with RunningServer(config) as server, OptLLM(entries, store=store, max_retries=0) as inside:
        outside = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
        with closing(outside):
            yield {"in process": inside, "server": outside}


def refusal(client, model: str, **arguments) -> tuple:
    """What a program sees of an error."""
    messages = LONG if model == "small" else QUESTION
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model, messages=messages, **arguments)
    error = caught.value
    assert error.body["code"] == error.code
    return error.status_code, error.code, error.param, error.type


@pytest.mark.parametrize("model", SEEN)
def test_a_program_sees_the_same_in_process_and_through_the_server(both, model):
    seen = {where: refusal(client, model) for where, client in both.items()}
    assert seen == dict.fromkeys(both, SEEN[model])
    assert refusal(both["server"], model, stream=True) == SEEN[model]


@pytest.mark.parametrize("model", ["too-long", "small"])
def test_a_response_is_told_its_own_parameter(both, model):
    for client in both.values():
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=model, input=(LONG if model == "small" else QUESTION))
        assert (caught.value.code, caught.value.param) == (LENGTH, "input")


def test_the_account_of_the_router_is_its_operator_s_concern(both):
    base_url = str(both["server"].base_url)
    asked = {"model": "unpaid", "messages": QUESTION}
    response = httpx.post(f"{base_url}chat/completions", json=asked, timeout=60)
    assert response.status_code == 429
    assert response.headers["x-should-retry"] == "false"
    assert "billing" not in response.text
    with pytest.raises(openai.RateLimitError, match="quota of the account is used up: no"):
        both["in process"].chat.completions.create(**asked)


def test_a_prompt_that_is_too_long_for_all_models(entries, sqlite_url):
    refused = pytest.raises(openai.BadRequestError)
    with OptLLM(only(entries, "small"), store=sqlite_url) as client, refused as caught:
        client.chat.completions.create(model="auto", messages=LONG)
    assert (caught.value.code, caught.value.param) == (LENGTH, "messages")


def only(entries: list[dict], *names: str) -> list[dict]:
    return [entry for entry in entries if entry["model_name"] in names]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("filtered", "filtered-too"), FILTER),
        (("unpaid", "unpaid-too"), QUOTA),
        (("busy", "failing"), "all_candidates_failed"),
    ],
)
def test_candidates_that_fail_with_one_code_fail_with_it_together(entries, sqlite_url, names, code):
    given = only(entries, *names)
    with OptLLM(given, store=sqlite_url, max_retries=0) as client:
        assert refusal(client, "auto")[1] == code
