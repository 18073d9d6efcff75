"""What callers are told of errors, and what they are not."""

from __future__ import annotations

import time

import pytest

from optllm_router import (
    AllCandidatesFailedError,
    BudgetExceededError,
    InvalidRequestError,
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
)
from optllm_router.server.errors import as_refusal


def all_failed(*causes) -> AllCandidatesFailedError:
    each = "; ".join(map(str, causes))
    return AllCandidatesFailedError(f"all failed: {each}", causes=causes)


def test_a_key_that_a_provider_refuses_is_not_told():
    theirs = ProviderAuthenticationError("incorrect key sk-...abc", candidate="m", status=401)
    late = ProviderTimeoutError("too late", candidate="n")
    several = all_failed(late, theirs), all_failed(theirs, theirs)
    for error in (theirs, *several, late.after([theirs, late], {}, "too late")):
        refused = as_refusal(error)
        assert (refused.status, refused.code) == (502, "provider_authentication")
        assert "sk-" not in refused.message


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (ProviderTimeoutError, 504),
        (ProviderConnectionError, 502),
        (ProviderRateLimitedError, 429),
    ],
)
def test_what_all_candidates_do_wrong_decides_the_status(kind, status):
    one = kind("no", candidate="m")
    assert as_refusal(one).status == as_refusal(all_failed(one, one)).status == status


@pytest.mark.parametrize(("seconds", "told"), [(3600, range(3500, 3602)), (-5, range(1, 2))])
def test_a_budget_that_is_used_up_says_after_how_long_there_is_money_again(seconds, told):
    used_up = {"budget": "default", "needed_nano": 2, "left_nano": 1}
    again = int(time.time()) + seconds
    refused = as_refusal(BudgetExceededError("too dear", **used_up, next_window=again))
    assert (refused.status, refused.headers["x-should-retry"]) == (429, "false")
    assert int(refused.headers["retry-after"]) in told
    assert "retry-after" not in as_refusal(BudgetExceededError("too dear", **used_up)).headers


def test_a_message_that_quotes_the_request_is_cut_short():
    assert len(as_refusal(InvalidRequestError("a" * 1_000_000)).message) <= 2_000
