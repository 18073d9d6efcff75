"""One log line per decision, whatever became of it: the logger ``optllm_router.decisions``.

Each is a record of level INFO with the message ``decision`` and ``record.fields``: who was chosen
and why, who was asked, what it took, or the code of what went wrong. Prompts, answers and keys are
in none of them, unless whoever serves the call asks for the first two. Where nobody listens, as is
so until logging is set up, nothing is gathered.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from optllm_router._errors import (
    AllCandidatesFailedError,
    ProviderError,
    error_code,
)
from optllm_router._routing import decided, routing_info
from optllm_router._steps import AbandonedError, Paid
from optllm_router._types import Decision, Message

if TYPE_CHECKING:
    from typing_extensions import Self

_DECISIONS = logging.getLogger("optllm_router.decisions")


@dataclass
class LineContext:
    """What lines say, and do not know by themselves: on whose behalf decisions are made.

    Attributes:
        fields: what the lines say besides.
        keeps_answers: whether they hold the answers.
        given_up: the code of why its call was cancelled, should it be.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    keeps_answers: bool = False
    given_up: str = ""


LINE_CONTEXT: ContextVar[LineContext | None] = ContextVar("optllm_line_context", default=None)
"""Set by who serves calls of others."""


class DecisionLine:
    """The line of one decision: written once, at its end or when its block raises.

    Attributes:
        tried: the names of those who were asked so far, one per attempt.
    """

    __slots__ = ("_context", "_decision", "_written", "tried")

    def __init__(self, decision: Decision) -> None:
        self.tried: list[str] = []
        self._decision = decision
        self._context = LINE_CONTEXT.get() or LineContext()
        self._written = False

    def answered(self, paid: Paid, messages: Sequence[Message]) -> None:
        """Tell of an answer that is whole: what it took, and its messages."""
        made = asdict(routing_info(paid))
        tokens = {
            "first_token": paid.first_token_seconds,
            "prompt_tokens": paid.usage.prompt_tokens,
            "completion_tokens": paid.usage.completion_tokens,
        }
        kept = {"answer": messages} if self._context.keeps_answers else {}
        self._write({**made, "whole": True, **tokens, **kept})

    def failed(self, error: BaseException, decision: Decision | None = None) -> None:
        """Tell of a call without a whole answer.

        Args:
            error: what it came to.
            decision: as it was carried out, where somebody had begun to answer.
        """
        causes: Sequence[ProviderError] = ()
        decision = decision or self._decision
        left_out = decision.left_out
        if isinstance(error, (ProviderError, AllCandidatesFailedError)):
            causes, left_out = error.causes, {**left_out, **error.left_out}
        self._write(
            {
                **decided(decision),
                "left_out": dict(left_out),
                "whole": False,
                "error": type(error).__name__,
                "code": self._code(error),
                "causes": [type(cause).__name__ for cause in causes],
            }
        )

    def _code(self, error: BaseException) -> str:
        cancelled = isinstance(error, (CancelledError, GeneratorExit, AbandonedError))
        return (self._context.given_up if cancelled else "") or error_code(error)

    def _write(self, fields: Mapping[str, Any]) -> None:
        if not self._written:
            self._written = True
            told = {**self._context.fields, **fields, "tried": list(self.tried)}
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
    def tried(self) -> list[str]:
        return []

    def answered(self, paid: Paid, messages: Sequence[Message]) -> None:
        pass

    def failed(self, error: BaseException, decision: Decision | None = None) -> None:
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
