from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from optllm_router._conversations import Partner
from optllm_router._errors import ConfigurationError, InvalidRequestError, UnknownModelError
from optllm_router._query import Query
from optllm_router._types import Candidate, Price, Usage
from optllm_router.policy import MaxSuccess, MinCost, WillingnessToPay
from optllm_router.router import Router
from optllm_router.simulation import make_tasks
from optllm_router.traffic import Means, Pot

PROMPTS = [task.prompt for task in make_tasks(200, np.random.default_rng(0))]
PRICES = {"cheap": 100, "middle": 1000, "dear": 10_000}
CANDIDATES = [
    Candidate(name, f"x/{name}", Price(Decimal(price), Decimal(price), "test"), 100)
    for name, price in PRICES.items()
]


def router(policy=None, **settings) -> Router:
    settings = {"explore": 0.0, "seed": 0, **settings}
    return Router(CANDIDATES, policy or MaxSuccess(), **settings)


def query(text: str = "What is 2 + 2?", **settings) -> Query:
    return Query.from_messages([{"role": "user", "content": text}], **settings)


def test_a_decision_says_who_why_and_at_what_odds():
    (decision,) = router().decide([query()])
    assert decision.candidate in PRICES
    assert sorted([decision.candidate, *decision.fallbacks]) == sorted(PRICES)
    assert 0 <= decision.p <= 1
    assert decision.std >= 0
    assert decision.expected_cost_nano > 0
    assert decision.propensity == 1.0
    assert decision.reason


def test_ids_are_unique_and_in_order_of_time():
    one = router()
    ids = [decision.id for _ in range(5) for decision in one.decide([query()] * 3)]
    assert len(set(ids)) == 15
    assert [id[:22] for id in ids] == sorted(id[:22] for id in ids)


def test_before_any_label_the_dear_are_taken_to_be_better():
    assert router().decide([query()])[0].candidate == "dear"
    assert router(WillingnessToPay(1e-9)).decide([query()])[0].candidate == "cheap"


def test_an_empty_purse_takes_the_cheapest():
    (decision,) = router().decide([query()], Means((Pot(0.0),)))
    assert decision.candidate == "cheap"


def test_scores_change_the_next_decision():
    one = router(WillingnessToPay(1.0))
    for prompt in PROMPTS[:15]:
        one.learn(prompt, "cheap", 1.0)
        one.learn(prompt, "middle", 0.0)
        one.learn(prompt, "dear", 0.0)
    one.wait()
    assert one.decide([query()])[0].candidate == "cheap"


def test_texts_that_are_all_alike_teach_without_a_warning():
    one = router()
    for n in range(30):
        one.learn(f"{n} + {n}", "cheap", float(n % 2))
    one.wait()
    assert np.isfinite(one.forecast([query()]).p).all()


def test_usage_changes_the_expected_cost():
    one = router()
    before = one.forecast([query()]).cost
    for _ in range(50):
        one.observe(query().text, "dear", query().call.prompt_bytes, Usage(20, 2))
    one.wait()
    after = one.forecast([query()]).cost
    assert after[0, 2] == pytest.approx(22 * 10_000e-9, rel=0.1)
    # Who has not answered yet is taken to be as brief.
    assert (after < before / 2).all()


def test_what_is_asked_changes_the_expected_cost():
    one = router()
    short, long = query("Yes or no: is 7 prime?"), query("Prove that 7 is prime.")
    used = [
        (text, name, len(text), Usage(8, tokens))
        for n in range(40)
        for name in PRICES
        for text, tokens in ((f"Yes or no: is {n} prime?", 1), (f"Prove that {n} is prime.", 60))
    ]
    one.observe_many(used)
    one.wait()
    cost = one.expected_usd([short, long])
    assert (cost[1] > 3 * cost[0]).all()
    assert cost[1] == pytest.approx([68 * price * 1e-9 for price in PRICES.values()], rel=0.15)
    bounded = one.expected_usd([query("Prove that 7 is prime.", max_output_tokens=10)])
    assert bounded[0] == pytest.approx([18 * price * 1e-9 for price in PRICES.values()], rel=0.15)


@pytest.mark.parametrize("n", [5, 60])
def test_calls_with_a_bound_do_not_shorten_what_is_expected_without_one(n):
    one = router()
    for i in range(n):
        one.observe(f"write a story about {i}", "dear", 30, Usage(10, 16, cut=True))
    one.wait()
    bounded, unbounded = one.expected_usd(
        [query("write a story about 99", max_output_tokens=16), query("write a story about 99")]
    )
    assert unbounded[2] > 3 * bounded[2]


def test_a_soft_budget_sets_aside_what_19_of_20_calls_keep_to():
    rng = np.random.default_rng(0)
    long = [replace(one, max_output_tokens=10**6) for one in CANDIDATES]
    one = Router(long, MaxSuccess(), explore=0.0, seed=0)
    lengths = rng.lognormal(4.0, 1.2, 1_600).round().astype(int).tolist()
    used = [(f"text {i}", "dear", 10, Usage(4, tokens)) for i, tokens in enumerate(lengths)]
    one.observe_many(used[:800])
    one.wait()
    kept = [
        (4 + usage.completion_tokens) * PRICES["dear"] <= one.likely_nano(query(text))["dear"]
        for text, _, _, usage in used[800:]
    ]
    assert 0.925 <= np.mean(kept) <= 0.98


def test_the_policy_of_one_call():
    (decision,) = router().decide([query()], policy=MinCost(0.01))
    assert decision.candidate == "cheap"


def test_all_settings_that_need_no_label_give_finite_forecasts():
    forecast = router().forecast([query(""), query("x" * 10_000), query("\0 \ud83d 🚀")])
    for array in (forecast.p, forecast.std, forecast.cost):
        assert array.shape == (3, 3)
        assert np.isfinite(array).all()


def test_a_query_is_measured_with_all_that_is_sent():
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    sizes = [
        query(parameters=parameters).call.prompt_bytes
        for parameters in (
            {},
            {"tools": [tool]},
            {"tools": [tool], "functions": [tool]},
            {"tools": [tool], "functions": [tool], "response_format": {"type": "json_object"}},
        )
    ]
    assert sizes == sorted(set(sizes))
    assert query(parameters={"tools": [tool]}).call.most_prompt_tokens > sizes[1] + 100


# Who cannot serve


def able_router() -> Router:
    """Three candidates: cheap sees nothing, middle is elsewhere, dear has a short memory."""
    cheap, middle, dear = CANDIDATES
    limited = (
        replace(cheap, unable=frozenset({"vision"})),
        replace(middle, tags=frozenset({"region:us"})),
        replace(dear, context_tokens=50, tags=frozenset({"region:eu"})),
    )
    return Router(limited, MaxSuccess(), explore=1.0, seed=0)


def needing(*needs: str, tags: tuple[str, ...] = (), text: str = "What is this?") -> Query:
    plain = query(text)
    call = replace(plain.call, needs=frozenset(needs), required_tags=frozenset(tags))
    return Query(plain.text, call)


def test_who_cannot_serve_is_neither_chosen_nor_a_fallback_and_it_says_why():
    one = able_router()
    for _ in range(50):
        see, eu, long = one.decide(
            [needing("vision"), needing(tags=("region:eu",)), needing(text="word " * 60)]
        )
        assert {see.candidate, *see.fallbacks} == {"middle", "dear"}
        assert see.left_out == {"cheap": "takes no images"}
        assert (eu.candidate, eu.fallbacks) == ("dear", ())
        assert eu.left_out == dict.fromkeys(("cheap", "middle"), "is not tagged 'region:eu'")
        assert {long.candidate, *long.fallbacks} == {"cheap", "middle"}
        assert "room for 50 tokens" in long.left_out["dear"]
    decisions, quote, _ = one.plan([needing("vision")] * 5, 1.0)
    assert quote.shares["cheap"] == 0
    assert all("cheap" not in (d.candidate, *d.fallbacks) for d in decisions)


def test_a_call_that_nobody_can_serve_is_refused_with_every_reason():
    one, query = able_router(), needing("vision", tags=("region:asia",))
    for ask in (lambda: one.decide([query]), lambda: one.plan([query], 1.0)):
        with pytest.raises(InvalidRequestError) as refused:
            ask()
        for reason in ("'cheap' takes no images", "'dear' is not tagged 'region:asia'"):
            assert reason in str(refused.value)


def test_a_named_model_has_to_be_able_too():
    one = able_router()
    assert one.pin(needing("vision"), "dear").candidate == "dear"
    with pytest.raises(InvalidRequestError, match="'cheap' takes no images; name another"):
        one.pin(needing("vision"), "cheap")


# Conversations


def partnered(name: str, tokens: int = 0, at: float = 0.0) -> Query:
    return replace(query(), partner=Partner(name, tokens, at))


def taught(policy=None, **gains: float) -> Router:
    """A router that has learnt how often each candidate is right."""
    one = router(policy or WillingnessToPay(1.0), explore=0.0)
    for prompt in PROMPTS[:40]:
        for name, rate in gains.items():
            one.learn(prompt, name, rate)
    one.wait()
    return one


def test_a_conversation_stays_unless_another_is_better_by_enough():
    close, far = taught(cheap=0.60, middle=0.62), taught(cheap=0.5, middle=0.9)
    for one, stays in ((close, True), (far, False)):
        assert one.decide([query()])[0].candidate == "middle"
        (decision,) = one.decide([partnered("cheap")])
        assert decision.candidate == ("cheap" if stays else "middle")


def test_a_conversation_is_no_place_to_experiment():
    one = router(explore=1.0)
    decisions = [one.decide([partnered("dear")])[0] for _ in range(30)]
    assert {decision.candidate for decision in decisions} == {"dear"}
    assert {decision.propensity for decision in decisions} == {1.0}


def test_a_partner_that_is_gone_or_unable_binds_nobody():
    assert router().decide([partnered("retired")])[0].candidate == "dear"
    one = able_router()
    for _ in range(20):
        (decision,) = one.decide([replace(needing("vision"), partner=Partner("cheap", 0, 0.0))])
        assert decision.candidate != "cheap"


def test_the_price_of_a_switch_includes_the_lost_cache():
    cached = [
        replace(one, price=replace(one.price, cached=one.price.prompt / 10)) for one in CANDIDATES
    ]
    one = Router(cached, WillingnessToPay(1.0), explore=0.0, seed=0)
    long = Query.from_messages([{"role": "user", "content": "word " * 4000}])
    plain, stale, fresh = (
        one.decide([replace(long, partner=partner)], Means(now=1000.0))[0]
        for partner in (None, Partner("dear", 4500, 500.0), Partner("dear", 4500, 900.0))
    )
    assert plain.candidate == stale.candidate == fresh.candidate == "dear"
    assert stale.expected_cost_nano == plain.expected_cost_nano
    saved = plain.expected_cost_nano - fresh.expected_cost_nano
    assert saved == pytest.approx(4500 * 9_000, rel=0.01)


# Pinning


def test_a_named_model_is_not_replaced():
    decision = router().pin(query(), "middle")
    assert (decision.candidate, decision.fallbacks, decision.propensity) == ("middle", (), 1.0)


@pytest.mark.parametrize("name", ["midle", "", "auto ", "zzz"])
def test_an_unknown_model_is_refused(name):
    one = router()
    for ask in (
        lambda: one.pin(query(), name),
        lambda: one.learn("x", name, 1.0),
        lambda: one.observe("x", name, 1, Usage(1, 1)),
        lambda: one.observe_many([("x", "dear", 1, Usage(1, 1)), ("x", name, 1, Usage(1, 1))]),
        lambda: one.learn_many([("x", "dear", 1.0), ("x", name, 1.0)]),
    ):
        with pytest.raises(UnknownModelError, match=repr(name)):
            ask()


def test_nothing_is_learnt_from_triples_of_which_one_is_wrong():
    one = router()
    with pytest.raises(UnknownModelError):
        one.learn_many([("x", "dear", 0.0), ("x", "nobody", 1.0)])
    one.learn_many([("x", "dear", 1.0)])
    one.wait()
    assert one._learner.labels == 1


def test_an_unknown_predictor_is_refused():
    with pytest.raises(ConfigurationError, match="'crystal ball'"):
        router(predictor="crystal ball")


# Exploration


def test_exploration_reaches_everyone_and_fades():
    one = router(explore=1.0)
    decisions = [one.decide([query(f"{n} + {n}")])[0] for n in range(400)]
    early, late = decisions[:40], decisions[-100:]
    assert {decision.candidate for decision in early} == set(PRICES)
    assert sum(decision.candidate != "dear" for decision in late) < 15
    assert all(0 < decision.propensity <= 1 for decision in decisions)
    explored = [one for one in decisions if one.candidate != "dear"]
    assert all("at random" in decision.reason for decision in explored)


def test_a_seed_repeats_every_choice():
    def choices(seed: int) -> list[str]:
        one = router(explore=1.0, seed=seed)
        return [one.decide([query()])[0].candidate for _ in range(30)]

    assert choices(1) == choices(1) != choices(2)


# Plans


def test_a_plan_promises_what_its_decisions_add_up_to():
    one = router(WillingnessToPay(1.0))
    decisions, quote, front = one.plan([query(f"{n} + 1") for n in range(9)], 5.0)
    assert quote.queries == len(decisions) == 9
    assert quote.expected_success == pytest.approx(np.mean([d.p for d in decisions]))
    nano = sum(decision.expected_cost_nano for decision in decisions)
    assert quote.expected_usd == pytest.approx(nano * 1e-9, abs=2e-8)
    assert quote.high_usd >= quote.expected_usd
    assert quote.bound >= quote.expected_success
    assert sum(quote.shares.values()) == pytest.approx(1)
    assert set(quote.shares) == set(PRICES)
    assert len(front) >= 1


def test_a_plan_keeps_within_its_money():
    one = router()
    queries = [query(f"{n} + 1") for n in range(50)]
    dearest = one.plan(queries, math.inf)[1].expected_usd
    cheapest = one.plan(queries, 0.0)[1].expected_usd
    for usd in np.linspace(3 * cheapest, dearest, 7):
        assert one.plan(queries, float(usd))[1].expected_usd <= usd


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(InvalidRequestError, match="nothing to plan"):
        router().plan([], 1.0)


def test_threads_decide_and_teach_at_once():
    one = router(explore=1.0)

    def work(n: int) -> int:
        for i in range(20):
            prompt = PROMPTS[20 * n + i]
            (decision,) = one.decide([query(prompt)], Means((Pot(1.0),)))
            one.learn(prompt, decision.candidate, float(i % 2))
            one.observe(prompt, decision.candidate, 10, Usage(5, 5))
        return 20

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 160
    one.wait()
    assert one._learner.labels == 160
