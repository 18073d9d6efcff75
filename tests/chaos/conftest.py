"""The chaos suite also starts servers, as the tests in ``tests/server`` do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from chaos_provider import ProviderProcess

sys.path.append(str(Path(__file__).parents[1] / "server"))


@pytest.fixture(scope="module")
def provider():
    with ProviderProcess() as running:
        yield running
