from __future__ import annotations

from collections import Counter

import pytest

from optllm_router._errors import ConfigurationError
from optllm_router.simulation import Faults
from optllm_router.simulation.faults import FaultPlayer


def test_no_plan_no_fault():
    assert not any(Faults().fault("sim-tiny", call) for call in range(100))


def test_the_script_comes_first_and_then_the_rates():
    plan = Faults(rates={"garbage": 1.0}, script=("cut", None))
    assert [plan.fault("a", call) for call in range(4)] == ["cut", None, "garbage", "garbage"]


def test_rates_hold_in_the_long_run_and_add_up():
    plan = Faults(rates={"rate_limit": 0.3, "server_error": 0.1}, seed=4)
    counts = Counter(plan.fault("a", call) for call in range(5000))
    assert counts["rate_limit"] / 5000 == pytest.approx(0.3, abs=0.03)
    assert counts["server_error"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert set(counts) == {"rate_limit", "server_error", None}


def test_the_seed_and_the_model_decide_which_calls_fail():
    def failing(seed: int, model: str) -> list[int]:
        plan = Faults(rates={"cut": 0.5}, seed=seed)
        return [call for call in range(64) if plan.fault(model, call)]

    assert failing(1, "a") == failing(1, "a")
    assert failing(1, "a") != failing(2, "a")
    assert failing(1, "a") != failing(1, "b")


def test_each_model_plays_the_plan_for_itself():
    player = FaultPlayer(Faults(script=("cut", "garbage")))
    played = [player.next(model)[1] for model in ("a", "b", "a", "b", "a")]
    assert played == ["cut", "cut", "garbage", "garbage", None]


def test_plans_by_model_leave_the_others_alone():
    player = FaultPlayer({"a": Faults(script=("cut",))})
    assert [player.next(model)[1] for model in ("b", "a", "a")] == [None, "cut", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": {"explode": 0.1}}, "explode"),
        ({"script": ("explode",)}, "explode"),
        ({"rates": {"cut": -0.1}}, "-0.1"),
        ({"rates": {"cut": float("nan")}}, "nan"),
        ({"rates": {"cut": 0.6, "garbage": 0.6}}, "add up"),
        ({"retry_after_seconds": -1}, "-1"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Faults(**arguments)


def test_ten_times_a_tenth_is_not_too_much():
    rates = {"cut": 0.3, "garbage": 0.1, "timeout": 0.2, "rate_limit": 0.2, "server_error": 0.2}
    assert Faults(rates=rates).fault("a", 0) is not None
