from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optllm_router.simulation import Task, grade, make_tasks
from optllm_router.simulation.kinds import KINDS
from optllm_router.simulation.tasks import mistakes, recognise

seeds = st.integers(0, 2**32 - 1)
wrappings = st.sampled_from(
    [
        "{}",
        "  {} \n\n",
        "Answer: {}",
        "**Answer:** `{}`",
        "The answer is {}.",
        'Working through it, 1 is not it.\nAnswer: "{}".',
        "After some thought the result is {}.",
    ]
)


def tasks_of_every_kind(seed: int) -> list[Task]:
    tasks = make_tasks(60, np.random.default_rng(seed))
    return list({task.kind: task for task in tasks}.values())


def test_the_same_seed_makes_the_same_tasks_and_another_seed_others():
    first, again, other = (make_tasks(50, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first == again
    assert not set(first) & set(other)


def test_prompts_differ_and_kinds_and_difficulties_are_spread():
    tasks = make_tasks(1200, np.random.default_rng(0))
    assert len({task.prompt for task in tasks}) == len(tasks) == 1200
    assert {task.kind for task in tasks} == set(KINDS)
    for kind in KINDS:
        difficulty = np.array([task.difficulty for task in tasks if task.kind == kind])
        assert len(difficulty) > 120
        assert difficulty.min() < 0.15
        assert difficulty.max() > 0.85
        assert 0.35 < difficulty.mean() < 0.65


@pytest.mark.parametrize("kind", KINDS)
def test_every_template_of_a_kind_is_used(kind):
    rng = np.random.default_rng(1)
    blanks = KINDS[kind].draw(0.5, rng)
    assert len({KINDS[kind].word(blanks, rng) for _ in range(200)}) == len(KINDS[kind].templates)
    assert len(KINDS[kind].templates) >= 6


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_a_task_is_found_again_from_its_prompt_alone(seed):
    for task in tasks_of_every_kind(seed):
        assert recognise(task.prompt) == task
        assert 0 <= task.difficulty <= 1


@given(seed=seeds, wrapping=wrappings)
@settings(max_examples=60, deadline=None)
def test_right_answers_grade_1_however_they_are_wrapped(seed, wrapping):
    for task in tasks_of_every_kind(seed):
        assert grade(task, wrapping.format(task.answer)) == 1.0, task


@given(seed=seeds, wrapping=wrappings)
@settings(max_examples=60, deadline=None)
def test_every_plausible_mistake_grades_0(seed, wrapping):
    for task in tasks_of_every_kind(seed):
        slips = mistakes(task)
        assert slips
        assert all(grade(task, wrapping.format(slip)) == 0.0 for slip in slips), task


@given(text=st.text(max_size=60), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_nothing_said_and_noise_grade_0(text, seed):
    for task in tasks_of_every_kind(seed):
        assert grade(task, "") == grade(task, " \n\n") == 0.0
        assert grade(task, f"{task.answer}\nOn reflection: {text}?!x") == 0.0


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is 2 + 3 * 4 - 5?", "9"),
        ("hey, How much is 10 minus 3 times 4?", "-2"),
        (
            "Take 2024-02-28, add 2 days, and tell me the resulting date in ISO format.",
            "2024-03-01",
        ),
        (
            "Starting from March 1, 2023, subtract 1 day, then add 2 weeks. "
            "Which date do you land on? Use YYYY-MM-DD.",
            "2023-03-14",
        ),
        ("Convert 10 miles to kilometres, rounded to two decimals.", "16.09"),
        ("How many minutes are 1.50 hours? Two decimals are enough.", "90.00"),
        ('API response: {"a": {"b": 3}, "b": 4}\nPlease give me only `a.b`.', "3"),
        (
            'Take the text "amber drift" and write it all in capitals, then drop the last word.',
            "AMBER",
        ),
        ("Ben is older than Cleo. Ada is older than Ben. Who is the youngest?", "Cleo"),
        ("Ben is older than Cleo. Ada is older than Ben. Who is the second oldest?", "Ben"),
    ],
)
def test_answers_worked_out_by_hand(prompt, answer):
    task = recognise(prompt)
    assert task is not None
    assert task.answer == answer


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Write a haiku about autumn.",
        "Convert 10 miles to grams, rounded to two decimals.",
        "Take 2023-02-31, add 2 days, and tell me the resulting date in ISO format.",
        "Take 9999-12-31, add 2 days, and tell me the resulting date in ISO format.",
        "Parse the record below and tell me `a.c`.\n\n" + '{"a": {"b": 3}}',
        "Parse the record below and tell me `a`.\n\n" + '{"a": {"b": 3}}',
        "Parse the record below and tell me `a`.\n\n{not json}",
        'Take the text "amber" and drop the last word.',
        "Ada is older than Ben. Ben is older than Ada. Who is the oldest?",
        "Ada is older than Ben. Cleo is older than Dan. Who is the oldest?",
        "Ada is older than Ben. Cleo is older than Ben. Who is the oldest?",
        "Ada is older than Ben. Ben is older than Cleo. Cleo is older than Ben. Who is the oldest?",
        "Ada is older than Ben. Who is the tallest?",
        "Ada is older than Ben. Who is the third oldest?",
    ],
)
def test_prompts_without_an_answer_are_no_tasks(prompt):
    assert recognise(prompt) is None


@pytest.mark.parametrize(
    ("said", "grade_expected"),
    [
        ("1,234", 1.0),
        ("1234.0", 1.0),
        ("Answer: 1234 km", 1.0),
        ("**1234**", 1.0),
        ("1200 + 34 = 1234", 1.0),
        ("The answer is: 1234.", 1.0),
        ("Answer: the total is 1234", 1.0),
        ("Answer: 1234\nAnswer: 1235", 0.0),
        ("Answer: 1234 or 1235", 0.0),
        ("1234 + 1", 0.0),
        ("12345", 0.0),
        ("-1234", 0.0),
        ("one thousand", 0.0),
    ],
)
def test_numbers_are_compared_as_numbers(said, grade_expected):
    assert grade(Task("", "1234", "arithmetic", 0.5), said) == grade_expected


def test_letter_case_matters_for_texts_and_not_for_names():
    assert grade(Task("", "AMBER drift", "strings", 0.5), "Answer: amber drift") == 0.0
    assert grade(Task("", "Ada", "logic", 0.5), "answer: ada") == 1.0


def test_mistakes_need_the_prompt_of_a_task():
    with pytest.raises(ValueError, match="haiku"):
        mistakes(Task("Write a haiku.", "x", "logic", 0.5))
