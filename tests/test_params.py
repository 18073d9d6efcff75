"""Which argument was wrong: ``error.param``, as OpenAI's API names it."""

from __future__ import annotations

import openai
import pytest

from optllm_router import OptLLM

HELLO = [{"role": "user", "content": "Hi"}]
TEXT = {"type": "text", "text": "Hi"}
FILE = {"type": "file", "file": {"file_id": "f"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Nothing is ever sent."""
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/optllm.db"
    model = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6, "api_key": "unused"}
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", **model}, **more}
        for name, more in (("small", {}), ("vectors", {"model_info": {"mode": "embedding"}}))
    ]
    with OptLLM(models, store=store) as client:
        yield client


CALLS = [
    ("model", {"model": 7}),
    ("model", {"model": "smal"}),
    ("model", {"model": "vectors"}),
    ("model", {"model": "auto:chaep"}),
    ("messages", {"messages": "Hi"}),
    ("messages", {"messages": []}),
    ("messages[0].role", {"messages": [{"role": "robot", "content": "Hi"}]}),
    ("messages[1].content", {"messages": [*HELLO, {"role": "user"}]}),
    ("messages[0].content[1]", {"messages": [{"role": "user", "content": [TEXT, FILE]}]}),
    ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "Hi"}]}),
    ("messages[0].tool_calls", {"messages": [{**HELLO[0], "tool_calls": 1}]}),
    ("messages[0].cache_control", {"messages": [{**HELLO[0], "cache_control": {}}]}),
    ("messages[0]", {"messages": [{"role": "user", "content": "\ud800"}]}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_completion_tokens", {"max_completion_tokens": "9"}),
    ("n", {"n": 1000}),
    ("temperature", {"temperature": "hot"}),
    ("tools", {"tools": [{"type": "web_search"}]}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("timeout", {"timeout": -1}),
    ("best_of", {"best_of": 5}),
    ("extra_headers", {"extra_headers": {"authorization": "mine"}}),
    ("top_kk", {"extra_body": {"top_kk": 5}}),
    ("top_k", {"extra_body": {"top_k": "five"}}),
    ("optllm", {"extra_body": {"optllm": 5}}),
    ("optllm.polcy", {"extra_body": {"optllm": {"polcy": "match_best"}}}),
    ("optllm.policy", {"extra_body": {"optllm": {"policy": "best"}}}),
    ("optllm.tenant", {"extra_body": {"optllm": {"tenant": ""}}}),
    ("optllm.tags", {"extra_body": {"optllm": {"tags": 5}}}),
]


@pytest.mark.parametrize(("param", "arguments"), CALLS, ids=lambda value: str(value)[:40])
def test_a_chat_completion_names_the_argument(client, param, arguments):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.chat.completions.create(**{"messages": HELLO, **arguments})
    assert caught.value.param == caught.value.body["param"] == param


@pytest.mark.parametrize(
    ("param", "arguments"),
    [
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("input", {"input": 5}),
        ("input", {"input": [{"role": "robot", "content": "Hi"}]}),
        ("input[0]", {"input": ["Hi"]}),
        ("reasoning.effort", {"reasoning": {"effort": 5}}),
        ("text.format", {"text": {"format": {"type": "xml"}}}),
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("background", {"background": True}),
    ],
)
def test_a_response_names_the_argument(client, param, arguments):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "auto", "input": "Hi", **arguments})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("param", "arguments"),
    [
        ("model", {"model": "small"}),
        ("input", {"input": []}),
        ("input[1]", {"input": ["Hi", ""]}),
        ("dimensions", {"dimensions": 0}),
        ("encoding_format", {"encoding_format": "hex"}),
    ],
)
def test_an_embedding_names_the_argument(client, param, arguments):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "vectors", "input": "Hi", **arguments})
    assert caught.value.param == param


def test_feedback_names_the_argument(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.feedback.create("answer", score=7)
    assert caught.value.param == "score"


def test_a_name_of_the_caller_s_is_cut_short(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=HELLO, **{"a" * 100_000: 1})
    assert len(caught.value.body["param"]) <= 200
    assert len(caught.value.response.content) < 2000
