"""Asking again when a provider is busy: after which faults, how often, after how long.

The rules are tenacity's, asked one by one: who waits, and for what else, is the flow's matter.
"""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

from optllm_router._errors import (
    PROVIDER_QUOTA_CODE,
    ProviderError,
    ProviderRateLimitedError,
    ProviderUnavailableError,
)

if TYPE_CHECKING:
    import tenacity

_LONGEST_WAIT_SECONDS = 8.0
_SPREAD = 0.1


class Retries:
    """Repeats calls that failed without being billed (429, 500, 503, 529).

    An account that is used up is no busy provider: it is not asked again.

    The waits double up to 8 s, with jitter. A provider that says how long it wants to be left
    alone is left alone for at least that long.

    Args:
        first_wait_seconds: wait before the first repetition, and at most this much jitter.
    """

    def __init__(self, first_wait_seconds: float = 0.5) -> None:
        self._first_wait = first_wait_seconds

    def wait(self, error: ProviderError, tries: int, most: int) -> float | None:
        """Seconds to wait before a candidate is asked again; ``None`` when it is not.

        Args:
            error: what the last try came to.
            tries: how often the candidate was asked so far, 1 or more.
            most: how often it may be asked again in all.
        """
        import tenacity

        rules = self._rules
        state = tenacity.RetryCallState(rules, None, (), {})
        state.attempt_number = tries
        state.set_exception((type(error), error, None))
        if not rules.retry(state) or tenacity.stop_after_attempt(1 + most)(state):
            return None
        return max(rules.wait(state), error.retry_after_seconds or 0.0)

    def spread(self, seconds: float) -> float:
        """A wait that many may have begun, each with a jitter of its own.

        Up to a tenth longer, or by the jitter of the first repetition if that is more: the longer
        all wait, the more they are.
        """
        return seconds + random.uniform(0.0, max(self._first_wait, _SPREAD * seconds))

    @functools.cached_property
    def _rules(self) -> tenacity.Retrying:
        import tenacity

        first = self._first_wait
        growing = tenacity.wait_exponential(multiplier=first, max=_LONGEST_WAIT_SECONDS)
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass_for_free),
            wait=growing + tenacity.wait_random(0.0, first),
        )


def _may_pass_for_free(error: BaseException) -> bool:
    if not isinstance(error, (ProviderRateLimitedError, ProviderUnavailableError)):
        return False
    return not error.maybe_billed and error.code != PROVIDER_QUOTA_CODE
