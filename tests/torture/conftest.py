from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="torture the ledger for minutes instead of seconds"
    )


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether to take minutes; also False when this folder's options were not loaded."""
    return bool(request.config.getoption("--long", default=False))
