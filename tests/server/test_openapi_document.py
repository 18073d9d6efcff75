"""What the OpenAPI document says holds for whatever schemathesis makes of it."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from running import RunningServer
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from optllm_router.server import Limits
from optllm_router.server.openapi import document

_EXAMPLES = 25
_LONG_EXAMPLES = 500
_SECONDS = 10.0
"""Within this the server answers anything."""
_CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = sorted(
    f"{method.upper()} {path}"
    for path, item in document(Limits())["paths"].items()
    for method in item
    if method != "parameters" and path != "/openapi.json"  # schemathesis leaves out what it read
)


@pytest.fixture(scope="module")
def schema(router):
    loaded = schemathesis.openapi.from_url(f"{router.url}/openapi.json")
    return {
        f"{one.ok().method.upper()} {one.ok().path}": one.ok()
        for one in loaded.get_all_operations()
    }


def test_the_document_names_what_is_served(schema):
    assert sorted(schema) == OPERATIONS


def test_policies_of_the_user_s_own_are_documented():
    routing = document(Limits(), ["cheap", "a.b", "cheap-one"])["components"]["schemas"]["Routing"]
    pattern = routing["properties"]["policy"]["pattern"]
    taken = ("cheap", "a.b", "cheap-one", "match_best", "min_cost:0.5")
    assert [bool(re.search(pattern, one)) for one in taken] == [True] * 5
    assert r"\-" not in pattern, "ECMA-262, by which JSON Schema goes, knows no such escape"
    assert not re.search(pattern, "a-b")
    assert not re.search(pattern, "cheaper")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_nothing_breaks_the_server(router, schema, operation, kind):
    """Valid requests and mutilated ones: no 5xx, no hang, and what comes is as documented."""
    mode = schemathesis.GenerationMode(kind)
    try:
        cases = schema[operation].as_strategy(generation_mode=mode)
        statuses = send_many(router, cases, kind)
    except hypothesis.errors.Unsatisfiable:
        assert kind == "negative", "every operation can be called"
    else:
        if kind == "positive" and "{model}" not in operation and "feedback" not in operation:
            assert statuses[200] > 0, statuses
        assert httpx.get(f"{router.url}/health/ready").status_code == 200


def send_many(router: RunningServer, cases, kind: str) -> Counter[int]:
    """Send what is generated; valid calls name a model that is there, and some say hello."""
    statuses: Counter[int] = Counter()

    @hypothesis.given(case=cases)
    @hypothesis.settings(
        max_examples=_LONG_EXAMPLES if "--long" in sys.argv else _EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case):
        if kind == "positive" and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "auto"
            if "messages" in case.body and statuses.total() % 3 == 0:
                # What is generated is valid, but seldom a conversation that a model answers.
                case.body = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
        start = time.monotonic()
        response = case.call(base_url=router.url, timeout=_SECONDS)
        assert time.monotonic() - start < _SECONDS
        statuses[response.status_code] += 1
        case.validate_response(response, checks=_CHECKS)

    send()
    return statuses
