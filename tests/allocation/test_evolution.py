"""pymoo's algorithms as baselines: they run, they are honest, and they never beat the front."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest
from allocation_instances import random_instance

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router.allocation import Solver, evolve, exact_front


def test_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo.optimize", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'optllm-router\[paper\]'"):
        evolve([[0.5, 0.9]], [[1.0, 2.0]])


class TestWithPymoo:
    @pytest.fixture(autouse=True)
    def _pymoo(self):
        pytest.importorskip("pymoo", reason="needs the extra optllm-router[paper]")

    @pytest.mark.parametrize("name", ["nsga2", "rnsga2", "sms_emoa", "moead", "mopso"])
    def test_finds_a_front_below_the_exact_one(self, name):
        instance = random_instance(30, 4, seed=1)
        front = exact_front(*instance)
        archive = evolve(*instance, algorithm=name, population=20, generations=20)
        assert len(archive) >= 2
        assert np.all(np.diff(archive.success) > 0.0)
        assert archive.along(instance.cost) == pytest.approx(archive.cost)
        on_front = np.interp(archive.cost, front.cost, front.success)
        assert np.all(archive.success <= on_front + 1e-9)

    def test_nothing_to_allocate_is_refused(self):
        with pytest.raises(InvalidDataError, match="at least one query"):
            evolve(np.empty((0, 2)), np.empty((0, 2)))

    @pytest.mark.parametrize("name", ["nsga2", "rnsga2", "sms_emoa", "moead", "mopso"])
    def test_reports_every_generation(self, name):
        steps = []
        evolve(
            *random_instance(30, 4, seed=1),
            algorithm=name,
            population=10,
            generations=4,
            progress=lambda *step: steps.append(step),
        )
        assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_an_interrupt_between_generations_ends_the_search(self):
        def interrupt(done, of):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evolve(*random_instance(30, 4, seed=1), generations=3, progress=interrupt)

    def test_the_seed_decides(self):
        instance = random_instance(30, 4, seed=2)
        run = functools.partial(evolve, *instance, population=10, generations=5)
        assert run(seed=3).cost.tolist() == run(seed=3).cost.tolist()
        assert run(seed=3).cost.tolist() != run(seed=4).cost.tolist()

    def test_stands_in_for_another_solver(self):
        instance = random_instance(30, 4, seed=3)
        solver: Solver = functools.partial(evolve, population=20, generations=10)
        answers = solver(*instance)
        solution = answers.at_budget(float(exact_front(*instance).cost[-1]))
        assert solution.gap == solution.bound - solution.success > 0.0

    def test_no_such_algorithm(self):
        with pytest.raises(ConfigurationError, match="'nsga9': choose one of nsga2"):
            evolve([[0.5, 0.9]], [[1.0, 2.0]], algorithm="nsga9")
