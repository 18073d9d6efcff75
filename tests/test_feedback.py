"""Scores of answers that another process gave: a server of several workers, a grader."""

from __future__ import annotations

import asyncio

import openai
import pytest

from optllm_router import AsyncOptLLM, OptLLM, UnknownAnswerError

HELLO = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture
def other(models, store_url):
    """A client with a database connection of its own, as in another process."""
    with OptLLM(models, store=store_url) as client:
        yield client


def scores_of(client: OptLLM) -> list[float]:
    """What the store keeps."""
    return [graded.score for graded in client._session.runtime._records.labelled(10)]


def test_an_answer_can_be_scored_elsewhere_at_once(models, store_url, other):
    with OptLLM(models, store=store_url) as client:
        for _ in range(3):
            answer = client.chat.completions.create(model="auto", messages=HELLO)
            other.feedback.create(answer.id, score=1.0)
    assert scores_of(other) == [1.0] * 3


def test_an_answer_can_be_scored_elsewhere_at_once_asynchronously(models, store_url, other):
    async def answer_and_score() -> None:
        async with AsyncOptLLM(models, store=store_url) as client:
            answer = other.chat.completions.create(model="auto", messages=HELLO)
            await client.feedback.create(answer.id, score=0.5)

    asyncio.run(answer_and_score())
    assert scores_of(other) == [0.5]


def test_an_answer_that_never_was_is_unknown(other):
    with pytest.raises(openai.BadRequestError, match="no answer with id 'optllm-1'") as raised:
        other.feedback.create("optllm-1", score=1.0)
    assert isinstance(raised.value, UnknownAnswerError)
