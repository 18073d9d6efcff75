"""Embeddings: checked, budgeted, recorded, and handed on as openai's types."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import openai
import pytest
from openai.types import CreateEmbeddingResponse
from sqlalchemy import select

from optllm_router import (
    AsyncOptLLM,
    BudgetExceededError,
    Call,
    Candidate,
    Completion,
    InvalidRequestError,
    OptLLM,
    Price,
    UnknownModelError,
    Usage,
)
from optllm_router.simulation import EMBEDDING_MODEL
from optllm_router.store import Database, schema

CHAT = Candidate("chat", "x/chat", Price(Decimal(1), Decimal(1), "test"), 100)
PRICE = Price(Decimal(20), Decimal(0), "test")
VECTORS = Candidate("vectors", "x/v", PRICE, 0, operation="embedding", tags=frozenset({"eu"}))
OTHERS = Candidate("others", "x/o", PRICE, 0, operation="embedding")


@dataclass
class Embeds:
    """A provider of vectors; of each text its length and a half."""

    calls: list[Call] = field(default_factory=list)
    usage: Usage | None = field(default_factory=lambda: Usage(7, 0))

    def check(self, candidates) -> None:
        pass

    def send(self, candidate: Candidate, call: Call) -> Completion:
        assert call.operation == candidate.operation == "embedding"
        self.calls.append(call)
        data = [
            {"object": "embedding", "index": i, "embedding": [len(message["content"]), 0.5]}
            for i, message in enumerate(call.messages)
        ]
        return Completion({"object": "list", "data": data, "model": "v-1"}, self.usage)

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        return self.send(candidate, call)


@pytest.fixture
def provider() -> Embeds:
    return Embeds()


@pytest.fixture
def client(provider, sqlite_url):
    with OptLLM([CHAT, VECTORS], budget="1 USD", store=sqlite_url, transport=provider) as client:
        yield client


def test_texts_become_vectors_and_are_paid_for(client, provider):
    answer = client.embeddings.create(model="vectors", input=["Hi", "Hello"], dimensions=2)
    assert isinstance(answer, CreateEmbeddingResponse)
    assert [one.embedding for one in answer.data] == [[2.0, 0.5], [5.0, 0.5]]
    assert [one.index for one in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("v-1", 7, 7)
    assert answer.optllm.candidate == "vectors"
    assert answer.optllm.cost_nano == client.balance.spent_nano == 140
    assert client.verify() == []
    (call,) = provider.calls
    assert [message["content"] for message in call.messages] == ["Hi", "Hello"]
    assert call.parameters == {"dimensions": 2}


def test_auto_is_the_only_model_for_embeddings(client):
    assert client.embeddings.create(model="auto", input="Hi").optllm.candidate == "vectors"


def test_auto_is_none_of_several(provider, sqlite_url):
    models = [CHAT, VECTORS, OTHERS]
    with OptLLM(models, store=sqlite_url, transport=provider) as client:
        with pytest.raises(InvalidRequestError, match="'vectors', 'others', whose vectors cannot"):
            client.embeddings.create(model="auto", input="Hi")
        with pytest.raises(UnknownModelError, match="did you mean 'vectors'"):
            client.embeddings.create(model="vector", input="Hi")
    with (
        OptLLM([CHAT], store=sqlite_url, transport=provider) as client,
        pytest.raises(UnknownModelError, match="no model for embeddings is configured"),
    ):
        client.embeddings.create(model="auto", input="Hi")
    assert provider.calls == []


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_encodings(client, encoding):
    answer = client.embeddings.create(model="auto", input="Hi", encoding_format=encoding)
    (one,) = answer.data
    assert one.embedding == ([2.0, 0.5] if encoding == "float" else "AAAAQAAAAD8=")


def test_lists_of_tokens_are_taken(client, provider):
    answer = client.embeddings.create(model="auto", input=[[1, 2, 3], [4]])
    assert [one.embedding[0] for one in answer.data] == [3.0, 1.0]
    client.embeddings.create(model="auto", input=[1, 2, 3])
    first, second = provider.calls
    assert first.most_prompt_tokens >= 4
    assert [message["content"] for message in second.messages] == [[1, 2, 3]]


def test_nothing_is_learnt_or_kept_of_what_was_embedded(client, sqlite_url, provider):
    client.embeddings.create(model="auto", input="A secret")
    client.close()
    assert b"A secret" not in b"".join(
        path.read_bytes() for path in _database(sqlite_url).parent.glob("optllm.db*")
    )
    with OptLLM([CHAT, VECTORS], budget="1 USD", store=sqlite_url, transport=provider) as again:
        assert again.balance.spent_nano == 140


def test_no_embedding_is_taken_for_an_answer_that_was_cut_off(client, sqlite_url, provider):
    client.embeddings.create(model="vectors", input="Hello")
    client.close()
    with contextlib.closing(Database(sqlite_url)) as database, database.read() as connection:
        assert connection.scalars(select(schema.outcomes.c.cut)).all() == [0]


def test_an_embedding_that_is_not_counted_costs_the_most_it_can(client, provider):
    provider.usage = None
    answer = client.embeddings.create(model="auto", input="Hi")
    assert answer.optllm.cost_estimated
    assert answer.optllm.cost_nano == 20 * answer.usage.prompt_tokens > 40


def test_an_embedding_that_does_not_fit_is_not_sent(provider, sqlite_url):
    models = [CHAT, VECTORS]
    with (
        OptLLM(models, budget="0.000001 USD", store=sqlite_url, transport=provider) as client,
        pytest.raises(BudgetExceededError),
    ):
        client.embeddings.create(model="auto", input="Hi" * 1000)
    assert provider.calls == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"input": ""}, r"input\[0\] must be text"),
        ({"input": []}, "input has 0 entries"),
        ({"input": ["a"] * 2049}, "input has 2049 entries"),
        ({"input": ["a", ""]}, r"input\[1\] must be text"),
        ({"input": [[]]}, r"input\[0\]"),
        ({"input": [[1, -1]]}, r"input\[0\]"),
        ({"input": 5}, "input is no list"),
        ({"dimensions": 0}, "dimensions 0"),
        ({"dimensions": 1.5}, "dimensions 1.5"),
        ({"encoding_format": "int8"}, "encoding_format 'int8'"),
        ({"user": 5}, "user must be text"),
        ({"timeout": -1}, "timeout -1"),
        ({"extra_body": {"optllm": {"require_tags": ["us"]}}}, "has no tag 'us'"),
        ({"extra_body": {"optllm": {"forbid_tags": ["eu"]}}}, "has the tag 'eu'"),
        ({"extra_body": {"optllm": {"tenants": "a"}}}, "'tenants'"),
        ({"extra_body": {"truncate": True}}, "'truncate' is not taken"),
        ({"extra_headers": {"authorization": "Bearer theirs"}}, "extra_headers"),
        ({"model": "chat"}, "model 'chat' is for chat, not for embedding"),
    ],
)
def test_a_bad_argument_is_named(client, provider, arguments, shown):
    with pytest.raises((InvalidRequestError, UnknownModelError), match=shown) as caught:
        client.embeddings.create(**{"model": "auto", "input": "Hi", **arguments})
    assert isinstance(caught.value, openai.APIStatusError)
    assert provider.calls == []


def test_embeddings_without_blocking(provider, sqlite_url):
    async def run():
        async with AsyncOptLLM([CHAT, VECTORS], store=sqlite_url, transport=provider) as client:
            answer = await client.embeddings.create(
                model="auto", input="Hi", extra_body={"optllm": {"require_tags": ["eu"]}}
            )
            assert answer.data[0].embedding == [2.0, 0.5]
            assert answer.optllm.candidate == "vectors"

    asyncio.run(run())


def test_models_for_embeddings_are_listed_and_not_asked_to_chat(client):
    assert [model.id for model in client.models.list()][-2:] == ["chat", "vectors"]
    with pytest.raises(InvalidRequestError, match="is for embedding, not for chat"):
        client.chat.completions.create(
            messages=[{"role": "user", "content": "Hi"}], model="vectors"
        )


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
def test_embeddings_of_a_real_endpoint(server, models, sqlite_url, transport):
    entry = {
        "model_name": "vectors",
        "litellm_params": {
            "model": f"openai/{EMBEDDING_MODEL}",
            "api_base": server.base_url,
            "api_key": "unused",
            "input_cost_per_token": 2e-8,
        },
        "model_info": {"mode": "embedding"},
        "router": {"transport": transport},
    }
    with OptLLM([*models, entry], budget="1 USD", store=sqlite_url) as client:
        both = client.embeddings.create(model="auto", input=["What is 12 + 30?", "Hello"])
        one = client.embeddings.create(model="vectors", input="Hello", encoding_format="float")
        assert both.data[1].embedding == pytest.approx(one.data[0].embedding, abs=1e-6)
        assert both.data[0].embedding != both.data[1].embedding
        assert both.optllm.cost_nano == 20 * both.usage.prompt_tokens > 0
        assert not both.optllm.cost_estimated
        assert client.balance.spent_nano == both.optllm.cost_nano + one.optllm.cost_nano
        tokens = client.embeddings.create(model="vectors", input=[[1, 2, 3]])
        assert len(tokens.data) == 1


def _database(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))
