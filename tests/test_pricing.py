from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._bounds import bound_on_answer
from optllm_router._errors import ConfigurationError, UnpricedModelError
from optllm_router._types import Call, Candidate, Price, Tier, Usage
from optllm_router.candidates import read_candidates
from optllm_router.pricing import (
    CostForecast,
    PriceCatalogue,
    charge_nano,
    most_prompt_tokens,
    price_per_token,
    read_price,
    size_in_bytes,
    worst_case_nano,
    worst_usage,
)

tokens = st.integers(0, 10**7)
prices = st.decimals(0, 10**6, allow_nan=False, places=6)


def candidate(prompt=1000, completion=2000, **changes) -> Candidate:
    price = Price(Decimal(prompt), Decimal(completion), "test")
    values = {"name": "m", "model": "x/m", "price": price, "max_output_tokens": 50, **changes}
    return Candidate(**values)


def user(content) -> dict:
    return {"role": "user", "content": content}


# Charges


@given(prices, prices, tokens, tokens)
def test_a_charge_is_exact_and_rounded_up_to_a_whole_nano_dollar(prompt, completion, n, m):
    charged = charge_nano(Price(prompt, completion, "test"), Usage(n, m))
    assert charged == math.ceil(Fraction(prompt) * n + Fraction(completion) * m)


@given(prices, tokens, tokens, tokens, st.integers(1, 100), st.integers(1, 8))
def test_no_call_within_its_bounds_costs_more_than_its_worst_case(price, prompt, n, m, bound, k):
    asked = candidate(price, price, hidden_prompt_tokens=7)
    within = Usage(min(n, prompt + 7), min(m, bound * k))
    assert charge_nano(asked.price, within) <= worst_case_nano(asked, prompt, bound, k)


maybe = st.none() | prices
kinds = dict.fromkeys(("cached", "cache_write", "audio", "reasoning"), maybe)
any_prices = st.builds(
    Price,
    *(prices, prices, st.just("test")),
    **kinds,
    request=prices,
    tiers=st.lists(st.builds(Tier, prices, prices, tokens, **kinds), max_size=3).map(tuple),
)


def test_sound_with_a_rate_in_a_tier_only_hides_no_dearer_kind_of_token():
    tier = Tier(Decimal(1), Decimal(0), 0, audio=Decimal(9))
    price = Price(Decimal(1), Decimal(0), "test", cache_write=Decimal(5), tiers=(tier,))
    written = Usage(100, 0, cache_write_tokens=100)
    most = worst_case_nano(candidate(price=price), 100, 1, audio_tokens=100)
    assert charge_nano(price, written) <= most


@given(any_prices, st.builds(Usage, tokens, tokens, st.just(False), *[tokens] * 4), st.data())
def test_whatever_the_kinds_of_tokens_the_worst_case_is_an_upper_bound(price, usage, data):
    asked = candidate(price=price, hidden_prompt_tokens=7)
    prompt = data.draw(st.integers(max(0, usage.prompt_tokens - 7), 2 * 10**7))
    bound = data.draw(st.integers(max(1, usage.completion_tokens), 2 * 10**7))
    sound = data.draw(st.integers(usage.audio_tokens, 2 * 10**7))
    most = worst_case_nano(asked, prompt, bound, audio_tokens=sound)
    assert charge_nano(price, usage) <= most
    assert charge_nano(price, worst_usage(asked, prompt, bound, audio_tokens=sound)) == most


@given(any_prices, st.builds(Usage, tokens, tokens, st.just(False), *[tokens] * 3), tokens, tokens)
def test_more_plain_tokens_never_cost_less(price, usage, prompt, completion):
    more = replace(
        usage,
        prompt_tokens=usage.prompt_tokens + prompt,
        completion_tokens=usage.completion_tokens + completion,
    )
    plain = replace(more, cached_tokens=0, cache_write_tokens=0, reasoning_tokens=0)
    less = replace(usage, cached_tokens=0, cache_write_tokens=0, reasoning_tokens=0)
    assert charge_nano(price, less) <= charge_nano(price, plain)


BY_KIND = Price(
    *(Decimal(100), Decimal(1000), "test"),
    cached=Decimal(10),
    cache_write=Decimal(125),
    audio=Decimal(700),
    reasoning=Decimal(3000),
    request=Decimal(5_000_000),
)


@pytest.mark.parametrize(
    ("usage", "nano"),
    [
        (Usage(1000, 100), 100_000 + 100_000),
        (Usage(1000, 100, cached_tokens=900), 10_000 + 9_000 + 100_000),
        (Usage(1000, 100, cache_write_tokens=400), 60_000 + 50_000 + 100_000),
        (Usage(1000, 100, reasoning_tokens=60), 100_000 + 40_000 + 180_000),
        (Usage(1000, 100, audio_tokens=300), 70_000 + 210_000 + 100_000),
        (Usage(1000, 0, cached_tokens=900, audio_tokens=300), 7_000 + 210_000),
        (Usage(0, 0), 0),
    ],
)
def test_each_kind_of_token_has_its_rate(usage, nano):
    assert charge_nano(BY_KIND, usage) == 5_000_000 + nano


def test_a_kind_without_a_rate_costs_as_any_other():
    plain = Price(Decimal(100), Decimal(1000), "test")
    usage = Usage(10, 10, cached_tokens=5, cache_write_tokens=3, reasoning_tokens=9, audio_tokens=2)
    assert charge_nano(plain, usage) == 11_000


@given(any_prices, tokens, tokens, st.integers(0, 2**53))
def test_what_the_provider_says_it_charges_is_what_is_charged(price, prompt, completion, nano):
    assert charge_nano(price, Usage(prompt, completion, reported_nano=nano)) == nano


def test_a_long_prompt_makes_every_token_dearer():
    price = Price(
        *(Decimal(1), Decimal(10), "test"),
        cached=Decimal("0.1"),
        tiers=(
            Tier(Decimal(3), Decimal(20), 500, cached=Decimal("0.3")),
            Tier(Decimal(2), Decimal(15), 200),
        ),
    )
    assert charge_nano(price, Usage(200, 7)) == 200 * 1 + 7 * 10
    assert charge_nano(price, Usage(201, 7)) == 201 * 2 + 7 * 15
    assert charge_nano(price, Usage(501, 7)) == 501 * 3 + 7 * 20
    assert charge_nano(price, Usage(200, 0, cached_tokens=100)) == 100 * 1 + 10
    # Nobody said what cached tokens cost in this tier: as any other of the prompt.
    assert charge_nano(price, Usage(300, 0, cached_tokens=100)) == 300 * 2


def test_the_candidate_s_own_bound_holds_where_the_caller_sets_none():
    assert worst_usage(candidate(), 10, None, 3) == Usage(10, 150, estimated=True)
    assert worst_usage(candidate(), 10, 5, 3) == Usage(10, 15, estimated=True)
    assert worst_case_nano(candidate(), 10, 5) == 10 * 1000 + 5 * 2000


def test_the_most_that_a_call_can_consume_is_of_the_dearest_kinds():
    assert worst_usage(candidate(price=BY_KIND), 10, 5) == Usage(
        10, 5, estimated=True, cache_write_tokens=10, reasoning_tokens=5
    )


# Sizes


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_text_is_as_long_as_its_utf8(texts):
    messages = [user(text) for text in texts]
    size = size_in_bytes(messages)
    assert size == sum(len(text.encode()) for text in texts)
    assert most_prompt_tokens(messages, size, tools=False) >= size + 3 * len(texts)


def test_everything_that_is_sent_has_a_size():
    plain = size_in_bytes([user("Hi")])
    assert plain == 2
    assert size_in_bytes([{**user("Hi"), "name": "Ada"}]) > plain
    assert size_in_bytes([user([{"type": "text", "text": "Hi"}])]) > plain
    calls = [{"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    assert size_in_bytes([{"role": "assistant", "content": None, "tool_calls": calls}]) > 40
    assert size_in_bytes([user("Hi")], [{"type": "json_object"}, None]) > plain
    assert size_in_bytes([user("\ud83d")]) == 3


def test_tools_come_with_instructions():
    messages = [user("Hi")]
    assert most_prompt_tokens(messages, 2, tools=True) > most_prompt_tokens(
        messages, 2, tools=False
    )


def test_a_picture_costs_more_than_its_address():
    picture = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
    messages = [user([picture])]
    # OpenAI charges up to 1,105 tokens for one picture of gpt-4o at high detail.
    assert most_prompt_tokens(messages, size_in_bytes(messages), tools=False) >= 1105


# The catalogue


CATALOGUE = PriceCatalogue(
    {
        "gpt-x": {
            "input_cost_per_token": 1.5e-07,
            "output_cost_per_token": 6e-07,
            "max_output_tokens": 100,
            "litellm_provider": "openai",
        },
        "llama": {
            "input_cost_per_token": 0.0,
            "output_cost_per_token": 0,
            "max_tokens": "many",
            "litellm_provider": "ollama",
        },
        "experiment": {"input_cost_per_token": 0, "output_cost_per_token": 0.0},
        "other/half-free": {"input_cost_per_token": 1e-6, "output_cost_per_token": 0.0},
        "per-request": {"input_cost_per_request": 0.005},
        "perplexity/sonar-small-online": {
            "input_cost_per_token": 0,
            "output_cost_per_token": 2.8e-07,
            "input_cost_per_request": 0.005,
        },
        "films": {
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 1e-6,
            "output_cost_per_video_token": 9e-6,
        },
        "embedder": {
            "input_cost_per_token": 2e-8,
            "output_cost_per_token": 0.0,
            "mode": "embedding",
        },
        "perplexity/sonar": {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
        "gpt-x-search-preview": {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
        "nousresearch": {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
        "half": {"input_cost_per_token": 1e-6},
        "azure/gpt-x": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6},
    },
    source="a test",
)


def test_prices_are_exact_and_say_where_they_come_from():
    assert CATALOGUE.require_price("gpt-x") == Price(Decimal(150), Decimal(600), "a test")
    assert CATALOGUE.facts("openai/gpt-x").max_output_tokens == 100
    assert CATALOGUE.require_price("azure/gpt-x").prompt == 1000


def test_only_a_model_of_one_s_own_machine_is_free():
    assert CATALOGUE.require_price("ollama/llama") == Price(Decimal(0), Decimal(0), "a test")
    assert CATALOGUE.facts("ollama/llama").max_output_tokens is None


def test_a_fee_per_request_is_part_of_a_price():
    zero = Decimal(0)
    fee = {"request": Decimal(5_000_000)}
    assert CATALOGUE.require_price("per-request") == Price(zero, zero, "a test", **fee)
    online = CATALOGUE.require_price("perplexity/sonar-small-online")
    assert online == Price(zero, Decimal(280), "a test", **fee)
    assert worst_case_nano(candidate(price=online), 100, 10) == 5_000_000 + 2_800


def test_embeddings_have_no_completions_to_pay_for():
    assert CATALOGUE.require_price("embedder") == Price(Decimal(20), Decimal(0), "a test")
    assert read_price({"input_cost_per_token": 2e-8, "mode": "embedding"}, "test") is not None


@pytest.mark.parametrize("model", ["perplexity/sonar", "gpt-x-search-preview", "films"])
def test_a_price_that_is_not_all_that_a_call_costs_is_no_price(model):
    with pytest.raises(UnpricedModelError, match="also bills web searches, or pictures") as caught:
        CATALOGUE.require_price(model)
    assert repr(model) in str(caught.value)
    assert CATALOGUE.facts("nousresearch").price is not None


def test_each_kind_of_token_may_have_a_rate_of_its_own():
    rates = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "cache_read_input_token_cost": 1e-7,
        "cache_creation_input_token_cost": 1.25e-6,
        "input_cost_per_audio_token": 7e-6,
        "output_cost_per_reasoning_token": 4e-6,
    }
    assert read_price(rates, "test") == Price(
        *(Decimal(1000), Decimal(2000), "test"),
        cached=Decimal(100),
        cache_write=Decimal(1250),
        audio=Decimal(7000),
        reasoning=Decimal(4000),
    )
    free = {**rates, "cache_read_input_token_cost": 0.0, "cache_creation_input_token_cost": None}
    assert read_price(free, "test").cached is None
    assert read_price(free, "test").cache_write is None


def test_long_prompts_have_their_own_rates():
    rates = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "output_cost_per_token_above_272k_tokens": 3e-6,
        "input_cost_per_token_above_128k_tokens": 5e-6,
        "cache_read_input_token_cost_above_128k_tokens": 5e-7,
        "input_cost_per_token_above_128k_tokens_priority": 9e-6,
    }
    assert read_price(rates, "test") == Price(
        *(Decimal(1000), Decimal(2000), "test"),
        tiers=(
            Tier(Decimal(5000), Decimal(2000), 128_000, cached=Decimal(500)),
            Tier(Decimal(1000), Decimal(3000), 272_000),
        ),
    )


def in_range(start: float, prompt: float, completion: float, **more) -> dict:
    rates = {"input_cost_per_token": prompt, "output_cost_per_token": completion}
    return {"range": [start, start + 1000.0], **rates, **more}


RANGES = [
    in_range(256_000.0, 4e-6, 5e-6, output_cost_per_reasoning_token=6e-6),
    in_range(0, 1e-6, 2e-6, cache_read_input_token_cost=1e-7),
    in_range(32_000, "2e-06", "3e-06"),
]


@pytest.mark.parametrize("base", [None, 1e-6])
def test_ranges_of_prompts_have_their_own_rates(base):
    """As litellm bills: exactly 32,000 tokens are of the first range, and no prompt is too long."""
    rates = {"input_cost_per_token": base, "output_cost_per_token": base, "mode": "chat"}
    price = read_price({**rates, "tiered_pricing": RANGES}, "test")
    assert price == Price(
        *(Decimal(1000), Decimal(2000), "test"),
        cached=Decimal(100),
        tiers=(
            Tier(Decimal(2000), Decimal(3000), 32_000),
            Tier(Decimal(4000), Decimal(5000), 256_000, reasoning=Decimal(6000)),
        ),
    )
    assert charge_nano(price, Usage(32_000, 1)) == 32_000 * 1000 + 2000
    assert charge_nano(price, Usage(32_001, 1)) == 32_001 * 2000 + 3000
    assert charge_nano(price, Usage(9_000_000, 1)) == 9_000_000 * 4000 + 5000


@pytest.mark.parametrize(
    "wrong",
    [
        RANGES[:1],  # what do short prompts cost?
        [*RANGES, {"range": [1, 2], "input_cost_per_token": 1e-6}],
        [{"max_results_range": [0, 25], "input_cost_per_query": 0.005}],
        [{**RANGES[1], "range": [math.nan, 5]}],
        [{**RANGES[1], "range": [0, math.inf]}, {**RANGES[2], "range": [math.inf, math.inf]}],
        [{**RANGES[1], "range": 0}],
        {"range": [0, 5]},
        [[0, 5]],
        "0-32k",
    ],
)
def test_ranges_that_are_not_understood_are_no_price(wrong):
    flat = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    assert read_price({**flat, "tiered_pricing": wrong}, "test") is None
    assert read_price({**flat, "tiered_pricing": []}, "test") == read_price(flat, "test")


def test_no_model_of_the_map_is_priced_below_the_range_of_its_prompt():
    catalogue, ranged = PriceCatalogue.bundled(), 0
    for name, entry in catalogue._entries.items():
        price = catalogue.facts(name).price
        for tier in entry.get("tiered_pricing") or () if price else ():
            ranged += 1
            prompt = int(tier["range"][1])
            rate = Decimal(str(tier["input_cost_per_token"])) * 10**9
            made = Decimal(str(tier["output_cost_per_token"])) * 10**9
            assert charge_nano(price, Usage(prompt, 1000)) >= prompt * rate + 1000 * made
    assert ranged > 20


def test_ranges_of_a_configuration_are_a_price_and_no_parameter():
    entry = {"model": "openai/own", "tiered_pricing": RANGES, "temperature": 0}
    (one,) = read_candidates([{"model_name": "own", "litellm_params": entry}])
    assert (one.price.source, len(one.price.tiers)) == ("configuration", 2)
    assert dict(one.parameters) == {"temperature": 0}


def test_batches_have_a_price_of_their_own():
    rates = {
        "input_cost_per_token": 2e-6,
        "output_cost_per_token": 4e-6,
        "input_cost_per_token_above_128k_tokens": 5e-6,
        "cache_read_input_token_cost": 1e-7,
    }
    assert read_price(rates, "test").batch is None
    batch = {"input_cost_per_token_batches": 1e-6, "output_cost_per_token_batches": 2e-6}
    assert read_price({**rates, **batch}, "test").batch == Price(
        *(Decimal(1000), Decimal(2000), "test"),
        # Nobody said what a long prompt costs in a batch: as without one.
        tiers=(Tier(Decimal(5000), Decimal(2000), 128_000),),
    )


def test_a_prompt_over_the_threshold_of_a_well_known_model_costs_more():
    price = PriceCatalogue.bundled().require_price("gemini-2.5-pro")
    base = charge_nano(replace(price, tiers=()), Usage(300_000, 1000))
    assert charge_nano(price, Usage(300_000, 1000)) > 1.9 * base
    asked = candidate(max_output_tokens=1000, price=price)
    assert worst_case_nano(asked, 300_000, None) == charge_nano(price, Usage(300_000, 1000))


@pytest.mark.parametrize(
    "model",
    [
        *("half", "nobody", "azure/half", "mistral/gpt-x", "", "experiment", "google/experiment"),
        "other/half-free",
    ],
)
def test_half_a_price_or_nothing_or_another_provider_s_is_no_price(model):
    with pytest.raises(UnpricedModelError, match="input_cost_per_token") as caught:
        CATALOGUE.require_price(model)
    assert repr(model) in str(caught.value)


def test_an_unpriced_model_gets_the_nearest_names():
    with pytest.raises(UnpricedModelError, match=r"did you mean gpt-x"):
        CATALOGUE.require_price("gpt-xx")
    with pytest.raises(UnpricedModelError) as caught:
        CATALOGUE.require_price("experiment")
    assert "did you mean" not in str(caught.value)


def test_the_bundled_map_knows_well_known_models():
    catalogue = PriceCatalogue.bundled()
    price = catalogue.require_price("openai/gpt-4o-mini")
    assert (price.prompt, price.completion, price.cached) == (150, 600, 75)
    assert price.batch is not None
    assert (price.batch.prompt, price.batch.completion) == (75, 300)
    assert price.source.startswith("litellm ")
    assert catalogue.facts("anthropic/claude-3-5-haiku-latest") is not None
    assert catalogue.facts("openai/gpt-4o-mini").mode == "chat"
    assert catalogue.facts("openai/text-embedding-3-small").mode == "embedding"
    assert catalogue.require_price("ollama/mistral").prompt == 0


def test_every_price_of_the_bundled_map_is_read_and_bounds_its_charges():
    catalogue = PriceCatalogue.bundled()
    read = [price for name in catalogue._entries if (price := catalogue.facts(name).price)]
    assert len(read) > 1000
    usage = Usage(
        *(300_000, 900),
        cached_tokens=100_000,
        cache_write_tokens=50_000,
        reasoning_tokens=500,
    )
    for price in (price for price in read if price.prompt or price.request):
        assert (
            0 < charge_nano(price, usage) <= worst_case_nano(candidate(price=price), 300_000, 900)
        )


@given(st.integers(0, 10**9))
def test_a_price_per_million_tokens_is_read_exactly(millionths):
    usd = Decimal(millionths) / 10**6 / 10**6
    assert price_per_token(str(usd), "0", "test").prompt == Decimal(millionths) / 1000


@pytest.mark.parametrize("usd", [-1e-9, "-1", "nan", float("inf"), "1e999999", "free", None, 1e6])
def test_what_is_no_price_is_refused_with_its_value(usd):
    with pytest.raises(ConfigurationError) as caught:
        price_per_token(usd, 0, "test")
    assert f"prompt price {usd!r}" in str(caught.value)
    with pytest.raises(ConfigurationError, match="completion price"):
        price_per_token(0, usd, "test")


# Forecasts


def call(size: int, **changes) -> Call:
    return Call([user("x" * size)], prompt_bytes=size, **changes)


def test_a_forecast_learns_what_calls_consume():
    forecast = CostForecast([candidate(), candidate()])
    before = forecast.expected_usd(call(400))
    for size in range(100, 1000, 10):
        forecast.learn(1, size, Usage(size // 2, 20))
    after = forecast.expected_usd(call(400))
    assert after[0] == before[0]
    assert after[1] == pytest.approx((200 * 1000 + 20 * 2000) * 1e-9, rel=0.1)


def test_a_forecast_follows_the_kinds_of_tokens_that_are_seen():
    price = Price(Decimal(1000), Decimal(0), "test", cached=Decimal(100))
    forecast = CostForecast([candidate(price=price), candidate(1000, 0)])
    for j in (0, 1):
        for _ in range(200):
            forecast.learn(j, 4000, Usage(1000, 5, cached_tokens=900))
    cached, plain = forecast.expected_usd(call(4000))
    assert cached == pytest.approx(0.19 * plain, rel=0.05)


def test_a_forecast_knows_fees_and_long_prompts():
    price = Price(
        *(Decimal(10), Decimal(0), "test"),
        request=Decimal(7_000_000),
        tiers=(Tier(Decimal(20), Decimal(0), 10_000),),
    )
    forecast = CostForecast([candidate(price=price)])
    (short,) = forecast.expected_usd(call(4000))
    (long,) = forecast.expected_usd(call(80_000))
    assert short == pytest.approx(0.007 + 1000 * 10e-9, rel=0.01)
    assert long == pytest.approx(0.007 + 20_000 * 20e-9, rel=0.01)


def test_a_forecast_knows_the_caller_s_bound_and_choices():
    forecast = CostForecast([candidate(0, 1000, max_output_tokens=100)])
    assert forecast.expected_usd(call(400)) == [pytest.approx(100e-6)]
    assert forecast.expected_usd(call(400, max_output_tokens=10)) == [pytest.approx(10e-6)]
    assert forecast.expected_usd(call(400, max_output_tokens=10, choices=3)) == [
        pytest.approx(30e-6)
    ]


def test_a_forecast_knows_what_the_prompt_leaves_of_the_context():
    small = candidate(0, 1000, max_output_tokens=4096, context_tokens=8192)
    forecast = CostForecast([small])
    for size in (400, 18_000, 30_000, 32_000):
        asked, lengths = call(size), [4096.0]
        most = worst_case_nano(small, asked.most_prompt_tokens, bound_on_answer(small, asked))
        assert forecast.expected_usd(asked, lengths)[0] <= most * 1e-9
    assert forecast.expected_usd(call(30_000), [4096.0]) == [pytest.approx(346e-6)]


def test_answers_that_were_cut_off_shorten_no_forecast():
    forecast = CostForecast([candidate(0, 1000, max_output_tokens=10_000)] * 2)
    before, _ = forecast.expected_usd(call(400))
    for _ in range(200):
        forecast.learn(0, 400, Usage(100, 16, cut=True))
        forecast.learn(1, 400, Usage(100, 16))
    cut, whole = forecast.expected_usd(call(400))
    assert before < cut < 2 * before
    assert whole < 0.2 * before


def test_what_a_call_hardly_exceeds_is_within_the_bound():
    forecast = CostForecast([candidate(0, 1000, max_output_tokens=100_000)])
    (expected,), (likely,) = forecast.expected_usd(call(400)), forecast.likely_usd(call(400))
    assert likely == pytest.approx(3 * expected)
    assert forecast.likely_usd(call(400), [500.0]) == [pytest.approx(500e-6)]
    assert forecast.likely_usd(call(400, max_output_tokens=10), [500.0]) == [pytest.approx(10e-6)]


def test_who_knows_the_answers_better_is_believed_within_the_bound():
    forecast = CostForecast([candidate(0, 1000, max_output_tokens=100), candidate(0, 2000)])
    assert forecast.expected_usd(call(400), [30.0, 40.0]) == pytest.approx([30e-6, 80e-6])
    assert forecast.expected_usd(call(400), [300.0, 0.0]) == pytest.approx([100e-6, 0.0])


@given(st.lists(st.tuples(st.integers(0, 10**6), tokens, tokens), max_size=30), tokens)
def test_a_forecast_is_never_negative_and_never_nan(history, size):
    forecast = CostForecast([candidate()])
    for seen, prompt, completion in history:
        forecast.learn(0, seen, Usage(prompt, completion))
    (usd,) = forecast.expected_usd(Call([user("")], prompt_bytes=size))
    assert 0 <= usd < math.inf


def test_a_misspelt_model_is_found_at_its_own_provider_first():
    catalogue = PriceCatalogue(
        {"a/openai/gpt-x": {}, "gpt-x": {"litellm_provider": "openai"}}, source=""
    )
    with pytest.raises(UnpricedModelError, match="did you mean openai/gpt-x or a/openai/gpt-x"):
        catalogue.require_price("openai/gpt-xx")
