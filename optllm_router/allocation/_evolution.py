"""The paper's rivals: evolutionary and swarm search through pymoo, for comparison only.

Needs the extra ``optllm-router[paper]``. An individual is a vector in 0..1 with one entry per
query; cut into k equal pieces, an entry says which candidate. So the same encoding serves the
genetic algorithms, the decomposition and the particle swarm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router.allocation._archive import Archive
from optllm_router.allocation._paper import robust
from optllm_router.allocation._validation import check_count, check_instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from optllm_router._types import FloatArray, IntArray

EvolutionaryAlgorithm: TypeAlias = Literal["nsga2", "rnsga2", "sms_emoa", "moead", "mopso"]

_CLASSES: dict[str, tuple[str, str]] = {
    "nsga2": ("pymoo.algorithms.moo.nsga2", "NSGA2"),
    "rnsga2": ("pymoo.algorithms.moo.rnsga2", "RNSGA2"),
    "sms_emoa": ("pymoo.algorithms.moo.sms", "SMSEMOA"),
    "moead": ("pymoo.algorithms.moo.moead", "MOEAD"),
    "mopso": ("pymoo.algorithms.moo.mopso_cd", "MOPSO_CD"),
}


def evolve(
    p: ArrayLike,
    cost: ArrayLike,
    *,
    algorithm: EvolutionaryAlgorithm = "nsga2",
    std: ArrayLike | None = None,
    alpha: float = 0.5,
    population: int = 100,
    generations: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Archive:
    """Search allocations with one of pymoo's multi-objective algorithms.

    Args:
        p: shape (n, k), success probabilities in 0..1.
        cost: shape (n, k), expected USD, finite and >= 0.
        algorithm: NSGA-II, R-NSGA-II, SMS-EMOA, MOEA/D, or MOPSO with crowding distance.
        std: shape (n, k), uncertainty of ``p``, >= 0; none when not given.
        alpha: weight of the uncertainty: the search believes ``p - alpha * std``.
        population: individuals per generation.
        generations: when to stop.
        seed: of the search.
        progress: called after each generation with how many are done, and of how many.

    Raises:
        ConfigurationError: when pymoo is not installed, or the algorithm is none of these.
        InvalidDataError: naming the first entry that cannot be.
    """
    p_matrix, cost_matrix = check_instance(p, cost)
    if not len(p_matrix):
        raise InvalidDataError("there is nothing to allocate: at least one query is needed")
    believed = robust(p_matrix, std, alpha)
    check_count(population, "the population")
    check_count(generations, "the number of generations")

    def report(search: Any) -> None:
        if progress is not None:
            progress(search.n_iter, generations)

    result = _pymoo("pymoo.optimize").minimize(
        _problem(believed, cost_matrix),
        _algorithm(algorithm, population),
        ("n_gen", generations),
        seed=seed,
        callback=report,
    )
    allocations = _decoded(np.atleast_2d(result.X), k=p_matrix.shape[1])
    return Archive(p_matrix, cost_matrix, allocations)


def _problem(p: FloatArray, cost: FloatArray) -> Any:
    """The two objectives as pymoo wants them: to be minimised, of one magnitude."""
    n, k = p.shape
    rows, dearest = np.arange(n), max(float(cost.max(axis=1).sum()), 1e-300)

    def evaluate(individuals: FloatArray, out: dict[str, Any], *_: Any, **__: Any) -> None:
        chosen = _decoded(individuals, k)
        failures = 1.0 - p[rows, chosen].mean(axis=1)
        out["F"] = np.column_stack([cost[rows, chosen].sum(axis=1) / dearest, failures])

    problem = _pymoo("pymoo.core.problem").Problem(n_var=n, n_obj=2, xl=0.0, xu=1.0)
    problem._evaluate = evaluate
    return problem


def _algorithm(name: str, population: int) -> Any:
    if name not in _CLASSES:
        raise ConfigurationError(
            f"no evolutionary algorithm is called {name!r}: choose one of {', '.join(_CLASSES)}"
        )
    module, class_name = _CLASSES[name]
    build = getattr(_pymoo(module), class_name)
    if name == "moead":
        directions = np.linspace(0.0, 1.0, population)
        return build(ref_dirs=np.column_stack([directions, 1.0 - directions]))
    if name == "rnsga2":
        extremes = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
        return build(ref_points=extremes, pop_size=population)
    return build(pop_size=population)


def _decoded(individuals: FloatArray, k: int) -> IntArray:
    """Individuals in 0..1, shape (m, n), as candidates."""
    return np.minimum(individuals * k, k - 1).astype(np.int64)


def _pymoo(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{module} is not installed: pip install 'optllm-router[paper]'"
        ) from error
