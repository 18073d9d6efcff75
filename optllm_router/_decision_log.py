"""One log line per decision, whatever became of it: the logger ``optllm_router.decisions``.

Each is a record of level INFO with the message ``decision`` and ``record.fields``: who was chosen
and why, who was asked, what it took, or the code of what went wrong. Prompts, answers and keys are
in none of them, unless whoever serves the call asks for the first two. Where nobody listens, as is
so until logging is set up, nothing is gathered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from optllm_router._errors import (
    AllCandidatesFailedError,
    OptLLMError,
    ProviderError,
    error_code,
)
from optllm_router._money import usd_from_nano
from optllm_router._routing import routing_info
from optllm_router._steps import Paid
from optllm_router._types import Decision, Message

if TYPE_CHECKING:
    from typing_extensions import Self

_DECISIONS = logging.getLogger("optllm_router.decisions")


@dataclass
class Asker:
    """On whose behalf decisions are made, as far as the log is concerned.

    Attributes:
        fields: what its lines say besides.
        keeps_answers: whether they hold the answers.
        given_up: the code of why its call was cancelled, once it is.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    keeps_answers: bool = False
    given_up: str = ""


ASKER: ContextVar[Asker | None] = ContextVar("optllm_asker", default=None)
"""Set by who serves calls of others."""


class DecisionLine:
    """The line of one decision: written once, at its end or when its block raises.

    Attributes:
        asked: the names of those who were asked so far, one per attempt.
    """

    __slots__ = ("_asker", "_decision", "_written", "asked")

    def __init__(self, decision: Decision) -> None:
        self.asked: list[str] = []
        self._decision = decision
        self._asker = ASKER.get() or Asker()
        self._written = False

    def answered(self, paid: Paid, messages: Sequence[Message]) -> None:
        """Tell of an answer that is whole: what it took, and its messages."""
        made = asdict(routing_info(paid))
        tokens = {
            "first_token": paid.first_token_seconds,
            "prompt_tokens": paid.usage.prompt_tokens,
            "completion_tokens": paid.usage.completion_tokens,
        }
        kept = {"answer": messages} if self._asker.keeps_answers else {}
        self._write({**made, "whole": True, **tokens, **kept})

    def failed(self, error: BaseException) -> None:
        """Tell of a call without a whole answer."""
        causes: Sequence[ProviderError] = ()
        left_out = self._decision.left_out
        if isinstance(error, (ProviderError, AllCandidatesFailedError)):
            causes, left_out = error.causes, {**left_out, **error.left_out}
        ours = isinstance(error, OptLLMError)
        self._write(
            {
                **_decided(self._decision),
                "left_out": dict(left_out),
                "whole": False,
                "error": type(error).__name__,
                "code": error_code(error) if ours else self._asker.given_up or error_code(error),
                "causes": [type(cause).__name__ for cause in causes],
            }
        )

    def _write(self, fields: Mapping[str, Any]) -> None:
        if not self._written:
            self._written = True
            told = {**self._asker.fields, **fields, "tried": list(self.asked)}
            _DECISIONS.info("decision", extra={"fields": told})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(error)


class _NoLine:
    """Of a decision that nobody wants to hear of."""

    __slots__ = ()

    @property
    def asked(self) -> list[str]:
        return []

    def answered(self, paid: Paid, messages: Sequence[Message]) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NO_LINE = _NoLine()

Line: TypeAlias = DecisionLine | _NoLine


def decision_line(decision: Decision) -> Line:
    """The line of a decision; one that is never written where the logger is off."""
    return DecisionLine(decision) if _DECISIONS.isEnabledFor(logging.INFO) else _NO_LINE


def _decided(decision: Decision) -> dict[str, Any]:
    return {
        "decision_id": decision.id,
        "candidate": decision.candidate,
        "p": decision.p,
        "std": decision.std,
        "expected_cost_usd": usd_from_nano(decision.expected_cost_nano),
        "propensity": decision.propensity,
        "price": decision.price,
        "reason": decision.reason,
    }
