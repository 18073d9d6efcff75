"""What many tests need: a provider on this machine, models that live there, and databases."""

from __future__ import annotations

import asyncio

import litellm_clients
import pytest
from postgresql_stores import new_postgresql_store, postgresql_is_missing
from simulated_entries import model_entries

from optllm_router.simulation import SimulationServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="torture for minutes instead of seconds")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether to take minutes; also False when this folder's options were not loaded."""
    return bool(request.config.getoption("--long", default=False))


@pytest.fixture
def server():
    """A provider that runs for one test, so that its calls can be counted and made to fail."""
    with SimulationServer() as running:
        yield running


@pytest.fixture
def models(server) -> list[dict]:
    """Entries for all models of ``server``."""
    return model_entries(server.base_url)


@pytest.fixture
def sqlite_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/optllm.db"


@pytest.fixture
def postgresql_url():
    """An empty schema of its own; skips where no server answers."""
    if reason := postgresql_is_missing():
        pytest.skip(reason)
    with new_postgresql_store() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request) -> str:
    """An empty database of either kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(autouse=True, scope="session")
def _no_event_loop_of_litellm_s_own():
    """Without a decision about the main thread's event loop, litellm makes one and leaves it."""
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def _no_clients_left_open():
    yield
    litellm_clients.close()
