"""Usage blocks as providers send them, and as nobody should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._types import Usage
from optllm_router.transports._usage import read_usage


def read(block, *, answered=True, headers=None):
    return read_usage(block, answered=answered, headers=headers)


PLAIN = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def test_tokens_are_read_by_kind():
    block = {
        **PLAIN,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 9, "cache_write_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 16, "audio_tokens": None},
    }
    assert read(block) == Usage(
        *(100, 20),
        cached_tokens=64,
        cache_write_tokens=3,
        reasoning_tokens=16,
        audio_tokens=9,
    )


@pytest.mark.parametrize(
    "kinds",
    [
        {"prompt_cache_hit_tokens": 70, "prompt_cache_miss_tokens": 30},
        {"cache_read_input_tokens": 70, "prompt_tokens_details": {"cached_tokens": None}},
        {"prompt_tokens_details": {"cached_tokens": 70}},
    ],
)
def test_every_provider_has_a_name_for_cached_tokens(kinds):
    assert read({**PLAIN, **kinds}) == Usage(100, 20, cached_tokens=70)


def test_cache_writes_of_anthropic():
    kinds = {"cache_creation_input_tokens": 60, "cache_read_input_tokens": 40}
    assert read({**PLAIN, **kinds}) == Usage(100, 20, cached_tokens=40, cache_write_tokens=60)


def test_what_is_counted_apart_is_added():
    apart = {"cache_creation_input_tokens": 80, "cache_read_input_tokens": 40}
    assert read({**PLAIN, **apart}) == Usage(220, 20, cached_tokens=40, cache_write_tokens=80)
    thought = {"completion_tokens_details": {"reasoning_tokens": 300}}
    assert read({**PLAIN, **thought}) == Usage(100, 320, reasoning_tokens=300)
    little = {"completion_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 125}
    assert read({**PLAIN, **little}) == Usage(100, 25, reasoning_tokens=5)


def test_embeddings_have_no_completion_tokens():
    block = {"prompt_tokens": 8, "total_tokens": 8}
    assert read(block, answered=False) == Usage(8, 0)
    assert read(block) is None


@pytest.mark.parametrize(
    "block",
    [
        *(None, [], "120", {}, {"prompt_tokens": 100}),
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 100, "completion_tokens": 0},
        {"prompt_tokens": True, "completion_tokens": True},
        {"prompt_tokens": "100", "completion_tokens": 20},
        {"prompt_tokens": -1, "completion_tokens": 20},
        {"prompt_tokens": 10**9, "completion_tokens": 1},
        {**PLAIN, "prompt_tokens_details": {"cached_tokens": 10**9}},
    ],
)
def test_a_block_that_cannot_be_believed_is_none(block):
    assert read(block) is None


@pytest.mark.parametrize(
    ("block", "nano"),
    [
        ({"cost": 0.00014}, 140_000),
        ({"cost": "0.00014"}, 140_000),
        ({"cost": 1e-10}, 1),
        ({"cost": {"input_tokens_cost": 0.1, "total_cost": 0.3}}, 300_000_000),
        ({"cost_in_usd_ticks": 37_756_000}, 3_775_600),
        ({"cost": 0.001, "is_byok": False}, 1_000_000),
        ({"cost": 0.001, "is_byok": True}, None),
        (
            {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}},
            21_000_000,
        ),
        (
            {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}},
            20_000_000,
        ),
    ],
)
def test_the_provider_s_own_cost_is_read_to_the_nano_dollar(block, nano):
    assert read({**PLAIN, **block}) == Usage(100, 20, reported_nano=nano)


@pytest.mark.parametrize(
    "name", ["x-litellm-response-cost", "llm_provider-x-litellm-response-cost"]
)
def test_a_proxy_reports_its_cost_in_a_header(name):
    assert read(PLAIN, headers={name: "2.5e-05"}) == Usage(100, 20, reported_nano=25_000)
    assert read({**PLAIN, "cost": 1e-6}, headers={name: "5"}).reported_nano == 1000


@pytest.mark.parametrize(
    "cost",
    [0, "0.0", -1, True, "nan", float("nan"), float("inf"), "1e999999999", "free", 1e10, [], {}],
)
def test_what_is_no_amount_is_no_report(cost):
    assert read({**PLAIN, "cost": cost}) == Usage(100, 20)


names = st.sampled_from(
    [
        *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"),
        *("prompt_tokens_details", "completion_tokens_details", "reasoning_tokens", "audio_tokens"),
        *("cache_creation_input_tokens", "cost", "cost_details", "is_byok", "total_cost"),
        *("cost_in_usd_ticks", "upstream_inference_cost"),
    ]
)
leaves = st.none() | st.booleans() | st.integers(-2, 2**62) | st.integers(0, 200) | st.floats()
blocks = st.dictionaries(names, leaves | st.dictionaries(names, leaves, max_size=4), max_size=8)


@given(blocks, st.booleans())
def test_whatever_is_sent_the_kinds_lie_within_their_totals(block, answered):
    usage = read({**PLAIN, **block}, answered=answered)
    if usage is not None:
        assert 0 <= usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens
        assert 0 <= usage.audio_tokens <= usage.prompt_tokens
        assert 0 <= usage.reasoning_tokens <= usage.completion_tokens
        assert usage.prompt_tokens + usage.completion_tokens <= 10**9
        assert usage.reported_nano is None or 0 < usage.reported_nano <= 2**53
