"""A provider and a server in front of it, for as long as a module's tests run."""

from __future__ import annotations

import pytest
from running import RunningServer, embedding_entry, write_config
from simulated_entries import model_entries

from optllm_router.simulation import SimulationServer


@pytest.fixture(scope="module")
def provider():
    with SimulationServer() as running:
        yield running


@pytest.fixture(scope="module")
def router(provider, tmp_path_factory):
    """``optllm serve`` without keys, with a budget that lasts."""
    folder = tmp_path_factory.mktemp("router")
    models = [*model_entries(provider.base_url), embedding_entry(provider.base_url)]
    config = write_config(folder, models, budget="100 USD per day")
    with RunningServer(config) as running:
        yield running
