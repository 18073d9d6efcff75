from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import get_args

import pytest

from optllm_router._bounds import bound_on_answer
from optllm_router._types import Call, Candidate, Capability, Price
from optllm_router.candidates import read_candidates
from optllm_router.capabilities import cannot_serve, left_out

PRICE = Price(Decimal(1), Decimal(1), "test")
PLAIN = Candidate("plain", "x/plain", PRICE, max_output_tokens=100)


def reason(candidate: Candidate, **call: object) -> str:
    """Why a candidate is left out; nothing when it is not."""
    return left_out([candidate], Call([], **call)).get("plain", "")


@pytest.mark.parametrize("capability", get_args(Capability))
def test_who_lacks_what_a_call_needs_is_left_out(capability):
    needs = frozenset({capability})
    assert reason(PLAIN, needs=needs) == ""
    assert reason(replace(PLAIN, unable=frozenset({capability}))) == ""
    assert reason(replace(PLAIN, unable=frozenset({capability})), needs=needs)


def test_everything_that_is_missing_is_said():
    unable = replace(PLAIN, unable=frozenset({"vision", "tools", "audio"}))
    needs = frozenset({"vision", "tools"})
    assert reason(unable, needs=needs) == "calls no tools and takes no images"
    tagged = replace(PLAIN, tags=frozenset({"region:eu"}))
    tags = frozenset({"region:eu", "no-training", "audited"})
    assert reason(tagged, required_tags=tags) == "is not tagged 'audited' or 'no-training'"


def test_who_has_a_tag_that_the_call_forbids_is_left_out():
    tagged = replace(PLAIN, tags=frozenset({"region:us", "trains", "cheap"}))
    assert reason(tagged, forbidden_tags=frozenset({"region:cn"})) == ""
    assert reason(tagged, forbidden_tags=frozenset({"trains"})) == "is tagged 'trains'"
    tags = frozenset({"trains", "region:us", "region:cn"})
    assert reason(tagged, forbidden_tags=tags) == "is tagged 'region:us' and 'trains'"
    assert reason(PLAIN, forbidden_tags=tags) == ""


def test_only_what_is_surely_too_long_is_left_out():
    small = replace(PLAIN, context_tokens=1000)
    assert reason(small, prompt_bytes=3939, most_prompt_tokens=5000) == ""
    assert "about 985" in reason(small, prompt_bytes=3940)
    assert reason(PLAIN, prompt_bytes=10**9) == ""


def test_the_answer_needs_room_where_the_caller_said_how_much():
    small = replace(PLAIN, context_tokens=1000)
    assert reason(small, prompt_bytes=2000, max_output_tokens=500) == ""
    assert "501 for the answer" in reason(small, prompt_bytes=2000, max_output_tokens=501)


def test_who_gives_no_answer_that_long_is_left_out():
    short = replace(PLAIN, longest_answer_tokens=4096)
    assert reason(short, max_output_tokens=4096) == reason(short) == ""
    said = reason(short, max_output_tokens=12_000)
    assert said == "answers with 4096 tokens at most, and max_tokens is 12000"


def test_the_catalogue_knows_the_longest_answer_and_the_configuration_wins():
    known = {"litellm_params": {"model": "openai/gpt-3.5-turbo"}}
    stated = {**known, "model_info": {"max_output_tokens": 900}}
    longest = [one.longest_answer_tokens for one in read_candidates([known, stated])]
    assert longest == [4096, 900]
    assert read_candidates([stated])[0].max_output_tokens == 900


@pytest.mark.parametrize("prompt_bytes", [0, 999, 12_000, 20_000, 24_000, 30_000, 32_000])
def test_a_bound_of_ours_is_within_the_context(prompt_bytes):
    small = replace(PLAIN, max_output_tokens=4096, context_tokens=8192)
    call = Call([], prompt_bytes=prompt_bytes)
    bound = bound_on_answer(small, call)
    assert not left_out([small], call)
    assert 16 <= bound <= min(4096, 8192 - prompt_bytes // 4)
    assert bound == 4096 or bound >= 8192 - prompt_bytes / 3 - 1
    assert bound_on_answer(small, replace(call, max_output_tokens=7000)) == 7000
    assert bound_on_answer(replace(small, context_tokens=None), call) == 4096


def test_what_the_provider_adds_takes_room():
    added = replace(PLAIN, max_output_tokens=4096, context_tokens=8192, hidden_prompt_tokens=1000)
    assert bound_on_answer(added, Call([], prompt_bytes=12_000)) == 8192 - 4000 - 1000


def test_an_embedding_is_not_asked_of_a_chat_model():
    embedder = replace(PLAIN, operation="embedding")
    assert reason(embedder) == "is for embedding, not for chat"
    assert reason(PLAIN, operation="embedding") == "is for chat, not for embedding"
    assert reason(embedder, operation="embedding") == ""


def test_a_call_that_a_shorter_prompt_would_mend_says_so():
    small = replace(PLAIN, name="small", context_tokens=20)
    blind = replace(PLAIN, name="blind", unable=frozenset({"vision"}))
    long = Call([], prompt_bytes=1_000)

    def told(candidates: list[Candidate], call: Call) -> tuple[str | None, str | None]:
        error = cannot_serve("no", candidates, call, param="model")
        return error.code, error.param

    too_long = ("context_length_exceeded", "messages")
    assert told([small], long) == too_long
    seeing = replace(long, needs=frozenset({"vision"}))
    assert told([small, blind], seeing) == too_long
    assert told([blind], seeing) == (None, "model")
    assert told([small], replace(long, max_output_tokens=21)) == (None, "model")
