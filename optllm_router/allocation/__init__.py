"""From (p, cost) to allocations: the exact front, and every answer with its certificate."""

from collections.abc import Mapping

from optllm_router.allocation._archive import Archive
from optllm_router.allocation._capacities import CapacitatedSolution, solve_with_capacities
from optllm_router.allocation._evolution import EvolutionaryAlgorithm, evolve
from optllm_router.allocation._front import ParetoFront, exact_front
from optllm_router.allocation._paper import SingleConstraint, optllm_m, optllm_s, robust
from optllm_router.allocation._solution import FrontPoint, Solution
from optllm_router.allocation._solver import Answers, Solver

SOLVERS: Mapping[str, Solver] = {
    "exact": exact_front,
    "optllm_m": optllm_m,
    "optllm_s": optllm_s,
}
"""Solvers by name; each can stand in for any other."""

__all__ = [
    "SOLVERS",
    "Answers",
    "Archive",
    "CapacitatedSolution",
    "EvolutionaryAlgorithm",
    "FrontPoint",
    "ParetoFront",
    "SingleConstraint",
    "Solution",
    "Solver",
    "evolve",
    "exact_front",
    "optllm_m",
    "optllm_s",
    "robust",
    "solve_with_capacities",
]
