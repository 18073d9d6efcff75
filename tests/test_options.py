from __future__ import annotations

from dataclasses import replace

import openai
import pytest

from optllm_router._errors import InvalidRequestError
from optllm_router._options import Options, read_call_options, read_options
from optllm_router.policy import MatchBest, MinCost


def test_scopes_are_named_after_what_they_are():
    options = read_options(tenant="acme", user="ann", job="night", tags=["a", "b", "a"])
    assert options.scopes == ("tenant:acme", "user:ann", "job:night", "tag:a", "tag:b")
    assert Options().scopes == ()


def test_a_call_narrows_what_its_client_sets():
    client = read_options(
        tenant="acme", tags="a", policy="match_best", timeout=5, require_tags=["eu"]
    )
    client = replace(client, forbid_tags=("trains",))
    call = read_options(tags=["b"], policy="min_cost:0.5", require_tags="safe", user="ann")
    call = replace(call, forbid_tags=("region:us", "trains"))
    both = client.narrowed(call)
    assert both.scopes == ("tenant:acme", "user:ann", "tag:a", "tag:b")
    assert both.require_tags == ("eu", "safe")
    assert both.forbid_tags == ("trains", "region:us")
    assert (both.policy, both.timeout_seconds) == (MinCost(0.5), 5.0)
    assert client.narrowed(Options()) == client
    assert Options().narrowed(client) == client


@pytest.mark.parametrize("kind", ["tenant", "user", "job"])
def test_a_call_cannot_leave_the_scope_of_its_client(kind):
    client = read_options(**{kind: "ours"})
    assert client.narrowed(read_options(**{kind: "ours"})) == client
    with pytest.raises(InvalidRequestError, match=f"{kind} 'theirs'.* for {kind} 'ours' only"):
        client.narrowed(read_options(**{kind: "theirs"}))


def test_no_retries_and_retries_that_are_not_set_differ():
    client = read_options(max_retries=2)
    assert client.narrowed(read_options(max_retries=0)).max_retries == 0
    assert client.narrowed(Options()).max_retries == 2


def test_options_of_a_call():
    assert read_call_options(None) == Options()
    given = {"policy": "match_best", "conversation": "c1", "tags": None}
    assert read_call_options(given) == Options(policy=MatchBest(), conversation="c1")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"tenant": ""}, "tenant ''"),
        ({"tenant": 5}, "tenant 5"),
        ({"user": "a\x00b"}, "user"),
        ({"job": "\ud800"}, "job"),
        ({"tenant": "*"}, "must name one tenant"),
        ({"conversation": "x" * 201}, "conversation"),
        ({"tags": 5}, "tags must be .* not this int"),
        ({"tags": [5]}, "tags 5"),
        ({"forbid_tags": [""]}, "forbid_tags ''"),
        ({"tags": ["a"] * 30}, "tags must be"),
        ({"tenants": "acme"}, "'tenants', which is unknown; did you mean 'tenant'"),
        ({"timeout": 5}, "'timeout', which is unknown"),
        ({5: 5}, "sets 5, which is unknown; known are policy"),
        ({"policy": "best"}, "policy 'best' is unknown"),
        ([], r"is \[\]; it takes a mapping"),
    ],
)
def test_an_option_that_is_wrong_is_named(given, shown):
    with pytest.raises(InvalidRequestError, match=shown) as caught:
        read_call_options(given)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("retries", [-1, 1.5, True, "two"])
def test_retries_are_a_whole_number(retries):
    with pytest.raises(InvalidRequestError, match="max_retries"):
        read_options(max_retries=retries)


def test_a_time_limit_is_openai_s_too():
    assert read_options(timeout=openai.Timeout(9, read=5)).timeout_seconds == 5
    assert read_options(timeout=openai.Timeout(None)).timeout_seconds is None


def test_what_is_too_long_resembles_nothing():
    with pytest.raises(InvalidRequestError, match="known are"):
        read_call_options({"tenant" * 100: "a"})
