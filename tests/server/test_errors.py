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
    for error in (theirs, all_failed(late, theirs), all_failed(theirs, theirs)):
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


def test_a_message_that_quotes_the_request_is_cut_short():
    assert len(as_refusal(InvalidRequestError("a" * 1_000_000)).message) <= 2_000


def test_a_budget_that_is_used_up_says_when_there_is_room_again():
    def refused(next_window: int | None):
        return as_refusal(
            BudgetExceededError(
                "no", budget="b", needed_nano=2, left_nano=1, next_window=next_window
            )
        )

    assert dict(refused(None).headers) == {"x-should-retry": "false"}
    soon = refused(int(time.time()) + 600).headers
    assert soon["x-should-retry"] == "false"
    assert 500 < int(soon["retry-after"]) <= 601
    assert refused(1_000).headers["retry-after"] == "1"
