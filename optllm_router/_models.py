"""``client.models``: what a call's ``model`` may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from optllm_router._openai_errors import openai_errors
from optllm_router._session import Session
from optllm_router.candidates import unknown_model

if TYPE_CHECKING:
    from openai.pagination import AsyncPage, SyncPage
    from openai.types import Model


class Models:
    """``client.models``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> SyncPage[Model]:
        """``auto`` and the configured models, as a page that can be iterated."""
        from openai.pagination import SyncPage
        from openai.types import Model

        return SyncPage[Model].construct(data=_models(self._session), object="list")

    def retrieve(self, model: str) -> Model:
        """One of them by name.

        Raises:
            UnknownModelError: (an ``openai.NotFoundError``) names the nearest.
        """
        with openai_errors():
            return _model(self._session, model)


class AsyncModels:
    """``client.models``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> ModelPage:
        """As :meth:`Models.list`, to ``await`` or to iterate with ``async for``."""
        return ModelPage(self._session)

    async def retrieve(self, model: str) -> Model:
        """As :meth:`Models.retrieve`."""
        with openai_errors():
            return _model(self._session, model)


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

    owners = {"auto": "optllm_router"}
    for candidate in session.settings.candidates:
        owners[candidate.name] = candidate.model.partition("/")[0]
    # Nobody says when a model was made, and OpenAI's type wants a number.
    return [
        Model(id=name, created=0, object="model", owned_by=owner) for name, owner in owners.items()
    ]


def _model(session: Session, name: str) -> Model:
    for model in _models(session):
        if model.id == name:
            return model
    raise unknown_model(name, [one.name for one in session.settings.candidates])
