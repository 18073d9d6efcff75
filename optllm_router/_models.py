"""``client.models``: what a call's ``model`` may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from optllm_router._openai_errors import openai_errors
from optllm_router._session import Session

if TYPE_CHECKING:
    from openai.pagination import AsyncPage, SyncPage
    from openai.resources.models import (
        AsyncModelsWithRawResponse,
        AsyncModelsWithStreamingResponse,
        ModelsWithRawResponse,
        ModelsWithStreamingResponse,
    )
    from openai.types import Model


class Models:
    """``client.models``. Nothing is sent for them: further arguments of openai's do nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(
        self,
        *,
        extra_headers: Any = None,
        extra_query: Any = None,
        extra_body: Any = None,
        timeout: Any = None,
    ) -> SyncPage[Model]:
        """``auto`` and the configured models, as a page that can be iterated."""
        from openai.pagination import SyncPage
        from openai.types import Model

        return SyncPage[Model].construct(data=_models(self._session), object="list")

    def retrieve(
        self,
        model: str,
        *,
        extra_headers: Any = None,
        extra_query: Any = None,
        extra_body: Any = None,
        timeout: Any = None,
    ) -> Model:
        """One of them by name.

        Raises:
            UnknownModelError: (an ``openai.NotFoundError``) names the nearest.
        """
        return _model(self._session, model)

    @property
    def with_raw_response(self) -> ModelsWithRawResponse:
        """The same methods, returning openai's raw responses."""
        from optllm_router._wire import openai_over

        return openai_over(self._session).models.with_raw_response

    @property
    def with_streaming_response(self) -> ModelsWithStreamingResponse:
        """The same methods, returning responses whose body is read as it comes."""
        from optllm_router._wire import openai_over

        return openai_over(self._session).models.with_streaming_response


class AsyncModels:
    """As :class:`Models`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(
        self,
        *,
        extra_headers: Any = None,
        extra_query: Any = None,
        extra_body: Any = None,
        timeout: Any = None,
    ) -> ModelPage:
        """As :meth:`Models.list`, to ``await`` or to iterate with ``async for``."""
        return ModelPage(self._session)

    async def retrieve(
        self,
        model: str,
        *,
        extra_headers: Any = None,
        extra_query: Any = None,
        extra_body: Any = None,
        timeout: Any = None,
    ) -> Model:
        """As :meth:`Models.retrieve`."""
        return _model(self._session, model)

    @property
    def with_raw_response(self) -> AsyncModelsWithRawResponse:
        """As :attr:`Models.with_raw_response`."""
        from optllm_router._wire import async_openai_over

        return async_openai_over(self._session).models.with_raw_response

    @property
    def with_streaming_response(self) -> AsyncModelsWithStreamingResponse:
        """As :attr:`Models.with_streaming_response`."""
        from optllm_router._wire import async_openai_over

        return async_openai_over(self._session).models.with_streaming_response


class ModelPage:
    """What :meth:`AsyncModels.list` gives: awaited it is a page, iterated its models."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __await__(self) -> Generator[Any, None, AsyncPage[Model]]:
        return self._page().__await__()

    async def __aiter__(self) -> AsyncIterator[Model]:
        async for model in await self._page():
            yield model

    async def _page(self) -> AsyncPage[Model]:
        from openai.pagination import AsyncPage
        from openai.types import Model

        return AsyncPage[Model].construct(data=_models(self._session), object="list")


def _models(session: Session) -> list[Model]:
    from openai.types import Model

    return [Model(**model) for model in session.models()]


def _model(session: Session, name: str) -> Model:
    from openai.types import Model

    with openai_errors():
        return Model(**session.model(name))
