"""A real HTTP server on this machine, for as long as a ``with`` block lasts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from optllm_router._errors import ConfigurationError
from optllm_router.simulation.faults import NO_FAULTS, Faults
from optllm_router.simulation.models import (
    EMBEDDING_MODEL,
    SIMULATED_MODELS,
    SimulatedModel,
    SimulatedResponder,
)
from optllm_router.simulation.replies import RecordedReplies, Reply, Responder
from optllm_router.simulation.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Self

    from optllm_router._types import Usage
    from optllm_router.simulation.app import Provider
    from optllm_router.simulation.serving import ServerThread


class SimulationServer:
    """An OpenAI-compatible endpoint of simulated models, or of recorded replies.

    Nothing behind it is a language model: it answers from :mod:`.models` (invented models that
    solve synthetic tasks) or repeats what was recorded. It listens on 127.0.0.1 only, accepts
    any key, and runs in a thread of its own::

        with SimulationServer() as server:
            client = openai.OpenAI(base_url=server.base_url, api_key="unused")

    One object may be started again after it has stopped; its counts go on.

    Args:
        models: the simulated models; all of :data:`SIMULATED_MODELS` by default.
        replies: ``{prompt: {model: reply}}``; serves these instead of simulated models.
        faults: what goes wrong, for every model or by model name.
        latency_seconds: added to each model's own latency, before the first byte.
        chunk_tokens: tokens in each event of a stream, >= 1.
        chunk_seconds: time between two events of a stream.
        port: where to listen; 0 lets the system choose.

    Raises:
        ConfigurationError: models as well as replies, two models of one name, faults of a model
            that is not there, or a negative latency.
    """

    def __init__(
        self,
        models: Sequence[SimulatedModel] | None = None,
        replies: Mapping[str, Mapping[str, Reply]] | None = None,
        faults: Faults | Mapping[str, Faults] = NO_FAULTS,
        latency_seconds: float = 0.0,
        *,
        chunk_tokens: int = 4,
        chunk_seconds: float = 0.0,
        port: int = 0,
    ) -> None:
        if models is not None and replies is not None:
            raise ConfigurationError("give models or replies, not both: a server answers from one")
        if not latency_seconds >= 0:
            raise ConfigurationError(f"latency_seconds must be >= 0, not {latency_seconds}")
        if chunk_tokens < 1 or not chunk_seconds >= 0:
            raise ConfigurationError(
                f"chunk_tokens must be >= 1 and chunk_seconds >= 0, "
                f"not {chunk_tokens} and {chunk_seconds}"
            )
        simulated = SIMULATED_MODELS if models is None else models
        self._responder: Responder = (
            SimulatedResponder(simulated) if replies is None else RecordedReplies(replies)
        )
        own = {model.name: model.latency_seconds for model in simulated}
        self._latency_seconds = {
            name: own.get(name, 0.0) * (replies is None) + latency_seconds
            for name in (*self._responder.names, EMBEDDING_MODEL)
        }
        self._faults = self._checked(faults)
        self._chunk_tokens = chunk_tokens
        self._chunk_seconds = chunk_seconds
        self._wanted_port = port
        self._tally = Tally()
        self._provider: Provider | None = None
        self._thread: ServerThread | None = None

    @property
    def base_url(self) -> str:
        """Where clients point to, with the ``/v1``; only while the server runs."""
        return f"http://127.0.0.1:{self._running.port}/v1"

    @property
    def names(self) -> tuple[str, ...]:
        """The models that can be asked."""
        return self._responder.names

    @property
    def requests(self) -> Counter[str]:
        """Calls received so far, by model: a snapshot, whatever became of them."""
        return self._tally.requests()

    @property
    def served(self) -> dict[str, tuple[Usage, ...]]:
        """The usage of every answer so far, by model: a snapshot of what would be billed.

        An answer counts as far as its model has made it: a whole one at once, also when the
        connection is then cut by a fault or the client; a stream event by event, until it ends or
        the client goes. Faults that come before any work do not count.
        """
        return self._tally.served()

    @property
    def faults(self) -> Faults | Mapping[str, Faults]:
        """What goes wrong; assign to change it at once, every model starting its plan anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults | Mapping[str, Faults]) -> None:
        self._faults = self._checked(faults)
        if self._provider is not None:
            self._provider.play(faults)

    def start(self) -> None:
        """Listen; returns when requests are accepted.

        Raises:
            ConfigurationError: it runs already.
            OSError: the port is taken.
        """
        # The web framework takes a while to import, and most importers never start a server.
        from optllm_router.simulation.app import Provider, make_app
        from optllm_router.simulation.serving import ServerThread

        if self._thread is not None:
            raise ConfigurationError(f"the server runs already, at {self.base_url}")
        provider = Provider(
            self._responder,
            self._tally,
            self._faults,
            self._latency_seconds,
            chunk_tokens=self._chunk_tokens,
            chunk_seconds=self._chunk_seconds,
        )
        self._thread = ServerThread(
            make_app(provider, self.names), self._wanted_port, provider.close
        )
        self._provider = provider

    def stop(self) -> None:
        """Stop listening and drop what is unfinished; returns when the thread has ended."""
        thread, self._thread, self._provider = self._running, None, None
        thread.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _checked(self, faults: Faults | Mapping[str, Faults]) -> Faults | Mapping[str, Faults]:
        unknown = (
            set() if isinstance(faults, Faults) else set(faults) - {*self.names, EMBEDDING_MODEL}
        )
        if unknown:
            raise ConfigurationError(
                f"faults for {sorted(unknown)}, but the models are {', '.join(self.names)}"
            )
        return faults

    @property
    def _running(self) -> ServerThread:
        if self._thread is None:
            raise ConfigurationError("the server does not run; use it as `with SimulationServer()`")
        return self._thread
