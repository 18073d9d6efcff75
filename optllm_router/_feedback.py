"""``client.feedback``: how good answers were."""

from __future__ import annotations

import asyncio
from typing import Any

from optllm_router._errors import InvalidRequestError, UnknownAnswerError
from optllm_router._nearest import quoted
from optllm_router._openai_errors import openai_errors
from optllm_router._session import Session
from optllm_router.router import checked_score

_PATIENCE_SECONDS, _PAUSE_SECONDS = 1.0, 0.1
"""Another process may have answered, and what it did is written a moment later."""


class Feedback:
    """``client.feedback``."""

    def __init__(self, session: Session) -> None:
        self._runtime = session.runtime
        self._scopes = session.options.scopes

    def create(self, id: str, *, score: float) -> None:
        """Tell how good an answer was; the next decision already knows.

        Args:
            id: the answer's ``id``.
            score: 0 (wrong) to 1 (right). A later score of the same answer replaces it.

        Raises:
            InvalidRequestError: (an ``openai.BadRequestError``) no such answer, or one that does
                not belong to the scopes of this client.
        """
        import tenacity

        with openai_errors():
            graded = _checked_id(id), checked_score(score), self._scopes
            for attempt in tenacity.Retrying(**_patience()):
                with attempt:
                    kept = self._runtime.keep_score(*graded).result()
            self._runtime.scores.learn(kept)


class AsyncFeedback:
    """``client.feedback``."""

    def __init__(self, session: Session) -> None:
        self._runtime = session.runtime
        self._scopes = session.options.scopes

    async def create(self, id: str, *, score: float) -> None:
        """As :meth:`Feedback.create`, without blocking the event loop."""
        import tenacity

        with openai_errors():
            graded = _checked_id(id), checked_score(score), self._scopes
            async for attempt in tenacity.AsyncRetrying(**_patience()):
                with attempt:
                    kept = await asyncio.wrap_future(self._runtime.keep_score(*graded))
            await asyncio.to_thread(self._runtime.scores.learn, kept)


def _patience() -> dict[str, Any]:
    """How often an answer that is not known yet is looked up again."""
    import tenacity

    return {
        "retry": tenacity.retry_if_exception_type(UnknownAnswerError),
        "wait": tenacity.wait_fixed(_PAUSE_SECONDS),
        "stop": tenacity.stop_after_delay(_PATIENCE_SECONDS),
        "reraise": True,
    }


def _checked_id(id: Any) -> str:
    """An id as a database can look it up."""
    if not isinstance(id, str) or not id.isprintable():
        raise InvalidRequestError(f"id {quoted(id)} must be that of an answer", param="id")
    return id
