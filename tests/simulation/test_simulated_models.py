from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from optllm_router._errors import ConfigurationError
from optllm_router.simulation import (
    SIMULATED_MODELS,
    Reply,
    SimulatedModel,
    SimulationServer,
    Task,
    grade,
    make_tasks,
)
from optllm_router.simulation.kinds import KINDS
from optllm_router.simulation.replies import count_tokens
from optllm_router.simulation.tasks import mistakes, recognise

TASKS = make_tasks(900, np.random.default_rng(3))


def cost_usd(model: SimulatedModel, reply: Reply) -> float:
    return (
        reply.prompt_tokens * model.price_prompt_usd_per_mtok
        + reply.completion_tokens * model.price_completion_usd_per_mtok
    ) / 1e6


@pytest.fixture(scope="module")
def outcomes():
    """Scores, costs and true success probabilities, shape (tasks, models)."""
    replies = [[model.reply(task.prompt) for model in SIMULATED_MODELS] for task in TASKS]
    scores = [
        [grade(task, reply.text) for reply in row] for task, row in zip(TASKS, replies, strict=True)
    ]
    costs = [
        [cost_usd(model, reply) for model, reply in zip(SIMULATED_MODELS, row, strict=True)]
        for row in replies
    ]
    p = [[model.success_probability(task) for model in SIMULATED_MODELS] for task in TASKS]
    return np.array(scores), np.array(costs), np.array(p)


def test_there_are_six_plainly_invented_models_that_know_every_kind():
    assert len(SIMULATED_MODELS) == 6
    assert all(model.name.startswith("sim-") for model in SIMULATED_MODELS)
    assert all(set(model.skill) == set(KINDS) for model in SIMULATED_MODELS)


def test_success_is_what_skill_and_difficulty_promise(outcomes):
    scores, _, p = outcomes
    # Standard error of a mean of 900 is below 0.017.
    assert np.abs(scores.mean(axis=0) - p.mean(axis=0)).max() < 0.06
    easy = np.array([task.difficulty < 0.3 for task in TASKS])
    assert (scores[easy].mean(axis=0) >= scores[~easy].mean(axis=0)).all()


def test_models_fail_independently_of_each_other(outcomes):
    scores, _, p = outcomes
    surprise = scores - p
    correlation = np.corrcoef(surprise[:, [1, 2, 3, 4, 5]], rowvar=False)
    assert np.abs(correlation - np.eye(5)).max() < 0.15


def test_the_frontier_is_best_overall_and_100_times_as_dear_as_the_cheapest(outcomes):
    scores, costs, _ = outcomes
    assert scores.mean(axis=0).argmax() == 0
    assert scores[:, 0].mean() > 0.97
    prices = [model.price_prompt_usd_per_mtok for model in SIMULATED_MODELS]
    assert prices[0] / min(prices) == pytest.approx(100)
    assert (costs.mean(axis=0)[0] > costs.mean(axis=0)[1:]).all()


def test_who_knows_the_skills_pays_a_tenth_for_nearly_the_same_success(outcomes):
    scores, costs, p = outcomes
    choice = (p - 100 * costs).argmax(axis=1)
    rows = np.arange(len(TASKS))
    assert scores[rows, choice].mean() > scores[:, 0].mean() - 0.02
    assert costs[rows, choice].sum() < 0.12 * costs[:, 0].sum()


def test_no_cheap_model_does_it_alone(outcomes):
    scores, _, _ = outcomes
    assert scores[:, 1:].mean(axis=0).max() < 0.9


def test_wrong_answers_are_plausible_mistakes():
    model = SimulatedModel("sim-wrong", 1, 1, skill={}, verbosity=0)
    for task in TASKS[:100]:
        assert model.success_probability(task) == 0.0
        assert model.reply(task.prompt).text in mistakes(task)


def test_verbosity_sets_the_length_of_answers():
    def mean_tokens(verbosity: float) -> float:
        model = SimulatedModel("sim-talker", 1, 1, skill={}, verbosity=verbosity)
        return float(np.mean([model.reply(task.prompt).completion_tokens for task in TASKS]))

    assert mean_tokens(1) < 12
    assert mean_tokens(100) == pytest.approx(100, rel=0.15)


def test_tokens_are_counted_on_what_is_sent_and_said():
    reply = SIMULATED_MODELS[0].reply("What is 12 + 30?", context="Be brief.")
    assert reply.prompt_tokens == count_tokens("Be brief.") + count_tokens("What is 12 + 30?")
    assert reply.completion_tokens == count_tokens(reply.text)


def test_other_prompts_get_a_polite_way_out():
    reply = SIMULATED_MODELS[0].reply("Write a haiku about autumn.")
    assert "simulated" in reply.text
    assert recognise("Write a haiku about autumn.") is None


def test_answers_are_the_same_in_every_process():
    program = (
        "from optllm_router.simulation import SIMULATED_MODELS as models\n"
        "print([m.reply('How much is 8 + 13 - 4?').text for m in models])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    here = str([model.reply("How much is 8 + 13 - 4?").text for model in SIMULATED_MODELS])
    assert printed == {here + "\n"}


def test_importing_the_simulation_loads_no_web_framework():
    program = "import sys, optllm_router.simulation; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "optllm_router.simulation.server" in loaded
    assert not {"starlette", "uvicorn", "litellm", "numpy"} & set(loaded)


def test_a_kind_that_is_missing_from_the_skills_is_never_answered_rightly():
    model = SimulatedModel("sim-narrow", 1, 1, skill={"logic": 2.0}, verbosity=0)
    assert model.success_probability(Task("", "", "dates", 0.0)) == 0.0
    assert model.success_probability(Task("", "", "logic", 1.0)) > 0.99


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="different names"):
        SimulationServer(models=[SIMULATED_MODELS[0], SIMULATED_MODELS[0]])
