"""Plain HTTP: what is taken, what is refused and how, what is told and logged."""

from __future__ import annotations

import json
import time

import httpx
import pytest

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]


@pytest.fixture(scope="module")
def http(router):
    with httpx.Client(base_url=router.url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, **fields) -> httpx.Response:
    body = {"model": "auto", "messages": QUESTION, **fields}
    return http.post("/v1/chat/completions", json=body)


def test_an_answer_has_openai_s_form_and_the_books_know_it(http, provider):
    before = sum(provider.requests.values())
    response = ask(http)
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["total_tokens"] > 0
    assert "optllm" not in answer
    assert sum(provider.requests.values()) == before + 1


def test_a_named_model_is_pinned(http):
    assert ask(http, model="sim-tiny").json()["model"] == "sim-tiny"


def test_models_are_listed_and_found(http):
    listed = http.get("/v1/models").json()["data"]
    names = [model["id"] for model in listed]
    assert names[0] == "auto"
    assert "sim-tiny" in names
    assert http.get("/v1/models/sim-tiny").json() == listed[names.index("sim-tiny")]
    assert "auto:match_best" in names
    for name in ("auto:match_best", "auto:min_cost:0.8"):
        assert http.get(f"/v1/models/{name}").json()["id"] == name
    missing = http.get("/v1/models/gpt-9")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "auto", "messages": QUESTION, "\ud800": 1}),
        ("/v1/chat/completions", {"model": "auto", "messages": QUESTION, "optllm": {"\ud800": 1}}),
        ("/v1/responses", {"model": "auto", "input": "Hello", "\ud800": 1}),
        ("/v1/feedback", {"id": "x", "score": 1, "\ud800": 1}),
    ],
)
def test_a_name_that_no_encoding_can_write_is_refused_as_any_other(http, path, body):
    headers = {"content-type": "application/json"}
    response = http.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code == 400
    assert "ud800" in response.json()["error"]["param"]


def test_feedback_is_kept(http):
    id = ask(http).json()["id"]
    assert http.post("/v1/feedback", json={"id": id, "score": 1}).json() == {
        "object": "feedback",
        "id": id,
        "score": 1.0,
    }


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"id": "optllm-nothing", "score": 1}, "no answer with id"),
        ({"id": "x", "score": 2}, "score 2 must be"),
        ({"id": "x", "score": "good"}, "score 'good' must be"),
        ({"id": 7, "score": 1}, "id must be text"),
        ({"score": 1}, "id is missing"),
        ({"id": "x"}, "score is missing"),
        ({"id": "x", "score": 1, "comment": "thanks"}, "'comment' is unknown"),
    ],
)
def test_feedback_that_says_nothing_is_refused(http, body, part):
    response = http.post("/v1/feedback", json=body)
    assert response.status_code == 400
    assert part in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "status", "part"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "line 1, column 2"),
        (b"[]", 400, "must be a JSON object"),
        (b'"secret"', 400, "must be a JSON object"),
        (b'{"temperature": NaN}', 400, "NaN is no JSON number"),
        (b'{"a": "\xff"}', 400, "not UTF-8"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        (b"[" * 100_000, 400, "nested over 64 deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, 400, "nested over 64 deep"),
        (b"[" + b"1," * 1_000_001 + b"1]", 413, "over 1000000 values"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_what_is_no_request_is_refused(http, content, status, part):
    response = http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    assert part in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_only_json_is_taken(http, kind):
    """Else any web page could spend money through a server without keys."""
    response = http.post(
        "/v1/chat/completions", content=b'{"model":"auto"}', headers={"content-type": kind}
    )
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("fields", "status", "code", "part"),
    [
        ({"model": "sim-tinny"}, 404, "model_not_found", "did you mean 'sim-tiny'"),
        ({"messages": []}, 400, "invalid_request", "messages has 0 entries"),
        ({"n": 1000}, 400, "invalid_request", "n 1000"),
        ({"top_k": "five"}, 400, "invalid_request", "top_k"),
        ({"temperatur": 1}, 400, "invalid_request", "temperatur"),
        ({"timeout": 1}, 400, "unknown_field", "timeout"),
        ({"extra_headers": {"authorization": "x"}}, 400, "unknown_field", "extra_headers"),
        ({"extra_body": {"optllm": {"user": "x"}}}, 400, "unknown_field", "extra_body"),
        ({"optllm": {"policy": "best"}}, 400, "invalid_request", "policy 'best' is unknown"),
        ({"optllm": {"nonsense": 1}}, 400, "invalid_request", "nonsense"),
    ],
)
def test_arguments_are_checked_before_anything_is_sent(http, provider, fields, status, code, part):
    before = sum(provider.requests.values())
    response = ask(http, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == next(iter(fields)) or error["param"].startswith("optllm.")
    assert sum(provider.requests.values()) == before


def test_what_is_no_http_is_told_in_openai_s_form(router):
    with router.connect() as connection:
        connection.sendall(b"HELLO\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/json" in head
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["error"] == {
        "message": "Invalid HTTP request received. Send HTTP/1.1",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_http",
    }


def test_paths_and_methods_that_are_not_there(http):
    nothing = http.get("/v1/nothing").json()["error"]
    assert nothing["code"] == "not_found"
    assert "/openapi.json lists what is served" in nothing["message"]
    wrong = http.put("/v1/models")
    assert wrong.status_code == 405
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("given", ["abc-123", "req/1:2+3=", "a" * 128])
def test_a_sane_request_id_is_kept(http, given):
    assert (
        http.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"] == given
    )


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "<script>", '"'])
def test_any_other_request_id_is_replaced(http, given):
    made = http.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"]
    assert made.startswith("req_")
    assert made != http.get("/health/live").headers["x-request-id"]


def test_errors_carry_the_request_id_too(http):
    response = http.get("/v1/nothing", headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"


def test_metrics_count_requests_tokens_and_money(http):
    answered = ask(http, model="sim-small").json()
    text = http.get("/metrics").text
    assert 'optllm_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    assert 'optllm_answers_total{candidate="sim-small"}' in text
    tokens = value(text, 'optllm_tokens_total{candidate="sim-small",kind="completion"}')
    assert tokens >= answered["usage"]["completion_tokens"]
    spent = value(text, 'optllm_budget_spent_usd{budget="default",window="day"}')
    assert spent > 0
    assert value(text, 'optllm_budget_limit_usd{budget="default",window="day"}') == 100
    assert 'route="/v1/nothing"' not in text  # names come from us, not from callers


def value(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return float(line.rpartition(" ")[2])


def test_each_decision_is_one_line_without_the_prompt(http, router):
    id = ask(http, messages=[{"role": "user", "content": "my-private-words"}]).json()["id"]
    deadline = time.monotonic() + 10
    lines = []
    while not lines and time.monotonic() < deadline:
        lines = [line for line in router.events("decision") if line["decision_id"] == id]
        time.sleep(0.01)
    (line,) = lines
    assert line["candidate"].startswith("sim-")
    assert line["cost_nano"] > 0
    assert "my-private-words" not in "".join(router.log)
    assert "synthetic tasks" not in "".join(router.log)  # the answer
