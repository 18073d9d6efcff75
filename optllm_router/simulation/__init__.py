"""Simulated and recorded models behind a local OpenAI-compatible server.

**No language model is involved.** The simulated models have invented names, prices and skills,
and solve synthetic tasks with known answers; the recorded ones repeat what real models once
replied. Both exist so that demos, replays and tests run the real client over real HTTP without
keys, network or bills. Results on simulated models say nothing about any real model.

::

    with SimulationServer(faults=Faults(rates={"rate_limit": 0.1})) as server:
        ...  # litellm: model="openai/sim-frontier", api_base=server.base_url, api_key="unused"

To look at it by hand: ``python -m optllm_router.simulation --port 8000``.
"""

from __future__ import annotations

from optllm_router.simulation.faults import Fault, Faults
from optllm_router.simulation.models import EMBEDDING_MODEL, SIMULATED_MODELS, SimulatedModel
from optllm_router.simulation.replies import Reply
from optllm_router.simulation.server import SimulationServer
from optllm_router.simulation.tasks import Task, grade, make_tasks

__all__ = [
    "EMBEDDING_MODEL",
    "SIMULATED_MODELS",
    "Fault",
    "Faults",
    "Reply",
    "SimulatedModel",
    "SimulationServer",
    "Task",
    "grade",
    "make_tasks",
]
