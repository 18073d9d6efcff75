"""The exceptions that leave this package.

Every class says what was wrong, with the value, and what to do next::

    OptLLMError
    ├── ConfigurationError            a setting is wrong; nothing was sent or written
    │   ├── UnknownModelError         no candidate of that name
    │   └── UnpricedModelError        a candidate whose cost nobody knows
    ├── InvalidRequestError           the arguments of one call are wrong; nothing was sent
    │   └── UnknownAnswerError        no answer of this id is in the store
    ├── InvalidDataError              numbers or files that cannot be what they claim
    ├── InfeasibleError               no allocation meets the constraint
    ├── OverloadedError               more calls than can be decided; nothing was sent
    ├── BudgetExceededError           what is left does not pay for the call; nothing was sent
    ├── StoreError                    the database cannot be used
    ├── ProviderError                 a provider did not give a usable answer
    │   ├── ProviderAuthenticationError
    │   ├── ProviderRateLimitedError
    │   ├── ProviderRejectedError     the provider refuses this request
    │   ├── ProviderUnavailableError  the provider fails, and says so
    │   ├── ProviderConnectionError   the connection failed or broke
    │   ├── ProviderTimeoutError
    │   └── ProviderResponseError     an answer that is not a chat completion
    └── AllCandidatesFailedError      every candidate that was tried failed; carries each cause

The client raises subclasses of these that are also ``openai`` exceptions, so that
``except openai.RateLimitError`` written before the migration keeps working.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class OptLLMError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(OptLLMError):
    """A setting is wrong: the message names the value and the remedy."""


class UnknownModelError(ConfigurationError):
    """A model name that is none of the configured candidates."""


class UnpricedModelError(ConfigurationError):
    """A candidate whose price nobody knows; it is refused, never billed as free."""


class InvalidRequestError(OptLLMError):
    """The arguments of one call are wrong; nothing was sent.

    Attributes:
        param: which of them, as OpenAI names it, like ``messages[0].content``; ours are called
            ``optllm.policy`` and so on. ``None`` where it is no single one.
        code: OpenAI's word for what is wrong, where it has one: ``context_length_exceeded``.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownAnswerError(InvalidRequestError):
    """No answer of this id is in the store, or not yet: other processes write a moment later."""


class InvalidDataError(OptLLMError, ValueError):
    """Numbers or files that cannot be what they claim (NaN costs, missing columns, ...)."""


class InfeasibleError(OptLLMError):
    """No allocation meets the constraint.

    Attributes:
        limit: the value of the constraint that was asked for.
        attainable: the nearest value that can be met, in the same unit: USD for budgets, a
            success rate for targets, queries or tokens for capacities.
    """

    def __init__(self, message: str, *, limit: float, attainable: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.attainable = attainable


class OverloadedError(OptLLMError):
    """More calls wait for their decision than are taken; nothing was sent, try again later."""


class BudgetExceededError(OptLLMError):
    """What is left of a budget does not pay for the call; nothing was sent.

    Attributes:
        budget: name of the budget that had no room.
        needed_nano: nano-dollars that had to be set aside.
        left_nano: nano-dollars that were left.
        scope: the calls that the budget pays for, like ``tenant:acme``.
        window: over which time its limit holds.
        next_window: Unix seconds from which there is room, unless other calls use it; ``None``
            when time alone does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        budget: str,
        needed_nano: int,
        left_nano: int,
        scope: str = "everything",
        window: str = "total",
        next_window: int | None = None,
    ) -> None:
        super().__init__(message)
        self.budget = budget
        self.needed_nano = needed_nano
        self.left_nano = left_nano
        self.scope = scope
        self.window = window
        self.next_window = next_window


class StoreError(OptLLMError):
    """The database cannot be used: locked, read-only, full, or from a newer version."""


class ProviderError(OptLLMError):
    """A provider did not give a usable answer.

    Attributes:
        candidate: name of the candidate that was asked.
        status: HTTP status, where there was one.
        maybe_billed: True when the provider may have done (and charged for) the work,
            as after a timeout; the reservation is then settled at its full amount.
        retry_after_seconds: how long the provider wants to be left alone, where it said so.
        code: the provider's word for why it refuses the request itself, as OpenAI's API has it
            under ``error.code``, like ``context_length_exceeded`` or ``content_filter``;
            ``provider_quota_exceeded`` where the account with the provider is used up.
        param: the argument that it refuses, where it named one.
        type: its word for the kind of error, where it refuses the request itself.
        left_out: names of the request's candidates that were not asked, each with the reason.
    """

    _maybe_billed = False
    _causes: tuple[ProviderError, ...] = ()
    left_out: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        candidate: str,
        status: int | None = None,
        maybe_billed: bool | None = None,
        retry_after_seconds: float | None = None,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.candidate = candidate
        self.status = status
        self.code = code
        self.param = param
        self.type = type
        self.retry_after_seconds = retry_after_seconds
        self.maybe_billed = self._maybe_billed if maybe_billed is None else maybe_billed

    @property
    def causes(self) -> tuple[ProviderError, ...]:
        """What each attempt of the request raised, in order: where there was one, this alone."""
        return self._causes or (self,)

    def after(
        self, causes: Sequence[ProviderError], left_out: Mapping[str, str], message: str
    ) -> Self:
        """The same error as what a whole request ends with.

        Args:
            causes: what each attempt raised, in order.
            left_out: candidates that were not asked, each with the reason.
            message: instead of its own.
        """
        same = type(self).__new__(type(self), message)
        same.__dict__.update(self.__dict__, _causes=tuple(causes), left_out=left_out)
        same.args = (message, *self.args[1:])
        same.__cause__ = self.__cause__
        return same


class ProviderAuthenticationError(ProviderError):
    """The provider does not accept the key, or the key may not use the model."""


class ProviderRateLimitedError(ProviderError):
    """The provider asks for fewer calls."""


class ProviderRejectedError(ProviderError):
    """The provider refuses this request: bad parameter, too long, content policy, no such model."""


class ProviderUnavailableError(ProviderError):
    """The provider failed and said so (5xx)."""


class ProviderConnectionError(ProviderError):
    """The connection could not be made, or broke before the whole answer was there."""

    _maybe_billed = True


class ProviderTimeoutError(ProviderError):
    """No whole answer within the time limit."""

    _maybe_billed = True


class ProviderResponseError(ProviderError):
    """The provider answered something that is not a chat completion."""

    _maybe_billed = True


class AllCandidatesFailedError(OptLLMError):
    """Every candidate that was tried failed; where all in one way, with the code of that.

    Attributes:
        left_out: names of the other candidates, that were not asked, each with the reason.
    """

    def __init__(
        self,
        message: str,
        *,
        causes: Sequence[ProviderError],
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self._causes = tuple(causes)
        self.left_out: Mapping[str, str] = left_out or {}

    @property
    def causes(self) -> tuple[ProviderError, ...]:
        """What each attempt raised, in the order of the attempts."""
        return self._causes


_CODES: dict[type[OptLLMError], str] = {
    BudgetExceededError: "insufficient_quota",
    OverloadedError: "overloaded",
    UnknownModelError: "model_not_found",
    StoreError: "store_error",
}
"""OpenAI's words, where it has some."""


PROVIDER_QUOTA_CODE = "provider_quota_exceeded"
"""The router's account with a provider is used up: never ``insufficient_quota``, which says that a
budget of the router's is, and that whoever set it can raise it."""


def error_code(error: BaseException) -> str:
    """An error for programs: the provider's word for a request that it refuses, else OpenAI's
    word, else its class: ``ProviderTimeoutError`` as ``provider_timeout``.
    """
    if isinstance(error, (InvalidRequestError, ProviderError)) and error.code is not None:
        return error.code
    if isinstance(error, AllCandidatesFailedError):
        codes = {error_code(cause) for cause in error.causes}
        if len(codes) == 1:
            return codes.pop()
    name = type(error).__name__.removesuffix("Error")
    by_name = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), by_name)
